"""rnn-hybrid: a convolutional map read twice, whole by a projection and position by position by an LSTM."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agent.architectures.blocks import head
from agent.architectures.images import image_input, synthetic_images
from agent.architectures.model_type import ModelType, Reading, Shapes
from agent.architectures.recurrent import Recurrence, read_recurrence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHANNELS = (32, 64, 128, 256)

_MAP = 4
"""Side of the pooled map: 16 positions."""

_LAYERS_PER_BLOCK = 4


def _backbone(channels: Sequence[int]) -> nn.Sequential:
    """Return convolution, BatchNorm, ReLU and halving for each block; the last one pools to 4x4 instead."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise([1, *channels]):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(), nn.MaxPool2d(2)]
    layers[-1] = nn.AdaptiveAvgPool2d(_MAP)
    return nn.Sequential(*layers)


class HybridRnn(nn.Module):
    """The network.

    Args:
        num_classes: rows of the last layer.
        cnn_features: width of the projection of the whole map.
        channels: output channels of the convolutional blocks.
        hidden_size: of the LSTM and the head.
        num_layers: of the LSTM.
    """

    def __init__(
        self, num_classes: int, cnn_features: int, channels: Sequence[int], hidden_size: int, num_layers: int
    ) -> None:
        super().__init__()
        recurrence = Recurrence(channels[-1], hidden_size, num_layers)
        self.cnn_backbone = _backbone(channels)
        self.feature_projection = nn.Linear(channels[-1] * _MAP * _MAP, cnn_features)
        self.spatial_rnn = recurrence.build()
        self.classifier = head(cnn_features + recurrence.output_size, hidden_size, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits of ``(batch, 1, 64, 64)`` float32 images."""
        features: Tensor = self.cnn_backbone(images)
        whole = self.feature_projection(features.flatten(1))
        outputs, _state = self.spatial_rnn(features.flatten(2).transpose(1, 2))
        logits: Tensor = self.classifier(torch.cat([whole, outputs.mean(dim=1)], dim=1))
        return logits


def build(
    num_classes: int,
    *,
    cnn_features: int = 512,
    channels: Sequence[int] = CHANNELS,
    hidden_size: int = 256,
    num_layers: int = 2,
) -> nn.Module:
    """Return an rnn-hybrid."""
    return HybridRnn(num_classes, cnn_features, channels, hidden_size, num_layers)


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    sizes = read_recurrence(shapes, "spatial_rnn")
    blocks = shapes.count("cnn_backbone.{}.weight", step=_LAYERS_PER_BLOCK)
    return Reading(
        {
            "cnn_features": shapes.size("feature_projection.weight"),
            "channels": [shapes.size(f"cnn_backbone.{_LAYERS_PER_BLOCK * block}.weight") for block in range(blocks)],
            "hidden_size": sizes.hidden_size,
            "num_layers": sizes.num_layers,
        }
    )


def _matches(shapes: Shapes) -> bool:
    return "spatial_rnn.weight_ih_l0" in shapes


RNN_HYBRID = ModelType(
    name="rnn-hybrid",
    build=build,
    classifier_key="classifier.4.weight",
    matches=_matches,
    read=_read,
    inputs=image_input,
    synthetic_inputs=synthetic_images,
)
