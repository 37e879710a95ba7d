"""JSON numbers to arrays, exactly or not at all. Pure.

A client's number is never changed on the way: no text becomes a number, no fraction an integer, no boolean a float,
nothing wraps around and nothing overflows to infinity. Only rounding to the datatype's own precision is allowed.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.serving.errors import BadRequestError
from agent.serving.tensors import BINARY_ONLY, DATATYPES

if TYPE_CHECKING:
    from agent.serving.tensors import Array


def to_array(name: str, datatype: str, shape: tuple[int, ...], data: Any, *, may_hold_booleans: bool = True) -> Array:
    """Return ``data``, nested or flat and row-major, as an array of ``shape``.

    A caller that knows the text to hold neither ``true`` nor ``false`` says so, and saves looking at every element.
    Raises ``BadRequestError`` naming the input and the numbers.
    """
    if datatype in BINARY_ONLY:
        raise BadRequestError(f"input {name!r} is {datatype}, which has no JSON form: send it as binary data")
    if not isinstance(data, list):
        raise BadRequestError(f"'data' of input {name!r} must be an array")
    values = _convert(name, datatype, data, may_hold_booleans=may_hold_booleans)
    wanted = math.prod(shape)
    if values.size != wanted:
        raise BadRequestError(f"input {name!r} has {values.size} elements, shape {list(shape)} needs {wanted}")
    if values.ndim > 1 and values.shape != shape:
        raise BadRequestError(f"'data' of input {name!r} is nested as {list(values.shape)}, 'shape' says {list(shape)}")
    return values.reshape(shape)


def _convert(name: str, datatype: str, data: list[Any], *, may_hold_booleans: bool) -> Array:
    dtype = DATATYPES[datatype]
    values = _flat_floats(data) if data and dtype.kind == "f" else None
    if values is None:
        try:
            values = np.array(data)
        except (ValueError, OverflowError):
            raise BadRequestError(f"'data' of input {name!r} is ragged or nested too deeply") from None
    if not values.size:
        return values.astype(dtype)
    if may_hold_booleans and dtype.kind != "b" and values.dtype.kind in "fiu" and _has_boolean(data):
        raise BadRequestError(f"input {name!r} is {datatype}, its 'data' holds a boolean")
    if dtype.kind == "f":
        return _floats(name, datatype, values)
    if dtype.kind == "b":
        return _booleans(name, values)
    return _integers(name, datatype, values, data)


def _flat_floats(data: list[Any]) -> Array | None:
    """Return a flat list of numbers in a quarter of the time that numpy takes, None if it is anything else."""
    try:
        return np.frombuffer(struct.pack(f"{len(data)}d", *data))
    except (struct.error, OverflowError):
        return None


def _has_boolean(data: list[Any]) -> bool:
    if data and isinstance(data[0], list):
        return any(_has_boolean(row) for row in data)
    return bool in set(map(type, data))


def _floats(name: str, datatype: str, values: Array) -> Array:
    if values.dtype.kind not in "fiu":
        raise _wrong_type(name, datatype)
    with np.errstate(over="ignore"):
        floats = values.astype(DATATYPES[datatype])
    if not np.isfinite(floats).all():
        raise BadRequestError(f"input {name!r} holds a number outside the range of {datatype}")
    return floats


def _booleans(name: str, values: Array) -> Array:
    # The protocol writes booleans as true and false; the numbers 0 and 1 are what numpy users send.
    if values.dtype.kind == "b" or (values.dtype.kind in "iu" and bool(np.isin(values, (0, 1)).all())):
        return values.astype(np.bool_)
    raise _wrong_type(name, "BOOL")


def _integers(name: str, datatype: str, values: Array, data: list[Any]) -> Array:
    dtype = DATATYPES[datatype]
    if values.dtype.kind not in "iu":
        # numpy joins integers on both sides of 2^63 to floats: look at the objects themselves.
        values = np.array(data, dtype=object)
        if any(type(value) is not int for value in values.flat):
            raise _wrong_type(name, datatype)
    limits = np.iinfo(dtype)
    low, high = int(values.min()), int(values.max())
    if low < limits.min or high > limits.max:
        wrong = low if low < limits.min else high
        raise BadRequestError(f"input {name!r} holds {wrong}, {datatype} reaches from {limits.min} to {limits.max}")
    return values.astype(dtype)


def _wrong_type(name: str, datatype: str) -> BadRequestError:
    return BadRequestError(f"'data' of input {name!r} holds something that is no {datatype}")
