"""Whether and when to ask again. Pure: chance and time are arguments.

Pauses double from half a second to half a minute, each by a factor between a half and one and a half, so that a fleet
that lost its server together does not come back together. A server that names a time is not asked before it. A try that
brought a good piece of the file does not count against those before it: a bad line may cut a large file many times, but
a server that sends the same piece again and again is given up.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

MAX_TRIES = 6
"""Tries without progress, one after the other."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
MOST_PATIENCE_S = 3600.0
"""A server that asks for more than this is not waited for: the operator may send the command again."""
PIECE = 256 * 1024
"""Bytes beyond all that ever was there that make a try a success of its own."""


class TransientError(Exception):
    """Worth another try, not before ``pause_s``.

    Attributes:
        pause_s: what the server asked for, 0 if nothing.
        forget: whether what is kept is no part of this file.
    """

    def __init__(self, detail: str, pause_s: float = 0.0, *, forget: bool = False) -> None:
        super().__init__(detail)
        self.pause_s = pause_s
        self.forget = forget


@dataclass
class Tries:
    """Counts tries that led nowhere.

    Attributes:
        furthest: bytes that were there at best.
        failures: tries since the last one with progress.
        made: all tries.
    """

    furthest: int = 0
    failures: int = 0
    made: int = 0

    def failed(self, there: int) -> None:
        """Count a try after which ``there`` bytes of the file were on the disk."""
        if there - self.furthest >= PIECE:
            self.failures = 0
        self.furthest = max(self.furthest, there)
        self.failures += 1
        self.made += 1

    @property
    def is_over(self) -> bool:
        """Whether it is time to give up."""
        return self.failures >= MAX_TRIES

    def pause_s(self, chance: float) -> float:
        """Return the pause before the next try; ``chance`` is uniform in [0, 1)."""
        return min(FIRST_PAUSE_S * 2.0 ** max(0, self.failures - 1), LONGEST_PAUSE_S) * (0.5 + chance)


def retry_after(value: str | None, date: str | None) -> float:
    """Return the seconds of a ``Retry-After`` header (RFC 9110, 10.2.3): a number of them, or a date.

    Args:
        value: the header.
        date: the ``Date`` header of the same answer: the difference needs no clock that is right here. Without one a
            date says nothing.
    """
    if not value:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(date or "")).total_seconds())
    return 0.0
