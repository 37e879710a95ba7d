"""The JSON Schema of what a job of AWS IoT may ask a device: ``python -m agent.fleet.bridge.schema``."""

from __future__ import annotations

import json
import sys
from typing import Any

from agent.contract.commands import COMMANDS
from agent.fleet.bridge.aws_jobs import DOCUMENT_KEY
from agent.fleet.bridge.requests import BRIDGED, SET_HERE

JsonObject = dict[str, Any]


def document() -> JsonObject:
    """Return the schema of a job document, from the models that judge commands."""
    definitions: JsonObject = {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nibbled job",
        "description": "A job document of AWS IoT that nibblectl bridge aws-jobs carries to a device.",
        "type": "object",
        "required": [DOCUMENT_KEY],
        "properties": {DOCUMENT_KEY: {"oneOf": [_command(name, definitions) for name in BRIDGED]}},
        "$defs": definitions,
    }


def _command(name: str, definitions: JsonObject) -> JsonObject:
    schema = COMMANDS[name].model_json_schema(ref_template="#/$defs/{model}")
    definitions |= schema.pop("$defs", {})
    del schema["title"]
    schema["properties"] = {"command": {"const": name}, **schema["properties"], **dict.fromkeys(SET_HERE, False)}
    schema["required"] = ["command", *(field for field in schema.get("required", ()) if field not in SET_HERE)]
    if name == "deploy":
        schema["anyOf"] = [{"required": ["manifest"]}, {"required": ["artifact"]}]
    return schema


def main() -> None:
    """Print the schema."""
    sys.stdout.write(json.dumps(document(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
