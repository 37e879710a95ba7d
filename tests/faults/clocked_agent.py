"""``nibbled`` with a wall clock that a file moves, and a kernel that says it is disciplined while another file is there.

``time.time`` and the agent's clock are moved together, in this process; monotonic time goes on, as it does when NTP sets
a clock. libfaketime cannot be used: it moves the deadlines of ``clock_nanosleep`` on the monotonic clock, too, by which
Python sleeps.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

from agent.adapters import clock
from agent.cli import main

DIRECTORY = "TEST_CLOCK"
"""Names the folder with the files."""
OFFSET, IS_SET = "offset", "is_set"
SET, NOT_SET = 0, 5
"""What ``adjtimex(2)`` returns."""

if __name__ == "__main__":
    directory = Path(os.environ[DIRECTORY])
    real = time.time

    def moved() -> float:
        """Return seconds since 1970 as the moved clock has them."""
        return real() + float((directory / OFFSET).read_text("ascii"))

    with (
        mock.patch.object(time, "time", moved),
        mock.patch.object(clock.SystemClock, "now", lambda _self: datetime.fromtimestamp(moved(), timezone.utc)),
        mock.patch.object(clock, "_adjtimex", lambda: SET if (directory / IS_SET).exists() else NOT_SET),
    ):
        main()
