"""Connections that do not last: how long to wait before the next one, and what to tell about it.

A broker ends a session when another client connects with the same id. Two devices with one id would throw each other
out for ever, as fast as they can connect; so each waits longer after every time, by chance more or less.

A takeover shows in one of two ways: the broker says so (0x8E, MQTT 5 only, and mosquitto up to 2.0 does not), or this
device reads on its own presence topic a birth that it never wrote. A connection that just ends soon makes the next
wait longer, too, but not by as much. Decides only; time is an argument.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TAKEN_OVER = 0x8E
"""Reason code of a DISCONNECT (MQTT 5.0, 3.14.2.1)."""
FORGOTTEN_S = 1800.0
"""A connection that stood so long is undisputed: twice what the other side waits at most."""
SHORT_S = 60.0
"""A connection that stood less may have been taken over without a word."""
SUSPICIOUS = (2, 5)
"""Takeovers, and short connections in a row, of which people are told."""
KEPT_BIRTHS = 64
"""Births of its own that a device knows again: a broker that was killed brings older ones back."""
_TAKEN_S, _ENDED_S, _FAILED_S = (5.0, 900.0), (1.0, 60.0), (2.0, 60.0)
"""First and longest wait, in seconds, after a connection that was taken over, that was short, that did not come about;
chance takes up to a half."""
_LOST_S = (0.5, 3.0)
"""Between these lies the wait after any other: a broker that restarts lost a whole fleet at one moment."""


@dataclass
class Contention:
    """The connections of one client.

    Args:
        device: its id, for the alarm.
        draw: returns a number of an interval, so that two that dispute one id do not wait equally long.
    """

    device: str
    draw: Callable[[float, float], float] = random.uniform
    taken: int = 0
    """Times that the session was taken over since it was last undisputed."""
    short: int = 0
    """Short connections in a row."""
    failures: int = 0
    """Connections in a row that did not come about."""
    _own: deque[bytes] = field(default_factory=lambda: deque(maxlen=KEPT_BIRTHS))
    _has_heard_itself: bool = False
    has_heard_last: bool = False
    """Whether the last birth came back: this device may write and read its own presence."""
    _is_disputed: bool = False
    _since: float | None = None
    _last: float = 0.0

    def said(self, birth: bytes) -> None:
        """Note a birth of this device's own."""
        self._own.append(birth)
        self.has_heard_last = False

    def heard(self, birth: bytes) -> None:
        """Note a birth that the broker delivered. Before this process's first one it may be an earlier process's."""
        if birth in self._own:
            self._has_heard_itself = True
            self.has_heard_last = self.has_heard_last or birth == self._own[-1]
        elif self._has_heard_itself:
            self._is_disputed = True

    def began(self, now: float) -> None:
        """Note that a connection was made at ``now``, monotonic seconds."""
        self._since, self.failures = now, 0

    def ended(self, now: float, reason: int) -> float | None:
        """Return the seconds to wait before the next connection; None when there was none that could have ended."""
        if self._since is None:
            return None
        stood_s, self._since, self._last = now - self._since, None, now
        if stood_s >= FORGOTTEN_S:
            self.taken = 0
        is_disputed, self._is_disputed = self._is_disputed, False
        if reason == TAKEN_OVER or is_disputed:
            self.taken += 1
            return self._wait_s(self.taken, *_TAKEN_S)
        self.short = self.short + 1 if stood_s < SHORT_S else 0
        return self._wait_s(self.short, *_ENDED_S) if self.short else self.draw(*_LOST_S)

    def failed(self) -> float:
        """Return the seconds to wait after a connection that did not come about."""
        self.failures += 1
        return self._wait_s(self.failures, *_FAILED_S)

    def alarm(self, now: float) -> str | None:
        """Return what is wrong in a sentence, as long as it is not long ago."""
        if now - self._last >= FORGOTTEN_S:
            return None
        if self.taken >= SUSPICIOUS[0]:
            return (
                f"another client took the session of {self.device} over, {self.taken} times of late: "
                "is there a second device with this device_id?"
            )
        if self.short >= SUSPICIOUS[1]:
            return (
                f"the last {self.short} connections to the broker each ended within {SHORT_S:.0f} s: "
                f"is there a second device with the device_id {self.device}?"
            )
        return None

    def _wait_s(self, times: int, first_s: float, longest_s: float) -> float:
        whole = min(longest_s, first_s * 2.0 ** min(times - 1, 30))
        return self.draw(whole / 2, whole)
