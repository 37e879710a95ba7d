"""A device that lives long: 250 deploys in one process, and what they leave behind.

``python -m tests.fakes.lifetime FOLDER`` prints it as JSON.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import structlog

from agent.adapters.journal import KEEP_FINISHED
from tests.fakes.box import Box
from tests.fakes.device import checkpoint

WARM_UP = 50
HUNDREDS = (50, 150)


def live(folder: Path) -> dict[str, Any]:
    """Return what is left after a warm-up and twice a hundred deploys of 20 checkpoints by two methods."""
    box = Box(folder)
    contents = [checkpoint(4000, 500, seed=seed) for seed in range(20)]
    for number, content in enumerate(contents):
        box.sources.files[f"https://models.example/{number}.pt"] = content

    def deploys(first: int, count: int) -> None:
        for number in range(first, first + count):
            index = number % len(contents)
            url = f"https://models.example/{index}.pt"
            box.deploy(f"d-{number}", contents[index], url, method=("nf4", "fp4")[number % 2])
            box.settle()
            for log in (box.broker.log, box.builder.jobs, box.lessons.kept, box.sources.fetched):
                log.clear()
            box.broker._retained.clear()  # the broker's memory, not the device's

    deploys(0, WARM_UP)
    descriptors = _descriptors()
    grown = []
    for first in HUNDREDS:
        gc.collect()
        tracemalloc.start()
        try:
            deploys(first, 100)
            gc.collect()
            grown.append(sum(each.size for each in tracemalloc.take_snapshot().statistics("filename")))
        finally:
            tracemalloc.stop()
    return {
        "grown_bytes": grown,
        "descriptors_before": descriptors,
        "descriptors": _descriptors(),
        "open": len(box.engine.open_operations),
        "watches": len(box.engine._performing._watches),
        "artifacts": len(list((folder / "artifacts").iterdir())),
        "finished": len(box.journal.recent_operations(KEEP_FINISHED)),
    }


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with contextlib.redirect_stdout(sys.stderr):
        left = live(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(left))
