"""What ``deploy/examples/telegraf/nibbled.conf`` makes of a message: what its author has to get right.

Not Telegraf: a reader of the settings that this one file uses, and nothing else; any other is an error here. JSON paths
are the plain dotted ones of GJSON, XPath expressions those of child steps, ``name(.)``, ``number(…)`` and ``… = '…'``.
A name in Prometheus is the measurement's and the field's, joined by ``_``; what is text is left out there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.contract import toml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

JsonObject = dict[str, Any]
SHIPPED = Path(__file__).parents[3] / "deploy" / "examples" / "telegraf" / "nibbled.conf"
TYPES = {"int": int, "float": float}
INPUT = {
    "servers",
    "topics",
    "qos",
    "topic_tag",
    "data_format",
    "topic_parsing",
    "json_v2",
    "xpath",
    "xpath_allow_empty_selection",
}
XPATH = {"metric_name", "metric_selection", "tags", "fields", "fields_int"}
_STEPS = re.compile(r"[a-z0-9_*]+(?:/[a-z0-9_*]+)*")
_MISSING = object()


@dataclass(frozen=True)
class Metric:
    """One metric as it leaves the parser."""

    name: str
    tags: Mapping[str, str]
    fields: Mapping[str, float | bool]


class Config:
    """The inputs of one configuration."""

    def __init__(self, text: str) -> None:
        self.parsed = toml.loads(text)
        self.inputs: list[JsonObject] = self.parsed["inputs"]["mqtt_consumer"]
        for each in self.inputs:
            assert set(each) <= INPUT, set(each) - INPUT

    @classmethod
    def shipped(cls) -> Config:
        """Return the one that is shipped."""
        return cls(SHIPPED.read_text(encoding="utf-8"))

    def names(self) -> set[str]:
        """Return the names of all metrics in Prometheus, whatever comes."""
        found = set()
        for each in self.inputs:
            for part in each.get("json_v2", ()):
                found |= {f"{part['measurement_name']}_{_field_name(field)}" for field in part["field"]}
            for part in each.get("xpath", ()):
                fields = {**part.get("fields", {}), **part.get("fields_int", {})}
                found |= {f"{_literal(part['metric_name'])}_{field}" for field in fields}
        return found

    def read(self, topic: str, body: JsonObject) -> list[Metric]:
        """Return the metrics of a message; raises ``LookupError`` for a path that leads nowhere."""
        found = []
        for each in self.inputs:
            if any(_covers(wanted, topic) for wanted in each["topics"]):
                (parsing,) = each["topic_parsing"]
                assert parsing["topic"] in each["topics"]
                names, levels = parsing["tags"].split("/"), topic.split("/")
                tags = {name: level for name, level in zip(names, levels, strict=True) if name != "_"}
                parts = _of_json(each, body) if each["data_format"] == "json_v2" else _of_xpath(each, body)
                found += [Metric(metric.name, {**metric.tags, **tags}, metric.fields) for metric in parts]
        return found


def _covers(wanted: str, topic: str) -> bool:
    levels, parts = wanted.split("/"), topic.split("/")
    return len(levels) == len(parts) and all(level in ("+", part) for level, part in zip(levels, parts, strict=True))


def _field_name(field: JsonObject) -> str:
    return str(field.get("rename", field["path"].rpartition(".")[2]))


def _of_json(settings: JsonObject, body: JsonObject) -> Iterator[Metric]:
    for part in settings["json_v2"]:
        assert set(part) == {"measurement_name", "field"}
        fields = {}
        for field in part["field"]:
            assert set(field) <= {"path", "rename", "type", "optional"}
            value = _follow(body, field["path"].split("."))
            if value is _MISSING and not field.get("optional", False):
                raise LookupError(f"{field['path']} leads nowhere, and is not optional")
            if value is not _MISSING and value is not None:
                fields[_field_name(field)] = TYPES[field["type"]](value)
        yield Metric(part["measurement_name"], {}, fields)


def _follow(value: Any, steps: list[str]) -> Any:
    for step in steps:
        if not isinstance(value, dict) or step not in value:
            return _MISSING
        value = value[step]
    return value


def _of_xpath(settings: JsonObject, body: JsonObject) -> Iterator[Metric]:
    for part in settings["xpath"]:
        assert set(part) <= XPATH, set(part) - XPATH
        for name, node in _select(body, part.get("metric_selection", ".")):
            tags = {key: _text(_evaluate(path, name, node)) for key, path in part.get("tags", {}).items()}
            fields: dict[str, float | bool] = {
                key: int(_evaluate(path, name, node)) for key, path in part.get("fields_int", {}).items()
            }
            fields |= {key: _evaluate(path, name, node) for key, path in part.get("fields", {}).items()}
            yield Metric(_literal(part["metric_name"]), tags, fields)


def _select(body: JsonObject, path: str) -> Iterator[tuple[str, Any]]:
    if path == ".":
        yield "", body
        return
    head, _, last = path.rpartition("/")
    assert last == "*", path
    yield from _follow(body, head.split("/")).items()


def _evaluate(expression: str, name: str, node: Any) -> Any:
    if expression == "name(.)":
        return name
    if number := re.fullmatch(r"number\((.+)\)", expression):
        value = _path(number[1], node)
        return math.nan if value is None else float(value)
    if comparison := re.fullmatch(r"(.+) = '(.*)'", expression):
        return _text(_path(comparison[1], node)) == comparison[2]
    return _path(expression, node)


def _path(path: str, node: Any) -> Any:
    assert _STEPS.fullmatch(path), path
    value = _follow(node, path.split("/"))
    if value is _MISSING:
        raise LookupError(f"{path} leads nowhere")
    return value


def _text(value: Any) -> str:
    """Return a value as the text of its node."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _literal(expression: str) -> str:
    found = re.fullmatch(r"string\('([a-z_]+)'\)", expression)
    assert found, expression
    return found[1]
