"""What is wrong with the configuration, in words: pydantic's errors by the keys and variables that people wrote."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from agent import environment
from agent.contract.secrets import redacted
from agent.contract.wire import alternatives, complaint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_TABLES = ("model_type", "dict_type")


def told(
    errors: Iterable[Mapping[str, Any]], settings: type[BaseModel], given: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return a line for each wrong key of the file, and one for each wrong variable.

    Args:
        errors: pydantic's.
        settings: the class of the whole configuration.
        given: what the environment says, nested as in the file.
    """
    by_path: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for item in errors:
        by_path.setdefault(_path(item["loc"], settings), []).append(item)
    in_file, in_environment = [], []
    for path, items in by_path.items():
        name = environment.variable(path, given)
        if name is None:
            in_file.append(_line(path, items, settings))
        elif items[0]["type"] == "extra_forbidden":
            in_environment.append(environment.refusal(name, settings))
        else:
            in_environment.append(f"{name}: {_wrong(path, items)}")
    return in_file, in_environment


def twice(error: ValueError, text: str) -> str:
    """Return what TOML's reader says, with the name of a key that is given twice, which it leaves out."""
    said = str(error)
    place = re.search(r"overwrite a value \(at line (\d+)", said)
    if place is None:
        return said
    key = text.splitlines()[int(place[1]) - 1].partition("=")[0].strip()
    return f"{said}: {key} is given twice"


def _line(path: Sequence[str], items: Sequence[Mapping[str, Any]], settings: type[BaseModel]) -> str:
    where, item = ".".join(path), items[0]
    if item["type"] == "value_error" and isinstance(item["input"], dict):  # a contradiction: the text names its keys
        return f"{where or 'settings'}: {item['ctx']['error']}"
    if item["type"] != "extra_forbidden":
        return f"{where}: {_wrong(path, items)}"
    known = _known(path[:-1], settings)
    close = difflib.get_close_matches(path[-1], known, n=1)
    return f"{where}: unknown key; {f'did you mean {close[0]}?' if close else 'known: ' + ', '.join(known)}"


def _wrong(path: Sequence[str], items: Sequence[Mapping[str, Any]]) -> str:
    return f"{alternatives([_expected(path, item) for item in items])}, got {_shown(path, items[0]['input'])}"


def _expected(path: Sequence[str], item: Mapping[str, Any]) -> str:
    if item["type"] in _TABLES:
        return f"Input should be a table [{'.'.join(path)}]"
    return "Input should be a list" if item["type"] == "tuple_type" else complaint(item)


def _shown(path: Sequence[str], value: Any) -> str:
    return "***" if any("password" in key or "token" in key for key in path) else redacted(repr(value))[:80]


def _path(loc: Sequence[str | int], settings: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of an error's place, without the alternatives of a type that pydantic puts behind them."""
    section: Any = settings
    for depth, key in enumerate(loc):
        field = section.model_fields.get(key)
        section = field.annotation if field is not None else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            is_one = field is not None and getattr(section, "__origin__", None) not in (dict, tuple)
            return tuple(map(str, loc[: depth + 1] if is_one else loc))
    return tuple(map(str, loc))


def _known(path: Sequence[str], settings: type[BaseModel]) -> list[str]:
    section: Any = settings
    for key in path:
        field = section.model_fields.get(key)
        section = field.annotation if field is not None else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
    return list(section.model_fields)
