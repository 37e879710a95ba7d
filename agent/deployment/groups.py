"""What groups want of a device that is not in force here yet, and what halts them.

INVARIANTS:
- a document that waits, and a halt, are committed before the broker hears that the device has them;
- a halt that is lost on its way to the journal, or that could not be heard, never lets anything begin;
- halts and their ends count in the order in which they came, also those that could not be committed at once;
- what a broker does not retain any more is lifted only where it still has the group's document: one that forgot
  everything says nothing about halts.

It lives on the engine's thread. Whether and when a document is followed is for `agent.deployment.joining` to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agent.contract import halt as halting
from agent.contract.desired import Desired, HaltMessage
from agent.contract.errors import RefusalError
from agent.contract.halt import Halt, Halts
from agent.deployment.joining import Standing, halt_told, standing, told

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from agent.contract.desired import RetainedMessage
    from agent.contract.wire import JsonObject
    from agent.deployment.hearing import Hearing
    from agent.deployment.ports import Clock, Journal
    from agent.deployment.reporting import Reporting
    from agent.deployment.signed import SignedMessages

log = structlog.get_logger("groups")


class Groups:
    """The groups of one device.

    Args:
        names: of them, the one that wins first.
        device: id of this device.
        journal: keeps documents that wait, and halts.
        reporting: words what happens to them.
        signed: judges the signatures of halts.
        clock: for turns, which are wall time, and for what was heard.
        hearing: whether halts are known.
    """

    def __init__(
        self,
        names: Sequence[str],
        device: str,
        journal: Journal,
        reporting: Reporting,
        *,
        signed: SignedMessages,
        clock: Clock,
        hearing: Hearing,
    ) -> None:
        self.names = tuple(names)
        self._device = device
        self._journal = journal
        self._reporting = reporting
        self._signed = signed
        self._clock = clock
        self._hearing = hearing
        waiting, halts = journal.waiting(), journal.halts()
        self._waiting = {name: Desired.model_validate(waiting[name]) for name in self.names if name in waiting}
        self._halts = {name: Halts.from_json(halts[name]) for name in self.names if name in halts}
        self._owed: dict[str, list[HaltMessage]] = {}
        self._taken: list[HaltMessage] = []

    @property
    def waiting(self) -> Mapping[str, Desired]:
        """The documents that are not in force yet."""
        return self._waiting

    def connected(self) -> None:
        """Note that a connection was made."""
        self._hearing.connected(self._clock.monotonic())

    def echoed(self, connection: int) -> None:
        """Note that the device heard itself on a connection."""
        self._hearing.echoed(connection, self._clock.monotonic())

    def noticed(self, message: RetainedMessage) -> None:
        """Note that a group's document came, whatever becomes of it."""
        self._hearing.document(message.source, message.connection)

    def heed(self, message: HaltMessage) -> None:
        """Take a halt in, or its end; what a broker replays is known already."""
        if self._was_taken(message):
            return
        # Until it is committed nothing begins. If that fails it comes again; newer ones that come before take it along.
        owed = self._owed.setdefault(message.source, [])
        if not any(each is message for each in owed):
            owed.append(message)
            note = self._hearing.halt if message.payload else self._hearing.lifted
            note(message.source, message.connection)
        after, signature = self._halts.get(message.source, Halts()), None
        for each in owed:
            halt = halting.parse(each.payload)
            signature = self._signature(halt, each)
            after = after.after(halt, is_signed=signature == "trusted")
        self._change(message.source, after, signature)
        del self._owed[message.source]
        self._taken += [each for each in owed if each is not message]

    def _was_taken(self, message: HaltMessage) -> bool:
        """Return whether a message that comes again was committed with a newer one; it does not come a third time."""
        others = [each for each in self._taken if each is not message]
        was_taken, self._taken = len(others) < len(self._taken), others
        return was_taken

    def look(self) -> None:
        """Lift the halts that the broker does not have any more, once it has told all that it has."""
        if self._halts and self._hearing.is_complete(self._clock.monotonic()):
            for name, halts in self._halts.items():
                is_gone = name not in self._hearing.halts and name in self._hearing.documents
                if halts.plain is not None and is_gone:
                    self._change(name, halts.after(None, is_signed=False), None)

    def standing(self, name: str, document: Desired) -> Standing:
        """Return where the device stands towards a document that is not in force."""
        halt = self._covering(name, document)
        return standing(document, halt, self._device, self._now(), has_heard=self._has_heard(name))

    def defer(self, name: str, document: Desired) -> None:
        """Keep a document until its turn comes."""
        state = str(self.standing(name, document))
        event = self._reporting.event("desired_waiting", source=name, generation=document.generation, state=state)
        self._journal.defer(name, document.to_json(), [event])
        self._waiting[name] = document
        log.info("desired_waiting", source=name, generation=document.generation, state=state)

    def ready(self) -> tuple[str, Desired] | None:
        """Return the first document whose turn has come, None if there is none."""
        states = ((name, document, self.standing(name, document)) for name, document in self._waiting.items())
        return next(((name, document) for name, document, state in states if state is Standing.JOINED), None)

    def joined(self, name: str) -> None:
        """Note that a newer document is in force than the one that waited."""
        self._waiting.pop(name, None)

    def holds(self, asking: Sequence[str], documents: Mapping[str, Desired]) -> bool:
        """Return whether what some groups ask for must not begin now.

        Args:
            asking: the groups.
            documents: those in force, by source.
        """
        return any(not self._has_heard(name) or self._covering(name, documents[name]) is not None for name in asking)

    def facts(self, documents: Mapping[str, Desired], held: Collection[str]) -> JsonObject:
        """Return what is told of each group whose document has a rollout, waits, is halted or holds something.

        Args:
            documents: those in force, by source.
            held: the groups of what is held.
        """
        now, found = self._now(), {}
        for name in self.names:
            newest = self._waiting.get(name) or documents.get(name)
            if newest is None:
                if name in self._halts:
                    found[name] = {"state": str(Standing.HALTED), "halt": halt_told(self._any(name))}
                continue
            halt = self._covering(name, newest)
            state = self._state(name, newest, halt, held)
            if state is not Standing.JOINED or newest.rollout is not None or halt is not None:
                found[name] = told(newest, state, halt, self._device, now)
        return found

    def _state(self, name: str, newest: Desired, halt: Halt | None, held: Collection[str]) -> Standing:
        if name in self._waiting:
            return self.standing(name, newest)
        if name not in held:
            return Standing.JOINED
        return Standing.HALTED if halt is not None else Standing.LISTENING

    def _change(self, name: str, after: Halts, signature: str | None) -> None:
        before = self._halts.get(name, Halts())
        if after == before:
            return
        newest = after.plain or after.signed
        if newest is None or newest in (before.plain, before.signed):
            event = self._reporting.event("group_resumed", group=name)
            log.info("group_resumed", group=name)
        else:
            more = {"generation": newest.generation, "reason": newest.reason, "signature": signature}
            event = self._reporting.event("group_halted", group=name, **more)
            log.warning("group_halted", group=name, **more)
        self._journal.halt(name, after.to_json() if after else None, [event])
        others = {other: halts for other, halts in self._halts.items() if other != name}
        self._halts = {**others, name: after} if after else others

    def _signature(self, halt: Halt | None, message: HaltMessage) -> str | None:
        """Return ``trusted``, the code of what is wrong with a signature, or None for a halt without one."""
        if halt is None or halt.signature is None:
            return None
        try:
            self._signed.check_halt(halt.signature, message.source, message.payload)
        except RefusalError as refusal:
            return str(refusal.code)  # it halts all the same: that can only stop something
        return "trusted"

    def _covering(self, name: str, document: Desired) -> Halt | None:
        return self._halts.get(name, Halts()).covering(document.generation)

    def _any(self, name: str) -> Halt | None:
        return self._halts[name].plain or self._halts[name].signed

    def _has_heard(self, name: str) -> bool:
        return name not in self._owed and self._hearing.is_complete(self._clock.monotonic())

    def _now(self) -> datetime | None:
        return self._clock.now() if self._clock.is_synchronised() else None
