"""AWS IoT Jobs as its documents describe it: no network, no timers of its own. What it does is what they say.

Source: AWS IoT Core developer guide, "Jobs device MQTT API operations", "Jobs notifications", "AWS IoT Jobs API
operations" (error codes) and "AWS IoT Jobs limits"; API reference, ``UpdateJobExecution``. Where they are silent it is
the stricter one: a job that is QUEUED is ended by REJECTED alone, or goes IN_PROGRESS first.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from typing import Any

JsonObject = dict[str, Any]
Message = tuple[str, JsonObject]
TERMINAL = ("SUCCEEDED", "FAILED", "REJECTED", "TIMED_OUT", "REMOVED", "CANCELED")
REPORTED = ("IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED")
"""What a device may say; the rest is the service's own."""
MAX_LISTED = 10
_KEY = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass
class JobExecution:
    """One job on one thing, by the names of the service."""

    thing: str
    job: str
    document: JsonObject | str
    queued_at: int
    number: int = 1
    status: str = "QUEUED"
    version: int = 1
    details: dict[str, str] = field(default_factory=dict)

    @property
    def is_pending(self) -> bool:
        return self.status not in TERMINAL

    def state(self) -> JsonObject:
        return {"status": self.status, "statusDetails": self.details, "versionNumber": self.version}

    def summary(self) -> JsonObject:
        times = {"queuedAt": self.queued_at, "lastUpdatedAt": self.queued_at}
        return {"jobId": self.job, **times, "executionNumber": self.number, "versionNumber": self.version}

    def whole(self, *, with_document: bool = True) -> JsonObject:
        told = {**self.summary(), "status": self.status, "thingName": self.thing, "statusDetails": self.details}
        return {**told, "jobDocument": self.document} if with_document else told


class RejectionError(Exception):
    """An ``ErrorResponse``."""

    def __init__(self, code: str, message: str = "", state: JsonObject | None = None) -> None:
        super().__init__(code)
        self.body = {"code": code, "message": message, **({"executionState": state} if state else {})}


class JobsService:
    """Jobs of any number of things. Requests in, answers and notifications out."""

    def __init__(self) -> None:
        self.executions: list[JobExecution] = []
        self.requests: list[Message] = []
        self._clock = itertools.count(1_517_016_947)

    def create(self, thing: str, job: str, document: JsonObject | str) -> list[Message]:
        """Roll a job out to a thing; created again, it is the next execution of the same job."""
        number = 1 + sum(each.thing == thing and each.job == job for each in self.executions)
        before = self._first(thing)
        self.executions.append(JobExecution(thing, job, document, next(self._clock), number))
        return self._notifications(thing, before, is_listed_anew=True)

    def end(self, thing: str, job: str, status: str) -> list[Message]:
        """Cancel, time out or remove an execution, as the service or a person does."""
        before, found = self._first(thing), self.find(thing, job)
        found.status, found.version = status, found.version + 1
        return self._notifications(thing, before, is_listed_anew=True)

    def delete(self, thing: str, job: str) -> list[Message]:
        """Delete by force: there is no such execution any more."""
        before = self._first(thing)
        self.executions.remove(self.find(thing, job))
        return self._notifications(thing, before, is_listed_anew=True)

    def find(self, thing: str, job: str, number: int | None = None) -> JobExecution:
        """Return an execution, the latest one without a number."""
        for each in reversed(self.executions):
            if (each.thing, each.job) == (thing, job) and number in (None, each.number):
                return each
        raise RejectionError("ResourceNotFound", f"no execution of {job} on {thing}")

    def pending(self, thing: str) -> list[JobExecution]:
        """Return what is pending for a thing: IN_PROGRESS first, then by age."""
        found = [each for each in self.executions if each.thing == thing and each.is_pending]
        return sorted(found, key=lambda each: (each.status == "QUEUED", each.queued_at))

    def request(self, topic: str, payload: bytes) -> list[Message]:
        """Return what the service publishes on a request; nothing for a topic that is no request."""
        match = re.fullmatch(r"\$aws/things/([^/]+)/jobs/(.+)", topic)
        if match is None or match[2].endswith(("/accepted", "/rejected")) or match[2] in ("notify", "notify-next"):
            return []
        thing, what = match.groups()
        token: JsonObject = {}
        try:
            try:
                body = json.loads(payload or b"{}")
            except ValueError:
                raise RejectionError("InvalidJson") from None
            self.requests.append((topic, body))
            token = {"clientToken": body["clientToken"]} if "clientToken" in body else {}
            before = self._first(thing)
            answer, is_listed_anew = self._answer(thing, what, body)
        except RejectionError as error:
            return [(f"{topic}/rejected", {**error.body, **token})]
        return [(f"{topic}/accepted", {**answer, **token}), *self._notifications(thing, before, is_listed_anew)]

    def _answer(self, thing: str, what: str, body: JsonObject) -> tuple[JsonObject, bool]:
        if what == "get":
            listed = self.pending(thing)[:MAX_LISTED]
            by_status = {
                name: [each.summary() for each in listed if each.status == name] for name in ("IN_PROGRESS", "QUEUED")
            }
            return {"inProgressJobs": by_status["IN_PROGRESS"], "queuedJobs": by_status["QUEUED"]}, False
        if what == "start-next":
            return self._start_next(thing, body), False
        job, _, verb = what.partition("/")
        if verb == "get":
            found = self._first(thing) if job == "$next" else self.find(thing, job, body.get("executionNumber"))
            if found is None:
                return {}, False
            if not found.is_pending:
                raise RejectionError("TerminalStateReached", f"{job} is {found.status}")
            return {"execution": found.whole(with_document=body.get("includeJobDocument", True))}, False
        if verb == "update":
            return self._update(self.find(thing, job, body.get("executionNumber")), body)
        raise RejectionError("InvalidTopic", what)

    def _start_next(self, thing: str, body: JsonObject) -> JsonObject:
        found = self._first(thing)
        if found is None:
            return {}
        if found.status == "QUEUED":
            found.status, found.version = "IN_PROGRESS", found.version + 1
            found.details = body.get("statusDetails", found.details)
        return {"execution": found.whole()}

    def _update(self, found: JobExecution, body: JsonObject) -> tuple[JsonObject, bool]:
        status, details = body.get("status"), body.get("statusDetails", found.details)
        if status not in REPORTED:
            raise RejectionError("InvalidRequest", f"status {status}")
        minutes = body.get("stepTimeoutInMinutes")
        if minutes is not None and not -1 <= minutes <= 10_080:
            raise RejectionError("InvalidRequest", f"stepTimeoutInMinutes {minutes}")
        if len(details) > 10:
            raise RejectionError("InvalidRequest", f"{len(details)} status details")
        for key, value in details.items():
            if not _KEY.fullmatch(key) or not 1 <= len(value) <= 1024 or _CONTROL.search(value):
                raise RejectionError("InvalidRequest", f"status detail {key}")
        if body.get("expectedVersion", found.version) != found.version:
            raise RejectionError("VersionMismatch", f"it is {found.version}", found.state())
        if not found.is_pending or (found.status == "QUEUED" and status in ("SUCCEEDED", "FAILED")):
            raise RejectionError("InvalidStateTransition", f"{found.status} to {status}", found.state())
        found.status, found.details, found.version = status, details, found.version + 1
        answer = {"executionState": found.state()} if body.get("includeJobExecutionState") else {}
        return answer, not found.is_pending

    def _first(self, thing: str) -> JobExecution | None:
        return next(iter(self.pending(thing)), None)

    def _notifications(self, thing: str, before: JobExecution | None, is_listed_anew: bool) -> list[Message]:  # noqa: FBT001 - of this class alone
        found: list[Message] = []
        root, at = f"$aws/things/{thing}/jobs", {"timestamp": next(self._clock)}
        listed = self.pending(thing)[:MAX_LISTED]
        if is_listed_anew:
            jobs = {
                name: [each.summary() for each in listed if each.status == name] for name in ("IN_PROGRESS", "QUEUED")
            }
            found.append((f"{root}/notify", {**at, "jobs": {name: each for name, each in jobs.items() if each}}))
        first = self._first(thing)
        if first is not before:
            found.append((f"{root}/notify-next", {**at, **({"execution": first.whole()} if first else {})}))
        return found
