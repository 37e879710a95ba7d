"""Ten minutes at seventy percent of what the server can do: what its memory, files, threads and times do meanwhile.

    make soak

The demo's model by nf4 in a real server process. Eight connections that ask as fast as they are answered tell what it
can do; then requests come at seven tenths of that, in JSON and binary in turn, whatever becomes of those before. Before
and after, the model makes way for the same one, which lets go of the blocks that its heap keeps for the next pass, and
is asked once for every size of a batch: what is left can be compared.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.deployment.models import Release, Served
from agent.planning.memory import SERVED_ROWS
from agent.serving.memory import KEPT_BYTES, PAGE_BYTES
from deploy.bench import page
from deploy.bench.asking import Asker, Reply, milliseconds, request

if TYPE_CHECKING:
    from collections.abc import Iterator

KANJI = Path(__file__).parents[1] / "demo" / "kanji" / "checkpoint_best.pt"
MODEL, METHOD, SHARE = "kanji", "nf4", 0.7
CONNECTIONS, LEARN_S = 64, 5.0
MOST_LEFT_BYTES = 4 << 20
"""Over all minutes: pages are no exact measure, and one that holds a single lasting object stays."""


@dataclass(frozen=True)
class Minute:
    """What a minute was like."""

    replies: list[Reply]
    rss_bytes: int
    files: int
    threads: int


def payloads(rows: int = 1) -> tuple[bytes, bytes]:
    """Return one request in JSON and one in binary form."""
    image = np.random.default_rng(0).random((rows, 1, 64, 64), dtype=np.float32)
    tensor = {"name": "input", "shape": list(image.shape), "datatype": "FP32"}
    plain = json.dumps({"inputs": [{**tensor, "data": image.ravel().tolist()}]}).encode()
    inputs = [{**tensor, "parameters": {"binary_data_size": image.nbytes}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    path, length = f"/v2/models/{MODEL}/infer", f"Inference-Header-Content-Length: {len(head)}\r\n"
    return request(path, plain), request(path, head + image.tobytes(), length)


async def ask_every_size(port: int) -> None:
    """Ask with every number of rows that a batch can have: what is made for a size is made once."""
    asker = await Asker.connect(port)
    for rows in range(1, SERVED_ROWS + 1):
        for payload in payloads(rows):
            await asker.ask(payload)
    asker.close()


async def capacity(port: int) -> float:
    """Return the requests a second of eight connections that ask as fast as they are answered."""
    answered, ends_at = 0, time.perf_counter() + LEARN_S

    async def hammer() -> None:
        nonlocal answered
        asker = await Asker.connect(port)
        while time.perf_counter() < ends_at:
            for payload in payloads():
                await asker.ask(payload)
                answered += 1
        asker.close()

    await asyncio.gather(*(hammer() for _ in range(8)))
    return answered / LEARN_S


async def minutes(port: int, pid: int, rate: float, count: int, minute_s: float) -> list[Minute]:
    """Ask at ``rate`` and look at the process after every minute."""
    idle: asyncio.Queue[Asker] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await Asker.connect(port))
    forms = payloads()
    loop = asyncio.get_running_loop()
    began, sent, found = loop.time(), 0, []
    for number in range(1, count + 1):
        replies: list[Reply] = []
        tasks: set[asyncio.Task[None]] = set()

        async def one(payload: bytes, replies: list[Reply] = replies) -> None:
            asker = await idle.get()
            replies.append(await asker.ask(payload))
            idle.put_nowait(asker)

        while loop.time() < began + number * minute_s:
            task = asyncio.create_task(one(forms[sent % 2]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
            await asyncio.sleep(max(0.0, began + sent / rate - loop.time()))
        await asyncio.gather(*tasks)
        found.append(look(pid, replies))
    while not idle.empty():
        idle.get_nowait().close()
    return found


def look(pid: int, replies: list[Reply]) -> Minute:
    """Return what the process holds after a minute with these replies."""
    rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    files, threads = (sum(1 for _ in Path(f"/proc/{pid}/{each}").iterdir()) for each in ("fd", "task"))
    return Minute(replies, rss, files, threads)


def told(found: list[Minute], rate: float, before: Minute, after: Minute) -> tuple[str, bool]:
    """Return the table with its verdicts, and whether all of them hold."""
    left, most = after.rss_bytes - before.rss_bytes, max(minute.rss_bytes for minute in found) - before.rss_bytes
    bad = sum(reply.status != 200 for minute in found for reply in minute.replies)  # noqa: PLR2004 - HTTP's own number
    verdicts = {
        f"all of {sum(len(minute.replies) for minute in found):,} requests were answered with 200": not bad,
        f"{left / 1e6:+.1f} MB of resident memory in the end, freed blocks let go": left <= MOST_LEFT_BYTES,
        f"at most {most / 1e6:+.1f} MB meanwhile, of two heaps that keep 64 MiB each": most <= 2 * KEPT_BYTES,
        "no file and no thread more than after the first minute": all(
            minute.files <= found[0].files and minute.threads <= found[0].threads for minute in found
        ),
    }
    lines = [f"* {'met' if holds else 'missed'}: {what}" for what, holds in verdicts.items()]
    head = ["minute", "requests", "p50 ms", "p99 ms", "longest ms", "resident MB", "files", "threads"]
    table = page.markdown(head, list(_rows(found)))
    memory = " MB before and ".join(f"{each.rss_bytes / 1e6:.1f}" for each in (before, after))
    return "\n".join([f"{rate:.0f} requests a second; {memory} MB after them.", "", *lines, "", table]), all(
        verdicts.values()
    )


def _rows(found: list[Minute]) -> Iterator[list[str]]:
    for number, minute in enumerate(found, 1):
        times = milliseconds([reply.seconds for reply in minute.replies])
        process = [f"{minute.rss_bytes / 1e6:.1f}", str(minute.files), str(minute.threads)]
        yield [str(number), f"{len(minute.replies):,}", *times, *process]


@click.command()
@click.option("--minutes", "count", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--minute-s", type=click.FloatRange(min=1), default=60.0, hidden=True)
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
def main(count: int, minute_s: float, path: Path) -> None:
    """Keep a server busy and write what it did into the page at OUTPUT; status 1 when a verdict does not hold."""
    with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as name:
        folder = Path(name)
        options = ("--model-path", str(KANJI), "--method", METHOD, "--output", str(folder / "out"))
        subprocess.run([sys.executable, "-m", "agent", "quantize", *options], check=True, stdout=subprocess.DEVNULL)
        packed = str(next((folder / "out").glob("cnn*.safetensors")))
        release = Release("soak", "1", "0" * 64, "cnn", METHOD, packed, "", 0, 0, 1.0, None, None, None)
        http, control = listen_tcp("127.0.0.1", 0), listen_unix(folder / "control.sock")
        with http, control:
            server = ServerProcess(http, control, folder / "control.sock", options=("--device", "cpu"), silence_s=1e6)
            try:
                server.restore({MODEL: Served(MODEL, release)})
                port = http.getsockname()[1]
                assert server.pid is not None  # noqa: S101 - it has just answered
                rate = SHARE * asyncio.run(capacity(port))

                def renewed(name: str) -> Minute:
                    server.restore({MODEL: Served(MODEL, replace(release, id=name))})
                    asyncio.run(ask_every_size(port))
                    return look(server.pid or 0, [])

                before = renewed("before")
                found = asyncio.run(minutes(port, server.pid, rate, count, minute_s))
                after = renewed("after")
            finally:
                server.stop(1.0)
    text, holds = told(found, rate, before, after)
    page.publish("soak", text, path)
    raise SystemExit(not holds)


if __name__ == "__main__":
    main()
