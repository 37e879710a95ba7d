"""AWS IoT Jobs in our words: topics, documents and the table of states. Pure.

Source: AWS IoT Core developer guide, "Jobs device MQTT API operations", "Jobs and job execution states" and "AWS IoT
Jobs limits"; API reference, ``JobExecutionState``.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.wire import kind_of, parse_object
from agent.deployment.phases import State
from agent.fleet.bridge import requests

if TYPE_CHECKING:
    from collections.abc import Mapping

JsonObject = dict[str, Any]
Key = tuple[str, int]
"""Job id and execution number: a job that is retried has a new number."""

QUEUED, IN_PROGRESS = "QUEUED", "IN_PROGRESS"
SUCCEEDED, FAILED, REJECTED = "SUCCEEDED", "FAILED", "REJECTED"
TERMINAL = (SUCCEEDED, FAILED, REJECTED, "TIMED_OUT", "REMOVED", "CANCELED")

STATUS: dict[State, str] = {
    State.ACCEPTED: IN_PROGRESS,
    State.RUNNING: IN_PROGRESS,
    State.SUCCEEDED: SUCCEEDED,
    State.REJECTED: REJECTED,
    State.FAILED: FAILED,
    State.EXPIRED: FAILED,
    State.CANCELED: FAILED,
    State.TIMED_OUT: FAILED,  # only the service itself says TIMED_OUT
    State.SUPERSEDED: FAILED,
    State.ROLLED_BACK: FAILED,
    State.ROLLBACK_FAILED: FAILED,
}
"""REJECTED is never retried by the service, FAILED is where the job says so (``jobExecutionsRetryConfig``)."""
RETRIED = (ErrorCode.BUSY,)
"""Refusals that another try may not meet: they are told as FAILED."""

MAX_LISTED = 10
"""GetPendingJobExecutions names no more; of a list that is full nobody knows what is missing."""
MAX_DETAILS, MAX_VALUE = 10, 1024
"""Pairs of statusDetails that a control-plane request may have, and characters of a value."""
DOCUMENT_KEY = "nibbled"
_THING = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_JOB = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class JobTopics:
    """The reserved topics of one thing.

    Raises:
        ValueError: no thing may have that name.
    """

    thing: str

    def __post_init__(self) -> None:
        if _THING.fullmatch(self.thing) is None:
            raise ValueError(f"thing name {self.thing!r} must match [a-zA-Z0-9:_-]{{1,128}}")

    @property
    def root(self) -> str:
        """What all of them begin with."""
        return f"$aws/things/{self.thing}/jobs/"

    @property
    def filters(self) -> tuple[str, ...]:
        """What the documents say a device listens to; no wildcard stands for the thing."""
        replies = ("get", "+/get", "+/update")
        answers = (f"{self.root}{reply}/{how}" for reply in replies for how in ("accepted", "rejected"))
        return (f"{self.root}notify", *answers)

    @property
    def pending(self) -> str:
        """GetPendingJobExecutions."""
        return f"{self.root}get"

    def describe(self, job: str) -> str:
        """DescribeJobExecution."""
        return f"{self.root}{job}/get"

    def update(self, job: str) -> str:
        """UpdateJobExecution."""
        return f"{self.root}{job}/update"


@dataclass
class Execution:
    """One job execution, as the service last told it.

    Attributes:
        key: job id and execution number.
        status, details, version: of the service.
        command: name and body of what the device is to be sent; None for a job that is not ours.
        refusal: why it cannot be, of a job that is.
    """

    key: Key
    status: str
    details: dict[str, str]
    version: int
    command: tuple[str, JsonObject] | None
    refusal: RefusalError | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the document speaks to this bridge; other jobs of the thing are other programs' business."""
        return self.command is not None or self.refusal is not None

    def says(self, status: str, details: Mapping[str, str]) -> bool:
        """Return whether the service has that status with all of these details already."""
        return self.status == status and details.items() <= self.details.items()

    def take(self, state: Mapping[str, Any]) -> None:
        """Take over a ``JobExecutionState``."""
        self.status = str(state.get("status", self.status))
        self.details = requests.part(state, "statusDetails")
        self.version = int(state.get("versionNumber", self.version))


def execution(body: Mapping[str, Any], operation: str) -> Execution:
    """Return a ``JobExecution`` of the service.

    Args:
        body: as the service told it, with its document.
        operation: the id that its command is to have.

    Raises:
        RefusalError: ``bad_request`` for one without id, number or version.
    """
    version = body.get("versionNumber")
    if not _is_job(body) or type(version) is not int:
        raise RefusalError(ErrorCode.BAD_REQUEST, "an execution without jobId, executionNumber or versionNumber")
    told = Execution(
        (body["jobId"], body["executionNumber"]),
        str(body.get("status")),
        requests.part(body, "statusDetails"),
        version,
        None,
    )
    try:
        told.command = request(body.get("jobDocument"), operation)
    except RefusalError as refusal:
        told.refusal = refusal
    return told


def pending(body: Mapping[str, Any]) -> list[Key]:
    """Return what is pending by the answer to GetPendingJobExecutions, in the order in which it is to be done.

    A job id becomes a level of topics: what the service would not call a job is left out.
    """
    listed = [each for name in ("inProgressJobs", "queuedJobs") for each in body.get(name) or () if _is_job(each)]
    return [(each["jobId"], each["executionNumber"]) for each in listed]


def _is_job(body: Any) -> bool:
    """Return whether something names an execution, as the service does: by job id and number."""
    job, number = (body.get("jobId"), body.get("executionNumber")) if isinstance(body, dict) else (None, None)
    return isinstance(job, str) and _JOB.fullmatch(job) is not None and type(number) is int


def request(document: object, operation: str) -> tuple[str, JsonObject] | None:
    """Return name and body of the command that a job document asks for; None where it asks somebody else.

    Args:
        document: an object, or its JSON as text: the documents of the service show both.
        operation: the id that the command is to have.

    Raises:
        RefusalError: it asks us for something that no device would do.
    """
    if isinstance(document, str):
        try:
            document = parse_object(document.encode())
        except RefusalError:
            return None
    if not isinstance(document, dict) or DOCUMENT_KEY not in document:
        return None
    wanted = document[DOCUMENT_KEY]
    if not isinstance(wanted, dict):
        raise RefusalError(
            ErrorCode.BAD_REQUEST,
            f"{DOCUMENT_KEY}: {kind_of(wanted)}, expected an object",
            '{"nibbled": {"command": "rollback", "model": "kanji"}}',
        )
    fields = {key: value for key, value in wanted.items() if key != "command"}
    name = wanted.get("command")
    return str(name), requests.command(name, fields, operation)


def told(operation: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return status and statusDetails for the last report of an operation.

    A state that a newer device made up counts as running.
    """
    state, error = operation.get("state"), requests.part(operation, "error")
    status = STATUS[State(state)] if state in list(State) else IN_PROGRESS
    if status == REJECTED and error.get("code") in list(RETRIED):
        status = FAILED
    decision = requests.part(operation, "decision")
    own = {"operation": operation.get("id"), **{key: operation.get(key) for key in ("state", "phase", "model")}}
    why = {key: error.get(key) for key in ("code", "detail", "hint", "kept", "retryable")}
    return status, details({**own, "method": decision.get("method"), **why})


def refused(refusal: RefusalError) -> tuple[str, dict[str, str]]:
    """Return status and statusDetails for a job that no device gets to see."""
    return REJECTED, details({"code": str(refusal.code), "detail": refusal.detail, "hint": refusal.hint})


def details(told: Mapping[str, Any]) -> dict[str, str]:
    """Return statusDetails that the service takes: at most ten, values of 1 to 1024 characters without controls."""
    texts = {key: _text(value) for key, value in told.items() if value is not None}
    return dict([pair for pair in texts.items() if pair[1]][:MAX_DETAILS])


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    plain = "".join(" " if unicodedata.category(each).startswith("C") else each for each in text).strip()
    return plain if len(plain) <= MAX_VALUE else f"{plain[: MAX_VALUE - 1]}…"
