"""hiercode: a small convolutional backbone, a projection, and a head with BatchNorm after its ReLU.

Its checkpoints also hold a codebook, a codeword selector and sometimes prototypes, which the forward pass never
reads. They load strictly; ``inference_only`` builds the network without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agent.architectures.blocks import unit_noise
from agent.architectures.errors import UnrecognisedCheckpointError
from agent.architectures.images import as_images, image_input, synthetic_images
from agent.architectures.model_type import ModelType, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

_HIDDEN = 512
_CODEBOOK = "codebook.codebook"
_UNUSED = r"^(prototypes$|codebook\.|codeword_selector\.)"


def _normalised(channels_in: int, channels_out: int, kernel: int, groups: int = 1) -> list[nn.Module]:
    """Return a convolution, strided if 3x3, with BatchNorm and ReLU."""
    stride, padding = (2, 1) if kernel > 1 else (1, 0)
    convolution = nn.Conv2d(
        channels_in, channels_out, kernel, stride=stride, padding=padding, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]


class Backbone(nn.Module):
    """Five convolutions, the mean over the map, a projection without activation."""

    def __init__(self, output_dim: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_normalised(1, 16, kernel=3),
            *_normalised(16, 32, kernel=3, groups=16),
            *_normalised(32, 32, kernel=1),
            *_normalised(32, 64, kernel=3, groups=32),
            *_normalised(64, 64, kernel=1),
            nn.AdaptiveAvgPool2d(1),
        )
        self.proj = nn.Linear(64, output_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(batch, output_dim)`` features of ``(batch, 1, 64, 64)`` images."""
        features: Tensor = self.features(images)
        projected: Tensor = self.proj(features.flatten(1))
        return projected


class Codebook(nn.Module):
    """Holds the leaf codes and the depth weights of training; has no forward pass."""

    def __init__(self, depth: int, dim: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(unit_noise(2**depth, dim))
        self.register_buffer("routing_weights", torch.ones(depth))


class HierCode(nn.Module):
    """The network.

    Args:
        num_classes: rows of the last layer.
        backbone_output_dim: width of the projection.
        codebook: the sizes of what forward never reads (total codes, code width, depth), None to leave it out.
        has_prototypes: whether one code-wide prototype a class is held too.
    """

    def __init__(
        self, num_classes: int, backbone_output_dim: int, codebook: tuple[int, int, int] | None, *, has_prototypes: bool
    ) -> None:
        super().__init__()
        if codebook is not None and has_prototypes:
            self.prototypes = nn.Parameter(unit_noise(num_classes, codebook[1]))
        self.backbone = Backbone(backbone_output_dim)
        if codebook is not None:
            total, dim, depth = codebook
            self.codebook = Codebook(depth, dim)
            self.codeword_selector = nn.Sequential(
                nn.Linear(backbone_output_dim, _HIDDEN), nn.ReLU(), nn.Dropout(0.2), nn.Linear(_HIDDEN, total)
            )
        self.classifier = nn.Sequential(
            nn.Linear(backbone_output_dim, _HIDDEN),
            nn.ReLU(),
            nn.BatchNorm1d(_HIDDEN),
            nn.Dropout(0.3),
            nn.Linear(_HIDDEN, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits of images of 4096 values each, in any layout."""
        logits: Tensor = self.classifier(self.backbone(as_images(images)))
        return logits


def build(
    num_classes: int,
    *,
    codebook_total_size: int = 1024,
    codebook_dim: int = 128,
    hierarch_depth: int = 10,
    backbone_output_dim: int = 256,
    enable_prototype_learning: bool = True,
    inference_only: bool = False,
) -> nn.Module:
    """Return a hiercode, without the parts that forward never reads if ``inference_only``."""
    codebook = None if inference_only else (codebook_total_size, codebook_dim, hierarch_depth)
    return HierCode(num_classes, backbone_output_dim, codebook, has_prototypes=enable_prototype_learning)


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    if "classifier.3.weight" in shapes and "classifier.4.weight" not in shapes:
        raise UnrecognisedCheckpointError(
            "it looks like hiercode in its form of 16 November 2025, whose answers are drawn at random even at "
            "inference: there is no function to serve; train it again with a later version"
        )
    width = shapes.size("backbone.proj.weight")
    unused = shapes.matching(_UNUSED)
    if not unused:
        return Reading({"backbone_output_dim": width, "inference_only": True})
    return Reading({"backbone_output_dim": width, **_read_codebook(shapes)}, unused=unused)


def _read_codebook(shapes: Shapes) -> dict[str, Any]:
    codes = shapes.size(_CODEBOOK)
    return {
        "codebook_total_size": shapes.size("codeword_selector.3.weight"),
        "codebook_dim": shapes.size(_CODEBOOK, axis=1),
        # From the rows, not from the routing weights: a forged depth must not become 2**depth rows.
        "hierarch_depth": codes.bit_length() - 1,
        "enable_prototype_learning": "prototypes" in shapes,
    }


def _matches(shapes: Shapes) -> bool:
    return "backbone.proj.weight" in shapes


HIERCODE = ModelType(
    name="hiercode",
    build=build,
    classifier_key="classifier.4.weight",
    matches=_matches,
    read=_read,
    inputs=image_input,
    synthetic_inputs=synthetic_images,
    has_unused_parts=True,
)
