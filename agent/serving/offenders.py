"""Which element of a tensor a refusal is for: looked for only where there is one. Pure.

Places are indices as clients write them: in the tensor's shape if the data has as many elements, else in the data as it
was sent. What is said has a bound, whatever was sent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.serving.tensors import Array

MOST_CHARACTERS = 32
_WORDS = {True: "true", False: "false", None: "null"}


def found(wrong: Array, values: Array, shape: Sequence[int]) -> str:
    """Return the first of ``values`` for which ``wrong`` is true, and its place: ``nan at [3, 0]``."""
    at = int(np.argmax(wrong))
    return f"{told(values.item(at))} at {_place(at, wrong.shape, shape)}"


def odd_one(data: list[Any], kinds: set[type], shape: Sequence[int]) -> str:
    """Return the first element of JSON's nested arrays that is of none of ``kinds``, and its place.

    An array in place of an element counts as such. Where every element is of one of them the text says no more than
    that something is wrong.
    """
    values = np.array(data, dtype=object)
    # A list of the types is made, and searched, without a step of the interpreter for each element.
    types = list(map(type, values.reshape(-1)))
    odd = set(types) - kinds
    if not odd:
        return "something"
    at = min(map(types.index, odd))
    value = values.item(at)
    return f"{told(value)} at {_place(at, values.shape, values.shape if isinstance(value, list) else shape)}"


def told(value: Any) -> str:
    """Return a value of JSON, or a number, in few characters."""
    if isinstance(value, (list, dict)):
        return "an array" if isinstance(value, list) else "an object"
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        return f"{value[:MOST_CHARACTERS]!r}… of {len(value)} characters"
    return repr(value)


def _place(at: int, sent: Sequence[int], shape: Sequence[int]) -> list[int]:
    known = shape if math.prod(shape) == math.prod(sent) else sent
    return [int(each) for each in np.unravel_index(at, tuple(known))]
