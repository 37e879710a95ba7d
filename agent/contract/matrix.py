"""The decision matrix as people write it: a TOML file, or the same content as JSON in ``set_config``.

An error names the line (in a file), the row and the key, what was found and what is allowed.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from agent.contract import toml
from agent.contract.wire import complaint
from agent.planning.matrix import Gpu, Purpose, Row, When
from agent.planning.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ROWS = 64
_Share = Annotated[float, Field(ge=0)]
_Size = Annotated[ByteSize, Field(ge=0)]
_Capability = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}\.[0-9]{1,2}$")]


class MatrixError(ValueError):
    """A matrix that cannot be used; the text says where and why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _When(_Part):
    purpose: Purpose | None = None
    gpu: Gpu | None = None
    kernel: Literal["bitsandbytes", "torch"] | None = None
    min_share: _Share | None = None
    below_share: _Share | None = None
    min_budget: _Size | None = None
    below_budget: _Size | None = None
    min_total: _Size | None = None
    below_total: _Size | None = None
    min_capability: _Capability | None = None
    below_capability: _Capability | None = None


class _Row(_Part):
    scenario: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    methods: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)]
    rationale: Annotated[str, StringConstraints(min_length=1, max_length=300)]
    when: _When = _When()

    @field_validator("methods")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in METHODS:
                raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
        return names


class _Document(_Part):
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    row: Annotated[tuple[_Row, ...], Field(min_length=1, max_length=MAX_ROWS)]


def parse_toml(text: str, name: str) -> tuple[Row, ...]:
    """Return the rows of a TOML document; ``name`` is what errors call it.

    Raises:
        MatrixError: with line, row and key.
    """
    try:
        content = toml.loads(text)
    except toml.TomlError as error:
        raise MatrixError(f"{name}: {error}") from None
    return _parse(content, name, text)


def parse_json(content: Any, name: str = "matrix") -> tuple[Row, ...]:
    """Return the rows of a JSON object.

    Raises:
        MatrixError: with row and key.
    """
    return _parse(content, name, None)


def _parse(content: Any, name: str, text: str | None) -> tuple[Row, ...]:
    try:
        document = _Document.model_validate(content)
    except ValidationError as error:
        complaints = "; ".join(_complaint(item, content, text) for item in error.errors(include_url=False)[:5])
        raise MatrixError(f"{name}: {complaints}") from None
    rows = tuple(_row(row) for row in document.row)
    last = len(rows) - 1
    open_end = next((index for index, row in enumerate(rows) if row.when == When()), None)
    if open_end != last:
        where = last if open_end is None else open_end
        why = (
            "the last row must have no condition, or a device may find no row that applies"
            if open_end is None
            else f"it has no condition, so the {last - open_end} rows after it never apply"
        )
        raise MatrixError(f"{name}: {_place(('row', where), text)}row {where + 1} {rows[where].scenario!r}: {why}")
    return rows


def _row(row: _Row) -> Row:
    given = row.when
    return Row(
        row.scenario,
        row.methods,
        row.rationale,
        When(
            purpose=given.purpose,
            gpu=given.gpu,
            kernel=given.kernel,
            min_share=given.min_share,
            below_share=given.below_share,
            min_budget_bytes=given.min_budget,
            below_budget_bytes=given.below_budget,
            min_total_bytes=given.min_total,
            below_total_bytes=given.below_total,
            min_capability=_pair(given.min_capability),
            below_capability=_pair(given.below_capability),
        ),
    )


def _pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    major, minor = text.split(".")
    return int(major), int(minor)


def _complaint(item: Mapping[str, Any], content: Any, text: str | None) -> str:
    keys = tuple(item["loc"])
    place = _place(keys, text)
    told = [_named(content, keys[1])] if len(keys) > 1 and keys[0] == "row" else []
    names = [str(key) for key in keys[2:] if not isinstance(key, int)] if told else [str(key) for key in keys]
    where = ", ".join([*told, *([f"key {'.'.join(names)}"] if names else [])])
    if item["type"] == "extra_forbidden":
        known = list((_When if "when" in names else _Row if told else _Document).model_fields)
        close = difflib.get_close_matches(names[-1], known, n=1)
        return f"{place}{where}: unknown; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}")
    found = "" if item["type"] in ("missing", "value_error") else f", got {str(item['input'])[:60]!r}"
    return f"{place}{where}: {complaint(item)}{found}"


def _named(content: Any, index: int) -> str:
    try:
        return f"row {index + 1} {content['row'][index]['scenario']!r}"
    except (KeyError, IndexError, TypeError):
        return f"row {index + 1}"


def _place(keys: tuple[Any, ...], text: str | None) -> str:
    """Return ``line N, `` of a key in a document, or of the header of its row where the key has no line of its own."""
    if text is None:
        return ""
    lines = text.splitlines()
    headers = [number for number, line in enumerate(lines) if re.match(r"\s*\[\[\s*row\s*\]\]", line)]
    in_row = len(keys) > 1 and keys[0] == "row" and keys[1] < len(headers)
    start = headers[keys[1]] if in_row else 0
    end = next((number for number in headers if number > start), len(lines)) if in_row else len(lines)
    names = [str(key) for key in keys if not isinstance(key, int) and key != "row"]
    for name in reversed(names):
        for number in range(start, end):
            if re.search(rf"(^|[\s{{,.\"']){re.escape(name)}[\"']?\s*[=.]", lines[number].partition("#")[0]):
                return f"line {number + 1}, "
    return f"line {start + 1}, " if in_row else ""
