"""How many messages may wait, for whoever reads them from a connection.

Brokers are asked to send no more than a few that are not acknowledged (MQTT 5, Receive Maximum), and mosquitto 2.0.11
sends all it has after the first acknowledgement. Who does not read on leaves them where they are.
"""

from __future__ import annotations

import threading
import time


class Room:
    """Has room for so many.

    Threads: any.

    Args:
        most: how many are in before the next one waits.
        patience_s: how long it waits; then it enters all the same, since what never leaves must not end the reading.
    """

    def __init__(self, most: int, patience_s: float) -> None:
        self._most = most
        self._patience_s = patience_s
        self._inside = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def enter(self) -> None:
        """Wait until there is room, and take it."""
        ends_at = time.monotonic() + self._patience_s
        with self._changed:
            while self._inside >= self._most and not self._is_closed and (left := ends_at - time.monotonic()) > 0:
                self._changed.wait(left)
            self._inside += 1

    def leave(self) -> None:
        """Make room for another one."""
        with self._changed:
            self._inside = max(0, self._inside - 1)
            self._changed.notify()

    def close(self) -> None:
        """Let everyone in from now on: who reads is about to end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
