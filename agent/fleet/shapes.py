"""What has to be true of a device's messages before their parts are used: the types of what is shown, no more.

A device may be newer, or taken over, and another program may publish on its topics. What it leaves out, adds, or calls
by a word that nobody knows yet is no reason to show nothing; a part of another type is told with its topic. Pure.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.contract.errors import RefusalError
from agent.contract.wire import describe, parse_object
from agent.deployment.phases import State
from agent.fleet.rows import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

JsonObject = dict[str, Any]
Figure = Annotated[float, Field(allow_inf_nan=False)]


class UnreadableError(Exception):
    """A message is not what devices say on its topic; the text says what is wrong."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Message(_Part):
    """What every message has."""

    schema_: Annotated[Literal[1], Field(alias="schema")]


class Progress(_Part):
    """How far a phase is."""

    done: Figure
    total: Figure | None = None
    unit: str = ""
    method: str | None = None


class Error(_Part):
    """What went wrong."""

    code: str
    detail: str


class Compared(_Part):
    """A method in a comparison."""

    method: str
    agreement: Figure | None = None
    accuracy: Figure | None = None
    latency_p50_ms: Figure | None = None
    resident_bytes: Figure | None = None
    estimated_bytes: Figure | None = None
    why: str | None = None
    complaints: list[str] | None = None


class Decision(_Part):
    """What was decided, and why."""

    explanation: list[str] = []
    compare: list[Compared] | None = None


class Operation(Message):
    """What is told on ``op/<id>``."""

    id: str
    state: str
    phase: str | None = None
    detail: str | None = None
    progress: Progress | None = None
    decision: Decision | None = None
    error: Error | None = None


class Presence(Message):
    """What is told on ``presence``."""

    state: str


class Config(Message):
    """What is told on ``reported``, where only its settings are asked for."""

    config: dict[str, Any]


class Release(_Part):
    """A release by the words for it."""

    version: str
    method: str


class Model(Release):
    """What is served under a name."""

    state: str
    agreement: Figure | None = None
    resident_bytes: Figure | None = None
    previous: Release | None = None
    stands_in_for: Release | None = None


class Memory(_Part):
    """What models may take."""

    room_bytes: Figure | None = None
    total_bytes: Figure | None = None


class Group(_Part):
    """Where the device stands towards a group's document."""

    percent: Figure | None = None
    halt: dict[str, Any] | None = None


class Wanted(_Part):
    """Where the device stands towards its wanted states."""

    groups: dict[str, Group] | None = None


class Reported(Message):
    """What is told on ``reported``."""

    models: dict[str, Model]
    memory: Memory
    trust: dict[str, Any] = {}
    config: dict[str, Any] = {}
    desired: Wanted | None = None


class Method(_Part):
    """What the self-test found of a method."""

    ok: bool


class Capabilities(Message):
    """What is told on ``capabilities``."""

    methods: dict[str, Method]


class Latency(_Part):
    """How long answers take."""

    p50: Figure | None = None


class Answers(_Part):
    """What a model answered."""

    latency_ms: Latency | None = None


class Health(Message):
    """What is told on ``health``."""

    status: str
    reasons: list[str] = []
    models: dict[str, Answers] = {}


class Chunk(Message):
    """What is told on ``log/<id>``."""

    sequence: Annotated[int, Field(ge=0)]
    last: bool
    cut: bool = False
    entries: list[dict[str, Any]]


SAID: Mapping[str, type[Message]] = MappingProxyType(
    {"presence": Presence, "reported": Reported, "capabilities": Capabilities, "health": Health}
)
"""By kind."""


def read(topic: str, payload: bytes, shape: type[Message]) -> JsonObject:
    """Return a message as it came, once it is known to have a shape.

    Raises:
        UnreadableError: it has not.
    """
    try:
        body = parse_object(payload)
    except RefusalError as refusal:
        raise _unreadable(topic, refusal.detail) from None
    check(topic, body, shape)
    return body


def check(topic: str, body: JsonObject, shape: type[Message]) -> None:
    """Judge a message that is known to be an object.

    Raises:
        UnreadableError: it has not the shape.
    """
    try:
        shape.model_validate(body)
    except ValidationError as error:
        raise _unreadable(topic, describe(error)) from None


def _unreadable(topic: str, what: str) -> UnreadableError:
    return UnreadableError(f"what came on {topic} cannot be read: {printable(what)}")


def is_over(operation: Mapping[str, Any]) -> bool:
    """Return whether the report of an operation is its last; a state that nobody knows is taken for an open one."""
    state = operation.get("state")
    return state in list(State) and State(state).is_terminal
