"""Time that stands still until a test moves it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

START = datetime(2026, 11, 23, 10, 40, tzinfo=timezone.utc)


class FakeClock:
    """A clock that a test holds in its hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.synchronised = True

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 1000.0)

    def is_synchronised(self) -> bool:
        return self.synchronised

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.seconds += seconds
