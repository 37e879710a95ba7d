"""What is to be said of a wanted state before it is published: whatever devices would refuse, or not heed. Pure.

Devices judge the frame of a document when it comes, and each entry when its operation begins; what they do not know
they ignore. Here all of it is judged at once, by the same models, and what no device knows is refused: a misspelt key
would be acknowledged, and nothing would happen.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from agent.contract import commands, config, desired
from agent.contract.commands import Deploy, Gate
from agent.contract.desired import Desired
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import Envelope
from agent.contract.oms import Bundle
from agent.contract.wire import dump

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.contract.wire import JsonObject

_SIGNED_ELSEWHERE = (Envelope, Bundle)
"""Formats of others, which may have fields of others."""
_EXAMPLE = 'such as {"models": {"kanji": {"manifest": {…}}}}; {"models": {}} wants nothing served'


def judge(body: JsonObject) -> Desired:
    """Return a wanted state as devices read it.

    Raises:
        RefusalError: with what devices would refuse, or never look at.
    """
    if {"payload", "payloadType"} <= body.keys():
        raise RefusalError(
            ErrorCode.BAD_REQUEST, "a signed manifest, no wanted state", "an entry of models has it as its manifest"
        )
    _refuse_unknown(Desired, body, "")
    if body.get("models") is None and body.get("config") is None:
        raise RefusalError(ErrorCode.BAD_REQUEST, "it says neither models nor config", _EXAMPLE)
    document = desired.parse(dump(body))
    for name, fields in (document.models or {}).items():
        if fields is not None:
            _judge_entry(name, fields)
    if document.config:
        config.check(document.config, {})
    return document


def judge_gate(gate: JsonObject) -> None:
    """Refuse a gate that says what no device knows: it would be left out, and the release not held to it.

    Raises:
        RefusalError: with the key, and those that there are.
    """
    _refuse_unknown(Gate, gate, "")


def _judge_entry(name: str, fields: JsonObject) -> None:
    _refuse_unknown(Deploy, fields, f"models.{name}.")
    try:
        commands.parse(Deploy.name, dump({**fields, "schema": 1, "id": name, "model": name}))
    except RefusalError as refusal:
        raise RefusalError(refusal.code, f"models.{name}: {refusal.detail}", refusal.hint) from None


def _refuse_unknown(kind: type[BaseModel], body: JsonObject, at: str) -> None:
    found = list(_unknown(kind, body, at))
    if found:
        known = ", ".join(_fields(found[0][1]))
        words = ", ".join(told for told, _ in found)
        raise RefusalError(ErrorCode.BAD_REQUEST, f"no device knows {words}", f"known: {known}")


def _unknown(kind: type[BaseModel], body: JsonObject, at: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the keys that a model does not have, with where they stand and the nearest one, and that model."""
    fields = _fields(kind)
    for key, value in body.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            yield f"{at}{key}" + (f" (did you mean {close[0]}?)" if close else ""), kind
            continue
        for part in _models(fields[key]):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, dict):
                    yield from _unknown(part, each, f"{at}{key}.")


def _fields(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the types of a model's fields by their names in JSON."""
    return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) is not None or not isinstance(annotation, type):
        for each in get_args(annotation):
            yield from _models(each)
    elif issubclass(annotation, BaseModel) and annotation not in _SIGNED_ELSEWHERE:
        yield annotation
