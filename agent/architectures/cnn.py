"""cnn: depthwise-separable blocks, squeeze-and-excitation on the later ones, global mean, two-layer head.

Block k is the child ``conv{k}``; its attention, where it has one, is ``attention{k}``. The form of September 2025
(four blocks, no attention) is the same module with other options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from agent.architectures.blocks import head, separable_layers
from agent.architectures.images import as_images, image_input, synthetic_images
from agent.architectures.model_type import ModelType, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHANNELS = (32, 64, 128, 256, 512)
SQUEEZE = (16, 16, 32)
"""Bottleneck widths of the attentions of blocks 3, 4 and 5: a reduction by 8, 16 and 16."""

_FIRST_ATTENTION = 3
_STRIDED_BLOCKS = 4
"""Blocks after the fourth keep the 4x4 map."""


def hidden_width(num_classes: int) -> int:
    """Return the head's hidden width that training chooses: a twentieth of the classes, within 1024..2048."""
    return max(1024, min(2048, num_classes // 20))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' means (Hu et al., arXiv 1709.01507), no residual."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(batch, channels, height, width)`` features, gated."""
        gate: Tensor = self.fc(features.mean(dim=(2, 3)))
        return features * gate[:, :, None, None]


class SeparableCnn(nn.Module):
    """The network of the types cnn and qat.

    Args:
        num_classes: rows of the last layer.
        hidden_size: hidden width of the head.
        channels: output channels of each block.
        squeeze: bottleneck widths of the attentions, from block 3 on; empty for none.
    """

    def __init__(self, num_classes: int, hidden_size: int, channels: Sequence[int], squeeze: Sequence[int]) -> None:
        super().__init__()
        self._blocks = len(channels)
        for block, (inner, outer) in enumerate(zip([1, *channels], channels, strict=False), start=1):
            stride = 2 if block <= _STRIDED_BLOCKS else 1
            self.add_module(f"conv{block}", nn.Sequential(*separable_layers(inner, outer, stride)))
        for block, squeezed in enumerate(squeeze, start=_FIRST_ATTENTION):
            self.add_module(f"attention{block}", SqueezeExcitation(channels[block - 1], squeezed))
        self._attended = frozenset(range(_FIRST_ATTENTION, _FIRST_ATTENTION + len(squeeze)))
        self.classifier = head(channels[-1], hidden_size, num_classes, dropout=(0.3, 0.2))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits of images of 4096 values each, in any layout."""
        features = as_images(images)
        for block in range(1, self._blocks + 1):
            features = self.get_submodule(f"conv{block}")(features)
            if block in self._attended:
                features = self.get_submodule(f"attention{block}")(features)
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def build(
    num_classes: int,
    *,
    hidden_size: int | None = None,
    channels: Sequence[int] = CHANNELS,
    squeeze: Sequence[int] = SQUEEZE,
) -> nn.Module:
    """Return a cnn; without ``hidden_size`` the head is as wide as training makes it for this many classes."""
    return SeparableCnn(num_classes, hidden_size or hidden_width(num_classes), channels, squeeze)


def read_blocks(shapes: Shapes) -> dict[str, Any]:
    """Return the sizes of the blocks and the head."""
    blocks = shapes.count("conv{}.0.weight", start=1)
    return {
        "hidden_size": shapes.size("classifier.1.weight"),
        "channels": [shapes.size(f"conv{block}.3.weight") for block in range(1, blocks + 1)],
    }


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    attentions = shapes.count("attention{}.fc.0.weight", start=_FIRST_ATTENTION)
    attended = range(_FIRST_ATTENTION, _FIRST_ATTENTION + attentions)
    squeeze = [shapes.size(f"attention{block}.fc.0.weight") for block in attended]
    return Reading({**read_blocks(shapes), "squeeze": squeeze})


def _matches(shapes: Shapes) -> bool:
    attended = "attention3.fc.0.weight" in shapes
    return "conv4.0.weight" in shapes and (attended or "conv5.0.weight" not in shapes)


CNN = ModelType(
    name="cnn",
    build=build,
    classifier_key="classifier.4.weight",
    matches=_matches,
    read=_read,
    inputs=image_input,
    synthetic_inputs=synthetic_images,
)
