"""The wire form of inference requests and replies: Open Inference Protocol v2, JSON and binary tensor data. Pure.

A body is a JSON header, followed by the raw tensors in the order of ``inputs`` (or ``outputs``) when the HTTP header
``Inference-Header-Content-Length`` says where the JSON ends; length 0 means that the whole body is the only input.
Raw tensors are little-endian, row-major and unpadded. Arrays of a parsed request are read-only views of the body.
What a model accepts is not looked at here, see ``validation``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from agent.serving import byte_strings, json_text
from agent.serving.errors import BadRequestError, ModelFailedError
from agent.serving.json_data import to_array
from agent.serving.offenders import found
from agent.serving.raw import as_values, byte_size
from agent.serving.tensors import BINARY_ONLY, BYTES, DATATYPE_NAMES, DATATYPES, FP16_MAX, Tensor, as_floats, is_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.serving.tensors import TensorSpec

KEPT_BYTES, HEADS_KEPT = 1024, 64
"""Heads of binary requests that are remembered, and how long one may be."""
_ABSENT = object()


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
    """What the server answers.

    ``outputs`` pairs each tensor with whether it goes out in binary form; ``provoker`` is the input because of which
    they are not finite: one whose elements are not all numbers that the model can compute with.
    """

    model_name: str
    model_version: str
    outputs: tuple[tuple[Tensor, bool], ...]
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    provoker: Tensor | None = None


def parse_request(body: bytes, header_length: int | None, specs: Sequence[TensorSpec] = ()) -> InferRequest:
    """Read a request.

    Args:
        body: decompressed.
        header_length: value of ``Inference-Header-Content-Length``, None when absent.
        specs: the model's inputs; only a raw request (length 0) needs them.

    Raises:
        BadRequestError: it is malformed; the text says where.
        TooLargeError: its JSON part is over ``json_text.MAX_BYTES``.
    """
    if header_length == 0:
        return _parse_raw(body, specs)
    if header_length is not None and not 0 < header_length <= len(body):
        raise BadRequestError(f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes")
    view = memoryview(body)
    text, binary = (view, None) if header_length is None else (view[:header_length], view[header_length:])
    # A client that sends tensors raw says the same of each: most heads are known by their bytes.
    head = _kept_head(bytes(text)) if binary is not None and len(text) <= KEPT_BYTES else _read_head(text)
    inputs = _fill(head.inputs, binary, lambda: json_text.mentions_booleans(body, len(text)))
    return InferRequest(inputs, head.outputs, head.is_binary, head.id, head.parameters)


@dataclass(frozen=True)
class _Announced:
    """What the JSON part says of an input; ``size`` and ``data`` are as sent, or ``_ABSENT``."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    wanted_bytes: int
    size: Any
    data: Any


@dataclass(frozen=True)
class _Head:
    """The JSON part of a request."""

    inputs: tuple[_Announced, ...]
    outputs: tuple[RequestedOutput, ...] | None
    is_binary: bool
    id: str | None
    parameters: dict[str, Any]


def _read_head(text: bytes | memoryview) -> _Head:
    header = json_text.parse(text)
    parameters = _parameters(header, "the request")
    is_binary = _flag(parameters, "binary_data_output", "the request")
    if "inputs" not in header:
        raise BadRequestError("the request has no 'inputs'")
    inputs = tuple(map(_parse_input, _objects(header, "inputs")))
    head = _Head(inputs, _parse_outputs(header, is_binary=is_binary), is_binary, _parse_id(header), parameters)
    json_text.refuse_duplicate_keys(text, header)
    return head


_kept_head = lru_cache(maxsize=HEADS_KEPT)(_read_head)


def format_response(response: InferResponse) -> tuple[int | None, bytes]:
    """Return the length of the JSON part, None when there is no binary part, and the body.

    Raises ``ModelFailedError`` when a JSON output holds a number that JSON cannot express, ``BadRequestError`` when the
    inputs are to blame for that.
    """
    header: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id is not None:
        header["id"] = response.id
    if response.parameters:
        header["parameters"] = response.parameters
    raw: list[bytes] = []
    try:
        header["outputs"] = [_format_output(tensor, raw, is_binary=binary) for tensor, binary in response.outputs]
    except ModelFailedError as error:
        if (given := response.provoker) is None:
            raise
        values = as_floats(given)
        wrong = found(~(np.abs(values) <= FP16_MAX), values, values.shape)
        told = f"input {given.name!r} holds {wrong}: send numbers of at most {FP16_MAX:.0f}, or ask for binary"
        raise BadRequestError(f"{error}; {told}") from None
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
        wrong = found(~np.isfinite(tensor.data), tensor.data, tensor.data.shape)
        raise ModelFailedError(f"output {tensor.name!r} holds {wrong}, which JSON cannot express")
    else:
        output["data"] = np.ascontiguousarray(tensor.data).reshape(-1)
    return output


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


def _parse_input(entry: dict[str, Any]) -> _Announced:
    name, datatype = entry["name"], entry.get("datatype")
    where = f"input {name!r}"
    if not isinstance(datatype, str) or datatype not in DATATYPE_NAMES:
        raise BadRequestError(f"{where} has datatype {datatype!r}, known are {', '.join(DATATYPE_NAMES)}")
    shape, wanted_bytes = _parse_shape(entry, datatype)
    size, data = _parameters(entry, where).get("binary_data_size", _ABSENT), entry.get("data", _ABSENT)
    if size is _ABSENT and data is _ABSENT:
        raise BadRequestError(f"{where} has neither 'data' nor the parameter 'binary_data_size'")
    if size is not _ABSENT and data is not _ABSENT:
        raise BadRequestError(f"{where} has both 'data' and the parameter 'binary_data_size'")
    return _Announced(name, datatype, shape, wanted_bytes, size, data)


def _fill(
    inputs: Sequence[_Announced], binary: memoryview | None, mentions_booleans: Callable[[], bool]
) -> tuple[Tensor, ...]:
    """Return the tensors that were announced."""
    may_hold_booleans = any(isinstance(each.data, list) for each in inputs) and mentions_booleans()
    tensors, offset = [], 0
    for each in inputs:
        if each.data is not _ABSENT:
            tensors.append(_json_tensor(each, may_hold_booleans=may_hold_booleans))
        elif binary is None:
            raise BadRequestError(
                f"input {each.name!r} is sent as binary data, but Inference-Header-Content-Length is missing"
            )
        else:
            tensor, taken = _binary_tensor(each, binary[offset:])
            tensors.append(tensor)
            offset += taken
    if binary is not None and offset != len(binary):
        raise BadRequestError(f"unexpected additional input data: {len(binary) - offset} bytes after the last tensor")
    return tuple(tensors)


def _json_tensor(each: _Announced, *, may_hold_booleans: bool) -> Tensor:
    if each.datatype == BYTES:
        return Tensor(each.name, BYTES, byte_strings.from_json(each.name, each.shape, each.data))
    data = to_array(each.name, each.datatype, each.shape, each.data, may_hold_booleans=may_hold_booleans)
    return Tensor(each.name, each.datatype, data)


def _parse_shape(entry: dict[str, Any], datatype: str) -> tuple[tuple[int, ...], int]:
    """Return the shape, and how many bytes a raw tensor of it has."""
    shape, where = entry.get("shape"), f"'shape' of input {entry['name']!r}"
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRequestError(f"{where} must be an array of integers that are not negative")
    return tuple(shape), byte_size(entry["name"], datatype, shape)


def _binary_tensor(each: _Announced, binary: memoryview) -> tuple[Tensor, int]:
    name, datatype, shape, size, wanted = each.name, each.datatype, each.shape, each.size, each.wanted_bytes
    if datatype == BYTES:
        return _binary_strings(name, shape, size, binary)
    if type(size) is not int or size != wanted:
        raise BadRequestError(
            f"input {name!r} has binary_data_size {size!r}, shape {list(shape)} of {datatype} needs {wanted}"
        )
    if len(binary) < wanted:
        raise BadRequestError(f"input {name!r}: expecting {wanted - len(binary)} additional bytes of binary data")
    return Tensor(name, datatype, as_values(name, datatype, shape, binary[:wanted])), wanted


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
    values = as_values(spec.name, spec.datatype, shape, memoryview(body))
    return InferRequest((Tensor(spec.name, spec.datatype, values),), is_binary=True)
