"""All model types by name: build one, recognise one, ask what goes in and out.

Rules:
- Types are listed in one table; hf, timm:NAME and plug-ins are looked up only where the table has no answer.
- Recognition reads keys and shapes, then proves itself: the module it would build must have exactly the checkpoint's
  tensors, unused ones aside. A wrong guess is an error here, never a partly filled model later.
- No weights are loaded here.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from agent.architectures import plugins, timm_models
from agent.architectures.cnn import CNN
from agent.architectures.errors import (
    BrokenPlugInError,
    ContradictingTypeError,
    UnknownModelTypeError,
    UnrecognisedCheckpointError,
    quoted,
)
from agent.architectures.hiercode import HIERCODE
from agent.architectures.hiercode_higita import HIERCODE_HIGITA
from agent.architectures.huggingface import HF
from agent.architectures.model_type import Answer, ModelType, Options, Reading, Shape, Shapes, TensorSpec
from agent.architectures.qat import QAT
from agent.architectures.radical_rnn import RADICAL_RNN, RNN_LINGUISTIC
from agent.architectures.rnn import RNN
from agent.architectures.rnn_hybrid import RNN_HYBRID
from agent.architectures.rnn_radical import RNN_RADICAL
from agent.architectures.rnn_stroke import RNN_STROKE
from agent.architectures.vit import VIT
from agent.planning import model_types

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

BUILT_IN: Mapping[str, ModelType] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            CNN,
            RNN,
            RNN_HYBRID,
            RNN_STROKE,
            RNN_RADICAL,
            # Equal tensors as RNN_LINGUISTIC; without a hint the first of the two is the answer.
            RADICAL_RNN,
            RNN_LINGUISTIC,
            HIERCODE,
            HIERCODE_HIGITA,
            QAT,
            VIT,
        )
    }
)
"""In the order of recognition; apart from the pair noted no checkpoint matches two of them."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Recognised:
    """What a checkpoint turned out to be.

    Attributes:
        model_type: the name of its type.
        num_classes: rows of its last layer.
        options: what ``build`` needs besides, as JSON can hold it.
        unused: keys that the forward pass never reads; an artifact can leave them out.
        notes: sentences on what was assumed or is lost.
    """

    model_type: str
    num_classes: int
    options: dict[str, Any]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """Return the names of all model types: the built-in ones, then announced plug-ins."""
    return (*model_types.names(), *(name for name in plugins.announced() if name not in BUILT_IN))


def find(model_type: str) -> ModelType:
    """Return the type of that name.

    Raises:
        UnknownModelTypeError: listing the known ones.
        BrokenPlugInError: it is announced, but its import fails.
    """
    if model_type in BUILT_IN:
        return BUILT_IN[model_type]
    if model_type == HF.name:
        return HF
    if model_type.startswith(timm_models.PREFIX):
        return timm_models.model_type(model_type)
    entry = plugins.announced().get(model_type)
    if entry is None:
        raise UnknownModelTypeError(model_type, (*names(), HF.name, f"{timm_models.PREFIX}NAME"))
    return plugins.load(entry)


def is_known(model_type: str) -> bool:
    """Return whether a name is one of a type, or an alias; nothing is imported to find out."""
    return bool(model_types.named(model_type)) or model_type in names() or model_types.is_library(model_type)


def build(model_type: str, num_classes: int, *, inference_only: bool = False, **options: Any) -> nn.Module:
    """Return a module of that type with freshly initialised weights.

    Args:
        model_type: one of ``names()``.
        num_classes: rows of the last layer.
        inference_only: leave out the parts that forward never reads; no change for types without such parts.
        options: the type's own options; defaults are those of its training.

    Raises:
        UnknownModelTypeError: listing the known types.
        BrokenPlugInError: the type's plug-in cannot be imported.
    """
    kind = find(model_type)
    if inference_only and kind.has_unused_parts:
        options = {**options, "inference_only": True}
    return kind.build(num_classes, **options)


def recognise(
    shapes: Mapping[str, Shape], sidecar: Mapping[str, Any] = _NOTHING, hint: str | None = None
) -> Recognised:
    """Return type, sizes and options of a checkpoint from the shapes of its tensors.

    Args:
        shapes: every key of the state dict with its shape.
        sidecar: what accompanies the checkpoint and no shape tells, e.g. ``num_heads`` of a vit.
        hint: the type it is said to be, or one of that type's aliases. It decides between types with equal tensors.

    Raises:
        UnrecognisedCheckpointError: the tensors are those of no type, or of one in a form that cannot be built.
        ContradictingTypeError: the tensors are those of another type than ``hint``.
        UnknownModelTypeError: ``hint`` is no known name.
    """
    read = Shapes(shapes)
    kind = _matching_type(read, hint)
    reading = kind.read(read, sidecar)
    num_classes = read.size(kind.classifier_key) if reading.num_classes is None else reading.num_classes
    _prove(kind, num_classes, reading, read)
    told = sidecar.get("num_classes")
    disagreement = f"the sidecar says {told} classes, the last layer has {num_classes}: the layer is right"
    notes = reading.notes if told in (None, num_classes) else (*reading.notes, disagreement)
    return Recognised(kind.name, num_classes, reading.options, reading.unused, notes)


def from_state_dict(state_dict: Mapping[str, Tensor], sidecar: Mapping[str, Any] = _NOTHING) -> nn.Module:
    """Return the module that a state dict belongs to. Its weights are not loaded.

    Raises:
        UnrecognisedCheckpointError: as ``recognise``.
    """
    found = recognise({key: tuple(value.shape) for key, value in state_dict.items()}, sidecar)
    return build(found.model_type, found.num_classes, **found.options)


def input_specs(model_type: str, options: Options = _NOTHING) -> tuple[TensorSpec, ...]:
    """Return the inputs of a type in forward's order, batch axis first."""
    return find(model_type).inputs(options)


def output_specs(model_type: str, num_classes: int) -> tuple[TensorSpec, ...]:
    """Return the served outputs of a type; the first is ``logits``, ``(batch, num_classes)``."""
    return find(model_type).outputs(num_classes)


def synthetic_inputs(model_type: str, options: Options, rows: int, seed: int) -> dict[str, Tensor]:
    """Return ``rows`` plausible inputs by name, in forward's order; equal seeds give equal inputs."""
    return find(model_type).synthetic_inputs(options, rows, np.random.default_rng(seed))


def is_batchable(model_type: str) -> bool:
    """Return whether a row's answer is independent of the other rows in its batch."""
    return find(model_type).batchable


def answer_of(model_type: str, options: Options) -> Answer:
    """Return what a row of a type's logits is: scores of classes, or an embedding."""
    return find(model_type).answer(options)


def logits_of(output: Tensor | Mapping[str, Any]) -> Tensor:
    """Return the logits of a forward pass: types with several outputs return them in a mapping."""
    logits: Tensor = output if isinstance(output, Tensor) else output["logits"]
    return logits


def _matching_type(shapes: Shapes, hint: str | None) -> ModelType:
    """Return the first type that matches, among those that the hint allows if there is one."""
    broken: list[BrokenPlugInError] = []
    if hint is None:
        kind = _first_match(_every_type(broken), shapes)
        if kind is None:
            raise UnrecognisedCheckpointError(
                f"its {len(shapes)} tensors are those of no known model type (keys: {quoted(shapes)}); "
                f"looked for {', '.join(names())}{''.join(f'; {error}' for error in broken)}"
            )
        return kind
    kind = _first_match(map(find, model_types.named(hint) or (hint,)), shapes)
    if kind is None:
        found = _first_match(_every_type(broken), shapes)
        raise ContradictingTypeError(hint, found.name if found else None, shapes)
    return kind


def _first_match(kinds: Iterable[ModelType], shapes: Shapes) -> ModelType | None:
    return next((kind for kind in kinds if kind.matches(shapes)), None)


def _every_type(broken: list[BrokenPlugInError]) -> Iterator[ModelType]:
    """Yield the built-in types, then the plug-ins; those that fail to import are appended to ``broken``."""
    yield from BUILT_IN.values()
    for name in names()[len(BUILT_IN) :]:
        try:
            kind = find(name)
        except BrokenPlugInError as error:  # noqa: PERF203 - a handful of plug-ins, each may fail alone
            broken.append(error)
        else:
            yield kind


def _prove(kind: ModelType, num_classes: int, reading: Reading, shapes: Shapes) -> None:
    """Compare a module built without memory, on torch's meta device, with the checkpoint."""
    try:
        with torch.device("meta"):
            module = kind.build(num_classes, **reading.options)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UnrecognisedCheckpointError(f"it looks like {kind.name}, but cannot be built: {error}") from error
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing = [key for key in expected if key not in shapes]
    unexpected = sorted(shapes.keys() - expected.keys() - set(reading.unused))
    misshapen = [key for key in expected if key in shapes and expected[key] != tuple(shapes[key])]
    if not (missing or unexpected or misshapen):
        return
    details = [f"missing {quoted(missing)}"] if missing else []
    details += [f"unexpected {quoted(unexpected)}"] if unexpected else []
    details += [f"{key!r} has shape {list(shapes[key])} for {list(expected[key])}" for key in misshapen[:3]]
    raise UnrecognisedCheckpointError(f"it looks like {kind.name}, but does not fit: {'; '.join(details)}")
