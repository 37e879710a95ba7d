"""How long the server keeps others waiting while it loads a large model: the longest silence of its event loop.

    make bench-stalls

One client asks for health again and again on a connection of its own, as fast as it is answered, first while nothing
else happens, then while a transformer of 22 blocks is loaded beside what is there. What it waits for longest is how
long the event loop answered nobody. It is measured for two forms of the weights, since they are read in different ways.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from agent import architectures
from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.deployment.models import Release
from agent.planning.methods import DEFAULT_BLOCKSIZE, METHODS, file_tag
from agent.quantization import artifact, quantizer, sidecar
from agent.quantization.assignment import Scheme
from agent.quantization.checkpoint import open_checkpoint
from deploy.bench import page, weights
from deploy.bench.asking import Asker, milliseconds, request

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN = ("nf4", "int8", "fp16")
QUIET_S = 5.0
MODEL = "large"
HEALTH = request("/v2/health/live")


def make(folder: Path, method: str, checkpoint: Path) -> Release:
    """Write the artifact and return a release of it that nobody deployed."""
    opened = open_checkpoint(checkpoint)
    found = architectures.recognise(opened.shapes, weights.Form().options, "vit")
    scheme, path = Scheme.uniform(METHODS[method]), folder / artifact.file_name("vit", file_tag(method))
    quantizer.quantize(opened, found, path, scheme, blocksize=DEFAULT_BLOCKSIZE, progress=lambda _done, _total: None)
    sidecar.write(path, sidecar.describe(found, scheme, DEFAULT_BLOCKSIZE))
    size = path.stat().st_size
    return Release(method, "1", "0" * 64, "vit", method, str(path), "", size, size, 1.0, None, None, None)


def watched(port: int, work: Callable[[], object]) -> tuple[list[float], float]:
    """Do work and ask for health meanwhile; return what each answer took, and the work, in seconds."""
    taken: list[float] = []
    done = threading.Event()

    async def ask() -> None:
        asker = await Asker.connect(port)
        while not done.is_set():
            taken.append((await asker.ask(HEALTH)).seconds)
        asker.close()

    asking = threading.Thread(target=lambda: asyncio.run(ask()))
    asking.start()
    began = time.perf_counter()
    try:
        work()
    finally:
        took = time.perf_counter() - began
        done.set()
        asking.join()
    return taken, took


@click.command()
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
def main(path: Path) -> None:
    """Load the model in each form, and write what others waited into the page at OUTPUT."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as name:
        folder = Path(name)
        checkpoint = folder / "source.pt"
        torch.manual_seed(0)
        form = weights.Form()
        torch.save(architectures.build("vit", form.classes, **form.options).state_dict(), checkpoint)
        releases = {method: make(folder, method, checkpoint) for method in SHOWN}
        http, control = listen_tcp("127.0.0.1", 0), listen_unix(folder / "control.sock")
        with http, control:
            server = ServerProcess(
                http, control, folder / "control.sock", options=("--device", "cpu", "--threads", "1")
            )
            try:
                server.restore({})
                while server.status()["memory"]["base_rss_bytes"] is None:  # torch is still being imported
                    time.sleep(0.1)
                port = http.getsockname()[1]
                quiet, took = watched(port, lambda: time.sleep(QUIET_S))
                rows.append(["nothing", "-", f"{took:.1f}", f"{len(quiet):,}", *milliseconds(quiet)])
                for method, release in releases.items():
                    taken, took = watched(port, lambda release=release: server.load(MODEL, release))  # type: ignore[misc]
                    size = f"{release.artifact_bytes / 1e6:.0f}"
                    rows.append([f"a load, {method}", size, f"{took:.1f}", f"{len(taken):,}", *milliseconds(taken)])
                    server.undeploy(MODEL)
            finally:
                server.stop(1.0)
    head = ["meanwhile", "artifact, MB", "seconds", "answers", "p50 ms", "p99 ms", "longest ms"]
    page.publish("bench-stalls", page.markdown(head, rows), path)


if __name__ == "__main__":
    main()
