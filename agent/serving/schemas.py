"""The JSON objects of the data plane as JSON Schema (2020-12), by the names that ``openapi`` refers to. Pure.

What is told as required is always there, and what is not told is not sent: a test holds every answer against these.
"""

from __future__ import annotations

from typing import Any

from agent.serving.raw import MAX_RANK
from agent.serving.tensors import DATATYPE_NAMES
from agent.serving.validation import MAX_TIMEOUT_US

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SCALAR: Schema = {"type": ["string", "number", "boolean"]}
DATATYPE: Schema = {"type": "string", "enum": list(DATATYPE_NAMES)}


def ref(name: str) -> Schema:
    """Return a reference to one of ``SCHEMAS``."""
    return {"$ref": f"#/components/schemas/{name}"}


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _object(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    """Return what the server says: nothing but ``properties``, all of them but ``optional``."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _asked(properties: dict[str, Schema], *required: str) -> Schema:
    """Return what a client says: members that are not known are let pass."""
    return {"type": "object", "properties": properties, "required": list(required)}


def _parameters(**known: Schema) -> Schema:
    return {"type": ["object", "null"], "properties": known, "additionalProperties": SCALAR}


_DURATION = _object({"count": COUNT, "ns": COUNT})
_COMPUTED = ("compute_input", "compute_infer", "compute_output")
_DURATIONS = ("success", "fail", "queue", *_COMPUTED, "cache_hit", "cache_miss")
_ASKED_SHAPE = _array(COUNT, maxItems=MAX_RANK)
_SHAPE = _array({"type": "integer", "minimum": -1, "description": "-1 stands for any size"})
_TENSOR_INFO = _object({"name": TEXT, "datatype": DATATYPE, "shape": _SHAPE})
_CONFIG_TENSOR = _object(
    {"name": TEXT, "data_type": {"type": "string", "pattern": "^TYPE_"}, "dims": _array({"type": "integer"})}
)
_DATA = _array({}, description="nested or flat, row-major; BYTES are strings; FP16 and BF16 have a binary form only")
_BINARY_SIZE = {**COUNT, "description": "bytes of this tensor behind the JSON part, in place of 'data'"}

SCHEMAS: dict[str, Schema] = {
    "Error": {
        "type": "object",
        "properties": {"error": {"type": "string", "minLength": 1}, "code": TEXT, "live": FLAG, "ready": FLAG},
        "required": ["error"],
        "additionalProperties": False,
    },
    "OpenAIError": _object(
        {
            "error": _object(
                {
                    "message": {"type": "string", "minLength": 1},
                    "type": TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "OpenAIAnswer": {"type": "object", "properties": {"object": TEXT, "id": TEXT}, "required": ["object"]},
    "Text": _object({"id": TEXT, "model_name": TEXT, "model_version": TEXT, "text_output": TEXT}, optional=("id",)),
    "TextRequest": _asked(
        {
            "id": {"type": ["string", "null"]},
            "text_input": TEXT,
            "parameters": {"type": "object", "additionalProperties": True},
        },
        "text_input",
    ),
    "CompletionRequest": _asked({"model": TEXT, "prompt": TEXT, "stream": FLAG}, "model", "prompt"),
    "ChatRequest": _asked(
        {
            "model": TEXT,
            "messages": _array(_asked({"role": TEXT, "content": TEXT}, "role", "content"), minItems=1),
            "stream": FLAG,
        },
        "model",
        "messages",
    ),
    "Server": _object({"name": TEXT, "version": TEXT, "extensions": _array(TEXT)}),
    "Live": _object({"live": {"const": True}}),
    "Ready": _object({"live": {"const": True}, "ready": {"const": True}}),
    "Models": _object({"models": _array(TEXT)}),
    "ModelReady": _object({"name": TEXT, "ready": {"const": True}}),
    "Model": _object(
        {
            "name": TEXT,
            "versions": _array(TEXT, minItems=1),
            "platform": TEXT,
            "inputs": _array(_TENSOR_INFO),
            "outputs": _array(_TENSOR_INFO),
            "properties": {"type": "object", "additionalProperties": TEXT},
        }
    ),
    "Config": _object(
        {
            "name": TEXT,
            "platform": TEXT,
            "backend": TEXT,
            "max_batch_size": COUNT,
            "input": _array(_CONFIG_TENSOR),
            "output": _array(_CONFIG_TENSOR),
        }
    ),
    "Statistics": _object(
        {
            "model_stats": _array(
                _object(
                    {
                        "name": TEXT,
                        "version": TEXT,
                        "last_inference": COUNT,
                        "inference_count": COUNT,
                        "execution_count": COUNT,
                        "inference_stats": _object(dict.fromkeys(_DURATIONS, _DURATION)),
                        "batch_stats": _array(_object({"batch_size": COUNT, **dict.fromkeys(_COMPUTED, _DURATION)})),
                    }
                )
            )
        }
    ),
    "InferRequest": _asked(
        {
            "id": {"type": ["string", "null"]},
            "parameters": _parameters(
                timeout={"type": "integer", "minimum": 0, "maximum": MAX_TIMEOUT_US, "description": "microseconds"},
                binary_data_output=FLAG,
            ),
            "inputs": _array(
                _asked(
                    {
                        "name": TEXT,
                        "shape": _ASKED_SHAPE,
                        "datatype": DATATYPE,
                        "parameters": _parameters(binary_data_size=_BINARY_SIZE),
                        "data": _DATA,
                    },
                    "name",
                    "shape",
                    "datatype",
                )
            ),
            "outputs": {
                **_array(_asked({"name": TEXT, "parameters": _parameters(binary_data=FLAG)}, "name")),
                "type": ["array", "null"],
                "description": "all outputs, unless some are named",
            },
        },
        "inputs",
    ),
    "InferResponse": _object(
        {
            "model_name": TEXT,
            "model_version": TEXT,
            "id": {**TEXT, "description": "that of the request"},
            "parameters": {"type": "object", "additionalProperties": SCALAR},
            "outputs": _array(
                _object(
                    {
                        "name": TEXT,
                        "shape": _array(COUNT),
                        "datatype": DATATYPE,
                        "parameters": _object({"binary_data_size": COUNT}),
                        "data": _array({}),
                    },
                    optional=("parameters", "data"),
                )
            ),
        },
        optional=("id", "parameters"),
    ),
    "IndexRequest": _asked({"ready": FLAG}),
    "Index": _array(
        _object(
            {
                "name": TEXT,
                "version": TEXT,
                "state": {"enum": ["READY", "LOADING", "UNAVAILABLE"]},
                "reason": TEXT,
                "parameters": _object({"release": TEXT, "active": FLAG}),
            }
        )
    ),
    "LoadRequest": _asked(
        {
            "parameters": {
                "type": ["object", "null"],
                "properties": {
                    "artifact": {**TEXT, "minLength": 1, "description": "a file of this device's store"},
                    "release": {**TEXT, "minLength": 1},
                    "version": {**TEXT, "minLength": 1},
                    "activate": FLAG,
                    "unload_first": FLAG,
                },
            }
        }
    ),
    "UnloadRequest": _asked(
        {"parameters": {"type": ["object", "null"], "properties": {"release": {**TEXT, "minLength": 1}}}}
    ),
    "Loaded": {"type": "object", "properties": {"release": TEXT, "resident_bytes": COUNT}, "required": ["release"]},
    "Unloaded": _object({"unloaded": _array(TEXT), "rss_bytes_before": COUNT, "rss_bytes_after": COUNT}),
}
