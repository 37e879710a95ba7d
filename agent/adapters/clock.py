"""The real clock."""

from __future__ import annotations

import ctypes
import functools
import time
from datetime import datetime, timezone

_TIME_ERROR = 5
"""``TIME_ERROR`` of ``adjtimex(2)``: the kernel clock is not synchronised."""
_EARLIEST = datetime(2025, 1, 1, tzinfo=timezone.utc)
"""Before this agent was written: a clock that says so was never set, whatever the kernel believes of it."""


class SystemClock:
    """Time from the operating system."""

    def monotonic(self) -> float:
        """Return seconds that only ever grow."""
        return time.monotonic()

    def now(self) -> datetime:
        """Return wall time in UTC."""
        return datetime.now(timezone.utc)

    def is_synchronised(self) -> bool:
        """Return whether the kernel believes its clock (``adjtimex(2)``), or may not be asked, and it can be true."""
        if self.now() < _EARLIEST:
            return False
        state = _adjtimex()
        return state is None or state != _TIME_ERROR


@functools.cache
def _libc() -> ctypes.CDLL:
    # Each one brings a class of its own, which is garbage until the collector comes by.
    return ctypes.CDLL(None, use_errno=True)


def _adjtimex() -> int | None:
    """Return the clock's state, or None where the call does not exist or is forbidden, as in some containers."""
    try:
        buffer = ctypes.create_string_buffer(256)  # struct timex has 208 bytes on 64-bit Linux; modes=0 only reads
        state = int(_libc().adjtimex(buffer))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state
