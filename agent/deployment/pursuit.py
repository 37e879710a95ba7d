"""Follows the wanted state: takes documents in, remembers their goals, and says which commands lead there.

INVARIANTS:
- a document and its goals are committed together, before the broker hears that the device has it;
- a goal's outcome is committed with the end of its operation, so a restart finds it either open or decided;
- generations only grow, those of documents that wait for their turn among them.

It lives on the engine's thread and begins nothing itself: its goals become commands that are judged like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from agent.contract import desired
from agent.contract.desired import OWN, Desired, HaltMessage
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.topics import OWN_NAME
from agent.deployment.convergence import ORIGIN, Course, Goal, goals, is_met, merge, steer
from agent.deployment.intake import MAX_OPEN, CommandMessage, Repeated, Unaddressed
from agent.deployment.joining import Standing
from agent.deployment.phases import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.contract.desired import RetainedMessage
    from agent.deployment.groups import Groups
    from agent.deployment.intake import Verdict
    from agent.deployment.machine import Operation
    from agent.deployment.models import Served
    from agent.deployment.ports import Configuration, Journal
    from agent.deployment.reporting import Reporting
    from agent.deployment.signed import SignedMessages

log = structlog.get_logger("pursuit")
JsonObject = dict[str, Any]
RESERVED = 4
"""Places among the open operations that a generation leaves to operators."""


class Pursuit:
    """The wanted state of one device.

    Args:
        journal: keeps documents, goals and what was reached.
        config: judges wanted settings.
        reporting: words what happens to documents.
        signed: judges the signatures of documents.
        groups: the device's groups, with what waits in them and what halts them.
    """

    def __init__(
        self,
        journal: Journal,
        config: Configuration,
        reporting: Reporting,
        signed: SignedMessages,
        groups: Groups,
    ) -> None:
        self._journal = journal
        self._config = config
        self._reporting = reporting
        self._signed = signed
        self._groups = groups
        sources = (OWN, *groups.names)
        known = journal.documents()
        self._documents = {source: Desired.model_validate(known[source]) for source in sources if source in known}
        self._wanted = merge(self._documents, groups.names)
        self._goals: tuple[Goal, ...] = tuple(journal.goals())
        self._notes = journal.notes()
        self._told = self._progress()

    @property
    def generation(self) -> int | None:
        """Generation of the device's own document in force, None without one."""
        own = self._documents.get(OWN)
        return own.generation if own else None

    @property
    def stamp(self) -> str:
        """Names the generations in force, for people."""
        return str(self._notes.get("stamp", ""))

    def resume(self, open_operations: Sequence[Operation]) -> None:
        """At boot: make new goals if the groups in the settings are others than before."""
        if self._wanted is not None and self._wanted.stamp != self.stamp:
            self._adopt(None, self._documents, open_operations)

    def connected(self) -> None:
        """Note that a connection was made."""
        self._groups.connected()

    def echoed(self, connection: int) -> None:
        """Note that the device heard itself on a connection, behind what the broker retains."""
        self._groups.echoed(connection)

    def receive(self, message: RetainedMessage, open_operations: Sequence[Operation]) -> None:
        """Take a document or a halt in, or say on the audit trail why not."""
        if isinstance(message, HaltMessage):
            self._groups.heed(message)
            return
        known = self._groups.waiting.get(message.source) or self._documents.get(message.source)
        if message.source != OWN:
            self._groups.noticed(message)
        try:
            document = desired.parse(message.payload)
            if message.is_replayed and document == known:
                return
            _check_place(document, message.source)
            _check_news(document, known)
            self._signed.check_document(document, message.source, message.payload)
        except RefusalError as refusal:
            log.warning("desired_rejected", source=message.source or OWN_NAME, code=str(refusal.code))
            error = refusal.info().model_dump(mode="json")
            self._journal.queue([self._event("desired_rejected", message.source, error=error)])
            return
        if message.source == OWN or self._groups.standing(message.source, document) is Standing.JOINED:
            self._adopt(message.source, {**self._documents, message.source: document}, open_operations)
        else:
            self._groups.defer(message.source, document)

    def course(self, open_operations: Sequence[Operation]) -> Course:
        """Return what is to be done next; goals that are met already are written down as such."""
        self._groups.look()
        while (ready := self._groups.ready()) is not None:
            self._adopt(ready[0], {**self._documents, ready[0]: ready[1]}, open_operations)
        if self._is_over and all(each.origin != ORIGIN for each in open_operations):
            return Course()
        self._goals = tuple(self._journal.goals())
        room = MAX_OPEN - RESERVED - len(open_operations)
        course = steer(self._goals, open_operations, self._journal.served(), room=room, held=self.held())
        if course.met:
            self._settle({goal.operation_id: str(State.SUCCEEDED) for goal in course.met})
        return course

    def held(self) -> frozenset[str]:
        """Return the ids of the operations that must not begin now: of goals of groups that are, or may be, halted."""
        return frozenset(self._held_by())

    def judged(self, message: CommandMessage, verdict: Verdict) -> None:
        """Decide a goal whose operation could not begin because its id had been used."""
        goal = next((each for each in self._goals if each.payload() == message.payload), None)
        if goal is None:
            return
        if isinstance(verdict, Unaddressed):
            self._settle({goal.operation_id: str(State.REJECTED)})
        elif isinstance(verdict, Repeated) and verdict.operation.state.is_terminal:
            self._settle({goal.operation_id: str(verdict.operation.state)})

    def is_news(self) -> bool:
        """Return whether what ``facts`` says of the generation is not what was true at the last call."""
        before, self._told = self._told, self._progress()
        return before != self._told

    def conclude(self) -> None:
        """Once every goal has its outcome, say so, and remember the generations that were reached."""
        if not self._documents or self._notes.get("concluded") == self.stamp or not self._is_over:
            return
        missing = self._missing()
        notes: JsonObject = {"concluded": self.stamp}
        if not missing:
            notes["reached"] = {source: document.generation for source, document in self._documents.items()}
        name = "desired_missed" if missing else "desired_reached"
        told = self._reporting.event(name, generations=self._generations(), missing=missing)
        self._journal.note(notes, [told])
        self._notes |= notes
        log.info("desired_missed" if missing else "desired_reached", stamp=self.stamp, missing=list(missing))

    def facts(self, served: Mapping[str, Served]) -> JsonObject:
        """Return ``generation`` and ``desired`` as ``reported`` shows them."""
        reached = self._notes.get("reached", {})
        groups = self._groups.facts(self._documents, self._holding())
        if not self._documents and not groups:
            return {"generation": None, "desired": None}
        settled = [goal for goal in self._goals if goal.outcome == State.SUCCEEDED]
        return {
            "generation": reached.get(OWN),
            "desired": {
                "generations": self._generations(),
                "reached": {source or OWN_NAME: generation for source, generation in reached.items()},
                "missing": self._missing(),
                "changed_since": [goal.model for goal in settled if goal.model and not is_met(goal, served)],
                "groups": groups,
            },
        }

    @property
    def _is_over(self) -> bool:
        return all(goal.outcome is not None for goal in self._goals)

    def _held_by(self) -> dict[str, tuple[str, ...]]:
        """Return the groups that ask for each goal that is held, by its operation's id."""
        if self._wanted is None:
            return {}
        asking = {goal.operation_id: self._wanted.asking(goal) for goal in self._goals if goal.outcome is None}
        return {each: groups for each, groups in asking.items() if self._groups.holds(groups, self._documents)}

    def _holding(self) -> frozenset[str]:
        return frozenset(group for groups in self._held_by().values() for group in groups)

    def _progress(self) -> tuple[JsonObject, JsonObject, Any, JsonObject]:
        groups = self._groups.facts(self._documents, self._holding())
        # What time alone changes is no news: at each stage every device would tell it.
        groups = {name: {**each, "percent": None} for name, each in groups.items()}
        return self._generations(), self._missing(), self._notes.get("reached"), groups

    def _generations(self) -> JsonObject:
        return {source or OWN_NAME: document.generation for source, document in self._documents.items()}

    def _missing(self) -> JsonObject:
        return {
            goal.subject: {"operation": goal.operation_id, "state": goal.outcome or "pending"}
            for goal in self._goals
            if goal.outcome != State.SUCCEEDED
        }

    def _adopt(self, source: str | None, documents: dict[str, Desired], open_operations: Sequence[Operation]) -> None:
        wanted = merge(documents, self._groups.names)
        if wanted is None:
            return
        present = {*self._journal.served(), *(each.model for each in open_operations if each.model is not None)}
        found = tuple(self._needed(goal) for goal in goals(wanted, present, self._config.overrides()))
        changed = {} if source is None else {source: documents[source].to_json()}
        told = self._event(
            "desired_accepted",
            source or OWN,
            generations={each or OWN_NAME: document.generation for each, document in documents.items()},
            operations=[goal.operation_id for goal in found],
        )
        self._journal.adopt(changed, found, {"stamp": wanted.stamp}, [told])
        self._documents, self._wanted, self._goals = documents, wanted, found
        if source is not None:
            self._groups.joined(source)
        self._notes |= {"stamp": wanted.stamp}
        log.info("desired_accepted", stamp=wanted.stamp, goals=len(found))

    def _needed(self, goal: Goal) -> Goal:
        """Return a goal, decided already if it asks for settings that are in force."""
        if goal.command != "set_config":
            return goal
        try:
            changes = self._config.judge(goal.fields["config"])
        except RefusalError:
            return goal  # its operation says what is wrong
        if any(change["old"] != change["new"] for change in changes.values()):
            return goal
        return Goal(goal.operation_id, goal.command, None, goal.fields, str(State.SUCCEEDED))

    def _settle(self, outcomes: Mapping[str, str]) -> None:
        self._journal.settle(outcomes)
        self._goals = tuple(self._journal.goals())

    def _event(self, name: str, source: str, **details: Any) -> Any:
        return self._reporting.event(name, source=source or OWN_NAME, **details)


def _check_place(document: Desired, source: str) -> None:
    if document.rollout is not None and source == OWN:
        raise RefusalError(
            ErrorCode.BAD_REQUEST,
            "a rollout is for the document of a group: of this one device there is no percentage",
            "leave rollout out, or publish it for a group",
        )


def _check_news(document: Desired, known: Desired | None) -> None:
    if known is not None and document.generation <= known.generation:
        raise RefusalError(
            ErrorCode.STALE_GENERATION,
            f"generation {document.generation} is not newer than {known.generation}, which the device has",
            f"publish generation {known.generation + 1} or higher",
        )


def message_of(goal: Goal) -> CommandMessage:
    """Return the command that leads to ``goal``."""
    return CommandMessage(goal.command, goal.payload(), origin=ORIGIN)
