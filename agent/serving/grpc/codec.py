"""Messages of the protocol over gRPC, to and from the values that all protocols share. Pure.

Tensors arrive raw (``raw_input_contents``, one for each input) or typed (``contents``), never both. They leave raw:
clients that read typed answers read raw ones too, and the strictest read nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from agent.serving.errors import BadRequestError
from agent.serving.grpc import inference_pb2 as pb
from agent.serving.json_data import integers_in_range
from agent.serving.oip import InferRequest, RequestedOutput
from agent.serving.raw import as_values, byte_size
from agent.serving.tensors import DATATYPES, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agent.serving.oip import InferResponse

# Open Inference Protocol, "InferTensorContents". FP16 and BF16 have no typed form.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
# What protobuf holds the integers of a field in.
INTEGERS = {
    "int_contents": np.int32,
    "int64_contents": np.int64,
    "uint_contents": np.uint32,
    "uint64_contents": np.uint64,
}


def parse_request(message: pb.ModelInferRequest, limit_s: float | None = None) -> InferRequest:
    """Read a request.

    Args:
        message: as received.
        limit_s: what is left of the call's deadline, in seconds; it becomes the request's ``timeout`` unless that is
            shorter.

    Raises:
        BadRequestError: it is inconsistent; the text says where.
    """
    parameters = _parameters(message.parameters, "the request")
    if limit_s is not None:
        parameters["timeout"] = _shorter(parameters.get("timeout"), max(1, int(limit_s * 1e6)))
    _refuse_twice("inputs", (entry.name for entry in message.inputs))
    _refuse_twice("outputs", (entry.name for entry in message.outputs))
    return InferRequest(
        _inputs(message), _outputs(message), is_binary=True, id=message.id or None, parameters=parameters
    )


def format_response(response: InferResponse) -> pb.ModelInferResponse:
    """Return the message of a response."""
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id or ""
    )
    for name, value in response.parameters.items():
        message.parameters[name].string_param = value
    for tensor, _ in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.data.shape)
        message.raw_output_contents.append(tensor.data.tobytes())
    return message


def _shorter(timeout: Any, limit_us: int) -> Any:
    # 0 is no limit; what is no number is refused where every protocol's timeout is.
    return timeout if timeout and (type(timeout) is not int or timeout < limit_us) else limit_us


def _parameters(given: Mapping[str, pb.InferParameter], where: str) -> dict[str, Any]:
    parameters = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise BadRequestError(f"parameter {name!r} of {where} has no value")
        if name.startswith("shared_memory"):
            raise BadRequestError(f"parameter {name!r} of {where}: shared memory is not offered")
        parameters[name] = getattr(parameter, kind)
    return parameters


def _refuse_twice(what: str, given: Iterable[str]) -> None:
    names = list(given)
    if len(set(names)) != len(names):
        raise BadRequestError(f"{what!r} holds a name twice: {names}")


def _outputs(message: pb.ModelInferRequest) -> tuple[RequestedOutput, ...] | None:
    for entry in message.outputs:
        where = f"output {entry.name!r}"
        if "classification" in _parameters(entry.parameters, where):
            raise BadRequestError(f"{where}: the classification extension is not offered")
    return tuple(RequestedOutput(entry.name, is_binary=True) for entry in message.outputs) or None


def _inputs(message: pb.ModelInferRequest) -> tuple[Tensor, ...]:
    is_raw = len(message.raw_input_contents) > 0
    if is_raw and len(message.raw_input_contents) != len(message.inputs):
        raise BadRequestError(
            f"'raw_input_contents' has {len(message.raw_input_contents)} entries to {len(message.inputs)} inputs"
        )
    return tuple(
        _input(entry, message.raw_input_contents[index] if is_raw else None)
        for index, entry in enumerate(message.inputs)
    )


def _input(entry: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    name, datatype, where = entry.name, entry.datatype, f"input {entry.name!r}"
    if datatype not in DATATYPES:
        raise BadRequestError(f"{where} has datatype {datatype[:32]!r}, known are {', '.join(DATATYPES)}")
    shape = tuple(entry.shape)
    wanted = byte_size(name, datatype, shape)
    _parameters(entry.parameters, where)
    filled = [field.name for field, _ in entry.contents.ListFields()]
    if raw is None:
        values = _typed(name, datatype, shape, entry.contents, filled)
    elif filled:
        raise BadRequestError(f"{where} has both 'contents' and 'raw_input_contents'")
    elif len(raw) != wanted:
        raise BadRequestError(f"{where} has {len(raw)} raw bytes, shape {list(shape)} of {datatype} needs {wanted}")
    else:
        values = as_values(name, datatype, shape, raw)
    if values.nbytes != wanted:
        needed = wanted // DATATYPES[datatype].itemsize
        raise BadRequestError(f"{where} has {values.size} elements, shape {list(shape)} needs {needed}")
    return Tensor(name, datatype, values.reshape(shape))


def _typed(
    name: str, datatype: str, shape: tuple[int, ...], contents: pb.InferTensorContents, filled: Sequence[str]
) -> np.ndarray[Any, np.dtype[Any]]:
    field = CONTENTS.get(datatype)
    if field is None:
        raise BadRequestError(f"input {name!r} is {datatype}, which has no typed form: send 'raw_input_contents'")
    others = [each for each in filled if each != field]
    if others:
        raise BadRequestError(f"input {name!r} is {datatype}, which belongs into {field!r}, not into {others}")
    dtype = DATATYPES[datatype]
    values = np.array(getattr(contents, field), dtype=INTEGERS.get(field, dtype))
    if values.size and dtype.kind in "iu":
        return integers_in_range(name, datatype, shape, values)
    return values.astype(dtype, copy=False)


def repository_parameters(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> dict[str, Any]:
    """Return the parameters of a change of the repository; raises ``BadRequestError`` for what JSON does not have."""
    found: dict[str, Any] = {}
    for name, value in request.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if kind in (None, "bytes_param"):
            raise BadRequestError(f"parameter {name[:64]!r} has no value that is used here")
        found[name] = getattr(value, kind)
    return found
