"""What becomes of a message on ``cmd/<name>``: a new operation, an old answer, or a refusal.

Decides only; nothing is persisted or published here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.contract import commands
from agent.contract.commands import (
    MAX_CORRELATION,
    AnyCommand,
    Cancel,
    Deploy,
    Instant,
    SelfTest,
    SetConfig,
    is_response_topic,
)
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.topics import is_id
from agent.contract.wire import parse_object
from agent.deployment.facts import ENDED, source_of
from agent.deployment.machine import DEFERRED, Judged, Operation
from agent.deployment.phases import RULES, State
from agent.deployment.trust import Trust
from agent.planning.model_types import HUGGING_FACE, TIMM_PREFIX, is_library

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.contract.manifest import Identity
    from agent.deployment.ports import Clock, Configuration, Journal, Signatures
    from agent.deployment.signed import SignedMessages
    from agent.deployment.trust import Trusted

MAX_OPEN = 16
"""Operations that may wait at a time; the next one is told that the device is busy."""


@dataclass(frozen=True)
class CommandMessage:
    """A command as the broker delivered it.

    Attributes:
        name: last level of its topic.
        payload: what was published.
        is_retained: whether the broker replayed it from its store.
        response_topic, correlation: MQTT 5 properties, or None.
        acknowledge: tells the broker that the message is in safe hands; called once the journal holds it.
        origin: who sends it when no operator does over the broker: ``desired``, ``page``.
    """

    name: str
    payload: bytes
    is_retained: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    acknowledge: Callable[[], None] = lambda: None
    origin: str | None = None


@dataclass(frozen=True)
class Accepted:
    """A new operation that has a line of phases to go."""

    operation: Operation
    sequence: int | None


@dataclass(frozen=True)
class Answered:
    """A new operation that ended at once: refused, or done without a phase."""

    operation: Operation
    command: AnyCommand | None


@dataclass(frozen=True)
class Repeated:
    """The same command again: answered with what became of the first.

    ``reply`` says where this copy wants its answer, see `reply_to`.
    """

    operation: Operation
    reply: dict[str, str]


@dataclass(frozen=True)
class Unaddressed:
    """A refusal that may not, or cannot, be published under an operation's id."""

    refusal: RefusalError


Verdict = Accepted | Answered | Repeated | Unaddressed


def describe(verdict: Verdict) -> dict[str, Any]:
    """Return the fields of a verdict for the log."""
    if isinstance(verdict, Unaddressed):
        return {"code": str(verdict.refusal.code), "detail": verdict.refusal.detail}
    operation, error = verdict.operation, verdict.operation.error
    return {"id": operation.id, "state": str(operation.state), "code": str(error.code) if error else None}


def reply_to(message: CommandMessage) -> dict[str, str]:
    """Return ``response_topic`` and ``correlation_id`` as far as they were given: MQTT 5's first, then the body's.

    Also of a body that is refused for something else: whoever sent it waits for the answer there.
    """
    reply: dict[str, str] = {}
    try:
        body = parse_object(message.payload)
    except RefusalError:
        body = {}
    topic, correlation = body.get("response_topic"), body.get("correlation_id")
    if isinstance(topic, str) and is_response_topic(topic):
        reply["response_topic"] = topic
    if isinstance(correlation, str) and correlation:
        reply["correlation_id"] = correlation[:MAX_CORRELATION]
    if message.response_topic:
        reply["response_topic"] = message.response_topic
    if message.correlation:
        reply["correlation_id"] = message.correlation.decode("utf-8", "surrogateescape")  # any bytes, given back
    return reply


class Intake:
    """Judges commands against the journal, the clock and the trusted keys."""

    def __init__(
        self,
        journal: Journal,
        signatures: Signatures,
        clock: Clock,
        identity: Identity,
        config: Configuration,
        *,
        signed: SignedMessages,
        require_signature: bool,
        model_types: frozenset[str],
        generation: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._config = config
        self._signed = signed
        self._trust = Trust(journal, signatures, clock, identity, signed, require_signature=require_signature)
        self._model_types = model_types
        self._generation = generation

    def judge(self, message: CommandMessage) -> Verdict:
        """Return what becomes of ``message``."""
        try:
            command = commands.parse(message.name, message.payload, retained=message.is_retained)
            fingerprint = commands.fingerprint(message.name, message.payload)
        except RefusalError as refusal:
            return self._refuse(message, refusal)
        known = self._journal.operation(command.id)
        if known is not None:
            return self._repeat(known, command, fingerprint, message)
        operation = _record(command, fingerprint, message)
        try:
            trusted = self._check(command, message)
            if isinstance(command, SetConfig):
                changes = self._config.judge(command.config)
                operation = replace(operation, decision={"config": changes})
        except RefusalError as refusal:
            state = State.EXPIRED if refusal.code is ErrorCode.EXPIRED else State.REJECTED
            return Answered(replace(operation, state=state, error=refusal.info()), None)
        if isinstance(command, Instant):
            return Answered(replace(operation, state=State.SUCCEEDED), command)
        if trusted.waits_for is not None:
            operation = replace(operation, facts={DEFERRED: trusted.waits_for})
        return Accepted(operation, trusted.sequence)

    def reconsider(self, operation: Operation) -> Judged | None:
        """Return what became of an operation that waited for the clock, None while it still has to."""
        if not self._clock.is_synchronised():
            return None
        command = commands.COMMANDS[operation.command].model_validate(operation.request)
        try:
            self._trust.check(command, is_own=operation.origin is not None)
        except RefusalError as refusal:
            return Judged(refusal.info())
        return Judged()

    def _refuse(self, message: CommandMessage, refusal: RefusalError) -> Verdict:
        """A refusal with a fresh id becomes an operation, so that whoever sent it can read what was wrong."""
        if refusal.operation_id is None or self._journal.operation(refusal.operation_id) is not None:
            return Unaddressed(refusal)
        name = message.name if is_id(message.name) else "unknown"
        request: dict[str, Any] = {**reply_to(message)}
        operation = Operation(refusal.operation_id, name, None, "", request, state=State.REJECTED, error=refusal.info())
        return Answered(operation, None)

    def _repeat(self, known: Operation, command: AnyCommand, fingerprint: str, message: CommandMessage) -> Verdict:
        is_lost = known.error is not None and known.error.code is ErrorCode.STATE_LOST  # and with it what was asked
        if is_lost or known.fingerprint == fingerprint:
            return Repeated(known, reply_to(message))
        detail = f"id {command.id} was used before for another {known.command}, now {known.state}"
        return Unaddressed(RefusalError(ErrorCode.ID_CONFLICT, detail, "send it with a new id", command.id))

    def _check(self, command: AnyCommand, message: CommandMessage) -> Trusted:
        """Return how far the command is trusted; refuse it if it may not, or cannot, be acted on."""
        is_own = message.origin is not None
        if not is_own:
            self._signed.check_content(command, message.payload)
        trusted = self._trust.check(command, is_own=is_own)
        self._check_generation(command)
        if isinstance(command, Cancel):
            self._check_cancel(command)
            return trusted
        if isinstance(command, Instant):
            return trusted
        waiting = self._journal.open_operations()
        if len(waiting) >= MAX_OPEN:
            raise RefusalError(
                ErrorCode.BUSY, f"{len(waiting)} operations are waiting", "send it again later, with a new id"
            )
        if isinstance(command, Deploy):
            self._check_source(command)
        elif not isinstance(command, SelfTest) and all(operation.model != command.model for operation in waiting):
            self._check_served(command.name, command.model)
        return trusted

    def _check_generation(self, command: AnyCommand) -> None:
        expected, actual = command.expected_generation, self._generation()
        if expected is not None and expected != actual:
            raise RefusalError(
                ErrorCode.STALE_GENERATION,
                f"the command expects generation {expected}, {'none' if actual is None else actual} is in force",
                "look at reported.desired and decide again",
            )

    def _check_cancel(self, command: Cancel) -> None:
        target = self._journal.operation(command.operation)
        if target is None:
            raise RefusalError(ErrorCode.UNKNOWN_OPERATION, f"no operation {command.operation} is known here")
        if target.state.is_terminal:
            at = f" at {target.facts[ENDED]}" if ENDED in target.facts else ""
            detail = f"operation {target.id} has already ended as {target.state}{at}"
            raise RefusalError(ErrorCode.NOT_CANCELABLE, detail)
        if not RULES[target.phase].is_cancelable:
            detail = f"operation {target.id} can no longer be canceled {target.phase.when}"
            raise RefusalError(ErrorCode.NOT_CANCELABLE, detail, "wait for its end")

    def _check_served(self, name: str, model: str) -> None:
        served = self._journal.served()
        if model not in served:
            known = ", ".join(served) or "none"
            raise RefusalError(
                ErrorCode.UNKNOWN_MODEL, f"no model {model!r} is served here; served: {known}", "deploy it"
            )
        if name == "rollback" and served[model].previous is None:
            raise RefusalError(
                ErrorCode.NOTHING_TO_ROLL_BACK, f"{model} has no release before {served[model].current.id}"
            )

    def _check_source(self, command: Deploy) -> None:
        files = command.manifest.manifest().files if command.manifest else ()
        if len(files) > 1:
            raise RefusalError(
                ErrorCode.BAD_REQUEST,
                f"the manifest names {len(files)} files, a model is deployed from one",
                "pack a Hugging Face directory into one file: tar -chf model.tar -C DIRECTORY .",
            )
        name = source_of(command.model_dump(mode="json")).model_type
        if name not in self._model_types and not is_library(name):
            known = ", ".join([*sorted(self._model_types), HUGGING_FACE, f"{TIMM_PREFIX}NAME"])
            raise RefusalError(ErrorCode.UNKNOWN_MODEL_TYPE, f"unknown model_type {name!r}", f"known here: {known}")


def _record(command: AnyCommand, fingerprint: str, message: CommandMessage) -> Operation:
    request: dict[str, Any] = command.model_dump(mode="json", by_alias=True, exclude_unset=True)
    request |= reply_to(message)
    model = getattr(command, "model", None)
    return Operation(command.id, command.name, model, fingerprint, request, origin=message.origin)
