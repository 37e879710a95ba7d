"""Whether a model is called in a faster way than its own: compiled, or as graphs of its device. Measurement decides.

A way is tried while its release is loaded, before anybody is answered by it, and left again unless it answers alike and
brings the time down to ``WORTH``. Whatever goes wrong on the way leaves the model as it was. Pure but for the calls
that it is handed.
"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import structlog

from agent.exhaustion import is_out_of_memory
from agent.serving.lost import is_lost
from agent.serving.residency import MEASURE_S, MOST_CALLS, WORTH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.serving.tensors import Array

log = structlog.get_logger("acceleration")
Effort = Literal["off", "auto"]
TOLERANCE = {"cpu": 1e-4, "cuda": 5e-2}
"""How far answers may be apart, relative to the largest of an output: what the self-test of a device allows products of
its widest and of its shortest dtype (``quantization.probe``). The gate judges what is kept, too: a canary asks the way
that was chosen."""


class Way(Protocol):
    """Another way to call a model.

    Attributes:
        name: what it is called in logs and reports.
    """

    name: str

    def begin(self) -> None:
        """Make it ready for every size of batch; raises whatever keeps it from that."""

    def change(self) -> None:
        """Call the model this way from now on, once it is ready."""

    def end(self) -> None:
        """Call it in its own way again, at any time."""


class DeclinedError(Exception):
    """Why a way is not even tried, or not for this model; a sentence without its end."""


@dataclass(frozen=True)
class Trial:
    """What came of a way.

    Attributes:
        mode: as it was asked for.
        is_kept: whether the model is called that way.
        reason: a sentence.
        own_ms, ms: measured times of the model's own way and of this one, None where it did not come to that.
        seconds: what making it ready took.
    """

    mode: Effort
    is_kept: bool
    reason: str
    own_ms: float | None = None
    ms: float | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the figures for logs and reports."""
        return asdict(self)


def attempt(way: Way, compute: Callable[[], object], answers: Callable[[], Sequence[Array]], tolerance: float) -> Trial:
    """Try a way, and leave the model with the better one.

    Args:
        way: which.
        compute: passes of the sizes that count, by the way that is in force.
        answers: what the model answers by that way, to the same inputs each time.
        tolerance: how far answers may be apart, relative to the largest of an output.

    Raises:
        Exception: what says that the device is gone: there is no way back from that.
    """
    own, began = answers(), time.perf_counter()
    try:
        way.begin()
        seconds = round(time.perf_counter() - began, 3)
        way.change()
        _demand_alike(answers(), own, tolerance)
        own_ms, ms = _in_turns(way, compute)
    except DeclinedError as error:
        way.end()
        return Trial("auto", is_kept=False, reason=str(error), seconds=round(time.perf_counter() - began, 3))
    except Exception as error:
        way.end()
        if is_lost(error):
            raise
        return _failed(way, error, time.perf_counter() - began)
    is_kept = ms <= WORTH * own_ms
    if is_kept:
        way.change()
    verdict = "it is kept" if is_kept else f"below {1 / WORTH:.2f} it is not worth what it takes"
    reason = f"it is {own_ms / ms:.2f} times as fast: {verdict}"
    return Trial("auto", is_kept, reason, round(own_ms, 4), round(ms, 4), seconds)


def _in_turns(way: Way, compute: Callable[[], object]) -> tuple[float, float]:
    """Return medians of the model's own way and of ``way``, in milliseconds; its own is in force in the end.

    They take turns, so that whatever else the device does meets both; the first of each is not counted.
    """
    own_s: list[float] = []
    way_s: list[float] = []
    ends_at = time.perf_counter() + 2 * MEASURE_S
    while len(own_s) < 2 or (len(own_s) <= MOST_CALLS and time.perf_counter() < ends_at):  # noqa: PLR2004 - as said
        for change, times in ((way.change, way_s), (way.end, own_s)):
            change()
            began = time.perf_counter()
            compute()
            times.append(time.perf_counter() - began)
    return statistics.median(own_s[1:]) * 1e3, statistics.median(way_s[1:]) * 1e3


def _demand_alike(found: Sequence[Array], wanted: Sequence[Array], tolerance: float) -> None:
    off = distance(found, wanted)
    if not off <= tolerance:
        raise DeclinedError(f"answers are off by {off:.3g} of their largest, {tolerance:g} is allowed")


def _failed(way: Way, error: Exception, seconds: float) -> Trial:
    what = "there is not enough memory for it" if is_out_of_memory(error) else f"it failed: {_in_a_line(error)}"
    log.warning("acceleration_failed", way=way.name, error=_in_a_line(error))
    return Trial("auto", is_kept=False, reason=what, seconds=round(seconds, 3))


def _in_a_line(error: Exception) -> str:
    """Return what an error says first; a compiler's names its cause in the second line."""
    lines = str(error).strip().splitlines()
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return ": ".join(part for part in (type(error).__name__, said[:300]) if part)


def distance(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Return the largest difference between two answers, of each output relative to its largest value; NaN counts."""
    worst = 0.0
    for given, expected in zip(found, wanted, strict=True):
        one, other = np.asarray(given, np.float64), np.asarray(expected, np.float64)
        if one.shape != other.shape:
            return float("inf")
        largest = float(np.max(np.abs(other), initial=0.0)) or 1.0
        worst = float(np.maximum(worst, np.max(np.abs(one - other), initial=0.0) / largest))
    return worst


def within(limit_s: float, work: Callable[[], object]) -> None:
    """Do work in a thread of its own and wait for ``limit_s`` seconds at most.

    What takes longer cannot be stopped: it is left to end by itself, and nobody looks at what comes of it.

    Raises:
        DeclinedError: it took longer.
        Exception: what the work raised.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            raised.append(error)

    thread = threading.Thread(target=run, name="acceleration", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise DeclinedError(f"it took longer than {limit_s:g} s")
    if raised:
        raise raised[0]
