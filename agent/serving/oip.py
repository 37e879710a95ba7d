"""The wire form of inference requests and replies: Open Inference Protocol v2, JSON and binary tensor data. Pure.

A body is a JSON header, followed by the raw tensors in the order of ``inputs`` (or ``outputs``) when the HTTP header
``Inference-Header-Content-Length`` says where the JSON ends; length 0 means that the whole body is the only input.
Raw tensors are little-endian, row-major and unpadded. Arrays of a parsed request are read-only views of the body.
What a model accepts is not looked at here, see ``validation``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from agent.serving import byte_strings
from agent.serving.errors import BadRequestError, ModelFailedError, TooLargeError
from agent.serving.json_data import to_array
from agent.serving.raw import as_values, byte_size
from agent.serving.tensors import BINARY_ONLY, BYTES, DATATYPE_NAMES, DATATYPES, Tensor, is_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.serving.tensors import TensorSpec

# JSON numbers become Python objects of 24 to 32 bytes each while the interpreter lock is held; larger tensors belong
# into the binary form, which is not copied at all.
MAX_JSON_BYTES = 16 * 1024 * 1024
MOST_RARE = 64
"""Rare bytes that are looked at one by one before a text is searched for the word itself."""
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client names, and the form in which it wants it."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class InferRequest:
    """What a client asks.

    Attributes:
        inputs: in the client's order.
        outputs: None asks for all.
        is_binary: the form of outputs that are not named.
        id: echoed in the reply when given.
        parameters: as sent; ``timeout`` is in microseconds.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] | None = None
    is_binary: bool = False
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InferResponse:
    """What the server answers. ``outputs`` pairs each tensor with whether it goes out in binary form."""

    model_name: str
    model_version: str
    outputs: tuple[tuple[Tensor, bool], ...]
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


def parse_request(body: bytes, header_length: int | None, specs: Sequence[TensorSpec] = ()) -> InferRequest:
    """Read a request.

    Args:
        body: decompressed.
        header_length: value of ``Inference-Header-Content-Length``, None when absent.
        specs: the model's inputs; only a raw request (length 0) needs them.

    Raises:
        BadRequestError: it is malformed; the text says where.
        TooLargeError: its JSON part is over ``MAX_JSON_BYTES``.
    """
    if header_length == 0:
        return _parse_raw(body, specs)
    if header_length is not None and not 0 < header_length <= len(body):
        raise BadRequestError(f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes")
    view = memoryview(body)
    text, binary = (view, None) if header_length is None else (view[:header_length], view[header_length:])
    header = _parse_json(text)
    parameters = _parameters(header, "the request")
    is_binary = _flag(parameters, "binary_data_output", "the request")
    inputs = _parse_inputs(header, binary, may_hold_booleans=_mentions_booleans(body, len(text)))
    request = InferRequest(
        inputs, _parse_outputs(header, is_binary=is_binary), is_binary, _parse_id(header), parameters
    )
    _refuse_duplicate_keys(text, header)
    return request


def format_response(response: InferResponse) -> tuple[int | None, bytes]:
    """Return the length of the JSON part, None when there is no binary part, and the body.

    Raises ``ModelFailedError`` when a JSON output holds a number that JSON cannot express.
    """
    header: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id is not None:
        header["id"] = response.id
    if response.parameters:
        header["parameters"] = response.parameters
    raw: list[bytes] = []
    header["outputs"] = [_format_output(tensor, raw, is_binary=binary) for tensor, binary in response.outputs]
    text = orjson.dumps(header, option=orjson.OPT_SERIALIZE_NUMPY)
    return (len(text), b"".join((text, *raw))) if raw else (None, text)


def _format_output(tensor: Tensor, raw: list[bytes], *, is_binary: bool) -> dict[str, Any]:
    output: dict[str, Any] = {"name": tensor.name, "shape": tensor.data.shape, "datatype": tensor.datatype}
    if is_binary:
        raw.append(byte_strings.pack(tensor.data) if tensor.datatype == BYTES else tensor.data.tobytes())
        output["parameters"] = {"binary_data_size": len(raw[-1])}
    elif tensor.datatype == BYTES:
        output["data"] = byte_strings.to_json(tensor)
    elif tensor.datatype in BINARY_ONLY:
        raise BadRequestError(f"output {tensor.name!r} is {tensor.datatype}, which has no JSON form: ask for binary")
    elif not is_finite(tensor):
        raise ModelFailedError(f"output {tensor.name!r} holds NaN or infinity, which JSON cannot express")
    else:
        output["data"] = np.ascontiguousarray(tensor.data).reshape(-1)
    return output


def _parse_json(text: memoryview) -> dict[str, Any]:
    if len(text) > MAX_JSON_BYTES:
        raise TooLargeError(
            f"the JSON part has {len(text)} bytes, at most {MAX_JSON_BYTES} are read: send tensors as binary data"
        )
    try:
        header = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise BadRequestError("the request must be a JSON object")
    return header


def _refuse_duplicate_keys(text: memoryview, header: dict[str, Any]) -> None:
    # Outside strings, valid JSON has one colon per key: more colons than keys that survived parsing means that keys
    # were dropped. Only a request with a colon inside some string pays for the exact count.
    body = bytes(text)
    keys = _count_keys(header)
    if body.count(b":") != keys and STRING.sub(b"", body).count(b":") != keys:
        raise BadRequestError("the request names a key twice in one object")


def _count_keys(header: dict[str, Any]) -> int:
    # A loop of its own: the parser allows deeper nesting than the interpreter's stack.
    keys = 0
    waiting: list[dict[str, Any] | list[Any]] = [header]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            keys += len(value)
            children = [child for key, child in value.items() if key != "data"]
        else:
            children = value
        waiting += [child for child in children if isinstance(child, (dict, list))]
    return keys


def _parse_id(header: dict[str, Any]) -> str | None:
    identifier = header.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise BadRequestError("'id' must be a string")
    return identifier


def _parameters(owner: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequestError(f"'parameters' of {where} must be an object")
    for key, value in parameters.items():
        if not isinstance(value, (str, int, float, bool)):
            raise BadRequestError(f"parameter {key!r} of {where} must be a string, a number or a boolean")
        if key.startswith("shared_memory"):
            raise BadRequestError(f"parameter {key!r} of {where}: shared memory is not offered")
    return parameters


def _flag(parameters: dict[str, Any], key: str, where: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise BadRequestError(f"parameter {key!r} of {where} must be true or false")
    return value


def _objects(header: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = header[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadRequestError(f"{key!r} must be an array of objects")
    names = [entry.get("name") for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise BadRequestError(f"every entry of {key!r} needs a 'name' that is a string")
    if len(set(names)) != len(names):
        raise BadRequestError(f"{key!r} holds a name twice: {names}")
    return entries


def _parse_outputs(header: dict[str, Any], *, is_binary: bool) -> tuple[RequestedOutput, ...] | None:
    if header.get("outputs") is None:
        return None
    outputs = []
    for entry in _objects(header, "outputs"):
        where = f"output {entry['name']!r}"
        parameters = _parameters(entry, where)
        if "classification" in parameters:
            raise BadRequestError(f"{where}: the classification extension is not offered")
        asked = _flag(parameters, "binary_data", where) if "binary_data" in parameters else is_binary
        outputs.append(RequestedOutput(entry["name"], asked))
    # An empty list is what some clients send for "all".
    return tuple(outputs) or None


def _mentions_booleans(body: bytes, length: int) -> bool:
    return _mentions(body, length, b"true", b"u") or _mentions(body, length, b"false", b"l")


def _mentions(body: bytes, length: int, word: bytes, rare: bytes) -> bool:
    # Numbers have neither a u nor an l, and a single byte is looked for many times faster than a word.
    at, before = body.find(rare, 0, length), word.index(rare)
    for _ in range(MOST_RARE):
        if at < 0:
            return False
        if body.startswith(word, max(0, at - before), length):
            return True
        at = body.find(rare, at + 1, length)
    return body.find(word, 0, length) >= 0


def _parse_inputs(header: dict[str, Any], binary: memoryview | None, *, may_hold_booleans: bool) -> tuple[Tensor, ...]:
    if "inputs" not in header:
        raise BadRequestError("the request has no 'inputs'")
    tensors, offset = [], 0
    for entry in _objects(header, "inputs"):
        tensor, taken = _parse_input(
            entry, None if binary is None else binary[offset:], may_hold_booleans=may_hold_booleans
        )
        tensors.append(tensor)
        offset += taken
    if binary is not None and offset != len(binary):
        raise BadRequestError(f"unexpected additional input data: {len(binary) - offset} bytes after the last tensor")
    return tuple(tensors)


def _parse_input(entry: dict[str, Any], binary: memoryview | None, *, may_hold_booleans: bool) -> tuple[Tensor, int]:
    name, datatype = entry["name"], entry.get("datatype")
    where = f"input {name!r}"
    if not isinstance(datatype, str) or datatype not in DATATYPE_NAMES:
        raise BadRequestError(f"{where} has datatype {datatype!r}, known are {', '.join(DATATYPE_NAMES)}")
    shape = _parse_shape(entry, datatype)
    parameters = _parameters(entry, where)
    if "binary_data_size" not in parameters:
        if "data" not in entry:
            raise BadRequestError(f"{where} has neither 'data' nor the parameter 'binary_data_size'")
        if datatype == BYTES:
            return Tensor(name, datatype, byte_strings.from_json(name, shape, entry["data"])), 0
        data = to_array(name, datatype, shape, entry["data"], may_hold_booleans=may_hold_booleans)
        return Tensor(name, datatype, data), 0
    if "data" in entry:
        raise BadRequestError(f"{where} has both 'data' and the parameter 'binary_data_size'")
    if binary is None:
        raise BadRequestError(f"{where} is sent as binary data, but Inference-Header-Content-Length is missing")
    return _binary_tensor(name, datatype, shape, parameters["binary_data_size"], binary)


def _parse_shape(entry: dict[str, Any], datatype: str) -> tuple[int, ...]:
    shape, where = entry.get("shape"), f"'shape' of input {entry['name']!r}"
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRequestError(f"{where} must be an array of integers that are not negative")
    byte_size(entry["name"], datatype, shape)
    return tuple(shape)


def _binary_tensor(
    name: str, datatype: str, shape: tuple[int, ...], size: Any, binary: memoryview
) -> tuple[Tensor, int]:
    if datatype == BYTES:
        return _binary_strings(name, shape, size, binary)
    wanted = byte_size(name, datatype, shape)
    if type(size) is not int or size != wanted:
        raise BadRequestError(
            f"input {name!r} has binary_data_size {size!r}, shape {list(shape)} of {datatype} needs {wanted}"
        )
    if len(binary) < wanted:
        raise BadRequestError(f"input {name!r}: expecting {wanted - len(binary)} additional bytes of binary data")
    return Tensor(name, datatype, as_values(name, datatype, binary[:wanted]).reshape(shape)), wanted


def _binary_strings(name: str, shape: tuple[int, ...], size: Any, binary: memoryview) -> tuple[Tensor, int]:
    if type(size) is not int or size < 0:
        raise BadRequestError(f"input {name!r} has binary_data_size {size!r}, a number of bytes is needed")
    if len(binary) < size:
        raise BadRequestError(f"input {name!r}: expecting {size - len(binary)} additional bytes of binary data")
    return Tensor(name, BYTES, byte_strings.unpack(name, shape, binary[:size])), size


def _parse_raw(body: bytes, specs: Sequence[TensorSpec]) -> InferRequest:
    if len(specs) != 1:
        raise BadRequestError(f"a raw request needs a model with exactly one input, this one has {len(specs)}")
    spec = specs[0]
    if spec.datatype == BYTES:
        raise BadRequestError("a raw request cannot be BYTES, whose elements have no size")
    # The batch dimension counts one row; at most one other dimension may be found from the number of bytes.
    shape = [1 if axis == 0 and size < 0 else size for axis, size in enumerate(spec.shape)]
    item = DATATYPES[spec.datatype].itemsize
    for size in shape:
        item *= max(size, 1)
    if shape.count(-1) > 1:
        raise BadRequestError(f"a raw request cannot fill shape {list(spec.shape)}: more than one size is open")
    fits = len(body) % item == 0 and len(body) > 0 if -1 in shape else len(body) == item
    if not fits:
        raise BadRequestError(f"the raw request has {len(body)} bytes, shape {shape} of {spec.datatype} needs {item}")
    values = as_values(spec.name, spec.datatype, memoryview(body))
    return InferRequest((Tensor(spec.name, spec.datatype, values.reshape(shape)),), is_binary=True)
