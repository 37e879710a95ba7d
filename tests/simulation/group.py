"""Convergence without any operator online: a staged document is retained, its writer leaves, and the devices join.

    make fleet-sim N=1000

The devices are those of ``tests/simulation/device.py``. The document has three stages; just before the next one begins
it is counted who is in, and whoever is in too early ends the run with an error.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.contract.staged import position
from agent.contract.wire import rfc3339
from deploy.bench.page import markdown, publish
from tests.e2e.harness.mqtt import publish as send
from tests.simulation.campaign import CONTENT, FIRST, GROUP, MEMORY, MODEL, NEXT, PAGE, TIMEOUT_S, URL, converge
from tests.simulation.device import PREFIX
from tests.simulation.fleet import Fleet, fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARES = (5, 25, 100)


@dataclass(frozen=True)
class Figures:
    """What one size came to.

    Attributes:
        devices: how many.
        stage_s: seconds from one stage to the next; the devices of a stage join over half of it.
        seconds: from the publication until the last device had served and reported it.
        inside: how many had, just before the second and the third stage began.
        messages: what the broker took in from devices meanwhile, as far as the observer subscribes.
    """

    devices: int
    stage_s: float
    seconds: float
    inside: tuple[int, ...]
    messages: int

    def row(self) -> list[str]:
        """Return the table's row."""
        return [
            f"{self.devices:,}",
            f"{self.stage_s:g}",
            *(f"{count:,}" for count in self.inside),
            f"{self.seconds:.1f}",
            f"{self.messages / self.devices:.1f}",
        ]


HEAD = (
    "devices", "from stage to stage, s", "in before 25 %", "in before 100 %", "all in, s", "messages per device",
)  # fmt: skip


def want(found: Fleet, generation: int, method: str, rollout: dict[str, object] | None = None) -> None:
    """Publish the group's wanted state, retained, and leave."""
    artifact = {"url": URL, "sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)}
    models = {MODEL: {"artifact": artifact, "version": f"v{generation}", "method": method}}
    body = {"schema": 1, "generation": generation, "models": models}
    body |= {} if rollout is None else {"rollout": rollout}
    send(found.broker.port, f"{PREFIX}/_group/{GROUP}/desired", json.dumps(body), is_retained=True)


def inside(found: Fleet, generation: int) -> set[str]:
    """Return the devices that have reached a generation, as far as they were heard."""

    def reached(name: str) -> bool:
        told = found.observer.reported.get(name, {}).get("desired") or {}
        return bool(told.get("reached", {}).get(GROUP) == generation)

    return {name for name in found.names if reached(name)}


def roll_out(found: Fleet, generation: int, stage_s: float, method: str = NEXT) -> Figures:
    """Let the devices change by themselves, in three stages.

    Raises:
        AssertionError: a device was in before its stage.
    """
    rollout_id, start = f"{GROUP}-{generation}", datetime.now(timezone.utc)
    stages = [{"percent": share, "after_s": number * stage_s} for number, share in enumerate(SHARES)]
    rollout = {"id": rollout_id, "start": rfc3339(start), "stages": stages, "spread_s": stage_s / 2}
    before, began = found.observer.messages, time.monotonic()
    want(found, generation, method, rollout)
    counts = []
    for number, share in enumerate(SHARES[:-1], 1):
        # Half a second before: what is counted then cannot have joined with the next stage.
        time.sleep(max(0.0, start.timestamp() + number * stage_s - 0.5 - time.time()))
        present = inside(found, generation)
        early = [name for name in present if position(rollout_id, name) >= share]
        assert not early, f"{len(early)} devices joined before their stage, such as {early[0]}"
        counts.append(len(present))
    found.observer.wait(
        lambda: len(inside(found, generation)) == len(found.names), TIMEOUT_S, "all devices at the generation"
    )
    took_s = time.monotonic() - began
    return Figures(len(found.names), stage_s, took_s, tuple(counts), found.observer.messages - before)


def simulate(count: int, directory: Path, stage_s: float) -> Figures:
    """Return the figures of a fleet of ``count`` devices, whose files lie in ``directory`` and in memory."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as disks, fleet(count, directory) as found:
        files = {URL: CONTENT.hex()}
        found.start(Path(disks), groups=[GROUP], files=files, bad=[], method=NEXT, interval_s=30.0, soak_s=0.5)
        found.observer.wait(
            lambda: found.online() and len(found.observer.reported) == count, TIMEOUT_S, "all devices online"
        )
        converge(found, 1, FIRST)
        return roll_out(found, 2, stage_s)


@click.command()
@click.option("-n", "--devices", "sizes", multiple=True, type=int, default=(10, 100, 1000), show_default=True)
@click.option("--stage", "stage_s", type=float, default=20.0, show_default=True, help="Seconds between stages.")
@click.option("--publish", "is_published", is_flag=True, help="Put the table into docs/scale.md.")
def main(sizes: Sequence[int], stage_s: float, *, is_published: bool) -> None:
    """Simulate groups of several sizes, one after the other."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as directory:
            found.append(simulate(size, Path(directory), stage_s))
        click.echo(json.dumps(asdict(found[-1])))
    table = markdown(HEAD, [figures.row() for figures in found])
    if is_published:
        publish("fleet-group", table, PAGE)
    else:
        click.echo(table)


if __name__ == "__main__":
    main()
