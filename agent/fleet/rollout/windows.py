"""Maintenance windows: whether devices may be begun with now, and when next. Pure: time is an argument."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.fleet.rollout.plan import Window

_NAMES = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_AHEAD_DAYS = 8


def is_open(windows: Sequence[Window], now: float) -> bool:
    """Return whether ``now``, seconds since 1970, is within a window, or there is none."""
    return not windows or any(begin <= now < end for window in windows for begin, end in _spans(window, now))


def next_opening(windows: Sequence[Window], now: float) -> float:
    """Return when the next window begins, seconds since 1970; ``now`` where one is open."""
    if is_open(windows, now):
        return now
    return min(begin for window in windows for begin, _ in _spans(window, now) if begin > now)


def opening(windows: Sequence[Window], begin: float) -> str:
    """Return in local time when a window begins: ``begin``, seconds since 1970, is from `next_opening`."""
    zone = next(window.timezone for window in windows for first, _ in _spans(window, begin) if first == begin)
    local = datetime.fromtimestamp(begin, timezone.utc).astimezone(ZoneInfo(zone))
    return f"{_NAMES[local.weekday()].capitalize()} {local:%H:%M} {zone}"


def _spans(window: Window, now: float) -> Iterator[tuple[float, float]]:
    """Yield begin and end of a window on the days around ``now``.

    A local time that a change of the clocks leaves out, or has twice, is the one that Python's ``fold=0`` means.
    """
    zone = ZoneInfo(window.timezone)
    today = datetime.fromtimestamp(now, timezone.utc).astimezone(zone).date()
    for ahead in range(-1, _AHEAD_DAYS):
        day = today + timedelta(days=ahead)
        if _NAMES[day.weekday()] not in window.days:
            continue
        last = day if window.end > window.begin else day + timedelta(days=1)
        begin = datetime.combine(day, window.begin, zone).timestamp()
        yield begin, datetime.combine(last, window.end, zone).timestamp()
