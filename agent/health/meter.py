"""Throughput and latency of what answers, from the server's counters as they are while somebody looks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

JsonObject = dict[str, Any]
EVERY_S = 2.0
POINTS = 60
LONGEST_GAP_S = 3 * EVERY_S
"""After a longer time without a look nothing is said of it: an average over an hour is no rate."""
_SHOWN = ("release", "method", "requests", "failures", "queue", "in_flight", "latency_ms")


@dataclass
class _Series:
    """The last points of one model; None where nothing was counted."""

    counters: Mapping[str, Any]
    per_s: deque[float | None] = field(default_factory=lambda: deque(maxlen=POINTS))
    mean_ms: deque[float | None] = field(default_factory=lambda: deque(maxlen=POINTS))


class Meter:
    """Counts on one thread.

    Args:
        read: returns the server's status, or raises.
        monotonic: the time in seconds.
    """

    def __init__(self, read: Callable[[], JsonObject], monotonic: Callable[[], float]) -> None:
        self._read = read
        self._monotonic = monotonic
        self._read_at = self._counted_at = float("-inf")
        self._series: dict[str, _Series] = {}
        self._told: JsonObject = {}

    def look(self) -> JsonObject:
        """Return what was counted; it is read anew every ``EVERY_S``.

        ``per_s`` are requests a second and ``mean_ms`` the mean time of those that were answered, a point for every
        ``every_s`` seconds, the newest last; ``error`` says why the server tells nothing.
        """
        now = self._monotonic()
        if now - self._read_at >= EVERY_S:
            self._read_at = now
            try:
                status = self._read()
            except Exception as error:  # noqa: BLE001 - a server that is being replaced is nothing special
                self._told = {"every_s": EVERY_S, "error": str(error), "server_rss_bytes": None, "models": {}}
            else:
                self._told = self._count(status, now - self._counted_at)
                self._counted_at = now
        return self._told

    def _count(self, status: JsonObject, passed: float) -> JsonObject:
        models: JsonObject = status["models"]
        before = self._series if passed <= LONGEST_GAP_S else {}
        self._series = {name: _continued(before.get(name), counters, passed) for name, counters in models.items()}
        shown = {
            name: {
                **{key: counters.get(key) for key in _SHOWN},
                "per_s": [*self._series[name].per_s],
                "mean_ms": [*self._series[name].mean_ms],
            }
            for name, counters in models.items()
        }
        return {"every_s": EVERY_S, "error": None, "server_rss_bytes": status.get("rss_bytes"), "models": shown}


def _continued(series: _Series | None, counters: Mapping[str, Any], passed: float) -> _Series:
    """Add a point; a release that is new, and one in a new server, counts from nothing."""
    if series is None:
        return _Series(counters)
    known = series.counters
    is_new = known["release"] != counters["release"] or known["requests"] > counters["requests"]
    requests, answered, seconds = (
        counters[key] - (0 if is_new else known[key]) for key in ("requests", "answered", "answering_s")
    )
    series.per_s.append(round(requests / passed, 2))
    series.mean_ms.append(round(seconds / answered * 1e3, 3) if answered else None)
    series.counters = counters
    return series
