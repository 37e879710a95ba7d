"""Which clocks are believed."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from agent.adapters import clock
from agent.adapters.clock import SystemClock

OK, TIME_ERROR = 0, 5


@pytest.mark.parametrize(
    ("year", "kernel_says", "is_believed"),
    [(2026, OK, True), (2026, TIME_ERROR, False), (2026, None, True), (1970, OK, False), (1970, None, False)],
)
def test_a_clock_is_believed_if_the_kernel_does_and_it_can_be_true(
    monkeypatch: pytest.MonkeyPatch, year: int, kernel_says: int | None, *, is_believed: bool
) -> None:
    monkeypatch.setattr(clock, "_adjtimex", lambda: kernel_says)
    monkeypatch.setattr(SystemClock, "now", lambda _self: datetime(year, 11, 25, tzinfo=timezone.utc))
    assert SystemClock().is_synchronised() is is_believed
