"""One thing's jobs and one device's operations, brought to agree. Messages and time in, messages out; nothing is kept.

INVARIANTS:
* One request to the service at a time; one that is not answered is asked again.
* Jobs are taken one at a time, in the order of the service's list. A job whose document is not ours is left alone.
* The device is sent a command when it is online and has no operation of that id. Until it has accepted it, the job
  stays QUEUED: timers of the service begin with the work.
* Every update carries ``expectedVersion``. What the service says of a conflict replaces what was known, and is judged
  anew.
* An operation of this bridge that is open while its job is not pending any more is canceled. The list that says so was
  asked for after the operation was seen, and is not full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract.errors import RefusalError
from agent.contract.wire import dump, parse_object
from agent.fleet.bridge import aws_jobs, requests
from agent.fleet.bridge.aws_jobs import Execution, JobTopics, Key
from agent.fleet.bridge.requests import Command, Foreign, Note

if TYPE_CHECKING:
    from agent.fleet.bridge.requests import Out, Seal
    from agent.fleet.view import Device

JsonObject = dict[str, Any]
ANSWER_S = 10.0
"""How long the service may take to answer before it is asked again."""
RESEND_S = 60.0
"""A device that is online and has not said a word about a command for so long is sent it again."""
LOOK_AGAIN_S = 600.0
"""How long a list is believed without a notification: one may have been lost."""
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 60.0
"""After a refusal; doubled with each one more."""
_LIST, _DESCRIBE, _UPDATE = "get", "describe", "update"


@dataclass
class _Asked:
    """The request that is under way."""

    kind: str
    token: str
    at_s: float
    key: Key | None = None
    suspects: frozenset[str] = frozenset()


class ThingJobs:
    """The jobs of one thing, which is one device.

    Args:
        device: as it is heard; somebody else keeps it up to date.
        thing: its name there.
        bridge: name of the bridge, which ids of operations begin with.
        run: tells requests of this run from those of another.
        seal: makes of a command what is to be sent.
        step_timeout_min: minutes after which the service gives up on a job that was not updated; None leaves that to
            the job.
    """

    def __init__(
        self,
        device: Device,
        thing: str,
        *,
        bridge: str,
        run: str,
        seal: Seal,
        step_timeout_min: int | None = None,
    ) -> None:
        self._device = device
        self._topics = JobTopics(thing)
        self._bridge = bridge
        self._run = run
        self._seal = seal
        self._step_timeout_min = step_timeout_min
        self._is_stale = True
        self._listed_at_s = 0.0
        self._pending: list[Key] = []
        self._known: dict[Key, Execution] = {}
        self._sent: dict[str, tuple[Command, float]] = {}
        self._canceled: set[str] = set()
        self._asked: _Asked | None = None
        self._requests = 0
        self._pause_s = FIRST_PAUSE_S
        self._not_before_s = 0.0
        self._out: list[Out] = []

    @property
    def root(self) -> str:
        """What its topics there begin with."""
        return self._topics.root

    @property
    def filters(self) -> tuple[str, ...]:
        """What to listen to there."""
        return self._topics.filters

    def take(self, topic: str, payload: bytes, now_s: float, *, is_retained: bool = False) -> None:  # noqa: ARG002 - the service retains nothing
        """Take in what the service said."""
        rest = topic.removeprefix(self.root)
        if rest == "notify":
            self._is_stale = True
            return
        try:
            body = parse_object(payload, most_bytes=1 << 20)
        except RefusalError as refusal:
            self._out.append(Note(f"{self._topics.thing}: {rest}: {refusal.detail}"))
            return
        asked = self._asked
        if asked is None or body.get("clientToken") != asked.token:
            return  # an answer to another run, or one that was given up
        self._asked = None
        if rest.endswith("/accepted"):
            self._pause_s = FIRST_PAUSE_S
            getattr(self, f"_on_{asked.kind}")(asked, body)
        elif rest.endswith("/rejected"):
            self._on_rejected(asked, body, now_s)

    def act(self, now_s: float) -> list[Out]:
        """Return what is to be sent and said now."""
        self._next(now_s)
        out, self._out = self._out, []
        return out

    def _next(self, now_s: float) -> None:
        if now_s < self._not_before_s:
            return
        if self._asked is not None:
            if now_s - self._asked.at_s < ANSWER_S:
                return
            self._out.append(Note(f"{self._topics.thing}: no answer to {self._asked.kind} in {ANSWER_S:.0f} s"))
            self._is_stale |= self._asked.kind == _LIST
            self._asked = None
        if self._is_stale or now_s - self._listed_at_s >= LOOK_AGAIN_S:
            self._is_stale, self._listed_at_s = False, now_s
            self._ask(_LIST, self._topics.pending, {}, now_s, suspects=self._suspects())
            return
        for key in self._pending:
            execution = self._known.get(key)
            if execution is None:
                self._ask(_DESCRIBE, self._topics.describe(key[0]), {"executionNumber": key[1]}, now_s, key=key)
                return
            if execution.is_ours:
                self._serve(execution, now_s)
                return

    def _serve(self, execution: Execution, now_s: float) -> None:
        wanted = self._wanted(execution)
        if wanted is not None and not execution.says(*wanted):
            self._update(execution, *wanted, now_s)
        elif wanted is None and execution.command is not None and self._device.presence == "online":
            self._send(execution, execution.command, now_s)

    def _wanted(self, execution: Execution) -> tuple[str, dict[str, str]] | None:
        """Return what the service is to be told, None while there is nothing."""
        if execution.refusal is not None:
            return aws_jobs.refused(execution.refusal)
        operation = self._device.operations.get(self._operation(execution.key))
        if operation is None:
            return None
        status, details = aws_jobs.told(operation)
        if execution.status == aws_jobs.QUEUED and status in (aws_jobs.SUCCEEDED, aws_jobs.FAILED):
            status = aws_jobs.IN_PROGRESS  # the documented way leads over it
        return status, details

    def _send(self, execution: Execution, command: tuple[str, JsonObject], now_s: float) -> None:
        operation = self._operation(execution.key)
        before = self._sent.get(operation)
        if before is not None and now_s - before[1] < RESEND_S:
            return
        try:
            name, body = command
            body = before[0].body if before else self._seal(self._device.name, name, body)
        except RefusalError as refusal:
            execution.refusal = refusal
            self._serve(execution, now_s)
            return
        note = f"{self._device.name} {operation}: {name} for job {execution.key[0]}, execution {execution.key[1]}"
        sent = Command(self._device.name, name, body, note)
        self._sent[operation] = (sent, now_s)
        self._out.append(sent)

    def _update(self, execution: Execution, status: str, details: dict[str, str], now_s: float) -> None:
        job, number = execution.key
        fields: JsonObject = {
            "status": status,
            "statusDetails": details,
            "expectedVersion": execution.version,
            "executionNumber": number,
            "includeJobExecutionState": True,
        }
        if status == aws_jobs.IN_PROGRESS and self._step_timeout_min is not None:
            fields["stepTimeoutInMinutes"] = self._step_timeout_min
        what = " ".join(filter(None, (status, details.get("phase"), details.get("code"))))
        note = f"{self._device.name} {self._operation(execution.key)}: job {job} is {what}"
        self._ask(_UPDATE, self._topics.update(job), fields, now_s, key=execution.key, note=note)

    def _ask(
        self,
        kind: str,
        topic: str,
        fields: JsonObject,
        now_s: float,
        *,
        key: Key | None = None,
        suspects: frozenset[str] = frozenset(),
        note: str = "",
    ) -> None:
        self._requests += 1
        token = f"{self._run}-{self._requests}"
        self._asked = _Asked(kind, token, now_s, key, suspects)
        self._out.append(Foreign(topic, dump({**fields, "clientToken": token}), note=note))

    def _on_get(self, asked: _Asked, body: JsonObject) -> None:
        self._pending = aws_jobs.pending(body)
        if len(self._pending) < aws_jobs.MAX_LISTED:
            for operation in sorted(asked.suspects - {self._operation(key) for key in self._pending}):
                self._sent.pop(operation, None)
                self._cancel(operation, "its job is not pending any more")
        self._known = {key: each for key, each in self._known.items() if key in self._pending}

    def _on_describe(self, asked: _Asked, body: JsonObject) -> None:
        assert asked.key is not None  # noqa: S101 - for the type checker
        try:
            found = aws_jobs.execution(requests.part(body, "execution"), self._operation(asked.key))
        except RefusalError as refusal:  # left alone, as a job of somebody else
            self._out.append(Note(f"{self._topics.thing}: job {asked.key[0]}: {refusal.detail}"))
            self._known[asked.key] = Execution(asked.key, aws_jobs.QUEUED, {}, 0, None)
            return
        if found.key != asked.key or found.status in aws_jobs.TERMINAL:
            self._drop(asked.key)
        else:
            self._known[asked.key] = found

    def _on_update(self, asked: _Asked, body: JsonObject) -> None:
        execution = self._known.get(asked.key) if asked.key else None
        if execution is None:
            return
        execution.take(requests.part(body, "executionState"))
        if execution.status in aws_jobs.TERMINAL:
            self._drop(execution.key)

    def _on_rejected(self, asked: _Asked, body: JsonObject, now_s: float) -> None:
        code, state = str(body.get("code")), requests.part(body, "executionState")
        self._out.append(Note(f"{self._topics.thing}: {asked.kind} was rejected: {code}: {body.get('message')}"))
        execution = self._known.get(asked.key) if asked.key else None
        if asked.key and code in ("ResourceNotFound", "TerminalStateReached"):
            self._end(asked.key, "it was deleted there")
        elif execution is not None and state:
            execution.take(state)
            if execution.status in aws_jobs.TERMINAL:
                self._end(execution.key, f"its job is {execution.status}")
        if asked.kind == _LIST:
            self._is_stale = True
        self._not_before_s = now_s + self._pause_s
        self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)

    def _end(self, key: Key, why: str) -> None:
        operation, suspects = self._operation(key), self._suspects()
        self._drop(key)
        if operation in suspects:
            self._cancel(operation, why)

    def _drop(self, key: Key) -> None:
        """Forget an execution that is over, and look for the next."""
        self._known.pop(key, None)
        self._sent.pop(self._operation(key), None)
        self._pending = [each for each in self._pending if each != key]
        self._is_stale = True

    def _suspects(self) -> frozenset[str]:
        """Return operations that are open, or may become so: their jobs should be pending."""
        unheard = frozenset(self._sent) - frozenset(self._device.operations)
        return requests.open_operations(self._bridge, self._device) | unheard

    def _cancel(self, operation: str, why: str) -> None:
        if operation not in self._canceled:
            self._canceled.add(operation)
            self._out.append(requests.cancel(self._device.name, operation, why, self._seal))

    def _operation(self, key: Key) -> str:
        return requests.operation_id(self._bridge, self._topics.thing, *key)
