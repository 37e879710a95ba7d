"""OpenAI's completions and chat completions: requests, answers, pieces and errors. Pure.

Rules:
- Fields that are not known are ignored, as clients send many. Those that would change the answer and are not served
  are refused by name.
- ``usage`` counts tokens as they were computed: the one that ended a text is among them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from agent.serving.errors import BadRequestError, NotFoundError
from agent.serving.generation.wishes import (
    DEFAULT_NEW_TOKENS,
    FieldError,
    Messages,
    Wish,
    flag,
    max_tokens_of,
    parse_object,
    sampling_of,
    stops_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.serving.errors import ServingError
    from agent.serving.generation.wishes import JsonObject
    from agent.serving.slots import Slot

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that would change the answer, with what they may be beside null; nothing else of them is served."""
DONE = b"[DONE]"


class UnknownModelError(NotFoundError):
    """There is no model of the name that a request has."""

    param = "model"
    code = "model_not_found"


@dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
        model: the name of one.
        is_chat: whether it is a conversation.
        counts_usage: whether a stream's last piece counts tokens.
    """

    model: str
    wish: Wish
    is_chat: bool
    counts_usage: bool


def parse(body: bytes, *, is_chat: bool) -> Ask:
    """Return what a request wants; raises ``BadRequestError``."""
    request = parse_object(body)
    name = request.get("model")
    if not isinstance(name, str) or not name:
        raise FieldError("model", "'model' must be the name of one", "missing_required_parameter")
    for key, allowed in NEUTRAL.items():
        value = request.get(key)
        if value is not None and not _is_one_of(value, allowed):
            raise FieldError(key, f"{key!r} is not supported here: leave it out", "unsupported_parameter")
    options = request.get("stream_options") or {}
    if not isinstance(options, dict):
        raise FieldError("stream_options", "'stream_options' must be an object")
    wish = Wish(
        prompt=_messages(request.get("messages")) if is_chat else _prompt(request.get("prompt")),
        sampling=sampling_of(request),
        max_tokens=_max_tokens(request, is_chat=is_chat),
        stops=stops_of(request.get("stop")),
        is_stream=flag(request, "stream"),
    )
    return Ask(name, wish, is_chat, flag(options, "include_usage"))


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed)


def _max_tokens(request: JsonObject, *, is_chat: bool) -> int | None:
    if not is_chat:
        return max_tokens_of(request, "max_tokens", DEFAULT_NEW_TOKENS)
    return max_tokens_of(request, "max_completion_tokens", max_tokens_of(request, "max_tokens", None))


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    raise FieldError("prompt", "'prompt' must be one text, or the ids of one")


def _messages(value: Any) -> Messages:
    if not isinstance(value, list) or not value:
        raise FieldError("messages", "'messages' must be a list of at least one message")
    return [_message(item, f"messages[{index}]") for index, item in enumerate(value)]


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("role") not in ROLES:
        raise FieldError(where, f"{where!r} must be an object with one of the roles {', '.join(ROLES)}")
    message = {"role": item["role"], "content": _content(item.get("content"), f"{where}.content")}
    if isinstance(item.get("name"), str):
        message["name"] = item["name"]
    return message


def _content(value: Any, where: str) -> str:
    """Return a message's text; parts of it are joined, as templates differ in what they take."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise FieldError(where, f"{where!r} must be a text or a list of parts")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise FieldError(where, f"{where!r} has a part that is no text; nothing else is read")
    return "".join(part["text"] for part in value)


class Form:
    """The objects that answer one request; see ``routes.Form``.

    Args:
        ask: the request.
        slot: the release that answers.
        prompt_tokens: how many it read.
        created: wall time in seconds.
    """

    def __init__(self, ask: Ask, slot: Slot, prompt_tokens: int, created: int) -> None:
        self._is_chat = ask.is_chat
        self._counts_usage = ask.counts_usage
        self._prompt_tokens = prompt_tokens
        self._id = f"{'chatcmpl' if ask.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._head = {"created": created, "model": slot.model, "system_fingerprint": slot.release}

    def whole(self, text: str, reason: str, tokens: int) -> bytes:
        """Return the answer of a request that does not stream."""
        said: JsonObject = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = {"index": 0, **(said if self._is_chat else {"text": text}), "logprobs": None, "finish_reason": reason}
        kind = "chat.completion" if self._is_chat else "text_completion"
        return orjson.dumps(
            {"id": self._id, "object": kind, **self._head, "choices": [choice], "usage": self._usage(tokens)}
        )

    def first(self) -> list[bytes]:
        """Return what a stream begins with."""
        return [self._chunk([self._choice({"role": "assistant", "content": ""}, "")])] if self._is_chat else []

    def piece(self, text: str, reason: str | None) -> list[bytes]:
        """Return one piece of a stream."""
        return [self._chunk([self._choice({"content": text} if text else {}, text, reason)])]

    def last(self, tokens: int) -> list[bytes]:
        """Return what a stream ends with."""
        return [self._chunk([], self._usage(tokens)), DONE] if self._counts_usage else [DONE]

    def failure(self, error: ServingError) -> bytes:
        """Return what a stream says of its failure."""
        return failure(error)

    def _choice(self, delta: JsonObject, text: str, reason: str | None = None) -> JsonObject:
        said: JsonObject = {"delta": delta} if self._is_chat else {"text": text}
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}

    def _chunk(self, choices: list[JsonObject], usage: JsonObject | None = None) -> bytes:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        counted = {"usage": usage} if self._counts_usage else {}
        return orjson.dumps({"id": self._id, "object": kind, **self._head, "choices": choices, **counted})

    def _usage(self, tokens: int) -> JsonObject:
        prompt = self._prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def model_entry(slot: Slot, created: int) -> JsonObject:
    """Return a model as ``/v1/models`` lists it."""
    return {"id": slot.model, "object": "model", "created": created, "owned_by": "nibbled"}


def failure(error: ServingError) -> bytes:
    """Return an error in OpenAI's form."""
    param, code = None, {404: "not_found", 503: "unavailable"}.get(error.status)
    if isinstance(error, (FieldError, UnknownModelError)):
        param, code = error.param, error.code
    is_client = isinstance(error, BadRequestError) or 400 <= error.status < 500  # noqa: PLR2004 - HTTP's own classes
    kind = "invalid_request_error" if is_client else "server_error"
    return orjson.dumps({"error": {"message": str(error), "type": kind, "param": param, "code": code}})
