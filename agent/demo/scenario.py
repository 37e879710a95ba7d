"""The demo's story, told with the parts that a fleet uses: a broker, signed manifests, commands and reports.

It starts the agent as its own process, exactly as systemd would, and speaks to it over MQTT and HTTP only. Every
number in the summary is measured in the run that prints it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3
from rich.console import Console

from agent.adapters.mqtt_operator import BrokerError, Messages
from agent.contract.topics import Topics
from agent.demo import files
from agent.demo.broker import BrokerStartError, broker, free_port
from agent.demo.load import InferenceClient, Load, top
from agent.demo.view import View
from agent.fleet import keys
from agent.fleet.client import FleetClient, NoAnswerError
from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Iterator

JsonObject = dict[str, Any]
MODEL, DEVICE, PREFIX = "kanji", "demo-box", "edge/v1"
START_S, PHASE_S = 60.0, 300.0
SHOWN, ASKED = 12, 120
MIN_AGREEMENT = 0.95


class DemoError(Exception):
    """The demo could not go on; the text says why and what to do."""


@dataclass(frozen=True)
class Stage:
    """Everything that runs while the story is told."""

    client: FleetClient
    topics: Topics
    broker_port: int
    page: str
    files_url: str
    root: Path
    key: Path
    view: View

    def status(self) -> JsonObject:
        """Return what the status page knows."""
        answer: JsonObject = json.loads(
            urllib3.request("GET", f"{self.page}status.json", timeout=10.0, retries=False).data
        )
        return answer


def play(*, method: str, keep: bool, as_json: bool, state_dir: Path | None) -> JsonObject:
    """Play the whole story and return its summary.

    Args:
        method: of the first deploy.
        keep: whether to leave everything running until Ctrl-C.
        as_json: print the summary as the last line of stdout, everything else on stderr.
        state_dir: where state is kept, a temporary directory if None.

    Raises:
        DemoError: when a part is missing or does not answer.
    """
    view = View(Console(stderr=as_json))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_in_order)
    try:
        with _stage(state_dir, view) as stage:
            summary = _tell(stage, method)
            view.note(f"status page: [link={stage.page}]{stage.page}[/link]")
            if as_json:
                sys.stdout.write(json.dumps(summary) + "\n")
                sys.stdout.flush()
            if keep:
                view.step("still running; Ctrl-C ends it")
                view.note(f"inference: {stage.status()['inference']}/models/{MODEL}")
                view.note(f"commands: nibblectl --port {stage.broker_port} --device {DEVICE} set-method {MODEL} fp4")
                _await_interrupt()
    except (files.DemoDataError, BrokerStartError, BrokerError, NoAnswerError, TimeoutError) as error:
        raise DemoError(str(error)) from None
    return summary


def _tell(stage: Stage, method: str) -> JsonObject:
    view, client = stage.view, stage.client
    view.step(f"deploy: signed manifest, method {method}")
    deployed = _expect(view.follow(client.follow(_deploy(stage, method), PHASE_S)))
    decision = deployed["decision"]
    view.decision(decision)
    # What a kept state directory serves already is not built again: the device reports what was measured then.
    measured = decision.get("measured") or client.read(stage.topics.reported, START_S)["models"][MODEL]
    base_url = stage.status()["inference"]
    images = files.images(stage.root, ASKED)
    view.step("classify held-out images over HTTP")
    view.note(_classify(base_url, images))
    other = "nf4-dq" if decision["method"] == "nf4" else "nf4"
    with Load(base_url, MODEL, images) as load:
        load.await_requests(ASKED)
        view.step(f"switch to {other} under load")
        switched = view.follow(client.follow(client.send("set_method", model=MODEL, method=other), PHASE_S))
        load.await_requests(ASKED)
        view.step("roll back under load")
        rolled = view.follow(client.follow(client.send("rollback", model=MODEL), PHASE_S))
        load.await_requests(ASKED)
    rolled_to = client.read(stage.topics.reported, START_S)["models"][MODEL]["method"]
    summary = summarise(measured, decision, load, stage.status()["health"], stage.root)
    summary["switched_to"] = switched["decision"]["method"] if switched["state"] == "succeeded" else None
    summary["rolled_back_to"] = rolled_to if rolled["state"] == "succeeded" else None
    summary["ok"] = _is_ok(summary, load, other)
    view.summary(rows(summary, load))
    return summary


def _deploy(stage: Stage, method: str) -> str:
    checkpoint = keys.describe_file(stage.root / files.CHECKPOINT, f"{stage.files_url}/{files.CHECKPOINT}")
    dataset = keys.describe_file(stage.root / files.EVALUATION, f"{stage.files_url}/{files.EVALUATION}")
    manifest = {
        "model": MODEL,
        "version": "1",
        "sequence": 1,
        "audience": {"devices": [DEVICE]},
        "files": [checkpoint],
        "model_type": "auto",
    }
    gate = {"dataset": {name: dataset[name] for name in ("url", "sha256", "size")}, "min_agreement": MIN_AGREEMENT}
    return stage.client.send("deploy", model=MODEL, method=method, manifest=keys.sign(manifest, stage.key), gate=gate)


def _expect(state: JsonObject) -> JsonObject:
    if state["state"] != "succeeded":
        error = state["error"] or {}
        raise DemoError(f"deploy {state['state']}: {error.get('code')}: {error.get('detail')}")
    return state


def _classify(base_url: str, images: files.Images) -> str:
    """Ask for a few images, spread over the set; return what was shown and what was answered."""
    client, shown = InferenceClient(base_url, MODEL), []
    for index in range(0, len(images.pixels), max(1, len(images.pixels) // SHOWN)):
        status, answer = client.infer(images.shape, images.pixels[index])
        if status != 200:  # noqa: PLR2004 - anything but OK
            raise DemoError(f"inference answered {status}: {answer.get('error')}")
        truth, told = images.classes[images.labels[index]], images.classes[top(answer)]
        shown.append(f"{truth}→{told}" if truth == told else f"[red]{truth}→{told}[/]")
    return "  ".join(shown)


def summarise(measured: JsonObject, decision: JsonObject, load: Load, health: JsonObject, root: Path) -> JsonObject:
    """Return what the demo measured.

    Args:
        measured: by the deploy, or the device's report of a release that was served before; that one does not tell the
            accuracy in source precision.
        decision: of the deploy.
        load: clients that asked.
        health: of the device, now.
        root: where the checkpoint is.
    """
    gate = measured.get("gate", measured)
    return {
        "ok": False,
        "model": MODEL,
        "scenario": decision["scenario"],
        "method": decision["method"],
        "agreement": gate["agreement"],
        "accuracy_source": gate.get("accuracy_source"),
        "accuracy": gate["accuracy"],
        "source_bytes": (root / files.CHECKPOINT).stat().st_size,
        "artifact_bytes": measured["artifact_bytes"],
        "resident_bytes": measured["resident_bytes"],
        "requests": load.requests,
        "failed_requests": load.failures,
        "switched_to": None,
        "rolled_back_to": None,
        "supervisor_rss_bytes": health["supervisor_rss_bytes"],
        "server_rss_bytes": health["server_rss_bytes"],
    }


def _is_ok(summary: JsonObject, load: Load, other: str) -> bool:
    return (
        summary["failed_requests"] == 0
        and summary["agreement"] >= MIN_AGREEMENT
        and summary["switched_to"] == other
        and summary["rolled_back_to"] == summary["method"]
        and load.methods == {summary["method"], other}
    )


def rows(summary: JsonObject, load: Load) -> Iterator[tuple[str, str]]:
    """Yield a line of the table that ends the demo for each figure."""
    source, artifact = summary["source_bytes"], summary["artifact_bytes"]
    yield "accuracy in source precision", _share(summary["accuracy_source"])
    yield f"accuracy with {summary['method']}", _share(summary["accuracy"])
    yield "agreement with the source", _share(summary["agreement"])
    yield "checkpoint file", size(source)
    yield "artifact file", f"{size(artifact)}, 1/{source / artifact:.1f} of it"
    yield "resident weights", size(summary["resident_bytes"])
    yield "requests under load", f"{load.requests}, {load.failures} failed"
    yield "right answers under load", _share(load.right / load.requests)
    yield "p50 at the client", f"{load.p50_ms():.1f} ms"
    yield "switched to, rolled back to", f"{summary['switched_to']}, {summary['rolled_back_to']}"
    yield "supervisor, server RSS", f"{size(summary['supervisor_rss_bytes'])}, {size(summary['server_rss_bytes'])}"


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


@contextlib.contextmanager
def _stage(state_dir: Path | None, view: View) -> Iterator[Stage]:
    """Start broker, file server and agent; stop them in the opposite order."""
    with contextlib.ExitStack() as stack:
        directory = state_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nibbled-")))
        directory.mkdir(parents=True, exist_ok=True)
        root = files.directory()
        name, port = stack.enter_context(broker(directory))
        view.step(f"broker: {name} on 127.0.0.1:{port}")
        files_url = stack.enter_context(files.file_server(root))
        view.step(f"file server: {files_url}")
        trusted = directory / "trust.d"
        trusted.mkdir(exist_ok=True)
        key = _key(directory, trusted)
        page_port = free_port()
        config = _write_config(directory, port, page_port)
        messages = stack.enter_context(Messages("127.0.0.1", port))
        topics = Topics(PREFIX, DEVICE)
        client = FleetClient(messages, topics)
        stack.enter_context(_agent(config, directory))
        view.step(f"agent: nibbled run --config {config}")
        _await_online(client, topics)
        yield Stage(client, topics, port, f"http://127.0.0.1:{page_port}/", files_url, root, key, view)


def _key(directory: Path, trusted: Path) -> Path:
    private, public = directory / "operator.key", directory / "operator.pub"
    if not private.exists():
        keys.generate(directory, "operator")
    (trusted / public.name).write_bytes(public.read_bytes())
    return private


def _write_config(directory: Path, broker_port: int, page_port: int) -> Path:
    config = directory / "nibbled.toml"
    config.write_text(
        f'device_id = "{DEVICE}"\n'
        f'state_dir = "{directory / "state"}"\n'
        f'[mqtt]\nport = {broker_port}\ntopic_prefix = "{PREFIX}"\n'
        "[serving]\nhttp_port = 0\n"
        f"[status]\nport = {page_port}\n"
        '[downloads]\nallowed_schemes = ["http"]\nallowed_hosts = ["127.0.0.1"]\n'
        f'[trust]\nkeys_dir = "{directory / "trust.d"}"\n'
        "[health]\ninterval_s = 1\n"
        "[deployment]\nsoak_s = 3\n",
        encoding="utf-8",
    )
    return config


@contextlib.contextmanager
def _agent(config: Path, directory: Path) -> Iterator[None]:
    log = directory / "agent.log"
    with log.open("wb") as output:
        child = subprocess.Popen([sys.executable, "-m", "agent", "run", "--config", str(config)], stderr=output)
        try:
            yield
        except NoAnswerError as error:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise NoAnswerError("\n".join([str(error), "the agent's last words:", *tail])) from None
        finally:
            child.terminate()
            try:
                child.wait(30.0)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _await_online(client: FleetClient, topics: Topics) -> None:
    deadline = time.monotonic() + START_S
    while client.read(topics.presence, START_S)["state"] != "online":
        if time.monotonic() > deadline:
            raise NoAnswerError(f"the agent was not online within {START_S:.0f} s")


def _await_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def _end_in_order(number: int, _frame: Any) -> None:
    """Leave through every ``with`` block, so that broker, agent and files are ended and removed."""
    sys.exit(128 + number)
