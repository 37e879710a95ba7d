"""A real server process without torch: sockets, limits and the event loop are real, the model is a small matrix."""

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters.control import call
from agent.adapters.sockets import listen_tcp, listen_unix

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]
INFER = "/v2/models/m/infer"
BODY = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]}
).encode()
START = """
import os, resource, sys, time
from pathlib import Path

wall, wall_ns = time.time, time.time_ns
if "STEPS" in os.environ:  # seconds by which the wall clock was moved so far
    steps = Path(os.environ["STEPS"])
    time.time = lambda: wall() + float(steps.read_text())
    time.time_ns = lambda: wall_ns() + int(1e9 * float(steps.read_text()))

hold = Path(os.environ["HOLD"]) if "HOLD" in os.environ else None  # a pass lasts while the file is there

from agent.serving.__main__ import main
from tests.fakes.serving import FakeLoader, FakeNetwork

class Slow(FakeNetwork):
    def run(self, arrays):
        time.sleep(float(sys.argv[1]))
        while hold is not None and hold.exists():
            time.sleep(0.01)
        return super().run(arrays)

if sys.argv[2] != "0":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]),) * 2)
main(sys.argv[3:], FakeLoader(networks={"r1": Slow(is_batchable=False)}))
"""


@dataclass
class InferenceServer:
    """The process, and the supervisor's end of its sockets."""

    process: subprocess.Popen[bytes]
    listener: socket.socket
    port: int
    control_path: Path
    log: Path
    clients: list[http.client.HTTPConnection] = field(default_factory=list)

    def client(self, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        """Return a keep-alive connection; it is closed with the server."""
        if tls is None:
            self.clients.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20))
        else:
            self.clients.append(http.client.HTTPSConnection("localhost", self.port, timeout=20, context=tls))
        return self.clients[-1]

    def connect(self) -> socket.socket:
        """Return a bare connection; the caller closes it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def status(self) -> dict[str, Any]:
        """Return what the supervisor is told."""
        told: dict[str, Any] = call(self.control_path, "GET", "/v2/control/status")
        return told

    def rss_bytes(self) -> int:
        """Return what the process holds."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """Return what the process has computed so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def files(self) -> int:
        """Return how many file descriptors it has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def serving(
    folder: Path,
    *options: str,
    files: int = 0,
    pass_s: float = 0.0,
    log_file: Path | None = None,
    steps: Path | None = None,
    hold: Path | None = None,
) -> Iterator[InferenceServer]:
    """Yield a server that answers for the model ``m``; a pass takes ``pass_s``, and lasts while ``hold`` exists.

    With ``files`` it may open so many, and no more. It logs to ``log`` in ``folder``, or to ``log_file``. Its wall
    clock is ahead by the seconds that stand in ``steps``.
    """
    log_file = log_file or folder / "log"
    path = folder / "control.sock"
    listener, control = listen_tcp("127.0.0.1", 0), listen_unix(path)
    fds = (listener.fileno(), control.fileno())
    arguments = ["--http-fd", str(fds[0]), "--control-fd", str(fds[1]), "--drain-s", "2", *options]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(pass_s), str(files), *arguments],
            pass_fds=fds,
            stderr=log,
            cwd=ROOT,
            env={
                **os.environ,
                **({"STEPS": str(steps)} if steps else {}),
                **({"HOLD": str(hold)} if hold else {}),
            },
        )
    it = InferenceServer(process, listener, int(listener.getsockname()[1]), path, log_file)
    try:
        parameters = {"artifact": "/store/r1", "version": "1", "release": "r1", "activate": True}
        call(path, "POST", "/v2/repository/models/m/load", {"parameters": parameters}, timeout_s=60)
        yield it
    finally:
        for client in it.clients:
            client.close()
        process.kill()
        process.wait()
        listener.close()
        control.close()


def ask(
    client: http.client.HTTPConnection, method: str = "POST", path: str = INFER, body: bytes = BODY, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one request on a connection that stays open."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request(method, path, body if method == "POST" else None, named)
    reply = client.getresponse()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Ask again until ``condition`` holds: another process offers nothing to wait on."""
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at
        threading.Event().wait(0.02)
