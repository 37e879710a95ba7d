"""Counters of one release. Written on the event loop only, so nothing here locks."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Seconds. An edge GPU answers within milliseconds; a CPU or a queue may take much longer.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
LATENCIES_KEPT = 1024
OUTCOMES = ("ok", "failed", "invalid", "rejected", "expired", "canceled")


@dataclass
class Histogram:
    """Counts by upper bound, the last one without a bound, and the sum of what was observed."""

    bounds: Sequence[float]
    total: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)


@dataclass(frozen=True)
class Timing:
    """Where the time of one answer went, in seconds."""

    queue_s: float
    input_s: float
    infer_s: float
    output_s: float

    @property
    def compute_s(self) -> float:
        """Everything but waiting."""
        return self.input_s + self.infer_s + self.output_s


class Pass(NamedTuple):
    """One forward pass: over how many rows, and what it took in seconds."""

    rows: int
    input_s: float
    infer_s: float
    output_s: float


@dataclass
class Passes:
    """All forward passes over the same number of rows, and what they took together in seconds."""

    count: int = 0
    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0


@dataclass
class Stats:
    """What a release has answered.

    Attributes:
        outcomes: requests by how they ended.
        inferences: rows answered; ``executions`` counts forward passes.
        non_finite: requests whose answer held NaN or infinity, whatever the form in which it was sent.
        provoked: those of them whose inputs held NaN, infinity or a number beyond FP16, which is no release's fault.
        last_inference_ms: wall time of the last answer in milliseconds, 0 before the first.
        passes: forward passes by their rows, those of more rows than are joined left out: their number has no bound.
    """

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    inferences: int = 0
    executions: int = 0
    non_finite: int = 0
    provoked: int = 0
    last_inference_ms: int = 0
    failed_s: float = 0.0
    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0
    request: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    queue: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    compute: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))
    passes: dict[int, Passes] = field(default_factory=dict)
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))

    def answered(self, rows: int, request_s: float, timing: Timing, now_ms: int) -> None:
        """Count an answer that went out."""
        self.outcomes["ok"] += 1
        self.inferences += rows
        self.last_inference_ms = now_ms
        self.request.observe(request_s)
        self.queue.observe(timing.queue_s)
        self.compute.observe(timing.compute_s)
        self.input_s += timing.input_s
        self.infer_s += timing.infer_s
        self.output_s += timing.output_s
        self.latencies_s.append(request_s)

    @property
    def tally(self) -> dict[str, float]:
        """What the supervisor is told, which counts from a release's load: see ``Slot.before``."""
        return {
            "requests": sum(self.outcomes.values()),
            "failures": self.outcomes["failed"],
            "non_finite": self.non_finite - self.provoked,
            "answered": self.request.count,
            "answering_s": round(self.request.total, 6),
        }

    def told(self, now_ms: int) -> None:
        """Count a text that went out; its durations are those of ``generation.stats``."""
        self.outcomes["ok"] += 1
        self.last_inference_ms = now_ms

    def refused(self, outcome: str, request_s: float) -> None:
        """Count a request that got an error instead."""
        self.outcomes[outcome] += 1
        self.failed_s += request_s

    def executed(self, done: Pass, most_rows: int) -> None:
        """Count a forward pass; it is told by its rows if these are at most ``most_rows``."""
        self.executions += 1
        self.batch_rows.observe(done.rows)
        alike = self.passes.get(done.rows)
        if alike is None:
            if done.rows > most_rows:
                return
            alike = self.passes[done.rows] = Passes()
        alike.count += 1
        alike.input_s += done.input_s
        alike.infer_s += done.infer_s
        alike.output_s += done.output_s


def percentiles_ms(latencies_s: Iterable[float], wanted: Sequence[int] = (50, 95, 99)) -> dict[str, float | None]:
    """Return nearest-rank percentiles in milliseconds, None for each when nothing was measured."""
    ordered = sorted(latencies_s)
    if not ordered:
        return {f"p{percent}": None for percent in wanted}
    return {f"p{percent}": round(ordered[-(-len(ordered) * percent // 100) - 1] * 1e3, 4) for percent in wanted}
