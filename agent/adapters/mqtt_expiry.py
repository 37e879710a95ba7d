"""What MQTT 5 lets a broker forget by itself: states of operations that ended long ago.

An MQTT 3.1.1 broker keeps retained messages for ever, so there the device clears them: an empty retained message.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from agent.contract.reports import OPERATION_EXPIRY_S
from agent.contract.wire import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from agent.contract.topics import Topics
    from agent.deployment.ports import Clock

    class States(Protocol):
        """Where the states come from."""

        def clear(self, before: str, most: int, topic: Callable[[str], str]) -> int:
            """Queue an empty retained report for ``most`` operations that ended before; return how many."""


log = structlog.get_logger("mqtt")
EVERY_S, SOON_S = 3600.0, 10.0
"""Pauses between looks: when all was cleared, and when there is more."""
MOST = 100
"""Cleared at once: less than a connection has in flight."""


class ExpiredStates:
    """Clears what has expired.

    Args:
        states: the journal.
        topics: this device's topics.
        clock: time; without synchronisation nothing is cleared.
        is_owed: whether the broker is one that does not do it itself.
    """

    def __init__(self, states: States, topics: Topics, clock: Clock, *, is_owed: bool) -> None:
        self._states = states
        self._topics = topics
        self._clock = clock
        self._is_owed = is_owed
        self._next_at = float("-inf")

    def look(self) -> bool:
        """Look whether it is time; return whether reports were queued. Never raises."""
        now = self._clock.monotonic()
        if not self._is_owed or now < self._next_at or not self._clock.is_synchronised():
            return False
        self._next_at = now + EVERY_S
        before = rfc3339(self._clock.now() - timedelta(seconds=OPERATION_EXPIRY_S))
        try:
            cleared = self._states.clear(before, MOST, self._topics.operation)
        except Exception:
            log.exception("states_not_cleared")
            return False
        if cleared == MOST:
            self._next_at = now + SOON_S
        if cleared:
            log.info("states_cleared", count=cleared, before=before)
        return cleared > 0
