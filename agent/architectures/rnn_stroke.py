"""rnn-stroke: an LSTM over stroke features, self-attention over its steps, maximum over time, two-layer head.

The attention has no mask and the maximum runs over the padding too, both up to the longest sample of the batch. So a
sample's logits depend on the lengths it is batched with; only samples of equal length may share a batch.
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
from agent.architectures.recurrent import Recurrence, read_recurrence, run_padded

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADS = 8


class StrokeRnn(nn.Module):
    """The network.

    Args:
        num_classes: rows of the last layer.
        stroke_features: features of a stroke.
        hidden_size: H of the LSTM and the head; strokes are embedded to half of it, the attention is 2H wide.
        num_layers: of the LSTM.
    """

    def __init__(self, num_classes: int, stroke_features: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        recurrence = Recurrence(hidden_size // 2, hidden_size, num_layers)
        self.stroke_embedding = nn.Linear(stroke_features, hidden_size // 2)
        self.stroke_lstm = recurrence.build()
        self.attention = nn.MultiheadAttention(recurrence.output_size, _HEADS, batch_first=True)
        self.classifier = head(recurrence.output_size, hidden_size, num_classes)

    def forward(self, strokes: Tensor, lengths: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits.

        Args:
            strokes: ``(batch, time, stroke_features)`` float32; rows past a sample's length have no effect.
            lengths: ``(batch,)`` int64 within 1..time.

        Raises:
            ValueError: a length is out of range.
        """
        embedded = torch.relu(self.stroke_embedding(strokes))
        steps = run_padded(self.stroke_lstm, embedded, lengths)
        attended, _weights = self.attention(steps, steps, steps, need_weights=False)
        logits: Tensor = self.classifier(attended.amax(dim=1))
        return logits


def build(
    num_classes: int,
    *,
    stroke_features: int = preprocess.STROKE_FEATURES,
    hidden_size: int = 256,
    num_layers: int = 2,
) -> nn.Module:
    """Return an rnn-stroke."""
    return StrokeRnn(num_classes, stroke_features, hidden_size, num_layers)


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    sizes = read_recurrence(shapes, "stroke_lstm")
    return Reading(
        {
            "stroke_features": shapes.size("stroke_embedding.weight", axis=1),
            "hidden_size": sizes.hidden_size,
            "num_layers": sizes.num_layers,
        },
        notes=("answers depend on the other rows of a batch: only inputs of equal length may be batched",),
    )


def _inputs(options: Options) -> tuple[TensorSpec, ...]:
    features = options.get("stroke_features", preprocess.STROKE_FEATURES)
    return (TensorSpec("input", "FP32", (-1, -1, features)), TensorSpec("lengths", "INT64", (-1,), minimum=1))


def _synthetic(options: Options, rows: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """Return the stroke rows of drawn images, or noise where the model takes other features."""
    strokes, lengths = preprocess.stroke_features(draw_strokes(rows, generator))
    features = options.get("stroke_features", preprocess.STROKE_FEATURES)
    if features != preprocess.STROKE_FEATURES:
        strokes = generator.random((*strokes.shape[:2], features), dtype=np.float32)
    return {"input": torch.from_numpy(strokes), "lengths": torch.from_numpy(lengths)}


def _matches(shapes: Shapes) -> bool:
    return "stroke_lstm.weight_ih_l0" in shapes


RNN_STROKE = ModelType(
    name="rnn-stroke",
    build=build,
    classifier_key="classifier.4.weight",
    matches=_matches,
    read=_read,
    inputs=_inputs,
    synthetic_inputs=_synthetic,
    batchable=False,
)
