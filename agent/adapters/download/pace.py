"""How fast a download may and must be. Pure: time is an argument.

A stall is seen by the socket; a trickle is not, since something always comes: it has to meet a minimum on average, over
the time that was spent waiting for the sender and not over the pauses that the cap asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.adapters.download.retrying import TransientError

CHUNK = 256 * 1024
"""Bytes of one read at most."""
_SMALLEST_READ = 4096


class Bucket:
    """A token bucket: what was read is paid for by waiting; it holds what a quarter of a second brings.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._tokens = 0.0
        self._filled = now

    def take(self, count: int, rate: int, now: float) -> float:
        """Pay for ``count`` bytes at ``rate`` bytes/s (0: no limit); return the seconds to wait until they are paid."""
        if rate <= 0:
            self._tokens, self._filled = 0.0, now
            return 0.0
        self._tokens = min(rate / 4, self._tokens + (now - self._filled) * rate) - count
        self._filled = now
        return max(0.0, -self._tokens / rate)


def read_size(rate: int) -> int:
    """Return how much to read at once so that a cap of ``rate`` bytes/s is kept within a quarter of a second."""
    return CHUNK if rate <= 0 else min(CHUNK, max(_SMALLEST_READ, rate // 4))


@dataclass
class Speed:
    """Judges a sender by what it sent in each ``window_s`` seconds of waiting for it.

    Attributes:
        least: bytes/s that are enough; 0 for anything.
        window_s: how long a sender may be slow.
    """

    least: int
    window_s: float
    _bytes: int = 0
    _seconds: float = 0.0

    def note(self, count: int, seconds: float, cap: int = 0) -> None:
        """Count a read; ``cap`` is the bytes/s that are asked for at most, 0 for all.

        Raises:
            TransientError: the sender is too slow, with the numbers.
        """
        self._bytes += count
        self._seconds += seconds
        if self._seconds < self.window_s:
            return
        least = min(self.least, cap // 2) if cap > 0 else self.least
        speed = self._bytes / self._seconds
        if speed < least:
            raise TransientError(f"{speed:.0f} bytes/s came over {self._seconds:.0f} s, {least} are the least")
        self._bytes, self._seconds = 0, 0.0
