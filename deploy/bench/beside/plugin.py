"""The module as a model type of nibbled, through the same entry point that its users have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agent.architectures.model_type import ModelType, Options, Reading, Shapes, TensorSpec
from deploy.bench.beside.network import SHAPE, layers

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "bench-cnn"


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    return Reading({}, num_classes=shapes.size("9.weight"))


def _synthetic(_options: Options, rows: int, generator: np.random.Generator) -> dict[str, torch.Tensor]:
    return {"input": torch.from_numpy(generator.standard_normal((rows, *SHAPE), dtype=np.float32))}


def _outputs(classes: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("output", "FP32", (-1, classes)),)


MODEL_TYPE = ModelType(
    name=NAME,
    build=lambda num_classes, **_options: layers(num_classes),
    classifier_key="9.weight",
    matches=lambda shapes: "9.weight" in shapes and "3.weight" in shapes,
    read=_read,
    inputs=lambda _options: (TensorSpec("input", "FP32", (-1, *SHAPE)),),
    synthetic_inputs=_synthetic,
    outputs=_outputs,
)
