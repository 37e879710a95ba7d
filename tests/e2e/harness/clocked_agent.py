"""``nibbled`` with a wall clock that a file moves, and a kernel that calls it disciplined while another file is there.

``time.time`` and the agent's clock are moved together, in this process; monotonic time goes on, as it does when NTP
sets a clock. libfaketime cannot be used: it moves the deadlines of ``clock_nanosleep`` on the monotonic clock, too, by
which Python sleeps.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

from agent.adapters import clock
from agent.cli import main

MODULE = "tests.e2e.harness.clocked_agent"
DIRECTORY = "TEST_CLOCK"
"""Names the folder with the files."""
OFFSET, IS_SET = "offset", "is_set"
SET, NOT_SET = 0, 5
"""What ``adjtimex(2)`` returns."""


class Clock:
    """The wall clock of one device, and what its kernel says of it."""

    def __init__(self, directory: Path) -> None:
        self._offset, self._is_set = directory / OFFSET, directory / IS_SET
        self.environment = {DIRECTORY: str(directory)}

    def move_to(self, moment: datetime) -> None:
        """Let it say ``moment`` now and go on from there."""
        self.move_by((moment - datetime.now(timezone.utc)).total_seconds())

    def move_by(self, seconds: float) -> None:
        """Let it be wrong by so much."""
        draft = self._offset.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(self._offset)

    def discipline(self, *, is_set: bool) -> None:
        """Let the kernel say whether it is set."""
        if is_set:
            self._is_set.touch()
        else:
            self._is_set.unlink(missing_ok=True)


if __name__ == "__main__":
    directory = Path(os.environ[DIRECTORY])
    real = time.time

    def moved() -> float:
        """Return seconds since 1970 by the moved clock."""
        return real() + float((directory / OFFSET).read_text("ascii"))

    def now(_clock: clock.SystemClock) -> datetime:
        """Return the moved wall time."""
        return datetime.fromtimestamp(moved(), timezone.utc)

    def state() -> int:
        """Return what the kernel says of its clock."""
        return SET if (directory / IS_SET).exists() else NOT_SET

    with mock.patch.multiple(clock.SystemClock, now=now), mock.patch.multiple(clock, _adjtimex=state):
        time.time = moved
        main()
