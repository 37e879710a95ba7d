"""The contract as an AsyncAPI 3 document, from the models that parse it: ``python -m agent.contract.asyncapi``.

What operators write has its whole schema, since the same models judge it. Of what devices write the schema names what
is always there; decision records and figures grow, and are described in docs/contract.md. The output is JSON, which is
YAML.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from agent.contract.commands import COMMANDS
from agent.contract.desired import Desired
from agent.contract.errors import ErrorCode, ErrorInfo
from agent.contract.halt import Halt
from agent.contract.topics import ID_PATTERN, Topics
from agent.contract.wire import MAX_PAYLOAD_BYTES

JsonObject = dict[str, Any]
SPECIFICATION = "3.1.0"
_TOPICS = Topics("edge/v1", "DEVICE")
_TEXT: JsonObject = {"type": "string"}
_REPORTS: dict[str, tuple[str, str, dict[str, JsonObject]]] = {
    # name: address, what it is, what is always there
    "operation": (
        f"{_TOPICS.root}/op/{{id}}",
        "State of one operation; QoS 1, retained, expires after 7 days.",
        {
            "id": {"type": "string", "pattern": ID_PATTERN},
            "command": _TEXT,
            "model": {"type": ["string", "null"]},
            "state": _TEXT,
            "phase": {"type": ["string", "null"]},
            "attempt": {"type": "integer"},
            "progress": {"type": ["object", "null"]},
            "decision": {"type": ["object", "null"]},
            "error": {"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/ErrorInfo"}]},
            "boot_id": _TEXT,
            "seq": {"type": "integer"},
        },
    ),
    "reported": (
        _TOPICS.reported,
        "What is served; QoS 1, retained.",
        {
            "generation": {"type": ["integer", "null"]},
            "desired": {"type": ["object", "null"]},
            "models": {"type": "object"},
            "memory": {"type": "object"},
            "trust": {"type": "object"},
            "config": {"type": "object"},
        },
    ),
    "presence": (
        _TOPICS.presence,
        "Birth, will and farewell; QoS 1, retained.",
        {
            "state": {"enum": ["online", "offline"]},
            "epoch": {"type": "integer"},
            "boot_id": _TEXT,
            "agent": _TEXT,
            "reason": {"type": ["string", "null"]},
        },
    ),
    "capabilities": (
        _TOPICS.capabilities,
        "What the device can do; QoS 1, retained.",
        {
            "agent": _TEXT,
            "commands": {"type": "array"},
            "methods": {"type": "object"},
            "model_types": {"type": "array"},
            "versions": {"type": "object"},
            "hardware": {"type": ["string", "null"]},
            "groups": {"type": "array", "items": _TEXT},
            "labels": {"type": "object", "additionalProperties": _TEXT},
        },
    ),
    "health": (_TOPICS.health, "Telemetry; QoS 0, expires after 3 intervals.", {}),
    "telemetry": (_TOPICS.telemetry, "Flat numbers; QoS 0, expires after 3 intervals.", {}),
    "event": (_TOPICS.event, "Audit trail; QoS 1.", {"event": _TEXT}),
    "log": (
        f"{_TOPICS.root}/log/{{id}}",
        "Answer to collect_logs, in chunks; QoS 1.",
        {
            "id": _TEXT,
            "sequence": {"type": "integer"},
            "last": {"type": "boolean"},
            "cut": {"type": "boolean"},
            "entries": {"type": "array"},
        },
    ),
}


def document(version: str) -> JsonObject:
    """Return the AsyncAPI document.

    Args:
        version: of the agent.
    """
    told = _Document()
    for name, kind in COMMANDS.items():
        told.add(f"cmd_{name}", _TOPICS.command(name), _first_line(kind.__doc__), kind.model_json_schema, is_sent=False)
    for name, address in (("desired", _TOPICS.desired), ("group_desired", _TOPICS.group_desired("GROUP"))):
        told.add(name, address, "The whole wanted state; QoS 1, retained.", Desired.model_json_schema, is_sent=False)
    halts = "Stops what a group's devices have not begun; QoS 1, retained. An empty payload lifts it."
    told.add("group_halt", _TOPICS.group_halt("GROUP"), halts, Halt.model_json_schema, is_sent=False)
    told.schemas["ErrorInfo"] = told.hoisted(ErrorInfo.model_json_schema(ref_template=_REFERENCE))
    for name, (address, what, fields) in _REPORTS.items():
        told.add(name, address, what, lambda ref_template, fields=fields: _report(fields, ref_template), is_sent=True)
    return {
        "asyncapi": SPECIFICATION,
        "info": {
            "title": "nibbled",
            "version": version,
            "description": f"Payloads: JSON objects of at most {MAX_PAYLOAD_BYTES} bytes. Unknown fields are ignored."
            f" Error codes: {', '.join(str(code) for code in ErrorCode)}.",
        },
        "defaultContentType": "application/json",
        "channels": told.channels,
        "operations": told.operations,
        "components": {"messages": told.messages, "schemas": told.schemas},
    }


_REFERENCE = "#/components/schemas/{model}"


class _Document:
    """Collects channels, operations, messages and schemas, each schema once."""

    def __init__(self) -> None:
        self.channels: JsonObject = {}
        self.operations: JsonObject = {}
        self.messages: JsonObject = {}
        self.schemas: JsonObject = {}

    def add(self, name: str, address: str, what: str, schema: Any, *, is_sent: bool) -> None:
        """Add a channel with its one message; ``is_sent`` says whether the device is the writer."""
        levels = {level: level.strip("{}").lower() for level in address.split("/") if level in _PLACES}
        for level, parameter in levels.items():
            address = address.replace(level, f"{{{parameter}}}")
        self.schemas[name] = self.hoisted(schema(ref_template=_REFERENCE))
        self.messages[name] = {"summary": what, "payload": {"$ref": f"#/components/schemas/{name}"}}
        self.channels[name] = {
            "address": address,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "parameters": {parameter: {"description": ID_PATTERN} for parameter in levels.values()},
        }
        self.operations[f"{'send' if is_sent else 'receive'}_{name}"] = {
            "action": "send" if is_sent else "receive",
            "channel": {"$ref": f"#/channels/{name}"},
        }

    def hoisted(self, schema: JsonObject) -> JsonObject:
        """Return a schema whose definitions were moved to the document's own."""
        self.schemas |= schema.pop("$defs", {})
        return schema


_PLACES = ("DEVICE", "GROUP", "{id}")


def _report(fields: JsonObject, _reference: str) -> JsonObject:
    always = {"schema": {"const": 1}, **fields, "at": {"type": ["string", "null"], "format": "date-time"}}
    return {"type": "object", "properties": always, "required": list(always)}


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def main() -> None:
    """Print the document."""
    sys.stdout.write(json.dumps(document("1"), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
