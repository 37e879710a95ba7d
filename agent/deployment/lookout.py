"""The thread that looks at the memory and tells the engine. It judges nothing.

A thread of its own, not the health report's: that one looks every half minute, and a driver that hangs must hold up
neither it nor the engine.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from agent.deployment.inbox import BudgetSeen

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.deployment.ports import Clock, Device

log = structlog.get_logger("lookout")
TICK_S = 1.0
"""How often it is asked whether a look is due, so that a changed interval counts at once."""
REST = 20.0
"""A look that took a second is followed by a rest of twenty: some drivers are asked in a process of their own."""


class Lookout:
    """Looks at the device's budget at an interval.

    Args:
        device: whose memory is looked at.
        clock: says when a look was taken.
        interval_s: returns the seconds between two looks, as configured now.
        is_wanted: whether anybody wants to know: if not, no driver is asked.
        post: hands a look to the engine.
    """

    def __init__(
        self,
        device: Device,
        clock: Clock,
        *,
        interval_s: Callable[[], float],
        is_wanted: Callable[[], bool],
        post: Callable[[BudgetSeen], None],
    ) -> None:
        self._device = device
        self._clock = clock
        self._interval_s = interval_s
        self._is_wanted = is_wanted
        self._post = post
        self._stop = threading.Event()
        self._is_blind = False
        self._last = clock.monotonic(), 0.0
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a look that hangs in a driver is left behind."""
        self._stop.set()

    def tick(self) -> None:
        """Take a look if one is due and wanted."""
        ended, rest_s = self._last
        if self._is_wanted() and self._clock.monotonic() - ended >= max(self._interval_s(), rest_s):
            self.look()

    def look(self) -> None:
        """Take one look. What cannot be read is named in the log once, until it can be read again."""
        began = self._clock.monotonic()
        try:
            self._device.usable_methods()  # a plan needs them, and the engine must not wait for the self-test
            began = self._clock.monotonic()
            budget = self._device.budget()
        except Exception as error:  # noqa: BLE001 - a broken witness must not end the watch
            if not self._is_blind:
                log.error("budget_unknown", error=str(error))  # noqa: TRY400 - one line says it all
            self._is_blind = True
        else:
            self._is_blind = False
            self._post(BudgetSeen(budget, self._clock.monotonic()))
        ended = self._clock.monotonic()
        self._last = ended, REST * (ended - began)

    def _run(self) -> None:
        while not self._stop.wait(min(TICK_S, self._interval_s())):
            self.tick()
