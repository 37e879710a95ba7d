"""A device of its own for a benchmark: broker, files, agent as it is configured by default, and the demo's model."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import urllib3

from agent.adapters.mqtt_operator import Messages
from agent.contract.topics import Topics
from agent.demo import files
from agent.demo.broker import broker, free_port
from agent.fleet import keys
from agent.fleet.client import FleetClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JsonObject = dict[str, Any]
MODEL, METHOD, DEVICE = "kanji", "nf4", "box"
ANSWER_S, OPERATION_S, STOP_S = 120.0, 300.0, 60.0
OK = 200
REQUEST = json.dumps(
    {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 1, 64, 64], "data": [0.0] * 4096}]}
).encode()


@dataclass(frozen=True)
class Box:
    """One device.

    Attributes:
        folder: its own: configuration, state, log.
        inference, page: base URLs.
    """

    folder: Path
    inference: str
    page: str

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the agent while the block runs, with a log of its own."""
        with (self.folder / "agent.log").open("wb") as log:
            command = [sys.executable, "-m", "agent", "run", "--config", str(self.folder / "nibbled.toml")]
            child = subprocess.Popen(command, stderr=log)
        try:
            yield child
        finally:
            child.terminate()
            child.wait(STOP_S)

    def await_answer(self) -> None:
        """Ask the model until it answers; who asks while the server starts is kept waiting by its socket.

        Raises:
            TimeoutError: no answer came; with the log's last lines.
        """
        deadline = time.monotonic() + ANSWER_S
        url = f"{self.inference}/v2/models/{MODEL}/infer"
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("POST", url, body=REQUEST, retries=False, timeout=ANSWER_S).status == OK:
                    return
            time.sleep(0.01)
        tail = (self.folder / "agent.log").read_text(encoding="utf-8").splitlines()[-5:]
        raise TimeoutError("\n".join([f"no answer within {ANSWER_S:g} s; the agent's last words:", *tail]))

    def logged(self) -> Iterator[tuple[float, JsonObject]]:
        """Yield what this run has logged, each line with its time in seconds since 1970."""
        for line in (self.folder / "agent.log").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            yield datetime.fromisoformat(entry["timestamp"].replace("Z", "+00:00")).timestamp(), entry


@contextlib.contextmanager
def box(folder: Path) -> Iterator[Box]:
    """Yield a device that has deployed the demo's model and is stopped; its broker runs while the block runs."""
    with contextlib.ExitStack() as stack:
        _name, broker_port = stack.enter_context(broker(folder))
        root = files.directory()
        files_url = stack.enter_context(files.file_server(root))
        keys.generate(folder, "operator")
        trusted = folder / "trust.d"
        trusted.mkdir()
        (folder / "operator.pub").rename(trusted / "operator.pub")
        http_port, page_port = free_port(), free_port()
        (folder / "nibbled.toml").write_text(
            f'device_id = "{DEVICE}"\n'
            f'state_dir = "{folder / "state"}"\n'
            f"[mqtt]\nport = {broker_port}\n"
            f'[serving]\nhttp_port = {http_port}\ndevice = "cpu"\n'
            f"[status]\nport = {page_port}\n"
            '[downloads]\nallowed_schemes = ["http"]\nallowed_hosts = ["127.0.0.1"]\n'
            f'[trust]\nkeys_dir = "{trusted}"\n',
            encoding="utf-8",
        )
        made = Box(folder, f"http://127.0.0.1:{http_port}", f"http://127.0.0.1:{page_port}")
        messages = stack.enter_context(Messages("127.0.0.1", broker_port))
        client = FleetClient(messages, Topics("edge/v1", DEVICE))
        with made.running():
            client.read(Topics("edge/v1", DEVICE).presence, ANSWER_S)
            _deploy(client, root, files_url, folder / "operator.key")
        yield made


def _deploy(client: FleetClient, root: Path, files_url: str, key: Path) -> None:
    described = {
        name: keys.describe_file(root / name, f"{files_url}/{name}") for name in (files.CHECKPOINT, files.EVALUATION)
    }
    manifest = {
        "model": MODEL,
        "version": "1",
        "sequence": 1,
        "audience": {"devices": [DEVICE]},
        "files": [described[files.CHECKPOINT]],
    }
    gate = {"dataset": {name: described[files.EVALUATION][name] for name in ("url", "sha256", "size")}, "soak_s": 1}
    operation = client.send("deploy", model=MODEL, method=METHOD, manifest=keys.sign(manifest, key), gate=gate)
    *_, last = client.follow(operation, OPERATION_S)
    if last["state"] != "succeeded":
        raise RuntimeError(f"the deploy ended as {last['state']}: {last['error']}")
