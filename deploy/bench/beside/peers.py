"""The servers as processes: started together, and all but the one whose turn it is held by SIGSTOP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
PEERS = ROOT / ".venv-peers"
"""Where the peers are installed; ``make bench-serving`` makes it."""
START_S = 180.0
FIRST_PORT = 18100


@dataclass(frozen=True)
class Peer:
    """One server.

    Attributes:
        name: as the table calls it.
        port: where it answers, on loopback.
        forms: the forms of a request that it understands, see ``load``.
        path: where a request goes.
        ready: a path that answers 200 once it does.
    """

    name: str
    port: int
    forms: tuple[str, ...]
    path: str = "/v2/models/cnn/infer"
    ready: str = "/v2/models/cnn/ready"


@dataclass
class Running:
    """A started server and everything that it started."""

    peer: Peer
    process: subprocess.Popen[bytes]
    log: Path

    def hold(self) -> None:
        """Keep it from using the processor."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        """End it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class PeerError(RuntimeError):
    """A server did not start; the end of its log says why."""


def commands(folder: Path) -> dict[Peer, list[str]]:
    """Return every peer and how it is started; files that it reads are written to ``folder``."""
    ports = iter(range(FIRST_PORT, FIRST_PORT + 40))
    python = str(PEERS / "bin" / "python")
    here = "deploy.bench.beside"

    def taken() -> int:
        return next(ports)

    asgi = Peer("bare ASGI, no batching", taken(), ("binary", "json", "noise"), ready="/")
    lit = Peer("LitServe", taken(), ("lit",), "/predict", "/health")
    lit8 = Peer("LitServe, 8 joined", taken(), ("lit",), "/predict", "/health")
    ml0, ml1 = (Peer(name, taken(), ("json",)) for name in ("MLServer, 0 workers", "MLServer, 1 worker (default)"))
    triton = Peer("Triton with Python", FIRST_PORT + 40, ("binary", "json"))  # takes the two ports behind it too
    return {
        asgi: [python, "-m", f"{here}.bare_asgi", str(asgi.port)],
        lit: [python, "-m", f"{here}.lit", str(lit.port), "1"],
        lit8: [python, "-m", f"{here}.lit", str(lit8.port), "8"],
        ml0: [str(PEERS / "bin" / "mlserver"), "start", str(_mlserver(folder / "ml0", ml0.port, taken(), taken(), 0))],
        ml1: [str(PEERS / "bin" / "mlserver"), "start", str(_mlserver(folder / "ml1", ml1.port, taken(), taken(), 1))],
        triton: [python, "-m", f"{here}.triton", str(triton.port)],
    }


def _mlserver(folder: Path, port: int, grpc_port: int, metrics_port: int, workers: int) -> Path:
    (folder / "cnn").mkdir(parents=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "parallel_workers": workers,
    }
    model = {
        "name": "cnn",
        "implementation": "deploy.bench.beside.mlserver_runtime.Runtime",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}],
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "cnn" / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    return folder


@contextlib.contextmanager
def started(peer: Peer, command: list[str], folder: Path) -> Iterator[Running]:
    """Start a server, wait until it answers, and end it afterwards.

    Raises:
        PeerError: it ended, or did not answer in time.
    """
    log = folder / f"{peer.port}.log"
    libpython = subprocess.run(  # Triton's stub looks for the interpreter's library
        [command[0].replace("mlserver", "python"), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": libpython}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    running = Running(peer, process, log)
    try:
        _await_ready(running)
        yield running
    finally:
        running.end()


def _await_ready(running: Running) -> None:
    deadline = time.monotonic() + START_S
    url = f"http://127.0.0.1:{running.peer.port}{running.peer.ready}"
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError as error:
            if getattr(error, "code", None) is not None and running.peer.ready == "/":
                return  # it answers, if only with an error
        time.sleep(0.2)
    raise PeerError(f"{running.peer.name}: {running.log.read_text(errors='replace')[-2000:]}")
