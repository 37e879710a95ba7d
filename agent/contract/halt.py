"""What is retained on ``<prefix>/_group/<group>/halt``: it stops whatever the group's document has not begun yet.

Whatever is not empty halts. A halt that cannot be read, or says for which generations in a way that is none, halts all
of them: who publishes it wants something stopped. An empty payload lifts the halt, unless a trusted key signed it for
a generation: then only a document of a higher generation goes on, which needs a signature where signatures count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agent.contract.errors import RefusalError
from agent.contract.manifest import Envelope
from agent.contract.wire import JsonObject, describe, parse_object

MAX_REASON = 500
"""Characters of a reason that are kept: it stands in every report of every device."""
UNREADABLE = "a halt that cannot be read"
"""What the reason of such a one begins with."""
Generation = Annotated[int, Field(ge=0, lt=2**53, strict=True)]


class Halt(BaseModel):
    """One halt.

    Attributes:
        generation: documents up to this one are stopped; None for all.
        reason: for people.
        signature: who says so, as `agent.contract.signed` has it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    generation: Generation | None = None
    reason: str = ""
    signature: Envelope | None = None

    @field_validator("reason")
    @classmethod
    def _clip(cls, text: str) -> str:
        return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"

    def covers(self, generation: int) -> bool:
        """Return whether a document of that generation is stopped."""
        return self.generation is None or generation <= self.generation


@dataclass(frozen=True)
class Halts:
    """What halts one group.

    Attributes:
        plain: the halt that is retained, which an empty payload lifts; None without one.
        signed: the one of the highest generation that a trusted key signed; it stays.
    """

    plain: Halt | None = None
    signed: Halt | None = None

    def covering(self, generation: int) -> Halt | None:
        """Return what stops a document of that generation, None if nothing does."""
        return next((halt for halt in (self.signed, self.plain) if halt is not None and halt.covers(generation)), None)

    def after(self, halt: Halt | None, *, is_signed: bool) -> Halts:
        """Return what halts once ``halt`` has come, None for an empty payload.

        Args:
            halt: what came.
            is_signed: whether a trusted key signed it. Without a generation it is taken as if none had: it would stay
                for ever.
        """
        if halt is None or not is_signed or halt.generation is None:
            return replace(self, plain=halt)
        known = -1 if self.signed is None or self.signed.generation is None else self.signed.generation
        return Halts(None, halt if halt.generation > known else self.signed)

    def to_json(self) -> JsonObject:
        """Return a JSON object that ``from_json`` reads."""
        return {
            name: None if halt is None else halt.model_dump(mode="json", by_alias=True)
            for name, halt in (("plain", self.plain), ("signed", self.signed))
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> Halts:
        """Read what ``to_json`` wrote."""
        return cls(*(None if body[name] is None else Halt.model_validate(body[name]) for name in ("plain", "signed")))

    def __bool__(self) -> bool:
        return self != Halts()


def parse(payload: bytes) -> Halt | None:
    """Return the halt in a payload; None for an empty one. What is wrong with it stands in its reason."""
    if not payload:
        return None
    try:
        return Halt.model_validate({"schema": None, **parse_object(payload)})
    except RefusalError as refusal:
        return Halt(reason=f"{UNREADABLE}: {refusal.detail}")
    except ValidationError as error:
        return Halt(reason=f"{UNREADABLE}: {describe(error)}")
