"""rnn: a recurrent network over the statistics of 64 grid cells, pooled, with a two-layer head.

Bidirectional models pool the mean of all steps, unidirectional ones take the last step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from agent.architectures import preprocess
from agent.architectures.blocks import head
from agent.architectures.images import draw_strokes
from agent.architectures.model_type import ModelType, Options, Reading, Shapes, TensorSpec
from agent.architectures.recurrent import Recurrence, read_recurrence

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATISTICS = 4
_CELLS = 64


class CellRnn(nn.Module):
    """The network.

    Args:
        num_classes: rows of the last layer.
        recurrence: sizes of the recurrent child; its hidden size is the head's too.
    """

    def __init__(self, num_classes: int, recurrence: Recurrence) -> None:
        super().__init__()
        self._mean_over_time = recurrence.bidirectional
        self.rnn = recurrence.build()
        self.classifier = head(recurrence.output_size, recurrence.hidden_size, num_classes)

    def forward(self, steps: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits of ``(batch, time, input_size)`` float32; any time from 1."""
        outputs, _state = self.rnn(steps)
        pooled = outputs.mean(dim=1) if self._mean_over_time else outputs[:, -1]
        logits: Tensor = self.classifier(pooled)
        return logits


def build(
    num_classes: int,
    *,
    input_size: int = _STATISTICS,
    hidden_size: int = 256,
    num_layers: int = 2,
    rnn_type: str = "LSTM",
    bidirectional: bool = True,
) -> nn.Module:
    """Return an rnn; ``rnn_type`` is LSTM or GRU in any case."""
    return CellRnn(num_classes, Recurrence(input_size, hidden_size, num_layers, bidirectional, rnn_type))


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    sizes = read_recurrence(shapes, "rnn")
    return Reading(
        {
            "input_size": sizes.input_size,
            "hidden_size": sizes.hidden_size,
            "num_layers": sizes.num_layers,
            "rnn_type": sizes.cell.upper(),
            "bidirectional": sizes.bidirectional,
        }
    )


def _inputs(options: Options) -> tuple[TensorSpec, ...]:
    return (TensorSpec("input", "FP32", (-1, -1, options.get("input_size", _STATISTICS))),)


def _synthetic(options: Options, rows: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """Return the cell statistics of drawn images, or noise where the model takes other features."""
    size = options.get("input_size", _STATISTICS)
    if size == _STATISTICS:
        return {"input": torch.from_numpy(preprocess.cell_statistics(draw_strokes(rows, generator)))}
    return {"input": torch.from_numpy(generator.random((rows, _CELLS, size), dtype=np.float32))}


def _matches(shapes: Shapes) -> bool:
    return "rnn.weight_ih_l0" in shapes and "visual_to_radical.0.weight" not in shapes


RNN = ModelType(
    name="rnn",
    build=build,
    classifier_key="classifier.4.weight",
    matches=_matches,
    read=_read,
    inputs=_inputs,
    synthetic_inputs=_synthetic,
)
