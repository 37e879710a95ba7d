"""What a client can ask of a language model, and how its words for that are read. Pure.

Every limit is told with the number that broke it and the name of its field. Fields that are not read are ignored:
clients send many. Those that would change the answer and are not served are refused by name instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from agent.serving.errors import BadRequestError
from agent.serving.generation.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

JsonObject = dict[str, Any]
Messages = list[dict[str, Any]]

DEFAULT_NEW_TOKENS = 16
"""Of a text that is continued, as OpenAI's completions and Triton's vLLM backend have it."""
MAX_STOPS, MAX_STOP_LENGTH = 16, 256
MAX_TIMEOUT_US = 3_600_000_000


class FieldError(BadRequestError):
    """One field of a request is not as it must be.

    Attributes:
        param: the field.
        code: a word for programs.
    """

    def __init__(self, param: str, detail: str, code: str = "invalid_value") -> None:
        super().__init__(detail)
        self.param = param
        self.code = code


@dataclass(frozen=True)
class Wish:
    """A request for text.

    Attributes:
        prompt: a text, the ids of one, or the messages of a conversation.
        max_tokens: how many tokens to make at most, None for what the server thinks fit.
        stops: texts that end the answer and do not appear in it.
        is_stream: whether the answer comes in pieces.
        timeout_s: how long the request may wait for its first step, None for the server's own limit.
    """

    prompt: str | tuple[int, ...] | Messages
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = DEFAULT_NEW_TOKENS
    stops: tuple[str, ...] = ()
    is_stream: bool = False
    timeout_s: float | None = None


def parse_object(body: bytes) -> JsonObject:
    """Return the JSON object in a body; raises ``BadRequestError``."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not valid JSON: {error}") from None
    if not isinstance(request, dict):
        raise BadRequestError("the request must be a JSON object")
    return request


def sampling_of(fields: Mapping[str, Any]) -> Sampling:
    """Return how tokens are to be chosen."""
    top_k = integer(fields, "top_k", 0, -1, 2**31)
    return Sampling(
        temperature=number(fields, "temperature", 1.0, 0.0, 2.0),
        top_p=number(fields, "top_p", 1.0, 0.0, 1.0),
        top_k=max(0, top_k),
        seed=None if fields.get("seed") is None else integer(fields, "seed", 0, -(2**63), 2**64 - 1) % 2**64,
    )


def number(fields: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    """Return a number from ``low`` to ``high``; null and nothing are the default."""
    value = fields.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise FieldError(key, f"{key!r} is {_shown(value)}, a number from {low:g} to {high:g} is needed")
    return float(value)


def integer(fields: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    """Return an integer from ``low`` to ``high``; null and nothing are the default."""
    value = fields.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FieldError(key, f"{key!r} is {_shown(value)}, an integer from {low} to {high} is needed")
    return value


def flag(fields: Mapping[str, Any], key: str) -> bool:
    """Return a truth value; null and nothing are false."""
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        raise FieldError(key, f"{key!r} is {_shown(value)}, true or false is needed")
    return bool(value)


def stops_of(value: Any, key: str = "stop") -> tuple[str, ...]:
    """Return the texts that end an answer: one, a list of them, or null."""
    listed = [value] if isinstance(value, str) else value or []
    if not isinstance(listed, list) or not all(isinstance(item, str) and item for item in listed):
        raise FieldError(key, f"{key!r} must be a text or a list of texts, none of them empty")
    longest = max(map(len, listed), default=0)
    if len(listed) > MAX_STOPS or longest > MAX_STOP_LENGTH:
        raise FieldError(
            key,
            f"{key!r} has {len(listed)} texts of up to {longest} characters, "
            f"at most {MAX_STOPS} of {MAX_STOP_LENGTH} are taken",
        )
    return tuple(listed)


def max_tokens_of(fields: Mapping[str, Any], key: str, default: int | None) -> int | None:
    """Return how many tokens are wanted at most."""
    return default if fields.get(key) is None else integer(fields, key, 1, 1, 2**31)


def timeout_of(fields: Mapping[str, Any]) -> float | None:
    """Return the client's limit to its waiting in seconds, from ``timeout`` in microseconds as for inference."""
    limit_us = integer(fields, "timeout", 0, 0, MAX_TIMEOUT_US)
    return limit_us / 1e6 if limit_us else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:64]}…"  # noqa: PLR2004 - enough to recognise it
