"""nibbled's own server as the supervisor keeps it, with the bench's module as a user's plug-in."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.deployment.models import Release, Served
from agent.deployment.runner import Runner
from deploy.bench.beside.load import pictures
from deploy.bench.beside.network import build
from deploy.bench.beside.plugin import NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = "cnn"
NEVER_S = 1e6
_DISTRIBUTION = "nibbled_bench-0.dist-info"


def announce(folder: Path) -> None:
    """Make the plug-in known to the processes started from here on, as an installed package would."""
    info = folder / _DISTRIBUTION
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nibbled-bench\nVersion: 0\n", encoding="utf-8")
    entry = f"[nibbled.architectures]\n{NAME} = deploy.bench.beside.plugin:MODEL_TYPE\n"
    (info / "entry_points.txt").write_text(entry, encoding="utf-8")
    root = Path(__file__).parents[3]
    os.environ["PYTHONPATH"] = os.pathsep.join((str(root), str(folder)))


def artifact(folder: Path, method: str, seed: int = 0) -> Path:
    """Quantize the module's weights with ``method`` and return the file."""
    checkpoint = folder / f"cnn-{seed}.pt"
    torch.save(build(seed).state_dict(), checkpoint)
    out = folder / f"{method}-{seed}"
    options = ("--model-path", str(checkpoint), "--model-type", NAME, "--method", method, "--output", str(out))
    subprocess.run(
        [sys.executable, "-m", "agent", "quantize", *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return next(out.glob("*.safetensors"))


def release(name: str, artifact_file: Path, method: str) -> Release:
    """Return a release that nobody deployed."""
    return Release(
        name, name, "0" * 64, NAME, method, str(artifact_file), "", 0, 0, 1.0, None, None, None
    )  # fmt: skip


def first_score(module: torch.nn.Module) -> float:
    """Return the first score that ``module`` gives the row that ``load`` sends."""
    with torch.inference_mode():
        return float(module(torch.from_numpy(pictures(1)))[0, 0])


class Ours:
    """A running server; when it dies it is brought back with what it served, as the supervisor does.

    Everything is done on one thread that stays: a child ends with the thread that started it. Silence is never held
    against the server: who is measured beside others is held most of the time.
    """

    def __init__(self, folder: Path) -> None:
        self._control = folder / "control.sock"
        self._http, self._unix = listen_tcp("127.0.0.1", 0), listen_unix(self._control)
        self.port: int = self._http.getsockname()[1]
        self._served: dict[str, Served] = {}
        self._runner = Runner()
        self._runner.start()
        self.server = ServerProcess(
            self._http,
            self._unix,
            self._control,
            options=("--device", "cpu", "--threads", "1"),
            silence_s=NEVER_S,
            on_exit=lambda _detail: self._runner.submit(self._restore),
        )

    def serve(self, wanted: Release) -> None:
        """Answer with a release."""
        self._served = {MODEL: Served(MODEL, wanted, None)}
        self._do(self._restore)

    def replace(self, wanted: Release) -> None:
        """Load a release beside the one that answers, switch, and let the other go, as a deploy does."""
        self._do(lambda: self.server.load(MODEL, wanted))
        self._do(lambda: self.server.activate(MODEL, wanted))
        self.serve(wanted)

    def _restore(self) -> None:
        self.server.restore(self._served)

    def _do(self, work: Callable[[], object]) -> None:
        done: Future[None] = Future()

        def task() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
                done.set_exception(error)
            else:
                done.set_result(None)

        self._runner.submit(task)
        done.result()

    def close(self) -> None:
        """End it."""
        self.server.stop(drain_s=1.0)
        self._runner.stop(timeout_s=10.0)
        self._http.close()
        self._unix.close()


@contextlib.contextmanager
def serving(folder: Path, wanted: Release) -> Iterator[Ours]:
    """Run the server with one release."""
    ours = Ours(folder)
    try:
        ours.serve(wanted)
        yield ours
    finally:
        ours.close()
