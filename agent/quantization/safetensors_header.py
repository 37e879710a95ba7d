"""The header of a safetensors file, read and checked without the library.

The format: eight bytes of little-endian length, that many bytes of JSON, then the tensors without gaps
(https://github.com/huggingface/safetensors#format). The checks are the format's own rules plus caps; JSON with one key
twice is refused, for readers disagree on which one counts.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from agent.quantization.errors import BadCheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
MAX_RANK = 8
MAX_NUMBER = 2**63
"""Of sizes and offsets; products of larger ones have more digits than Python prints."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it; ``start`` and ``end`` count from the end of the header."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """All tensors by name, the metadata, and where the data begins, from the header's first byte."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path, start: int = 0, size: int | None = None) -> Header:
    """Read and check the header of ``size`` bytes of a file from ``start`` on, of all of it by default.

    Raises:
        BadCheckpointError: the file is truncated or breaks the format.
        UnsafeCheckpointError: it is over a cap, or says one thing twice.
    """
    size = path.stat().st_size - start if size is None else size
    with path.open("rb") as file:
        file.seek(start)
        prefix = file.read(min(9, size))
        if len(prefix) < 8:  # noqa: PLR2004 - the length field
            raise BadCheckpointError(f"the file of {size} bytes is too short for a safetensors header")
        (length,) = struct.unpack("<Q", prefix[:8])
        if 8 + length > size and prefix[8:] != b"{":  # with which every header begins: the length is made up
            raise BadCheckpointError(
                f"no safetensors file: it begins with {prefix.hex(' ')}, whose ninth byte has to be 7b",
                "save it with safetensors.torch.save_file",
            )
        file.seek(start + 8)
        if length > MAX_HEADER_BYTES:
            raise UnsafeCheckpointError(f"the header claims {length} bytes, at most {MAX_HEADER_BYTES} are read")
        if 8 + length > size:
            raise BadCheckpointError(f"the header claims {length} bytes, the file has {size}: it is truncated")
        raw = file.read(length)
    fields = _parse(raw)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadCheckpointError("the header's __metadata__ is not a map of strings")
    if len(fields) > MAX_TENSORS:
        raise UnsafeCheckpointError(f"the header lists {len(fields)} tensors, at most {MAX_TENSORS} are read")
    tensors = {name: _tensor(name, entry) for name, entry in fields.items()}
    _check_extent(tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def _parse(raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UnsafeCheckpointError(f"the header lists {twice!r} twice")
        return dict(pairs)

    try:
        fields = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"the header of {len(raw)} bytes is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadCheckpointError("the header is not a JSON object")
    return fields


def _tensor(name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadCheckpointError(f"the header's entry {name!r} lacks dtype, shape or data_offsets") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadCheckpointError(f"tensor {name!r} has dtype {dtype!r}; readable are {', '.join(DTYPES)}")
    if (
        not all(type(number) is int and 0 <= number < MAX_NUMBER for number in (*shape, start, end))
        or len(shape) > MAX_RANK
    ):
        told = f"{list(shape)[:MAX_RANK]}, offsets {start} to {end}"
        raise BadCheckpointError(f"tensor {name!r} has shape {told:.300}")
    if prod(shape) * DTYPES[dtype].itemsize != end - start:
        needed = prod(shape) * DTYPES[dtype].itemsize
        raise BadCheckpointError(f"tensor {name!r} of shape {list(shape)} needs {needed} bytes, has {end - start}")
    return TensorInfo(shape, DTYPES[dtype], start, end)


def _check_extent(tensors: dict[str, TensorInfo], available: int) -> None:
    """Check that the tensors lie one after the other and fill the file exactly."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            raise BadCheckpointError(f"tensor {name!r} begins at byte {tensor.start} of the data, expected {position}")
        position = tensor.end
    if position != available:
        raise BadCheckpointError(
            f"the tensors need {position} bytes, the file has {available}: it is truncated or padded"
        )
