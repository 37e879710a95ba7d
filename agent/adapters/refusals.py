"""Reports that the broker refuses: which of them are sent again, when, and what people are told. Decides only.

A report that the device may not publish (0x87) will be refused for ever: it is given up, and what is retained is said
again at the next connection. One that a quota forbids (0x97) is sent again, after pauses that double.
"""

from __future__ import annotations

from dataclasses import dataclass

QUOTA_EXCEEDED = 0x97
"""Reason code of a PUBACK (MQTT 5.0, 3.4.2.1)."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
REMEMBERED_S = 600.0
"""How long people are told of the last one."""


@dataclass
class Refusals:
    """The refusals of one device's broker. Times are monotonic seconds."""

    count: int = 0
    """Reports that were refused since the alarm was last off."""
    _last: float | None = None
    _words: str = ""
    _pause_s: float = 0.0
    _until: float = 0.0

    def refused(self, code: int, words: str, now: float) -> bool:
        """Note a refusal; return whether the report is to be sent again."""
        self.count = self.count + 1 if self.alarm(now) else 1
        self._last, self._words = now, words
        if code != QUOTA_EXCEEDED:
            return False
        if now >= self._until:  # else it was on its way before the pause began
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) or FIRST_PAUSE_S
            self._until = now + self._pause_s
        return True

    def taken(self) -> None:
        """Note that the broker took a report."""
        self._pause_s = 0.0

    def is_pausing(self, now: float) -> bool:
        """Whether nothing is to be sent now."""
        return now < self._until

    def alarm(self, now: float) -> str | None:
        """Return what is wrong in a sentence, as long as it is not long ago."""
        if self._last is None or now - self._last >= REMEMBERED_S:
            return None
        step = "they wait" if self._pause_s else "let the device write its own topics, as deploy/mosquitto does"
        return f"the broker refused {self.count} reports of late, the last as {self._words}: {step}"
