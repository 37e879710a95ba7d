"""Ten times what the server can do: how soon it refuses, and who is answered meanwhile.

    make bench-overload

A real server process with a model that takes 10 ms a request and joins none, so 100 requests a second are all it can
do. A thousand a second come, whatever becomes of those before, each with a timeout of half a second; the queue takes
32. Health and metrics are asked for twenty times a second. Times are those of the clients, which share the cores.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.bench import page
from deploy.bench.asking import Asker, Reply, milliseconds, percentile, request
from tests.e2e.harness.inference_server import BODY, INFER, serving

if TYPE_CHECKING:
    from collections.abc import Sequence

PASS_S, OVER, QUEUE, TIMEOUT_S = 0.01, 10, 32, 0.5
CONNECTIONS = 200
PROBES = {"health": "/v2/health/ready", "metrics": "/metrics"}
SHED_S, LOOK_S = 0.010, 0.050
"""What a refusal, and an answer of health and metrics, may take."""


async def flood(port: int, seconds: float) -> tuple[list[Reply], dict[str, list[Reply]]]:
    """Send requests at their times; return their replies, and those of the probes."""
    timed = {**json.loads(BODY), "parameters": {"timeout": int(TIMEOUT_S * 1e6)}}
    payload = request(INFER, json.dumps(timed).encode())
    idle: asyncio.Queue[Asker] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await Asker.connect(port))
    replies: list[Reply] = []
    probes: dict[str, list[Reply]] = {name: [] for name in PROBES}
    gc.disable()  # looking through all replies so far takes this process longer than a refusal may take the server
    loop = asyncio.get_running_loop()
    began, gap = loop.time(), PASS_S / OVER

    async def one() -> None:
        asker = await idle.get()
        replies.append(await asker.ask(payload))
        idle.put_nowait(asker)

    async def probe(name: str) -> None:
        asker = await Asker.connect(port)
        while loop.time() - began < seconds:
            probes[name].append(await asker.ask(request(PROBES[name])))
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(probe(name)) for name in PROBES]
    for number in range(int(seconds / gap)):
        await asyncio.sleep(max(0.0, began + number * gap - loop.time()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return replies, probes


def told(replies: Sequence[Reply], probes: dict[str, list[Reply]], *, recovered: bool) -> tuple[str, bool]:
    """Return the table with its verdicts, and whether all of them hold."""
    by = {
        "answered": [each for each in replies if each.status == 200],  # noqa: PLR2004 - HTTP's own numbers
        "refused, the queue is full": [each for each in replies if each.status == 503 and b"is full" in each.body],  # noqa: PLR2004 - as above
        "refused, it waited too long": [each for each in replies if each.status == 503 and b"timeout" in each.body],  # noqa: PLR2004 - as above
    }
    rows = {**by, **probes}
    shed = [each.seconds for each in by["refused, the queue is full"]]
    looks = [each.seconds for each in (*probes["health"], *probes["metrics"])]
    shed_s, look_s = percentile(shed, 99), percentile(looks, 99)
    longest_s = max(each.seconds for each in by["answered"])
    verdicts = {
        f"every reply is an answer or a refusal, {len(replies):,} of them": sum(map(len, by.values())) == len(replies),
        f"refused within {SHED_S * 1e3:.0f} ms at p99: {shed_s * 1e3:.1f} ms": shed_s < SHED_S,
        f"health and metrics within {LOOK_S * 1e3:.0f} ms at p99: {look_s * 1e3:.1f} ms": look_s < LOOK_S,
        "what is answered came within its timeout and two passes": longest_s < TIMEOUT_S + 2 * PASS_S,
        "afterwards it answers as before": recovered,
    }
    lines = [f"* {'met' if holds else 'missed'}: {what}" for what, holds in verdicts.items()]
    table = page.markdown(
        ["what", "number", "p50 ms", "p99 ms", "longest ms"],
        [[name, f"{len(found):,}", *milliseconds([each.seconds for each in found])] for name, found in rows.items()],
    )
    return "\n".join([*lines, "", table]), all(verdicts.values())


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1), default=20.0, show_default=True)
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
def main(seconds: float, path: Path) -> None:
    """Flood a server and write what became of it into the page at OUTPUT; status 1 when a verdict does not hold."""
    folder = tempfile.TemporaryDirectory(prefix="nibbled-bench-")
    with folder as name, serving(Path(name), "--max-queue", str(QUEUE), pass_s=PASS_S) as server:
        replies, probes = asyncio.run(flood(server.port, seconds))
        after = asyncio.run(_once(server.port))
    text, holds = told(replies, probes, recovered=after.status == 200 and after.seconds < 2 * PASS_S + SHED_S)  # noqa: PLR2004 - as above
    page.publish("bench-overload", text, path)
    raise SystemExit(not holds)


async def _once(port: int) -> Reply:
    asker = await Asker.connect(port)
    try:
        await asker.ask(request(INFER, BODY))
        return await asker.ask(request(INFER, BODY))
    finally:
        asker.close()


if __name__ == "__main__":
    main()
