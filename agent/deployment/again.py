"""Messages whose handling failed, mostly because the disk was full: they are handled again until it works.

What they say happened and will not be said again: the outcome of a step, above all. Handling one twice does no harm:
the machine ignores an outcome of a phase that is over, and the intake answers a command that it knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.deployment.inbox import BudgetSeen, Moved, ServerLost

if TYPE_CHECKING:
    from agent.deployment.inbox import Message

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
_PASSING = (BudgetSeen, Moved, ServerLost)
"""What is soon said anew, or was acted on before anything could fail."""


@dataclass(frozen=True)
class _Waiting:
    message: Message
    due: float
    pause_s: float


class Again:
    """Keeps messages with a pause that doubles each time."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._given: _Waiting | None = None

    def keep(self, message: Message | None, now: float) -> None:
        """Keep a message that could not be handled; one that passes is let go.

        Args:
            message: the message, None for nothing.
            now: monotonic seconds.
        """
        if message is None or isinstance(message, _PASSING):
            return
        given = self._given
        is_known = given is not None and given.message is message
        pause_s = min(2 * given.pause_s, LONGEST_PAUSE_S) if given is not None and is_known else FIRST_PAUSE_S
        self._waiting.append(_Waiting(message, now + pause_s, pause_s))

    def due(self, now: float) -> Message | None:
        """Return the message that has waited longest over its time, or None."""
        self._given = min((each for each in self._waiting if each.due <= now), key=lambda each: each.due, default=None)
        if self._given is None:
            return None
        self._waiting.remove(self._given)
        return self._given.message
