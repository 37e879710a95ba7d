"""What is chosen by measurement when a release is loaded, and how many rows make a batch.

Larger batches spread what a batch costs, but nothing is answered before the last of their rows: where a few rows are
computed as fast as many, two small batches, of which one is computed while the other is answered, are better than a
large one. Pure but for the calls that it is handed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.serving.acceleration import Trial

MEASURE_S, CALLS = 0.25, 5
HANDOVER_S = 1e-4
"""What a batch costs beside its forward pass: two changes of threads, joining and splitting."""
NEARLY = 1.15
"""A batch is large enough when its rows take at most this many times as long as those of the best one."""


@dataclass(frozen=True)
class Tuning:
    """What was chosen.

    Attributes:
        is_recorded: whether the forward pass is a recorded graph.
        reason: why, or why not; a phrase.
        joined_rows: rows of a batch of several requests at most.
        row_ms: milliseconds of a row by the rows of its batch, as far as they were measured.
        layout: what came of laying images out anew, None where no input is one.
    """

    is_recorded: bool
    reason: str
    joined_rows: int
    row_ms: dict[int, float]
    layout: Trial | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for logs and reports."""
        return {**asdict(self), "row_ms": {str(rows): value for rows, value in self.row_ms.items()}}


def joined_rows(
    compute: Callable[[int], object], most: int, *, enough_s: float = MEASURE_S
) -> tuple[int, dict[int, float]]:
    """Return the rows of the smallest batch that is nearly as good as the best, and what was measured.

    Where not all sizes can be tried within ``enough_s``, the answer is ``most``: such passes are so long that nothing
    is gained by having two.

    Args:
        compute: a forward pass of so many rows.
        most: rows of the largest batch.
        enough_s: how long measuring may take, in seconds.

    Returns:
        The rows; milliseconds of a row by the rows of its batch.
    """
    sizes = [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]
    ends_at = time.perf_counter() + enough_s
    row_s: dict[int, float] = {}
    for size in sizes:
        compute(size)
        times: list[float] = []
        while len(times) < CALLS and time.perf_counter() < ends_at:
            began = time.perf_counter()
            compute(size)
            times.append(time.perf_counter() - began)
        if len(times) < CALLS:
            break
        row_s[size] = (min(times) + HANDOVER_S) / size  # what disturbs a pass only ever adds to it
    found = {size: round(seconds * 1e3, 4) for size, seconds in row_s.items()}
    if len(row_s) < len(sizes):
        return most, found
    best = min(row_s.values())
    return next(size for size in sizes if row_s[size] <= NEARLY * best), found
