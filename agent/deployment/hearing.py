"""Whether the broker has told everything that it retains of halts, on the connection that stands.

A broker says of no retained message that it is the last one, and a session may hold a document that was published
before its halt. So the device waits for an echo: halts are subscribed to before documents, and its own birth, which it
says after both, comes back behind what is retained. ``QUIET_S`` more are for brokers that hand retained messages over
beside the others. Where nothing comes back, the device may not read its own presence, and ``UNECHOED_S`` have to do.

INVARIANTS:
- what was heard on one connection counts for no other one;
- without a connection nothing counts as heard: a halt could not reach the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_S = 2.0
UNECHOED_S = 30.0


class Hearing:
    """What was heard on the newest connection. Times are monotonic seconds.

    Args:
        connection: returns the number of the connection that stands, None without one; numbers only grow.
        quiet_s: how long after the echo.
    """

    def __init__(self, connection: Callable[[], int | None], quiet_s: float = QUIET_S) -> None:
        self._connection = connection
        self._quiet_s = quiet_s
        self._number = -1
        self._known_at: float | None = None
        self.documents: set[str] = set()
        """Groups whose document came on this connection."""
        self.halts: set[str] = set()
        """Groups whose halt came on this connection."""

    def connected(self, now: float) -> None:
        """Note that a connection was made."""
        self._expect(self._connection(), now + UNECHOED_S)

    def echoed(self, connection: int, now: float) -> None:
        """Note that the device heard itself on a connection."""
        self._expect(connection, now + self._quiet_s)

    def document(self, source: str, connection: int) -> None:
        """Note a document."""
        if self._is_newest(connection):
            self.documents.add(source)

    def halt(self, source: str, connection: int) -> None:
        """Note a halt that is in force."""
        if self._is_newest(connection):
            self.halts.add(source)

    def lifted(self, source: str, connection: int) -> None:
        """Note that a halt was taken back."""
        if self._is_newest(connection):
            self.halts.discard(source)

    def is_complete(self, now: float) -> bool:
        """Return whether everything that is retained is known, and would be heard if it changed."""
        return self._number == self._connection() and self._known_at is not None and now >= self._known_at

    def _expect(self, connection: int | None, at: float) -> None:
        if connection is not None and self._is_newest(connection):
            self._known_at = at if self._known_at is None else min(self._known_at, at)

    def _is_newest(self, connection: int) -> bool:
        """Return whether a number is that of the newest connection; a newer one begins with nothing heard."""
        if connection > self._number:
            self._number, self._known_at = connection, None
            self.documents, self.halts = set(), set()
        return connection == self._number
