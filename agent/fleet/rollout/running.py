"""The thin shell around the machine: broker, journal, clock and person in, sends out. One thread.

An event is recorded before what follows from it is sent. What the broker did not take is sent again, as is, after a
restart, what was never answered: ids make devices run it once.
"""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING

from agent.adapters.mqtt_operator import BrokerError, RefusedMessageError
from agent.fleet.rollout.events import Asked, Heard, Purpose, Refused, Ticked
from agent.fleet.rollout.machine import advance, is_asking, unanswered
from agent.fleet.rollout.membership import members
from agent.fleet.rollout.state import Stage, Status, Undo, begin
from agent.fleet.rollout.timeline import awaited, changes, is_told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.adapters.mqtt_operator import Heard as Message
    from agent.fleet.rollout.events import Event, Send, Word
    from agent.fleet.rollout.journal import Journal
    from agent.fleet.rollout.link import Link
    from agent.fleet.rollout.membership import Membership
    from agent.fleet.rollout.plan import Plan
    from agent.fleet.rollout.state import Rollout
    from agent.fleet.rollout.timeline import Entry

    Inbox = queue.SimpleQueue[Message]

TICK_S = 0.25
MAX_BATCH = 5000
QUIET_S = 1.0
"""Silence after which everything counts as heard that the broker retains: MQTT has no word for the end of it."""
ANSWER_S = 5.0


def gather(inbox: Inbox) -> list[Message]:
    """Return what the broker retains."""
    found: list[Message] = []
    try:
        found.append(inbox.get(timeout=ANSWER_S))
        while True:
            found.append(inbox.get(timeout=QUIET_S))
    except queue.Empty:
        return found


class Runner:
    """Runs one rollout until it is over, or nothing can happen without a person.

    Args:
        plan: the plan.
        journal: its record, locked.
        link: the fleet.
        tell: is told everything that happens.
        ask: returns what a person wants, None for nothing; ``True`` says that the next wave waits for agreement.
        clock: returns seconds since 1970.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        link: Link,
        *,
        tell: Callable[[Entry], None],
        ask: Callable[[Rollout, bool], Asked | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._link = link
        self._tell = tell
        self._ask = ask
        self._clock = clock
        self._now = 0.0
        self._requests = journal.requests_done()
        self._unsent: list[Send] = []
        self.rollout = begin(())

    def start(self, retained: Sequence[Message]) -> Membership:
        """Take up the rollout where the journal or the devices say that it is; return who takes part.

        Raises:
            JournalError: the record is of another plan.
            RefusedMessageError: the broker refuses what is to be sent.
        """
        words = self._link.words(retained)
        found = self._journal.membership()
        if found is None:
            found = members(self._plan, self._link.known)
            self._journal.start(found, self._tick())
        self.rollout = begin(found.waves)
        for event, at in self._journal.events():
            self._now = max(self._now, at)
            self.rollout, _ = advance(self._plan, self.rollout, event, at)
        owed, opens = unanswered(self._plan, self.rollout), self.rollout.opens
        self._step(*self._heard(words))  # with what was asked for while nobody ran it: before anything is sent
        if opens is not None and opens == self.rollout.opens:  # another program told it, and is gone
            for entry in awaited(self._plan, self.rollout, self._now):
                self._tell(entry)
        still = set(unanswered(self._plan, self.rollout)).difference(self._unsent)
        self._send([send for send in owed if send in still])
        return found

    def run(self, inbox: Inbox, *, waits: bool) -> Rollout:
        """Go on until the rollout is over; with ``waits`` False also end when only a person can make it go on.

        Raises:
            RefusedMessageError: the broker refuses what is to be sent.
        """
        while not self.rollout.status.is_over:
            self._step(*self._next(inbox))
            if not waits and self._is_blocked():
                wanted = self._ask(self.rollout, self._is_asking())
                if wanted is None:
                    break
                self._step(wanted)
        return self.rollout

    def _is_blocked(self) -> bool:
        """Return whether nothing can happen without a person, who has not said anything either."""
        is_blocked = self.rollout.status is Status.PAUSED or self._is_asking()
        return is_blocked and self.rollout.in_flight == 0 and not self._journal.requests(since=self._requests)

    def _next(self, inbox: Inbox) -> tuple[Event, int | None]:
        """Return what happens next, and the number of the last request in it."""
        heard, request = self._heard(())
        if request is not None:
            return heard, request
        wanted = self._ask(self.rollout, self._is_asking())
        if wanted is not None:
            return wanted, None
        words = self._link.words(_drained(inbox))
        return (Heard(tuple(words)) if words else Ticked()), None

    def _heard(self, words: Sequence[Word]) -> tuple[Heard, int | None]:
        """Return words together with every request that was not taken up, and the number of the last one."""
        requests = tuple(self._journal.requests(since=self._requests))
        self._requests += len(requests)
        return Heard(tuple(words), requests), self._requests - 1 if requests else None

    def _is_asking(self) -> bool:
        return is_asking(self._plan, self.rollout, self._tick())

    def _step(self, event: Event, request: int | None = None) -> None:
        before, now = self.rollout, self._tick()
        after, sends = advance(self._plan, before, event, now)
        if after != before or sends or request is not None:
            self._journal.append(event, now, request)
        self.rollout = after
        needless = {send.device for send in sends if self._link.is_needless(send)}
        for entry in changes(self._plan, before, after, now):
            if is_told(entry, needless):
                self._tell(entry)
        unsent, self._unsent = self._unsent, []
        self._send([*(send for send in unsent if self._is_wanted(send)), *sends])

    def _send(self, sends: Sequence[Send]) -> None:
        """Send; what the broker does not answer is tried again, what it refuses would be refused again.

        Raises:
            RefusedMessageError: it refuses; recorded, with everything behind it.
        """
        known: list[Word] = []
        for number, send in enumerate(sends):
            try:
                word = self._link.send(send)
            except RefusedMessageError:
                self._step(Refused(tuple(sends[number:])))
                raise
            except BrokerError:
                self._unsent += sends[number:]
                break
            if word is not None:
                known.append(word)
        if known:
            self._step(Heard(tuple(known)))

    def _is_wanted(self, send: Send) -> bool:
        """Return whether what could not be sent is still to be sent."""
        device = self.rollout.devices[send.device]
        if send.purpose is Purpose.DO:
            return device.stage is Stage.STARTED and self.rollout.status is not Status.ABORTING
        return send.purpose is Purpose.CANCEL or device.undo is Undo.SENT

    def _tick(self) -> float:
        """Return the time, which never goes back: what was recorded is played again in its order."""
        self._now = max(self._now, self._clock())
        return self._now


def _drained(inbox: Inbox) -> list[Message]:
    """Return what has come, after a moment's wait for the first."""
    found: list[Message] = []
    try:
        found.append(inbox.get(timeout=TICK_S))
        while len(found) < MAX_BATCH:
            found.append(inbox.get_nowait())
    except queue.Empty:
        pass
    return found
