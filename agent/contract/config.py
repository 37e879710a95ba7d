"""The settings that ``set_config`` may change, and what each may be: the only list of them. Pure.

Keys are those of the TOML file, written ``section.key``. The file takes its types from here, so that what it may say is
what may be sent. A null stands for the file's own value.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, TypeAdapter, ValidationError

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.wire import alternatives, complaint
from agent.planning.matrix import Purpose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent.contract.wire import JsonObject

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(value: Any) -> Any:
    """Turn ``"512MiB"`` into bytes; numbers pass.

    Raises:
        ValueError: for a text that is no size.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)?\s*", value)
    if match is None:
        raise ValueError("Input should be a number of bytes, or one with KiB, MiB or GiB")  # as pydantic says it
    return int(float(match[1]) * _UNITS[match[2] or ""])


Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
"""Of the type that was written: ``"yes"`` is no boolean, ``true`` no number; an integer is a number all the same."""
Size = Annotated[Whole, BeforeValidator(parse_size), Field(ge=0)]
BudgetSize = Literal["auto"] | Size
HealthInterval = Annotated[Number, Field(ge=0.2, le=3600)]
Total = Annotated[Number, Field(gt=0, le=30 * 86_400)]
Soak = Annotated[Number, Field(ge=0, le=86_400)]
WatchMode = Literal["off", "alarm", "act"]
WatchInterval = Annotated[Number, Field(ge=0.2, le=3600)]
Patience = Annotated[Number, Field(ge=0, le=86_400)]
Margin = Annotated[Number, Field(ge=0, le=0.9)]

_TYPES: dict[str, Any] = {
    "health.interval_s": HealthInterval,
    "memory.reserve": Size,
    "memory.budget": BudgetSize,
    "deployment.soak_s": Soak,
    "deployment.total_s": Total,
    "downloads.max_bytes_per_s": Size,
    "watch.mode": WatchMode,
    "watch.interval_s": WatchInterval,
    "watch.down_after_s": Patience,
    "watch.up_after_s": Patience,
    "watch.up_margin": Margin,
    "watch.min_dwell_s": Patience,
    "planning.matrix_only": Flag,
    "planning.purpose": Purpose,
    "planning.matrix": dict[str, Any],
}
CHANGEABLE = tuple(_TYPES)
_ADAPTERS: dict[str, TypeAdapter[Any]] = {key: TypeAdapter(kind) for key, kind in _TYPES.items()}


def check(config: JsonObject, validators: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Return the values of ``config``, nested as in the file, by ``section.key``; None stands for the file's value.

    Args:
        config: what was sent.
        validators: for some keys, what looks at a value after its type was found right: returns it, perhaps in another
            form, or raises ValueError with a sentence.

    Raises:
        RefusalError: ``bad_request`` with every unknown key and every wrong value in it.
    """
    values, complaints, hint = {}, [], None
    for key, value in _flat(config):
        if key not in _TYPES:
            complaints.append(f"{key} cannot be changed by set_config")
            close = difflib.get_close_matches(key, CHANGEABLE, n=1)
            hint = f"{f'did you mean {close[0]}? ' if close else ''}allowed: {', '.join(CHANGEABLE)}"
            continue
        try:
            values[key] = None if value is None else check_value(key, value, validators)
        except ValueError as error:
            complaints.append(f"{key}: {error}, got {value!r:.80}")
    if not values and not complaints:
        complaints, hint = ["config names no setting"], f"allowed: {', '.join(CHANGEABLE)}"
    if complaints:
        raise RefusalError(ErrorCode.BAD_REQUEST, f"set_config: {'; '.join(complaints)}", hint)
    return values


def check_value(key: str, value: Any, validators: Mapping[str, Callable[[Any], Any]]) -> Any:
    """Return the value of a key in the form in which it is used: a size in bytes.

    Raises:
        ValueError: saying what is allowed.
        KeyError: for a key that cannot be changed.
    """
    try:
        found = _ADAPTERS[key].validate_python(value, strict=True)
    except ValidationError as error:
        found = [complaint(item) for item in error.errors(include_url=False, include_input=False)]
        raise ValueError(alternatives(found)) from None
    return validators[key](found) if key in validators else found


def nest(values: Mapping[str, Any]) -> JsonObject:
    """Return ``section.key`` values nested as in the file."""
    nested: JsonObject = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    return nested


def _flat(config: JsonObject) -> Iterable[tuple[str, Any]]:
    for section, body in config.items():
        if isinstance(body, dict) and body:
            yield from ((f"{section}.{name}", value) for name, value in body.items())
        else:
            yield section, body
