"""The generate extension of the Open Inference Protocol, as Triton defines it (``extension_generate.md``). Pure.

A request is ``{"text_input": …, "parameters": {…}}``; what its parameters can be is the backend's to say, and here it
is what servers of language models customarily take. They may also stand beside ``text_input``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from agent.serving.errors import BadRequestError
from agent.serving.generation.wishes import (
    DEFAULT_NEW_TOKENS,
    FieldError,
    Wish,
    max_tokens_of,
    parse_object,
    sampling_of,
    stops_of,
    timeout_of,
)

if TYPE_CHECKING:
    from agent.serving.errors import ServingError
    from agent.serving.slots import Slot

MAX_ID = 256


def parse(body: bytes, *, is_stream: bool) -> tuple[Wish, str | None]:
    """Return what a request wants, and its id; raises ``BadRequestError``."""
    request = parse_object(body)
    text, parameters = request.get("text_input"), request.get("parameters", {})
    if not isinstance(text, str):
        raise FieldError("text_input", "'text_input' must be a text")
    if not isinstance(parameters, dict):
        raise BadRequestError("'parameters' must be an object")
    fields = {**request, **parameters}
    wish = Wish(
        prompt=text,
        sampling=sampling_of(fields),
        max_tokens=max_tokens_of(fields, "max_tokens", DEFAULT_NEW_TOKENS),
        stops=stops_of(fields.get("stop")),
        is_stream=is_stream,
        timeout_s=timeout_of(fields),
    )
    return wish, _id(request.get("id"))


class Form:
    """The objects that answer one request; see ``routes.Form``."""

    def __init__(self, slot: Slot, request_id: str | None) -> None:
        named: dict[str, Any] = {} if request_id is None else {"id": request_id}
        self._head = {**named, "model_name": slot.model, "model_version": slot.version}

    def whole(self, text: str, _reason: str, _tokens: int) -> bytes:
        """Return the answer of a request that does not stream."""
        return orjson.dumps({**self._head, "text_output": text})

    def first(self) -> list[bytes]:
        """Return what a stream begins with."""
        return []

    def piece(self, text: str, reason: str | None) -> list[bytes]:
        """Return one piece of a stream."""
        return [self.whole(text, "", 0)] if text or reason is None else []

    def last(self, _tokens: int) -> list[bytes]:
        """Return what a stream ends with."""
        return []

    def failure(self, error: ServingError) -> bytes:
        """Return what a stream says of its failure."""
        return orjson.dumps({"error": str(error)})


def _id(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value) > MAX_ID):
        raise BadRequestError(f"'id' must be a string of at most {MAX_ID} characters")
    return value
