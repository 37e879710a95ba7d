"""Tensors of byte strings (datatype BYTES): arrays of ``bytes`` objects. Pure.

In binary form each element is its length, four bytes little-endian, and its bytes, row-major (Open Inference Protocol,
"Tensor Contents"; Triton's binary data extension). In JSON each is a string, so that only UTF-8 has a JSON form.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.serving.errors import BadRequestError
from agent.serving.offenders import odd_one

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.serving.tensors import Array, Tensor

LENGTH_BYTES = 4


def from_json(name: str, shape: tuple[int, ...], data: Any) -> Array:
    """Return ``data``, nested or flat and row-major, as an array of ``shape``; raises ``BadRequestError``."""
    if not isinstance(data, list):
        raise BadRequestError(f"'data' of input {name!r} must be an array")
    values = np.array(data, dtype=object)
    if any(type(value) is not str for value in values.flat):
        wrong = odd_one(data, {str}, shape)
        raise BadRequestError(f"'data' of input {name!r} holds {wrong}: that is no string, or the data is ragged")
    wanted = math.prod(shape)
    if values.size != wanted or (values.ndim > 1 and values.shape != shape):
        raise BadRequestError(
            f"input {name!r} has {values.size} elements as {list(values.shape)}, shape {list(shape)} needs {wanted}"
        )
    return _array((value.encode() for value in values.flat), shape)


def to_json(tensor: Tensor) -> list[str]:
    """Return the elements, flat; raises ``BadRequestError`` for one that is no text, which goes out in binary only."""
    try:
        return [value.decode() for value in tensor.data.flat]
    except UnicodeDecodeError:
        raise BadRequestError(f"output {tensor.name!r} holds bytes that are no text: ask for binary") from None


def pack(values: Array) -> bytes:
    """Return the binary form."""
    pairs = ((len(value).to_bytes(LENGTH_BYTES, "little"), value) for value in values.flat)
    return b"".join(chain.from_iterable(pairs))


def unpack(name: str, shape: tuple[int, ...], binary: memoryview) -> Array:
    """Read ``binary``, the whole of it, as an array of ``shape``; raises ``BadRequestError`` naming the element."""
    wanted, end = math.prod(shape), len(binary)
    if wanted * LENGTH_BYTES > end:
        raise BadRequestError(f"input {name!r} has {end} bytes, {wanted} BYTES need {wanted * LENGTH_BYTES} at least")
    elements, offset = [], 0
    for index in range(wanted):
        start = offset + LENGTH_BYTES
        offset = start + int.from_bytes(binary[offset:start], "little")
        if start > end or offset > end:
            raise BadRequestError(f"input {name!r}: element {index} ends at byte {offset}, the tensor at byte {end}")
        elements.append(bytes(binary[start:offset]))
    if offset != end:
        raise BadRequestError(f"input {name!r} has {end - offset} bytes after its last element")
    return _array(elements, shape)


def _array(elements: Iterable[bytes], shape: tuple[int, ...]) -> Array:
    array: Array = np.empty(math.prod(shape), dtype=object)
    array[:] = list(elements)
    return array.reshape(shape)
