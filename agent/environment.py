"""The environment's part of the configuration: ``NIBBLED_MQTT__HOST`` is ``host`` below ``[mqtt]``.

Variables hold text, so what has to be a number or a boolean is read from it here, as ``yes`` or ``0.5``. The file has
types of its own, and there a text is no number.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_settings import EnvSettingsSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

PREFIX = "NIBBLED_"
_NAME = "NIBBLED(?:_[A-Z0-9]+)*?"
"""A service that is called ``nibbled``, or ``nibbled-broker``: its hyphens are single underscores."""
_OF_A_SERVICE = re.compile(_NAME + r"_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_PORT_OF_A_SERVICE = re.compile(_NAME + "_PORT")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+")
"""What Kubernetes writes as a service's port; who means ``NIBBLED_MQTT__PORT`` and misspells it writes a number."""
_SCALARS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (bool, int, float)}


class NoJsonError(Exception):
    """A variable has to hold JSON and does not; the text names it and shows nothing of it."""


class Environment(EnvSettingsSource):
    """What the variables say, in the types of their settings as far as their text can be read so."""

    def __call__(self) -> dict[str, Any]:
        """Return it, nested as in the file.

        Raises:
            NoJsonError: for a list or a table that is not written as JSON.
        """
        return _typed(super().__call__(), self.settings_cls)

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Return the value of a list or a table, which stand as JSON in one variable."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            ours = (name for name in _names() if os.environ[name] == value)
            name = next((each for each in ours if each.upper().endswith(field_name.upper())), field_name)
            raise NoJsonError(f"""{name}: expected JSON, such as ["a", "b"] or {{"a": "b"}}""") from None


def variables(settings: type[BaseModel]) -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield the variable of each key, the key as ``section.key`` and its field; no variable of a whole section."""
    for key, field in settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and _is_section(section):
            for inner, below in section.model_fields.items():
                yield f"{PREFIX}{key}__{inner}".upper(), f"{key}.{inner}", below
        else:
            yield f"{PREFIX}{key}".upper(), key, field


def unknown(settings: type[BaseModel]) -> list[str]:
    """Return a sentence for each variable that begins with ``NIBBLED_`` and belongs to no key or section."""
    return [refusal(name, settings) for name in _names() if not _belongs(name, settings)]


def refusal(name: str, settings: type[BaseModel]) -> str:
    """Return the sentence that refuses the variable ``name``, with the nearest one that exists."""
    close = difflib.get_close_matches(name.upper(), list(_known(settings)), n=1)
    return f"{name}: unknown variable; " + (
        f"did you mean {close[0]}?" if close else "configs/nibbled.toml has the keys"
    )


def variable(path: Sequence[str], given: Mapping[str, Any]) -> str | None:
    """Return the name of the variable that gives the key at ``path`` its value; None where none does.

    Args:
        path: of the key, such as ``("mqtt", "host")``.
        given: what all variables give, nested.
    """
    found: Any = given
    for key in path:
        if isinstance(found, dict):
            if key not in found:
                return None
            found = found[key]
    spelt = {name.upper(): name for name in _names()}
    heads = (PREFIX + "__".join(path[:end]).upper() for end in range(len(path), 0, -1))
    return next((spelt[head] for head in heads if head in spelt), None)


def _names() -> list[str]:
    return [name for name in os.environ if name.upper().startswith(PREFIX) and not _is_of_kubernetes(name)]


def _is_of_kubernetes(name: str) -> bool:
    """Return whether it is one of those by which Kubernetes tells every container where the services are."""
    if _OF_A_SERVICE.fullmatch(name.upper()):
        return True
    return bool(_PORT_OF_A_SERVICE.fullmatch(name.upper()) and _ADDRESS.fullmatch(os.environ[name]))


def _belongs(name: str, settings: type[BaseModel]) -> bool:
    head, *rest = name.lower().removeprefix(PREFIX.lower()).split("__")
    field = settings.model_fields.get(head)
    return field is not None and (not rest or _is_section(field.annotation) or get_origin(field.annotation) is dict)


def _known(settings: type[BaseModel]) -> Iterator[str]:
    for key, field in settings.model_fields.items():
        yield f"{PREFIX}{key}".upper()
        if isinstance(field.annotation, type) and _is_section(field.annotation):
            yield from (f"{PREFIX}{key}__{inner}".upper() for inner in field.annotation.model_fields)


def _typed(given: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    fields = section.model_fields
    return {key: _value(fields[key].annotation, value) if key in fields else value for key, value in given.items()}


def _value(annotation: Any, value: Any) -> Any:
    if isinstance(value, dict) and _is_section(annotation):
        return _typed(value, annotation)
    wanted = set(_parts(annotation))
    for kind, adapter in _SCALARS.items():
        if isinstance(value, str) and kind in wanted:
            try:
                return adapter.validate_python(value)
            except ValidationError:
                continue
    return value


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield a type and those that it is made of, as ``int | None`` is of ``int`` and ``None``."""
    yield annotation
    for each in get_args(annotation):
        yield from _parts(each)
