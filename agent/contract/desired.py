"""The whole wanted state, as it is retained on ``<root>/desired`` and on ``<prefix>/_group/<group>/desired``.

Only the frame is judged here. What a model's entry says is judged when its operation begins, like a ``deploy`` that
arrives by itself: one wrong entry must not keep the others from being served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import Envelope
from agent.contract.staged import Rollout
from agent.contract.topics import Id
from agent.contract.wire import JsonObject, describe, parse_object

if TYPE_CHECKING:
    from collections.abc import Callable

OWN = ""
"""The source of the device's own document; any other source is the name of a group."""


class Desired(BaseModel):
    """One document.

    Attributes:
        generation: grows with every change; an older or equal one is ignored.
        models: the fields of ``deploy`` by model name, null for a model that is not to be served here; None for a
            document that says nothing of models.
        config: the settings that are to be changed, nested as in the file; None for a document that says nothing of
            them.
        rollout: who of a group follows it and when; None for all of them, at once.
        signature: who says so, as `agent.contract.signed` has it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    generation: Annotated[int, Field(ge=0, lt=2**53, strict=True)]
    models: dict[Id, JsonObject | None] | None = None
    config: JsonObject | None = None
    rollout: Rollout | None = None
    signature: Envelope | None = None

    def to_json(self) -> JsonObject:
        """Return a JSON object that ``model_validate`` reads."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class RetainedMessage:
    """What is wanted of a device or a group, as the broker delivered it.

    Attributes:
        source: ``OWN``, or the group whose it is.
        payload: what was published.
        is_replayed: whether the broker sent it from its store, as it does at every subscription.
        acknowledge: tells the broker that the message is in safe hands; called once the journal holds it.
        connection: the number of the connection that it came on.
    """

    source: str
    payload: bytes
    is_replayed: bool = False
    acknowledge: Callable[[], None] = lambda: None
    connection: int = 0


class DesiredMessage(RetainedMessage):
    """A document."""


class HaltMessage(RetainedMessage):
    """A group's halt; empty if it is lifted."""


def parse(payload: bytes) -> Desired:
    """Parse a document.

    Raises:
        RefusalError: ``bad_request`` with what is wrong and where.
    """
    if not payload:
        raise RefusalError(
            ErrorCode.BAD_REQUEST,
            "the document was cleared, which changes nothing here",
            'publish a higher generation; {"models": {}} wants nothing served',
        )
    body = parse_object(payload)
    try:
        return Desired.model_validate({"schema": None, **body})
    except ValidationError as error:
        raise RefusalError(ErrorCode.BAD_REQUEST, f"desired: {describe(error)}") from None
