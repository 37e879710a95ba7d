"""Which reports a change calls for. Builds them from values; sending them is somebody else's work."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from agent.contract import reports
from agent.contract.commands import COMMANDS
from agent.contract.reports import Progress, Report
from agent.contract.topics import is_id
from agent.contract.wire import JsonObject, dump
from agent.deployment.facts import config_changes
from agent.deployment.intake import reply_to
from agent.deployment.machine import DEFERRED
from agent.deployment.phases import State
from agent.planning.explain import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.contract.errors import RefusalError
    from agent.contract.topics import Topics
    from agent.deployment.intake import CommandMessage, Repeated
    from agent.deployment.machine import Operation
    from agent.deployment.models import Release, Served
    from agent.deployment.ports import Clock

    Facts = Callable[[Mapping[str, Served]], Mapping[str, Any]]

PROGRESS_INTERVAL_S = 1.0
PROGRESS_SHARE = 0.05
_DETAILS = ("decision", "previous")
_ESSENCE = ("version", "method", "state")


class Reporting:
    """Builds the reports of one device.

    Args:
        topics: where to.
        clock: for the time in a report.
        boot_id: identifies this run of the operating system.
        agent: version of this software.
        facts: returns ``memory``, ``trust``, ``config``, ``generation``, ``desired`` and ``capabilities`` as they are
            known now; given what is served.
        selected: returns what of the served is made to answer.
    """

    def __init__(
        self,
        topics: Topics,
        clock: Clock,
        *,
        boot_id: str,
        agent: str,
        facts: Facts,
        selected: Callable[[Mapping[str, Served]], Mapping[str, Served]] = lambda served: served,
    ) -> None:
        self._topics = topics
        self._clock = clock
        self._boot_id = boot_id
        self._agent = agent
        self._facts = facts
        self.selected = selected
        self._seq = 0
        self._told: dict[str, tuple[float, tuple[str, str | None], float]] = {}

    def operation(self, operation: Operation, progress: Progress | None = None) -> list[Report]:
        """Build the state of ``operation``, and a copy for whoever asked for one."""
        self._seq += 1
        report = reports.operation(
            self._topics,
            describe_operation(operation),
            progress=progress,
            boot_id=self._boot_id,
            seq=self._seq,
            at=self._clock.now(),
        )
        return [report, *_copy(report, operation.request)]

    def accepted(self, operation: Operation) -> list[Report]:
        """Build the first word on an operation."""
        fields = {"id": operation.id, "command": operation.command, "model": operation.model}
        return [*self.operation(operation), self.event("command_accepted", **fields)]

    def answered(self, operation: Operation) -> list[Report]:
        """Build the only word on an operation that ended at once."""
        if operation.error is None:
            changes = config_changes(operation)
            told = [self.event("config_changed", id=operation.id, config=changes)] if changes else []
            return [*self.accepted(operation), *told]
        return [
            *self.operation(operation),
            self._rejection(operation.id, operation.command, operation.error.model_dump(mode="json")),
        ]

    def repeated(self, verdict: Repeated) -> list[Report]:
        """Build the answer to a command that came again, also for where this copy wants it."""
        report = self.operation(verdict.operation)[0]
        known = _copy(report, verdict.operation.request)
        return [report, *known, *(copy for copy in _copy(report, verdict.reply) if copy not in known)]

    def logs(self, operation: Operation, entries: Sequence[JsonObject], *, is_cut: bool) -> list[Report]:
        """Build the answer to ``collect_logs``."""
        return reports.logs(self._topics, operation.id, entries, is_cut=is_cut, at=self._clock.now())

    def refused(self, message: CommandMessage, refusal: RefusalError) -> list[Report]:
        """Build the answer to a command that no operation's topic can carry."""
        error = refusal.info().model_dump(mode="json")
        told = [self._rejection(refusal.operation_id, message.name, error)]
        body = {"schema": reports.SCHEMA, "id": refusal.operation_id, "state": "rejected", "error": error}
        return [*told, *_copy(Report("", dump(body)), reply_to(message))]

    def changed(self, before: Operation, after: Operation) -> list[Report]:
        """Build the reports of a transition."""
        self._told.pop(after.id, None)
        fields: JsonObject = {
            "id": after.id,
            "command": after.command,
            "model": after.model,
            "from": str(before.phase),
            "phase": str(after.phase),
            "state": str(after.state),
        }
        if after.error is not None:
            fields["error"] = after.error.model_dump(mode="json")
        name = "operation_ended" if after.state.is_terminal else "operation_moved"
        return [*self.operation(after), *self._decided(before, after), self.event(name, **fields)]

    def progress(self, operation: Operation, progress: Progress, now: float) -> Report | None:
        """Build a progress report, or None when one was sent less than a second and 5 % ago."""
        share = progress.done / progress.total if progress.total else 0.0
        work = (str(operation.phase), progress.method)
        last, before, told = self._told.get(operation.id, (-PROGRESS_INTERVAL_S, ("", None), -1.0))
        is_new = before != work
        if not is_new and now - last < PROGRESS_INTERVAL_S and share - told < PROGRESS_SHARE:
            return None
        self._told[operation.id] = (now, work, share)
        report = self.operation(operation, progress)[0]
        return Report(report.topic, report.payload, qos=0, retain=True, expiry_s=report.expiry_s)

    def reported(self, served: Mapping[str, Served]) -> list[Report]:
        """Build what is served now: after many deaths of the server that is the release before, or nothing."""
        facts = self._facts(served)
        models = {name: describe_served(item, served[name].current) for name, item in self.selected(served).items()}

        def build(models: Mapping[str, JsonObject]) -> Report:
            return reports.reported(
                self._topics,
                generation=facts["generation"],
                desired=facts["desired"],
                models=models,
                memory=facts["memory"],
                trust=facts["trust"],
                config=facts["config"],
                at=self._clock.now(),
            )

        return [_fitting(build, models)]

    def everything(self, served: Mapping[str, Served]) -> list[Report]:
        """Build what a broker that forgot everything has to be told."""
        known = self._facts(served)["capabilities"]
        report = reports.capabilities(
            self._topics,
            agent=self._agent,
            commands=COMMANDS,
            methods=known["methods"],
            model_types=known["model_types"],
            versions=known["versions"],
            hardware=known["hardware"],
            groups=known["groups"],
            labels=known["labels"],
            at=self._clock.now(),
        )
        return [report, *self.reported(served)]

    def event(self, name: str, **details: Any) -> Report:
        """Build one line of the audit trail."""
        return reports.event(self._topics, name, {"boot_id": self._boot_id, **details}, at=self._clock.now())

    def _decided(self, before: Operation, after: Operation) -> list[Report]:
        """Build the line about a method that was chosen, or that measurement chose in its place."""
        old, new = before.decision or {}, after.decision or {}
        if new.get("method") is None or new["method"] == old.get("method"):
            return []
        told = {name: new.get(name) for name in ("method", "scenario", "reason")}
        return [self.event("decided", id=after.id, command=after.command, model=after.model, **told)]

    def _rejection(self, operation_id: str | None, command: str, error: JsonObject) -> Report:
        return self.event("command_rejected", id=operation_id, command=command if is_id(command) else None, error=error)


def _fitting(build: Callable[[Mapping[str, JsonObject]], Report], models: Mapping[str, JsonObject]) -> Report:
    """Return the fullest report that fits into 64 KiB: of many models the details are left out, never a model."""
    for left_out in ((), _DETAILS[:1], _DETAILS[:2]):
        with contextlib.suppress(reports.TooLargeError):
            return build({name: {**told, **dict.fromkeys(left_out)} for name, told in models.items()})
    return build({name: {key: told[key] for key in _ESSENCE} for name, told in models.items()})


def _copy(report: Report, request: Mapping[str, Any]) -> list[Report]:
    topic = request.get("response_topic")
    if not topic:
        return []
    correlation = request.get("correlation_id")
    raw = correlation.encode("utf-8", "surrogateescape") if correlation else None
    return [Report(topic, report.payload, correlation=raw)]


def describe_served(item: Served, current: Release) -> JsonObject:
    """Return what answers for a model name, as ``reported`` and the status page show it.

    Args:
        item: what answers.
        current: what should; told as ``stands_in_for`` where it is another.
    """
    previous = _release(item.previous) if item.previous else None
    decision = explained(item.current.decision)
    missing = {} if item.current.id == current.id else {"stands_in_for": _release(current)}
    return {**_release(item.current), "state": "serving", "previous": previous, "decision": decision, **missing}


def describe_operation(operation: Operation) -> JsonObject:
    """Return where an operation stands, as its report and the status page show it."""
    return {
        "id": operation.id,
        "command": operation.command,
        "model": operation.model,
        "state": str(operation.state),
        "phase": None if operation.state.is_terminal else str(operation.phase),
        "attempt": operation.attempt,
        "detail": operation.facts[DEFERRED] if operation.is_deferred else None,
        "decision": explained(
            operation.decision, has_failed=operation.state.is_terminal and operation.state is not State.SUCCEEDED
        ),
        "error": operation.error.model_dump(mode="json") if operation.error else None,
    }


def explained(decision: JsonObject | None, *, has_failed: bool = False) -> JsonObject | None:
    """Return a decision record with its sentences; see ``explain`` for ``has_failed``."""
    return None if decision is None else {**decision, "explanation": explain(decision, has_failed=has_failed)}


def _release(release: Release) -> JsonObject:
    names = ("version", "sha256", "model_type", "method", "artifact_bytes", "resident_bytes", "coverage")
    more = ("agreement", "accuracy", "since", "chosen_by")
    return {name: getattr(release, name) for name in (*names, *more)}
