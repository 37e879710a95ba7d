"""What a model type is to the rest of the house: a value that builds, recognises and describes one architecture.

Users' own types are ``ModelType`` values too (entry point group ``nibbled.architectures``). Nothing here touches
weights: recognition works on keys and shapes alone, so that a checkpoint's header is enough.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agent.architectures.errors import UnrecognisedCheckpointError, quoted

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Shape = tuple[int, ...]
Options = Mapping[str, Any]
"""Keyword arguments of a type's ``build``, as JSON can hold them."""
Answer = Literal["classes", "embedding"]
"""What a row of logits is: a score a class, of which the largest matters, or a vector, whose neighbours do."""


@dataclass(frozen=True)
class Dimension:
    """An axis of any size, of which more is known.

    Attributes:
        axis: which one; its size in the tensor's shape is -1.
        name: axes of one name have one size in a request, whichever inputs they belong to.
        maximum: the largest size that the module accepts, None without a bound.
    """

    axis: int
    name: str
    maximum: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """One input or output in the terms of the Open Inference Protocol.

    Attributes:
        name: the tensor's name.
        datatype: ``FP32``, ``INT64``, …
        shape: batch first, -1 for an axis of any size.
        minimum: smallest value that the module accepts, None without a bound.
        maximum: largest value that the module accepts, None without a bound.
        dimensions: what is known of its axes of any size.
    """

    name: str
    datatype: str
    shape: Shape
    minimum: int | None = None
    maximum: int | None = None
    dimensions: tuple[Dimension, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What a type reads from a checkpoint's shapes.

    Attributes:
        options: build options with every size spelt out.
        unused: keys that the forward pass never reads.
        notes: sentences on what was assumed or is lost.
        num_classes: length of an answer, where no single tensor of the type tells it; None for ``classifier_key``.
    """

    options: dict[str, Any]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    num_classes: int | None = None


class Shapes(Mapping[str, Shape]):
    """The shapes of a checkpoint's tensors, with refusals instead of lookup errors."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = dict(shapes)

    def __getitem__(self, key: str) -> Shape:
        return self._shapes[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def size(self, key: str, axis: int = 0) -> int:
        """Return the length of one axis.

        Raises:
            UnrecognisedCheckpointError: the tensor is missing, has too few axes or an empty one.
        """
        shape = self._shapes.get(key)
        if shape is None:
            raise UnrecognisedCheckpointError(f"tensor {key!r} is missing; present: {quoted(self._shapes)}")
        if len(shape) <= axis or shape[axis] < 1:
            raise UnrecognisedCheckpointError(f"tensor {key!r} has shape {list(shape)}: no axis {axis} to read")
        return shape[axis]

    def count(self, pattern: str, start: int = 0, step: int = 1) -> int:
        """Return how many keys ``pattern.format(i)`` follow each other without a gap from ``start`` on."""
        found = 0
        while pattern.format(start + found * step) in self._shapes:
            found += 1
        return found

    def matching(self, pattern: str) -> tuple[str, ...]:
        """Return the keys that the regular expression ``pattern`` finds, in order."""
        return tuple(key for key in self._shapes if re.search(pattern, key))


def logits_only(num_classes: int) -> tuple[TensorSpec, ...]:
    """Return the output that every built-in type serves."""
    return (TensorSpec("logits", "FP32", (-1, num_classes)),)


def answers_classes(_options: Options) -> Answer:
    """Return what every built-in type answers."""
    return "classes"


@dataclass(frozen=True)
class ModelType:
    """One architecture.

    Attributes:
        name: the name on the wire.
        build: ``build(num_classes, **options)`` returns a module with freshly initialised weights; it must also work
            under ``torch.device("meta")``.
        classifier_key: the state-dict key whose first axis is the number of classes; empty if ``read`` tells it.
        matches: whether a checkpoint's keys are those of this type; looks at presence only.
        read: sizes and options from the shapes and the sidecar of a checkpoint that ``matches``.
        inputs: the input tensors for given options.
        synthetic_inputs: ``(options, rows, generator)`` to plausible inputs by name, in forward's order.
        outputs: the served output tensors for a number of classes.
        answer: what a row of the first output is for given options; it decides what agreement means.
        has_unused_parts: whether ``build`` takes ``inference_only=True`` to leave out what forward never reads.
        batchable: whether a row's answer is independent of the other rows in its batch.
    """

    name: str
    build: Callable[..., nn.Module]
    classifier_key: str
    matches: Callable[[Shapes], bool]
    read: Callable[[Shapes, Mapping[str, Any]], Reading]
    inputs: Callable[[Options], tuple[TensorSpec, ...]]
    synthetic_inputs: Callable[[Options, int, np.random.Generator], dict[str, Tensor]]
    outputs: Callable[[int], tuple[TensorSpec, ...]] = field(default=logits_only)
    answer: Callable[[Options], Answer] = field(default=answers_classes)
    has_unused_parts: bool = False
    batchable: bool = True
