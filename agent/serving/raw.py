"""Raw tensors against the shape that was announced for them, whatever protocol brings them. Pure.

Raw means little-endian, row-major and unpadded. Arrays are read-only views of the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from agent.serving.byte_strings import LENGTH_BYTES
from agent.serving.errors import BadRequestError
from agent.serving.offenders import found
from agent.serving.tensors import BYTES, DATATYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_RANK = 16
MAX_TENSOR_BYTES = 2**62


def byte_size(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Return how many bytes a raw tensor has, of BYTES at least; raises ``BadRequestError`` for an impossible shape."""
    where = f"'shape' of input {name!r}"
    if not all(size >= 0 for size in shape):
        raise BadRequestError(f"{where} must be an array of integers that are not negative")
    if len(shape) > MAX_RANK:
        raise BadRequestError(f"{where} has {len(shape)} dimensions, at most {MAX_RANK} are read")
    most = total = LENGTH_BYTES if datatype == BYTES else DATATYPES[datatype].itemsize
    for size in shape:
        most *= max(size, 1)
        total *= size
    if most > MAX_TENSOR_BYTES:
        raise BadRequestError(f"{where} is {list(shape)}: no tensor has that many elements")
    return total


def as_values(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> np.ndarray[Any, Any]:
    """Return an array over ``raw``, whose length fits ``shape``; a byte of BOOL other than 0 and 1 is refused."""
    values = np.frombuffer(raw, dtype=np.uint8 if datatype == "BOOL" else DATATYPES[datatype]).reshape(shape)
    if datatype != "BOOL":
        return values
    if values.size and int(values.max()) > 1:
        wrong = found(values > 1, values, values.shape)
        raise BadRequestError(f"input {name!r} holds the byte {wrong}: a BOOL is 0 or 1")
    return values.view(np.bool_)
