"""Whether a child that runs still answers: one that is stopped, or hangs in a driver, neither ends nor works.

It is asked at an interval, and what it does not answer in time counts as silence until it answers again. Silence that
is too long is ended by a kill, and what follows is what follows any other death. Only time in which it was asked
counts: an agent that was stopped itself, or a box that slept, must not take its own absence for the child's.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger("server")
PAUSE_S = 1.0
LONGEST_QUESTION_S = 5.0


class Silence:
    """How long nothing was heard.

    Args:
        bearable_s: seconds of it that are still no reason to act.
    """

    def __init__(self, bearable_s: float) -> None:
        self._bearable_s = bearable_s
        self.question_s = min(LONGEST_QUESTION_S, bearable_s / 2)
        self.seconds = 0.0

    def heard(self) -> None:
        """It answered."""
        self.seconds = 0.0

    def unheard(self, passed_s: float) -> bool:
        """It did not answer in ``passed_s`` seconds since the last question; return whether that is too much by now."""
        self.seconds += min(passed_s, PAUSE_S + self.question_s)
        return self.seconds >= self._bearable_s


class Pulse:
    """Asks until it is stopped, on a thread of its own.

    Args:
        ask: asks with a time to answer in seconds, and returns whether an answer came.
        end: ends the child.
        bearable_s: how long it may be silent.
        monotonic: the time.
    """

    def __init__(
        self,
        ask: Callable[[float], bool],
        end: Callable[[], None],
        bearable_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._end = end
        self._silence = Silence(bearable_s)
        self._monotonic = monotonic
        self._stop = threading.Event()
        self.verdict: str | None = None
        self._patience_s = bearable_s + PAUSE_S + self._silence.question_s
        self._heard_at = monotonic()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    @property
    def is_overdue(self) -> bool:
        """Whether it has been silent for so long that it should have been ended by now, and was not.

        Measured from the last answer alone, so that it holds even if nobody asks any more.
        """
        return self._monotonic() - self._heard_at > self._patience_s

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more: it has ended, or is about to."""
        self._stop.set()

    def join(self) -> None:
        """Wait until it asks no more."""
        self._thread.join()

    def _run(self) -> None:
        before = self._monotonic()
        while not self._stop.wait(PAUSE_S):
            is_heard = self._ask(self._silence.question_s)
            now = self._monotonic()
            if is_heard:
                self._silence.heard()
                self._heard_at = now
            elif self._silence.unheard(now - before) and not self._stop.is_set():
                self.verdict = f"gave no answer for {self._silence.seconds:.0f} s and was killed"
                log.error("server_silent", silent_s=round(self._silence.seconds, 1))
                self._end()
                return
            before = now
