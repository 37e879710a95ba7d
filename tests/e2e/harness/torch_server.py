"""The server as the supervisor starts it, with torch and real artifacts: a process, its sockets, and clients of it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.adapters.control import call

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILD = """
import json, sys, torch
from agent import architectures
torch.manual_seed(int(sys.argv[2]))
torch.save(architectures.build("cnn", 10).state_dict(), sys.argv[1])
"""
IMAGE = np.random.default_rng(0).random((1, 1, 64, 64), dtype=np.float32)
INFER = "/v2/models/kanji/infer"
DRAIN_S = 60.0


@dataclass
class Artifact:
    """A release: ``answer`` holds the logits that it gives for ``IMAGE``."""

    version: str
    path: str
    gate: str
    answer: bytes = b""

    @property
    def release(self) -> str:
        return f"release-{self.version}"


def build_artifact(folder: Path, seed: int) -> Artifact:
    checkpoint = folder / "cnn.pt"
    subprocess.run([sys.executable, "-c", BUILD, str(checkpoint), str(seed)], check=True)
    job = {
        "job": "build", "checkpoint": str(checkpoint), "model_type": "cnn", "method": "nf4", "blocksize": 64,
        "output_dir": str(folder / "out"), "sidecar": None, "source_sha256": None,
        "gate": {"dataset": None, "rows": 8, "seed": 0},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "agent.quantization"], input=json.dumps(job).encode(), capture_output=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    return Artifact(str(seed), result["artifact"], result["gate_file"])


@dataclass
class Server:
    """A running server and the supervisor's end of its sockets."""

    process: subprocess.Popen[bytes]
    listener: socket.socket
    rpc: socket.socket | None
    control_path: Path
    log: Path
    out: Path
    clients: list[http.client.HTTPConnection] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def grpc(self) -> str:
        """Address of the gRPC port."""
        assert self.rpc is not None
        return f"127.0.0.1:{self.rpc.getsockname()[1]}"

    def files(self) -> int:
        """Return how many file descriptors the process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def client(self) -> http.client.HTTPConnection:
        """Return a keep-alive connection; it is closed with the server."""
        self.clients.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30))
        return self.clients[-1]

    def control(self, method: str, route: str, **parameters: Any) -> Any:
        return call(self.control_path, method, route, {"parameters": parameters} if parameters else None, timeout_s=60)

    def serve(self, artifact: Artifact, *, activate: bool = True) -> Any:
        parameters = {"artifact": artifact.path, "version": artifact.version, "release": artifact.release}
        return self.control("POST", "/v2/repository/models/kanji/load", activate=activate, **parameters)

    def activate(self, artifact: Artifact) -> Any:
        return self.control("POST", "/v2/repository/models/kanji/activate", release=artifact.release)

    def unload(self, artifact: Artifact) -> None:
        self.control("POST", "/v2/repository/models/kanji/unload", release=artifact.release)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def running(folder: Path, drain_s: float = DRAIN_S) -> Iterator[Server]:
    """Yield a server without models; it answers gRPC too where the extra is installed."""
    listener = socket.create_server(("127.0.0.1", 0))
    rpc = socket.create_server(("127.0.0.1", 0)) if find_spec("grpc") else None
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(folder / "control.sock"))
    control.listen(64)
    sockets = {"--http-fd": listener, "--control-fd": control, **({"--grpc-fd": rpc} if rpc else {})}
    words = [word for name, each in sockets.items() for word in (name, str(each.fileno()))]
    out, log = folder / "out", folder / "log"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent.serving", *words, "--device", "cpu", "--drain-s", str(drain_s)],
            pass_fds=[each.fileno() for each in sockets.values()],
            stdout=stdout,
            stderr=stderr,
        )
    it = Server(process, listener, rpc, folder / "control.sock", log, out)
    try:
        yield it
    finally:
        for client in it.clients:
            client.close()
        process.kill()
        process.wait()
        for each in sockets.values():
            each.close()


def ask(client: http.client.HTTPConnection, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    """Return status, headers and body of one request on a connection that stays open."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request(method, path, body or None, named)
    reply = client.getresponse()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()


def infer(client: http.client.HTTPConnection) -> tuple[int, str, bytes]:
    """Ask for ``IMAGE`` in binary; return status, version and logits."""
    tensor: dict[str, Any] = {"name": "input", "shape": IMAGE.shape, "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": IMAGE.nbytes}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = header + IMAGE.tobytes()
    status, headers, answer = ask(client, "POST", INFER, body, Inference_Header_Content_Length=str(len(header)))
    if status != 200:
        return status, "", answer
    length = int(headers["inference-header-content-length"])
    return status, json.loads(answer[:length])["model_version"], answer[length:]


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_for(condition: Any, timeout_s: float = 20.0) -> None:
    """Ask again until ``condition`` holds: another process offers nothing to wait on."""
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at
        threading.Event().wait(0.01)
