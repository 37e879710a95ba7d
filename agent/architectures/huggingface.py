"""hf: models of Hugging Face directories, through the optional package ``transformers``.

The configuration beside the weights says which of the library's classes the model is; it goes into the artifact's
options with every default spelt out, so that the artifact needs nothing else. What is served follows from the class:
image or text classification, the next token of a causal language model, or, for a bare text encoder, one embedding a
text. All of them answer with one row a sample, called ``logits`` like any other type's.

Without such a directory nothing is recognised as hf: tensor names alone do not tell a configuration.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from agent.architectures.errors import UnrecognisedCheckpointError
from agent.architectures.huggingface_config import EMBEDDING, IMAGE_CLASSES, NEXT_TOKEN, TASKS, Task, resolve, task_of
from agent.architectures.huggingface_network import (
    PREFIX,
    Classifier,
    Embedder,
    NextToken,
    TextClassifier,
    create,
)
from agent.architectures.model_type import Answer, Dimension, ModelType, Options, Reading, Shapes, TensorSpec
from agent.planning.model_types import HUGGING_FACE

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = HUGGING_FACE
POOLINGS = ("mean", "cls")
CONFIG = "config"
"""Key of the configuration in what accompanies a checkpoint, and in the options."""
SEQUENCE = "sequence"
"""Name of the axis along which a text's ids lie."""

_USUAL_SIDE = 224
"""Side of the images that classifiers without an ``image_size`` are trained on, ResNet among them."""
_SYNTHETIC_STEPS = 16
_COARSE = 8
_UNREAD = r"(^|\.)position_ids$|rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.crossattention\.bias$"
"""Tensors of older checkpoints that the library has since computed instead of storing."""
_POOLER = rf"^{re.escape(PREFIX)}pooler\."


def build(
    _num_classes: int,
    *,
    config: Mapping[str, Any],
    task: str,
    pooling: str = "mean",
    is_normalised: bool = False,
    inputs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return the network that a configuration describes; the number of classes is in the configuration.

    Args:
        config: as `huggingface_config.resolve` returns it.
        task: a key of ``TASKS``.
        pooling: of an embedding, ``mean`` or ``cls``.
        is_normalised: whether embeddings have length 1.
        inputs: sizes of the inputs, for `input_specs`; no part of the network depends on them.

    Raises:
        UnrecognisedCheckpointError: the library cannot build it.
        MissingPackageError: the library is not installed.
    """
    del inputs
    kind = TASKS[task]
    network = create(config, kind)
    if kind is EMBEDDING:
        return Embedder(network, pooling, is_normalised=is_normalised)
    wrapper = {IMAGE_CLASSES: Classifier, NEXT_TOKEN: NextToken}.get(kind, TextClassifier)
    return wrapper(network)


def _read(shapes: Shapes, sidecar: Mapping[str, Any]) -> Reading:
    given = sidecar.get(CONFIG)
    if not isinstance(given, dict):
        raise UnrecognisedCheckpointError("a model of type 'hf' is a directory with config.json beside the weights")
    config = resolve(given)
    task = task_of(config)
    sizes, notes = _input_sizes(config, task)
    options: dict[str, Any] = {CONFIG: config, "task": task.name, "inputs": sizes}
    if task is EMBEDDING:
        options |= {"pooling": _pooling(sidecar), "is_normalised": bool(sidecar.get("is_normalised"))}
    with torch.device("meta"):
        model = build(0, **options)
    if not task.is_image:
        sizes["max_length"] = _longest(model)
    held = model.state_dict()
    unread = f"{_UNREAD}|{_POOLER}" if task is EMBEDDING else _UNREAD
    unused = tuple(name for name in shapes.matching(unread) if name not in held)
    return Reading(options, unused, notes, num_classes=_width(model, task))


def _pooling(sidecar: Mapping[str, Any]) -> str:
    told = sidecar.get("pooling") or POOLINGS[0]
    if told not in POOLINGS:
        raise UnrecognisedCheckpointError(f"sentences are pooled by {told!r}; known: {', '.join(POOLINGS)}")
    return str(told)


def _width(model: Any, task: Task) -> int:
    """Return the length of an answer: classes, vocabulary, or the width of an embedding."""
    network = model.network
    if task is NEXT_TOKEN:
        return int(network.get_output_embeddings().weight.shape[0])
    return int(network.config.get_text_config().hidden_size if task is EMBEDDING else network.config.num_labels)


def _input_sizes(config: Mapping[str, Any], task: Task) -> tuple[dict[str, Any], tuple[str, ...]]:
    if task.is_image:
        side = config.get("image_size")
        sides = list(side) if isinstance(side, list) else [side or _USUAL_SIDE] * 2
        notes = () if side else (f"the configuration has no image size: {_USUAL_SIDE} is assumed, others work too",)
        return {"image": [config.get("num_channels", 3), *sides], "is_any_size": not side}, notes
    text = config.get("text_config") or config
    if config.get("is_encoder_decoder") and task is EMBEDDING:
        raise UnrecognisedCheckpointError("an encoder with a decoder is no embedding: save its encoder alone")
    # The library finds a text's end by its padding; without one it serves single texts only.
    if task.name == "text-classification" and text.get("is_decoder", True) and text.get("pad_token_id") is None:
        raise UnrecognisedCheckpointError("a classifier needs pad_token_id in its configuration to be batched: add it")
    return {"vocab_size": text["vocab_size"]}, ()


def _longest(model: Any) -> int | None:
    """Return how many ids a text has at most, None where positions have no bound."""
    # The configuration's own attribute: GPT-2 and others have another key for it.
    most = getattr(model.network.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:  # XLNet's says -1
        return None
    # RoBERTa and its kin count positions from behind the padding's own: fairseq, ``make_positions``.
    tables = (part for name, part in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((part.padding_idx for part in tables if isinstance(part, nn.Embedding)), None)
    return most if padding is None else most - padding - 1


def _inputs(options: Options) -> tuple[TensorSpec, ...]:
    sizes = options["inputs"]
    if "image" in sizes:
        channels, *sides = sizes["image"]
        return (TensorSpec("input", "FP32", (-1, channels, *([-1, -1] if sizes["is_any_size"] else sides))),)
    steps = (Dimension(1, SEQUENCE, sizes["max_length"]),)
    return (
        TensorSpec("input_ids", "INT64", (-1, -1), minimum=0, maximum=sizes["vocab_size"] - 1, dimensions=steps),
        TensorSpec("attention_mask", "INT64", (-1, -1), minimum=0, maximum=1, dimensions=steps),
    )


def _synthetic(options: Options, rows: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """Return blurred noise of variance 1, as normalised photographs have, or random ids of various lengths."""
    sizes = options["inputs"]
    if "image" in sizes:
        channels, height, width = sizes["image"]
        coarse = torch.from_numpy(generator.standard_normal((rows, channels, _COARSE, _COARSE), dtype=np.float32))
        return {"input": torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")}
    steps = min(_SYNTHETIC_STEPS, sizes["max_length"] or _SYNTHETIC_STEPS)
    ids = generator.integers(0, sizes["vocab_size"], (rows, steps))
    lengths = generator.integers(1, steps + 1, (rows, 1))
    mask = (np.arange(steps) < lengths).astype(np.int64)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def _answer(options: Options) -> Answer:
    return "embedding" if options["task"] == EMBEDDING.name else "classes"


HF = ModelType(
    name=NAME,
    build=build,
    classifier_key="",
    matches=lambda shapes: any(name.startswith(PREFIX) for name in shapes),
    read=_read,
    inputs=_inputs,
    synthetic_inputs=_synthetic,
    answer=_answer,
)
