"""radical-rnn and rnn-linguistic: convolutions pick four radical ids, an LSTM reads their embeddings.

One network under two names; their checkpoints have equal keys and compute the same function, so only a hint can tell
them apart. They differ in the default vocabulary. With 16-bit or coarser weights in front of the argmax an id can
flip, which changes an answer at once rather than slightly.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from agent.architectures.blocks import embedding, head, separable_layers
from agent.architectures.images import SIDE, as_images, image_input, synthetic_images
from agent.architectures.model_type import ModelType, Reading, Shapes
from agent.architectures.recurrent import Recurrence, read_recurrence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHANNELS = (32, 64, 128)
PLACES = 4
"""Radicals picked from an image."""

_SELECTOR_HIDDEN = 512
_HEAD_HIDDEN = 512
_LAYERS_PER_BLOCK = 6
_POINTWISE = 3
"""Index of the pointwise convolution in a block; its rows are the block's channels."""


class SeparableBackbone(nn.Module):
    """Strided depthwise-separable blocks in one flat Sequential, six layers a block."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        blocks = [separable_layers(inner, outer, stride=2) for inner, outer in pairwise([1, *channels])]
        self.features = nn.Sequential(*(layer for block in blocks for layer in block))

    def forward(self, images: Tensor) -> Tensor:
        """Return the last block's map, flattened channel by channel."""
        features: Tensor = self.features(images)
        return features.flatten(1)


class RadicalPicker(nn.Module):
    """The network.

    Args:
        num_classes: rows of the last layer.
        vocabulary: radicals to choose from at each place.
        channels: output channels of the convolutional blocks.
        recurrence: sizes of the unidirectional recurrent child; its input size is the embedding's width.
    """

    def __init__(self, num_classes: int, vocabulary: int, channels: Sequence[int], recurrence: Recurrence) -> None:
        super().__init__()
        side = SIDE >> len(channels)
        self.cnn = SeparableBackbone(channels)
        self.visual_to_radical = nn.Sequential(
            nn.Linear(channels[-1] * side * side, _SELECTOR_HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(_SELECTOR_HIDDEN, PLACES * vocabulary),
        )
        self.radical_embedding = embedding(vocabulary, recurrence.input_size)
        self.rnn = recurrence.build()
        self.classifier = head(recurrence.output_size, _HEAD_HIDDEN, num_classes, dropout=(0.3, 0.2))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits of images of 4096 values each, in any layout."""
        scores: Tensor = self.visual_to_radical(self.cnn(as_images(images)))
        radicals = scores.reshape(scores.shape[0], PLACES, -1).argmax(dim=2)
        outputs, _state = self.rnn(self.radical_embedding(radicals))
        # The last layer's hidden state after the last step is, in one direction, the last output.
        logits: Tensor = self.classifier(outputs[:, -1])
        return logits


def build(
    num_classes: int,
    *,
    radical_vocab_size: int,
    radical_embedding_dim: int = 128,
    rnn_type: str = "lstm",
    rnn_hidden_size: int = 256,
    rnn_num_layers: int = 2,
    cnn_channels: Sequence[int] = CHANNELS,
) -> nn.Module:
    """Return the network; ``rnn_type`` is lstm or gru in any case."""
    recurrence = Recurrence(radical_embedding_dim, rnn_hidden_size, rnn_num_layers, bidirectional=False, cell=rnn_type)
    return RadicalPicker(num_classes, radical_vocab_size, cnn_channels, recurrence)


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    sizes = read_recurrence(shapes, "rnn")
    blocks = shapes.count("cnn.features.{}.weight", start=_POINTWISE, step=_LAYERS_PER_BLOCK)
    points = range(_POINTWISE, _POINTWISE + _LAYERS_PER_BLOCK * blocks, _LAYERS_PER_BLOCK)
    return Reading(
        {
            "radical_vocab_size": shapes.size("radical_embedding.weight"),
            "radical_embedding_dim": sizes.input_size,
            "rnn_type": sizes.cell,
            "rnn_hidden_size": sizes.hidden_size,
            "rnn_num_layers": sizes.num_layers,
            "cnn_channels": [shapes.size(f"cnn.features.{point}.weight") for point in points],
        }
    )


def _matches(shapes: Shapes) -> bool:
    return "visual_to_radical.0.weight" in shapes


RADICAL_RNN = ModelType(
    name="radical-rnn",
    build=partial(build, radical_vocab_size=500),
    classifier_key="classifier.4.weight",
    matches=_matches,
    read=_read,
    inputs=image_input,
    synthetic_inputs=synthetic_images,
)
RNN_LINGUISTIC = replace(RADICAL_RNN, name="rnn-linguistic", build=partial(build, radical_vocab_size=2000))
