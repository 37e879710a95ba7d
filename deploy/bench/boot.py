"""From the start of the process to the first answer, with the model packed on disk: how long, and what takes the time.

    make bench-boot

The demo's model has been deployed by nf4, and the agent was stopped. Each start is timed from the call that makes the
process to the answer to an inference request that waits for it, once with all that the kernel keeps of files thrown
away before (needs root) and once with it. The stages are those of the log.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

from deploy.bench import page
from deploy.bench.box import box

if TYPE_CHECKING:
    from deploy.bench.box import Box, JsonObject

_DROP = Path("/proc/sys/vm/drop_caches")
COLD, WARM = "cold: read from the disk", "warm: kept by the kernel"


@dataclass(frozen=True)
class Start:
    """Seconds of one start.

    Attributes:
        total: until the first answer.
        supervisor: until the supervisor runs and starts the server.
        process: from there until the server listens: the imports that are not torch's.
        imports: from there until torch and bitsandbytes are imported.
        loading: reading the artifact, and making the model of it.
        warm_up: the first batches, and the choice of how the model is called.
    """

    total: float
    supervisor: float
    process: float
    imports: float
    loading: float
    warm_up: float


def drop_caches() -> bool:
    """Have the kernel forget what it keeps of files; return whether it may be told to."""
    os.sync()
    try:
        _DROP.write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def timed(device: Box) -> Start:
    """Start the agent, wait for an answer, and return what took how long."""
    began = time.time()  # the log's clock
    with device.running():
        device.await_answer()
        total = time.time() - began
        at: dict[str, float] = {}
        loaded: JsonObject = {}
        for when, entry in device.logged():
            at.setdefault(entry["event"], when - began)
            loaded = entry if entry["event"] == "loaded" else loaded
    loading = (loaded["load_ms"] - loaded["warm_up_ms"]) / 1e3
    return Start(
        total,
        at["server_started"],
        at["listening"] - at["server_started"],
        at["prepared"] - at["listening"],
        loading,
        at["loaded"] - at["prepared"] - loading,
    )


def told(found: dict[str, list[Start]]) -> str:
    """Return the table: medians, and of the whole the extremes."""
    rows = []
    for name, starts in found.items():
        totals = [start.total for start in starts]
        whole = f"{median(totals):.1f} ({min(totals):.1f} to {max(totals):.1f})"
        parts = [[getattr(start, part) for start in starts] for part in _PARTS]
        shares = [f"{median(part):.2f} ({median(part) / median(totals):.0%})" for part in parts]
        rows.append([name, str(len(starts)), whole, *shares])
    return page.markdown(["files", "starts", "seconds to the first answer", *_PARTS.values()], rows)


_PARTS = {
    "supervisor": "supervisor",
    "process": "server's process",
    "imports": "imports of torch",
    "loading": "loading",
    "warm_up": "warm-up",
}


@click.command()
@click.option("--starts", type=click.IntRange(min=1), default=7, show_default=True, help="Of each kind.")
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
def main(starts: int, path: Path) -> None:
    """Start the agent again and again and write what took how long into the page at OUTPUT."""
    with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as name, box(Path(name)) as device:
        found: dict[str, list[Start]] = {}
        for _ in range(starts):
            if drop_caches():
                found.setdefault(COLD, []).append(timed(device))
            found.setdefault(WARM, []).append(timed(device))
    note = "" if COLD in found else "The kernel's cache could not be emptied: there is no cold start here.\n\n"
    page.publish("bench-boot", note + told(found), path)


if __name__ == "__main__":
    main()
