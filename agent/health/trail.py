"""Alarms on the audit trail: a line when one begins, and one when it is over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from agent.deployment.ports import Journal, Transport
    from agent.deployment.reporting import Reporting

log = structlog.get_logger("health")

_COUNTS = re.compile(r"\d+(?= (?:hours|days|times|connections|reports)\b)")
"""What grows or shrinks in a sentence while the alarm is the same."""


def teller(journal: Journal, reporting: Reporting, transport: Transport) -> Callable[[str, str], None]:
    """Return what writes an alarm into the log and on the trail."""

    def tell(name: str, reason: str) -> None:
        log.warning("alarm", found=name, reason=reason)
        journal.queue([reporting.event(name, reason=reason)])
        transport.flush()

    return tell


class AlarmTrail:
    """Remembers which alarms are on, and tells what changed.

    Args:
        tell: writes ``alarm`` or ``alarm_ended`` with the sentence as its reason.
        own: returns the alarms that have lines of their own.
    """

    def __init__(self, tell: Callable[[str, str], None], *, own: Callable[[], Collection[str]] = lambda: ()) -> None:
        self._tell = tell
        self._own = own
        self._known: dict[str, str] = {}

    def look(self, alarms: Iterable[str]) -> None:
        """Take in the alarms that are on now, a sentence each."""
        now = {_COUNTS.sub("#", sentence): sentence for sentence in alarms if sentence not in self._own()}
        for alarm, sentence in now.items():
            if alarm not in self._known:
                self._tell("alarm", sentence)  # may fail: then it is told at the next look
            self._known[alarm] = sentence
        for alarm in [known for known in self._known if known not in now]:
            self._tell("alarm_ended", self._known[alarm])
            del self._known[alarm]
