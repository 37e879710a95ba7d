"""Alarms on the audit trail: a line when one begins, and one when it is over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_COUNTS = re.compile(r"\d+(?= (?:hours|days|times|connections|reports)\b)")
"""What grows or shrinks in a sentence while the alarm is the same."""


class AlarmTrail:
    """Remembers which alarms are on, and tells what changed.

    Args:
        tell: writes ``alarm`` or ``alarm_ended`` with the sentence as its reason.
    """

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell
        self._known: dict[str, str] = {}

    def look(self, alarms: Iterable[str]) -> None:
        """Take in the alarms that are on now, a sentence each."""
        now = {_COUNTS.sub("#", sentence): sentence for sentence in alarms}
        for alarm, sentence in now.items():
            if alarm not in self._known:
                self._tell("alarm", sentence)  # may fail: then it is told at the next look
            self._known[alarm] = sentence
        for alarm in [known for known in self._known if known not in now]:
            self._tell("alarm_ended", self._known[alarm])
            del self._known[alarm]
