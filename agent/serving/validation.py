"""A request's tensors against what the model declares. Pure; the batcher may trust what passes here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agent.serving.errors import BadRequestError
from agent.serving.offenders import found

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.serving.oip import InferRequest, RequestedOutput
    from agent.serving.tensors import Array, Tensor, TensorSpec

# 292 years in microseconds fit into what clocks can add; larger values are mistakes.
MAX_TIMEOUT_US = 2**53


@dataclass(frozen=True)
class Question:
    """Arrays in the order of the model's inputs, and how many rows each of them has."""

    arrays: tuple[Array, ...]
    rows: int


def check_inputs(inputs: Sequence[Tensor], specs: Sequence[TensorSpec]) -> Question:
    """Return the arrays in the model's order; raises ``BadRequestError`` at the first that does not fit."""
    given = {tensor.name: tensor for tensor in inputs}
    known = {spec.name for spec in specs}
    unknown = [name for name in given if name not in known]
    missing = [name for name in known if name not in given]
    if unknown or missing:
        wanted = ", ".join(repr(spec.name) for spec in specs)
        got = ", ".join(map(repr, given)) or "none"
        raise BadRequestError(f"the model takes the inputs {wanted}, the request has {got}")
    arrays = tuple(_check_input(given[spec.name], spec) for spec in specs)
    _check_dimensions(arrays, specs)
    return Question(arrays, _count_rows(arrays, specs))


def check_outputs(request: InferRequest, specs: Sequence[TensorSpec]) -> tuple[tuple[int, bool], ...]:
    """Return the index and the form of every output to send, in the order in which the client asked."""
    if request.outputs is None:
        return tuple((index, request.is_binary) for index in range(len(specs)))
    names = [spec.name for spec in specs]
    return tuple((_index(output, names), output.is_binary) for output in request.outputs)


def timeout_s(request: InferRequest) -> float | None:
    """Return how long the request may wait in the queue, None for as long as it takes."""
    microseconds = request.parameters.get("timeout")
    if microseconds is None:
        return None
    if type(microseconds) is not int or not 0 <= microseconds <= MAX_TIMEOUT_US:
        raise BadRequestError(f"parameter 'timeout' is {microseconds!r}, microseconds as an integer are needed")
    # 0 is "no limit" for the clients that always send the parameter.
    return microseconds / 1e6 or None


def _index(output: RequestedOutput, names: list[str]) -> int:
    if output.name not in names:
        raise BadRequestError(f"the model has no output {output.name!r}, it has {', '.join(map(repr, names))}")
    return names.index(output.name)


def _check_input(tensor: Tensor, spec: TensorSpec) -> Array:
    shape = tensor.data.shape
    if tensor.datatype != spec.datatype:
        raise BadRequestError(f"input {spec.name!r} is {tensor.datatype}, the model takes {spec.datatype}")
    fits = len(shape) == len(spec.shape) and all(
        wanted in (-1, size) for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise BadRequestError(f"input {spec.name!r} has shape {list(shape)}, the model takes {list(spec.shape)}")
    if 0 in shape:
        raise BadRequestError(f"input {spec.name!r} has shape {list(shape)}: there is nothing to compute")
    if spec.minimum is not None or spec.maximum is not None:
        _check_bounds(tensor.data, spec)
    return tensor.data


def _check_bounds(data: Array, spec: TensorSpec) -> None:
    # An index that a table does not have ends a whole CUDA context, not only the request.
    low, high = spec.minimum, spec.maximum
    if (low is not None and data.min() < low) or (high is not None and data.max() > high):
        wrong = np.zeros(data.shape, bool) if low is None else data < low
        if high is not None:
            wrong |= data > high
        raise BadRequestError(
            f"input {spec.name!r} holds {found(wrong, data, data.shape)}: "
            f"the model takes {low} to {'any' if high is None else high}"
        )


def _check_dimensions(arrays: Sequence[Array], specs: Sequence[TensorSpec]) -> None:
    # What is too long would be computed to nonsense, and what differs would be broadcast to another answer.
    sizes: dict[str, tuple[int, str]] = {}
    for array, spec in zip(arrays, specs, strict=True):
        for dimension in spec.dimensions:
            size, name, most = array.shape[dimension.axis], dimension.name, dimension.maximum
            if most is not None and size > most:
                raise BadRequestError(f"input {spec.name!r} has {name} {size}, the model takes at most {most}")
            first, owner = sizes.setdefault(name, (size, spec.name))
            if size != first:
                raise BadRequestError(f"the inputs differ in {name}: {owner!r} has {first}, {spec.name!r} has {size}")


def _count_rows(arrays: Sequence[Array], specs: Sequence[TensorSpec]) -> int:
    rows = {
        spec.name: array.shape[0]
        for array, spec in zip(arrays, specs, strict=True)
        if spec.shape and spec.shape[0] == -1
    }
    if len(set(rows.values())) > 1:
        raise BadRequestError(
            f"the inputs differ in rows: {', '.join(f'{name!r} has {n}' for name, n in rows.items())}"
        )
    return next(iter(rows.values()), 1)
