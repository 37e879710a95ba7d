"""Commands as they arrive on ``<root>/cmd/<name>``: parsed into values or refused with a reason.

Rules: unknown fields are ignored, an unknown ``schema`` is refused, a retained command is refused. Nothing here acts.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import Envelope, Sha256, Version
from agent.contract.oms import Bundle
from agent.contract.topics import Id, is_id
from agent.contract.wire import JsonObject, Moment, describe, parse_object
from agent.planning.gate import MAX_SLOWDOWN
from agent.planning.methods import NAMES

if TYPE_CHECKING:
    from datetime import datetime

Url = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
NamedMethod = Literal["nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "fp16", "fp32", "mixed"]
MethodName = Literal["auto", "nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "fp16", "fp32", "mixed"]
Share = Annotated[float, Field(ge=0, le=1)]
MAX_CORRELATION = 256
_RESPONSE_TOPIC = r"^[^+#\x00]{1,256}$"
ResponseTopic = Annotated[str, StringConstraints(pattern=_RESPONSE_TOPIC)]
"""A topic that can be published to: one with a wildcard would be refused by every client, again and again."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ArtifactRef(_Part):
    """Where a checkpoint lies and how it is known to be the right one."""

    url: Url
    sha256: Sha256
    size: Annotated[int, Field(gt=0)]


class DatasetRef(_Part):
    """Evaluation data: safetensors with ``inputs`` and optionally ``labels``."""

    url: Url
    sha256: Sha256
    size: Annotated[int, Field(gt=0)] | None = None


class Gate(_Part):
    """What a build has to prove before it may serve, and what the trial has to show."""

    dataset: DatasetRef | None = None
    min_agreement: Share = 0.95
    max_accuracy_drop: Share = 0.02
    min_accuracy: Share | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    max_slowdown: Annotated[float, Field(ge=1)] = MAX_SLOWDOWN
    soak_s: Annotated[float, Field(ge=0, le=86_400)] | None = None


class Command(_Part):
    """Fields that all commands share; what ``signature`` has to say stands in `agent.contract.signed`."""

    name: ClassVar[str]

    schema_: Annotated[Literal[1], Field(alias="schema")]
    id: Id
    expires_at: Moment | None = None
    expected_generation: int | None = None
    signature: Envelope | None = None
    response_topic: ResponseTopic | None = None
    correlation_id: Annotated[str, StringConstraints(max_length=MAX_CORRELATION)] | None = None

    def is_expired(self, now: datetime) -> bool:
        """Return whether the command was meant to be acted on before ``now``."""
        return self.expires_at is not None and now >= self.expires_at


class Deploy(Command):
    """Fetch, verify, decide, quantize, prove and serve a model."""

    name = "deploy"

    model: Id
    version: Version | None = None
    artifact: ArtifactRef | None = None
    manifest: Envelope | None = None
    oms: Bundle | None = None
    model_type: Annotated[str, StringConstraints(min_length=1, max_length=64)] = "auto"
    method: MethodName = "auto"
    gate: Gate = Gate()
    priority: int = 0


class SetMethod(Command):
    """Serve the same checkpoint by another method."""

    name = "set_method"

    model: Id
    method: MethodName
    gate: Gate = Gate()


class Replan(Command):
    """Decide again with today's memory."""

    name = "replan"

    model: Id
    gate: Gate = Gate()


class Compare(Command):
    """Build and measure methods on this device; the table is the answer."""

    name = "compare"

    model: Id
    methods: Annotated[tuple[NamedMethod, ...], Field(max_length=16)] = ()
    gate: Gate = Gate()
    keep: Literal["best", "current"] = "current"


class Rollback(Command):
    """Serve the previous committed artifact again."""

    name = "rollback"

    model: Id


class Undeploy(Command):
    """Stop serving a model and free its memory."""

    name = "undeploy"

    model: Id


class Cancel(Command):
    """Stop a running operation."""

    name = "cancel"

    operation: Id


class Status(Command):
    """Publish ``reported``, ``capabilities`` and ``health`` now."""

    name = "status"


class SetConfig(Command):
    """Change settings until they are changed back; `agent.contract.config` says which and how."""

    name = "set_config"

    config: JsonObject


class CollectLogs(Command):
    """Publish the log's newest entries on ``log/<id>``."""

    name = "collect_logs"

    since: Moment | None = None
    max_bytes: Annotated[int, Field(ge=1024, le=512 * 1024)] = 256 * 1024


class SelfTest(Command):
    """Quantize and multiply for real with every method, and publish ``capabilities`` again."""

    name = "self_test"


_KINDS = (
    Deploy,
    SetMethod,
    Compare,
    Replan,
    Rollback,
    Undeploy,
    Cancel,
    SetConfig,
    Status,
    CollectLogs,
    SelfTest,
)
AnyCommand = (
    Deploy | SetMethod | Compare | Replan | Rollback | Undeploy | Cancel | SetConfig | Status | CollectLogs | SelfTest
)
Instant = Cancel | SetConfig | Status | CollectLogs
"""Commands that are done as soon as they are accepted."""
COMMANDS: dict[str, type[AnyCommand]] = {kind.name: kind for kind in _KINDS}


def parse(name: str, payload: bytes, *, retained: bool = False) -> AnyCommand:
    """Parse the payload of ``cmd/<name>``.

    Raises:
        RefusalError: with ``operation_id`` set where the payload has a usable id, so the refusal can be addressed.
    """
    body = parse_object(payload)
    operation_id = body.get("id") if isinstance(body.get("id"), str) and is_id(body["id"]) else None
    try:
        return _parse(name, body, retained=retained)
    except RefusalError as refusal:
        refusal.operation_id = operation_id
        raise


def is_response_topic(text: str) -> bool:
    """Return whether an answer may be published to ``text``."""
    return re.fullmatch(_RESPONSE_TOPIC, text) is not None


def fingerprint(name: str, payload: bytes) -> str:
    """Return a digest of what was asked, equal for payloads that differ only in spacing or key order.

    Raises:
        RefusalError: ``bad_request`` when the payload is not a JSON object.
    """
    canonical = json.dumps([name, parse_object(payload)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _parse(name: str, body: JsonObject, *, retained: bool) -> AnyCommand:
    if retained:
        raise RefusalError(
            ErrorCode.RETAINED_COMMAND,
            "the command was retained, so the broker would replay it at every reconnect",
            f"publish cmd/{name} without the retain flag, and clear the retained message",
        )
    kind = COMMANDS.get(name)
    if kind is None:
        raise RefusalError(
            ErrorCode.UNSUPPORTED_COMMAND, f"unknown command {name!r}", f"this agent knows: {', '.join(COMMANDS)}"
        )
    _check_method(body)
    try:
        command = kind.model_validate(body)
    except ValidationError as error:
        raise RefusalError(ErrorCode.BAD_REQUEST, f"{name}: {describe(error)}") from None
    if isinstance(command, Deploy) and command.artifact is None and command.manifest is None:
        raise RefusalError(ErrorCode.BAD_REQUEST, "deploy: neither manifest nor artifact says what to fetch")
    return command


def _check_method(body: JsonObject) -> None:
    named: Any = body.get("methods", [])
    for wanted in (body.get("method", "auto"), *(named if isinstance(named, list) else ())):
        if not isinstance(wanted, str) or wanted == "auto" or wanted in NAMES:
            continue
        raise RefusalError(
            ErrorCode.UNSUPPORTED_METHOD, f"unknown method {wanted!r}", f"known: auto, {', '.join(NAMES)}"
        )
