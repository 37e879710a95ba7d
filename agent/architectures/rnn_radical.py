"""rnn-radical: an LSTM over the embeddings of radical ids, mean over the valid steps, two-layer head.

Id 0 is padding in training only (its row gets no gradient); inside a sequence it is a row like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agent.architectures import preprocess
from agent.architectures.blocks import embedding, head
from agent.architectures.images import draw_strokes
from agent.architectures.model_type import ModelType, Options, Reading, Shapes, TensorSpec
from agent.architectures.recurrent import Recurrence, read_recurrence, run_padded

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

_VOCABULARY = 500


class RadicalRnn(nn.Module):
    """The network.

    Args:
        num_classes: rows of the last layer.
        vocabulary: rows of the embedding.
        embedded: width of the embedding.
        hidden_size: of the LSTM and the head.
        num_layers: of the LSTM.
    """

    def __init__(self, num_classes: int, vocabulary: int, embedded: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        recurrence = Recurrence(embedded, hidden_size, num_layers)
        self._vocabulary = vocabulary
        self.radical_embedding = embedding(vocabulary, embedded)
        self.radical_lstm = recurrence.build()
        self.classifier = head(recurrence.output_size, hidden_size, num_classes)

    def forward(self, radicals: Tensor, lengths: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits.

        Args:
            radicals: ``(batch, time)`` int64 ids below the vocabulary; ids past a sample's length have no effect.
            lengths: ``(batch,)`` int64 within 1..time.

        Raises:
            ValueError: an id or a length is out of range.
        """
        # An id out of range would abort a CUDA context for good; an error concerns only this call.
        lowest, highest = (int(bound) for bound in radicals.aminmax())
        if lowest < 0 or highest >= self._vocabulary:
            raise ValueError(f"radical ids are within {lowest}..{highest}, the vocabulary is 0..{self._vocabulary - 1}")
        steps = run_padded(self.radical_lstm, self.radical_embedding(radicals), lengths)
        mean = steps.sum(dim=1) / lengths.to(steps.device).unsqueeze(1)
        logits: Tensor = self.classifier(mean)
        return logits


def build(
    num_classes: int,
    *,
    radical_vocab_size: int = _VOCABULARY,
    radical_embed_dim: int = 128,
    hidden_size: int = 256,
    num_layers: int = 2,
) -> nn.Module:
    """Return an rnn-radical."""
    return RadicalRnn(num_classes, radical_vocab_size, radical_embed_dim, hidden_size, num_layers)


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    sizes = read_recurrence(shapes, "radical_lstm")
    return Reading(
        {
            "radical_vocab_size": shapes.size("radical_embedding.weight"),
            "radical_embed_dim": shapes.size("radical_embedding.weight", axis=1),
            "hidden_size": sizes.hidden_size,
            "num_layers": sizes.num_layers,
        }
    )


def _inputs(options: Options) -> tuple[TensorSpec, ...]:
    last = options.get("radical_vocab_size", _VOCABULARY) - 1
    return (
        TensorSpec("input", "INT64", (-1, -1), minimum=0, maximum=last),
        TensorSpec("lengths", "INT64", (-1,), minimum=1),
    )


def _synthetic(options: Options, rows: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """Return the radical ids of drawn images, folded into the vocabulary."""
    ids, lengths = preprocess.radical_ids(draw_strokes(rows, generator))
    ids %= options.get("radical_vocab_size", _VOCABULARY)
    return {"input": torch.from_numpy(ids), "lengths": torch.from_numpy(lengths)}


def _matches(shapes: Shapes) -> bool:
    return "radical_lstm.weight_ih_l0" in shapes


RNN_RADICAL = ModelType(
    name="rnn-radical",
    build=build,
    classifier_key="classifier.4.weight",
    matches=_matches,
    read=_read,
    inputs=_inputs,
    synthetic_inputs=_synthetic,
)
