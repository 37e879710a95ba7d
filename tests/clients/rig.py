"""A running server to point clients at: a process of its own, with inherited sockets, as the supervisor starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters.control import ControlError, call
from agent.adapters.sockets import listen_tcp, listen_unix

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
FAKES = "tests.fakes.grpc_server"


@dataclass
class Running:
    """A server and the supervisor's end of its sockets."""

    folder: Path
    module: str
    options: tuple[str, ...]
    http_socket: socket.socket
    grpc_socket: socket.socket
    control_socket: socket.socket
    process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_socket.getsockname()[1]}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_socket.getsockname()[1]}"

    def start(self) -> None:
        """Start a server, and return when it can be spoken to."""
        numbered = {"--http-fd": self.http_socket, "--grpc-fd": self.grpc_socket, "--control-fd": self.control_socket}
        words = [word for option, each in numbered.items() for word in (option, str(each.fileno()))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *words, *self.options],
                pass_fds=[each.fileno() for each in numbered.values()],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        until(self._answers)

    def release(self) -> None:
        """Let the fake server compute a row that it holds."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def stop(self) -> int:
        """End the server as the supervisor does; return its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.ended()

    def serve(self, model: str, artifact: Path | None = None, version: str = "1") -> None:
        """Load and activate a model; of the fake server's, an artifact is only a name."""
        path = str(artifact or self.folder / model)
        parameters = {"artifact": path, "version": version, "release": f"{model}-{version}", "activate": True}
        self.control("POST", f"/v2/repository/models/{model}/load", {"parameters": parameters})

    def control(self, method: str, route: str, body: dict[str, Any] | None = None) -> Any:
        return call(self.folder / "control.sock", method, route, body, timeout_s=60)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.log().splitlines() if line.startswith("{")]

    def ended(self) -> int:
        """Return the exit status once there is one."""
        assert self.process is not None
        status = self.process.wait(30)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return status

    def _answers(self) -> bool:
        try:
            self.control("GET", "/v2/control/status")
        except ControlError:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            return False
        return True


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Ask again until ``condition`` holds: another process offers nothing to wait on."""
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at
        threading.Event().wait(0.02)


@contextmanager
def running(folder: Path, *options: str, module: str = FAKES) -> Iterator[Running]:
    """Yield a running server without models; it ends with the block."""
    http, grpc, control = listen_tcp("127.0.0.1", 0), listen_tcp("127.0.0.1", 0), listen_unix(folder / "control.sock")
    it = Running(folder, module, options, http, grpc, control)
    try:
        it.start()
        yield it
    finally:
        if it.process is not None:
            it.process.kill()
            it.ended()
        for listener in (http, grpc, control):
            listener.close()
