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
from agent.serving.offenders import found, odd_one
from agent.serving.tensors import BINARY_ONLY, DATATYPES

if TYPE_CHECKING:
    from agent.serving.tensors import Array


def to_array(name: str, datatype: str, shape: tuple[int, ...], data: Any, *, may_hold_booleans: bool = True) -> Array:
    """Return ``data``, nested or flat and row-major, as an array of ``shape``; a flat array of floats is taken as such.

    A caller that knows the text to hold neither ``true`` nor ``false`` says so, and saves looking at every element.
    Raises ``BadRequestError`` naming the input and the numbers.
    """
    if datatype in BINARY_ONLY:
        raise BadRequestError(f"input {name!r} is {datatype}, which has no JSON form: send it as binary data")
    if not isinstance(data, (list, np.ndarray)):
        raise BadRequestError(f"'data' of input {name!r} must be an array")
    values = _convert(name, datatype, shape, data, may_hold_booleans=may_hold_booleans)
    wanted = math.prod(shape)
    if values.size != wanted:
        raise BadRequestError(f"input {name!r} has {values.size} elements, shape {list(shape)} needs {wanted}")
    if values.ndim > 1 and values.shape != shape:
        raise BadRequestError(f"'data' of input {name!r} is nested as {list(values.shape)}, 'shape' says {list(shape)}")
    return values.reshape(shape)


def _convert(
    name: str, datatype: str, shape: tuple[int, ...], data: list[Any] | Array, *, may_hold_booleans: bool
) -> Array:
    dtype = DATATYPES[datatype]
    if isinstance(data, np.ndarray):
        return _in_range(name, datatype, shape, data)
    values = _flat_floats(data) if data and dtype.kind == "f" else None
    if values is None:
        try:
            values = np.array(data)
        except (ValueError, OverflowError):
            raise BadRequestError(f"'data' of input {name!r} is ragged or nested too deeply") from None
    if not values.size:
        return values.astype(dtype)
    if may_hold_booleans and dtype.kind != "b" and values.dtype.kind in "fiu" and _has_boolean(data):
        wrong = odd_one(data, {int, float}, shape)
        raise BadRequestError(f"'data' of input {name!r} holds a boolean, {wrong}: {datatype} has none")
    if dtype.kind == "f":
        if values.dtype.kind not in "fiu":
            raise _wrong_type(name, datatype, odd_one(data, {int, float}, shape))
        return _in_range(name, datatype, shape, values)
    if dtype.kind == "b":
        return _booleans(name, shape, values, data)
    return _integers(name, datatype, shape, values, data)


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


def _in_range(name: str, datatype: str, shape: tuple[int, ...], values: Array) -> Array:
    # Of numbers the sum is one: it is a pass less, and what is no number, or a sum too large, is looked at closely.
    with np.errstate(over="ignore", invalid="ignore"):
        floats = values.astype(DATATYPES[datatype])
        total = np.add.reduce(floats, axis=None, dtype=np.float64)
    if not math.isfinite(total) and not (finite := np.isfinite(floats)).all():
        raise BadRequestError(f"input {name!r} holds {found(~finite, values, shape)}: outside the range of {datatype}")
    return floats


def _booleans(name: str, shape: tuple[int, ...], values: Array, data: list[Any]) -> Array:
    # The protocol writes booleans as true and false; the numbers 0 and 1 are what numpy users send.
    if values.dtype.kind == "b":
        return values
    if values.dtype.kind not in "iu":
        raise _wrong_type(name, "BOOL", odd_one(data, {bool, int}, shape))
    known = np.isin(values, (0, 1))
    if not known.all():
        raise _wrong_type(name, "BOOL", found(~known, values, shape))
    return values.astype(np.bool_)


def _integers(name: str, datatype: str, shape: tuple[int, ...], values: Array, data: list[Any]) -> Array:
    if values.dtype.kind not in "iu":
        # numpy joins integers on both sides of 2^63 to floats: look at the objects themselves.
        values = np.array(data, dtype=object)
        if any(type(value) is not int for value in values.flat):
            raise _wrong_type(name, datatype, odd_one(data, {int}, shape))
    return integers_in_range(name, datatype, shape, values)


def integers_in_range(name: str, datatype: str, shape: tuple[int, ...], values: Array) -> Array:
    """Return ``values``, one at least, as integers of ``datatype``; raises ``BadRequestError`` for one it lacks."""
    limits = np.iinfo(DATATYPES[datatype])
    if int(values.min()) < limits.min or int(values.max()) > limits.max:
        wrong = found((values < limits.min) | (values > limits.max), values, shape)
        raise BadRequestError(f"input {name!r} holds {wrong}: {datatype} reaches from {limits.min} to {limits.max}")
    return values.astype(DATATYPES[datatype], copy=False)


def _wrong_type(name: str, datatype: str, wrong: str) -> BadRequestError:
    return BadRequestError(f"'data' of input {name!r} holds {wrong}: that is no {datatype}")
