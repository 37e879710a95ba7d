"""Whether weights are kept packed or unpacked while they serve: a choice between memory and time, by measurement.

Pure but for the calls that it is handed. Times are those of one row, and where rows are joined of a small batch too.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Mode = Literal["packed", "unpacked", "auto"]
WORTH = 0.9
"""Unpacked weights have to bring the time down to this share of the packed ones', or their memory is better saved."""
MOST_CALLS, MEASURE_S = 15, 0.3
"""Calls that are timed, and after how many seconds no further one is begun; the first is not counted."""


@dataclass(frozen=True)
class Wish:
    """What the supervisor asks for.

    Attributes:
        mode: ``packed``, ``unpacked`` where there is room, or ``auto``: unpacked where there is room and it is faster.
        allowed_bytes: what unpacked weights may take beside the packed ones.
    """

    mode: Mode = "packed"
    allowed_bytes: int = 0


@dataclass(frozen=True)
class Residency:
    """What was decided.

    Attributes:
        mode: as it was asked for.
        is_unpacked: whether weights are kept unpacked.
        unpacked_bytes: what that takes, or would have.
        packed_ms, unpacked_ms: measured times, None where nothing had to be measured.
        reason: a sentence.
    """

    mode: Mode
    is_unpacked: bool
    unpacked_bytes: int
    reason: str
    packed_ms: float | None = None
    unpacked_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures for logs and reports."""
        return asdict(self)


def decide(
    wish: Wish, needed_bytes: int, keep: Callable[[], None], drop: Callable[[], None], compute: Callable[[], object]
) -> Residency:
    """Choose, and leave the weights that way.

    Args:
        wish: what was asked for.
        needed_bytes: what unpacked weights take; 0 if there are none to unpack.
        keep: changes to unpacked weights.
        drop: changes back.
        compute: one forward pass, or a few of different sizes.
    """
    drop()
    if wish.mode == "packed":
        return Residency(wish.mode, is_unpacked=False, unpacked_bytes=needed_bytes, reason="packed, as configured")
    if not needed_bytes:
        return Residency(wish.mode, is_unpacked=False, unpacked_bytes=0, reason="no weight is packed")
    if needed_bytes > wish.allowed_bytes:
        reason = f"unpacked weights need {needed_bytes:,} bytes, {wish.allowed_bytes:,} are free for them"
        return Residency(wish.mode, is_unpacked=False, unpacked_bytes=needed_bytes, reason=reason)
    if wish.mode == "unpacked":
        keep()
        return Residency(wish.mode, is_unpacked=True, unpacked_bytes=needed_bytes, reason="unpacked, as configured")
    packed_ms = _milliseconds(compute)
    keep()
    unpacked_ms = _milliseconds(compute)
    is_worth_it = unpacked_ms <= WORTH * packed_ms
    if not is_worth_it:
        drop()
    verdict = "unpacked weights are kept" if is_worth_it else f"below {1 / WORTH:.2f} the memory is better saved"
    reason = f"unpacked weights are {packed_ms / unpacked_ms:.2f} times as fast: {verdict}"
    return Residency(wish.mode, is_worth_it, needed_bytes, reason, round(packed_ms, 4), round(unpacked_ms, 4))


def _milliseconds(compute: Callable[[], object]) -> float:
    compute()
    times: list[float] = []
    ends_at = time.perf_counter() + MEASURE_S
    while not times or (len(times) < MOST_CALLS and time.perf_counter() < ends_at):
        began = time.perf_counter()
        compute()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3
