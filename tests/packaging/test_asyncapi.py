"""The published contract is what the code parses and sends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from agent.contract.asyncapi import _REPORTS, document
from agent.contract.commands import COMMANDS
from agent.contract.topics import Topics
from tests.fakes.box import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"
PAGES = sorted((*FILE.parent.glob("*.md"), FILE.parents[1] / "README.md"))
SENT = re.compile(r"-t edge/v1/[\w-]+/(cmd/\w+)(?: -[er] ?[\w/-]*)* -m '(\{[^']*\})'")
"""A message of ours in a command block, with its topic; not one that is put together by the shell."""


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def complaints(message: str, body: Any) -> list[str]:
    """Return what the document's schema of a message says against a body."""
    schema = {"$ref": f"#/components/schemas/{message}", "components": document("1")["components"]}
    return [error.message for error in Draft202012Validator(schema).iter_errors(body)]


def examples() -> list[tuple[str, str, str]]:
    """Return the messages that the pages send: page, name and payload."""
    texts = [(page.name, page.read_text(encoding="utf-8").replace("\\\n", " ")) for page in PAGES]
    found = [(name, *match) for name, text in texts for match in SENT.findall(re.sub(r" +", " ", text))]
    return [(page, topic.replace("/", "_"), payload) for page, topic, payload in found]


def test_the_file_is_what_make_asyncapi_writes() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == document("1"), "run make asyncapi"


def test_every_reference_leads_somewhere() -> None:
    told = document("1")
    for reference in references(told):
        found: Any = told
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_every_command_and_every_topic_has_a_channel() -> None:
    addresses = {channel["address"] for channel in document("1")["channels"].values()}
    topics = Topics("edge/v1", "box")
    for name in COMMANDS:
        assert topics.command(name).replace("box", "{device}") in addresses
    for topic in (topics.desired, topics.reported, topics.presence, topics.health, topics.event):
        assert topic.replace("box", "{device}") in addresses
    assert "edge/v1/_group/{group}/desired" in addresses
    assert "edge/v1/_group/{group}/halt" in addresses
    assert "edge/v1/{device}/op/{id}" in addresses


@pytest.mark.parametrize("name", ["operation", "reported", "capabilities", "event", "log"])
def test_what_a_device_sends_has_the_fields_that_are_promised(tmp_path: Path, name: str) -> None:
    box = Box(tmp_path)
    box.deploy("d-1", method="nf4")
    box.send("collect_logs", {"id": "l-1"})
    box.send("status", {"id": "s-1"})
    box.settle()
    address, _, fields = _REPORTS[name]
    head, tail = address.replace("DEVICE", "box-1").split("{id}") if "{id}" in address else (address, None)
    head = head.replace("DEVICE", "box-1")
    topics = {report.topic for report in box.broker.log}
    found = [topic for topic in topics if (topic == head if tail is None else topic.startswith(head))]
    assert found
    for topic in found:
        for body in box.broker.bodies(topic):
            assert set(fields) | {"schema", "at"} <= set(body)
            assert complaints(name, body) == []
    box.journal.close()


@pytest.mark.parametrize(("page", "message", "payload"), examples())
def test_what_the_pages_send_is_what_the_schemas_say(page: str, message: str, payload: str) -> None:
    assert complaints(message, json.loads(payload)) == [], page


def test_messages_are_found_in_the_pages_and_a_wrong_one_is_seen() -> None:
    assert {message for _, message, _ in examples()} >= {
        "cmd_set_method",
        "cmd_rollback",
        "cmd_status",
        "cmd_collect_logs",
    }
    assert complaints("cmd_set_method", {"schema": 1, "id": "s", "model": "kanji", "method": "nf5"}) != []
    assert complaints("operation", {"schema": 1}) != []
