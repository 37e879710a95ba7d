"""What a journal that was damaged, or is new, does not know any more: it is said, and its operations are ended.

The broker keeps the last report of every operation. One that says ``accepted`` or ``running`` and is unknown to the
journal would say so for ever, so after a loss the device has its own operations' topics read to it once.

INVARIANTS:
- nothing is ended before the broker has been silent for ``QUIET_S``: what it delivers again comes first, and what a
  command or a goal of the wanted state names is known by then;
- what is ended is recorded, so that its id is answered with that from then on and never begins anew;
- a look ends at most ``MAX_LOST`` operations, and there are at most ``MAX_LOOKS``: a broker that closes the connection
  for the asking costs five of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from agent.contract.errors import ErrorCode, ErrorInfo, RefusalError
from agent.contract.topics import is_id
from agent.contract.wire import parse_object
from agent.deployment.facts import concluded
from agent.deployment.inbox import Overhearing, Remembered
from agent.deployment.machine import Operation
from agent.deployment.phases import Phase, State

if TYPE_CHECKING:
    from agent.deployment.ports import Clock, Journal, Transport
    from agent.deployment.reporting import Reporting

log = structlog.get_logger("losses")
JsonObject = dict[str, Any]
NOTE = "lost"
"""The journal's note of what happened to it: ``why``, and how many ``looks`` were begun since."""
QUIET_S = 5.0
MAX_LOST = 100
"""Six times as many as may be open at a time."""
MAX_LOOKS = 5
_OPEN = (State.ACCEPTED, State.RUNNING)


class Losses:
    """Tells what was lost, and ends the operations that were.

    Args:
        journal: says what is known, and what happened to it.
        reporting: words the reports.
        transport: stops the reading.
        clock: for the time of an end.
    """

    def __init__(self, journal: Journal, reporting: Reporting, transport: Transport, clock: Clock) -> None:
        self._journal = journal
        self._reporting = reporting
        self._transport = transport
        self._clock = clock
        self._note: JsonObject | None = journal.notes().get(NOTE)
        self._heard: dict[str, JsonObject] = {}
        self._quiet_since: float | None = None

    @property
    def is_owed(self) -> bool:
        """Whether the next connection is to read the operations' topics; asked from any thread."""
        return self._note is not None and self._note["looks"] < MAX_LOOKS

    def tell(self) -> None:
        """Say once that the journal was recovered, and with what."""
        told = self._journal.notes().get("recovered")
        if told is not None:
            self._journal.note({"recovered": None}, [self._reporting.event("journal_recovered", **told)])

    def connected(self) -> None:
        """Note that a connection was made, which reads the topics if that is owed."""
        self._heard, self._quiet_since = {}, None
        if self._note is None or not self.is_owed:
            return
        self._note = {**self._note, "looks": self._note["looks"] + 1}
        self._journal.note({NOTE: self._note}, [])

    def heed(self, message: Overhearing | Remembered, now: float) -> None:
        """Take in that the broker reads, and what it reads; ``now`` is monotonic seconds."""
        if isinstance(message, Overhearing):
            if message.is_granted:
                self._quiet_since = now
            else:
                log.warning("operations_not_read", hint="let the device read its own op/+, as deploy/mosquitto does")
            return
        message.acknowledge()
        self._quiet_since = now
        body = _open_body(message)
        if body is not None and len(self._heard) < MAX_LOST:
            self._heard[body["id"]] = body

    def look(self, now: float) -> None:
        """End what is lost, once the broker has been silent for long enough on a connection that stands."""
        if self._quiet_since is None or now - self._quiet_since < QUIET_S or not self._transport.is_connected:
            return
        self._quiet_since = None
        wanted = {goal.operation_id for goal in self._journal.goals() if goal.outcome is None}
        lost = [name for name in self._heard if name not in wanted and self._journal.operation(name) is None]
        for operation_id in lost:
            self._end(operation_id, self._heard[operation_id])
        if len(self._heard) < MAX_LOST:  # else there may be more: the next connection looks again
            self._journal.note({NOTE: None}, [])
            self._note = None
        self._heard = {}
        self._transport.overhear_no_more()
        self._transport.flush()

    def _end(self, operation_id: str, body: JsonObject) -> None:
        command, model, phase = body.get("command"), body.get("model"), _phase(body)
        before = Operation(
            operation_id,
            command if isinstance(command, str) and is_id(command) else "unknown",
            model if isinstance(model, str) and is_id(model) else None,
            "",
            {},
            state=State(body["state"]),
            phase=phase,
        )
        why = (self._note or {}).get("why", "new")
        error = ErrorInfo(
            code=ErrorCode.STATE_LOST,
            detail=f"the device's journal is {why}: what became of it is not known, its last report came {phase.when}",
            hint="see in reported what is served; if that is not it, send the command again with a new id",
            phase=str(phase),
            retryable=True,
        )
        after = concluded(replace(before, state=State.FAILED, error=error), self._journal.served(), self._clock.now())
        self._journal.save(after, self._reporting.changed(before, after))
        log.warning("operation_lost", id=operation_id, command=before.command, phase=str(phase))


def _open_body(message: Remembered) -> JsonObject | None:
    """Return a report of an operation without an end, None for any other payload."""
    try:
        body = parse_object(message.payload)
    except RefusalError:
        return None
    return body if body.get("id") == message.operation_id and body.get("state") in _OPEN else None


def _phase(body: JsonObject) -> Phase:
    try:
        return Phase(body.get("phase"))
    except ValueError:
        return Phase.QUEUED
