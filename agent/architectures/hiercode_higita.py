"""hiercode-higita: 64 image patches ("strokes") softly grouped to 16 radicals, pooled by attention to one character.

The plain form without that hierarchy exists as a build option. Both return a mapping with ``logits`` first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.architectures.blocks import unit_noise
from agent.architectures.images import SIDE, image_input, synthetic_images
from agent.architectures.model_type import ModelType, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

_PATCH = 8
_STROKES = (SIDE // _PATCH) ** 2
_RADICALS = 16
_MAP_CHANNELS = (16, 32)
_GATE_HIDDEN = 64
_PLAIN_FEATURES = 256
_EPSILON = 1e-8
"""Keeps the attention over radicals finite where all gates are closed."""


def _gate(features: int) -> nn.Sequential:
    """Return the two-layer attention score, one value within 0..1 a row."""
    return nn.Sequential(nn.Linear(features, _GATE_HIDDEN), nn.ReLU(), nn.Linear(_GATE_HIDDEN, 1), nn.Sigmoid())


class StrokeEncoder(nn.Module):
    """Cuts a two-layer convolutional map into patches and describes each."""

    def __init__(self, stroke_dim: int) -> None:
        super().__init__()
        patch_features = _MAP_CHANNELS[1] * _PATCH * _PATCH
        self.conv1 = nn.Conv2d(1, _MAP_CHANNELS[0], 3, padding=1)
        self.conv2 = nn.Conv2d(*_MAP_CHANNELS, 3, padding=1)
        self.patch_attention = _gate(patch_features)
        self.fc = nn.Linear(patch_features, stroke_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(batch, 64, stroke_dim)`` strokes and their ``(batch, 64)`` attention."""
        features = torch.relu(self.conv2(torch.relu(self.conv1(images))))
        patches = functional.unfold(features, _PATCH, stride=_PATCH).transpose(1, 2)
        return self.fc(patches), self.patch_attention(patches).squeeze(-1)


class RadicalEncoder(nn.Module):
    """Mixes strokes into radicals by a learned assignment."""

    def __init__(self, stroke_dim: int, radical_dim: int) -> None:
        super().__init__()
        self.stroke_radical_assignment = nn.Parameter(unit_noise(_STROKES, _RADICALS))
        self.stroke_to_radical = nn.Linear(stroke_dim, radical_dim)
        self.radical_attention = _gate(radical_dim)

    def forward(self, strokes: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(batch, 16, radical_dim)`` radicals and their ``(batch, 16)`` attention."""
        projected = self.stroke_to_radical(strokes * attention.unsqueeze(-1))
        # Over the strokes: each radical is a weighted mean of all strokes.
        assignment = self.stroke_radical_assignment.softmax(dim=0)
        radicals = assignment.T @ projected
        return radicals, self.radical_attention(radicals).squeeze(-1)


class CharacterEncoder(nn.Module):
    """Pools radicals into one character vector."""

    def __init__(self, radical_dim: int, character_dim: int) -> None:
        super().__init__()
        middle = character_dim // 2
        self.global_fc = nn.Sequential(nn.Linear(radical_dim, middle), nn.ReLU(), nn.Linear(middle, character_dim))
        self.radical_to_character_attention = _gate(radical_dim)

    def forward(self, radicals: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ``(batch, 1, character_dim)`` character and its ``(batch, 16)`` attention, which sums to 1."""
        gates = self.radical_to_character_attention(radicals).squeeze(-1) * attention
        weights = gates / (gates.sum(dim=1, keepdim=True) + _EPSILON)
        pooled = (weights.unsqueeze(-1) * radicals).sum(dim=1, keepdim=True)
        return self.global_fc(pooled), weights


class HierarchicalEncoder(nn.Module):
    """Strokes, radicals, character: all intermediate values by name."""

    def __init__(self, stroke_dim: int, radical_dim: int, character_dim: int) -> None:
        super().__init__()
        self.stroke_encoder = StrokeEncoder(stroke_dim)
        self.radical_encoder = RadicalEncoder(stroke_dim, radical_dim)
        self.character_encoder = CharacterEncoder(radical_dim, character_dim)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the three levels and their attentions."""
        stroke, stroke_attention = self.stroke_encoder(images)
        radical, radical_attention = self.radical_encoder(stroke, stroke_attention)
        character, character_attention = self.character_encoder(radical, radical_attention)
        return {
            "stroke": stroke,
            "stroke_attention": stroke_attention,
            "radical": radical,
            "radical_attention": radical_attention,
            "character": character,
            "character_attention": character_attention,
        }


class HierarchicalClassifier(nn.Module):
    """The network with its hierarchy.

    Args:
        num_classes: rows of the last layer.
        stroke_dim: width of a stroke.
        radical_dim: width of a radical.
        character_dim: width of the character.
    """

    def __init__(self, num_classes: int, stroke_dim: int, radical_dim: int, character_dim: int) -> None:
        super().__init__()
        self.image_encoder = HierarchicalEncoder(stroke_dim, radical_dim, character_dim)
        self.classifier = nn.Linear(character_dim, num_classes)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Return logits, the character and all levels of ``(batch, 1, 64, 64)`` float32 images."""
        features = self.image_encoder(images)
        character = features["character"][:, 0]
        return {"logits": self.classifier(character), "character_features": character, "features": features}


class PlainClassifier(nn.Module):
    """The network without its hierarchy: two convolutions and the mean over the map."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(
            nn.Conv2d(1, 64, 7, stride=2, padding=3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, _PLAIN_FEATURES, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(_PLAIN_FEATURES, num_classes)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Return logits and the 256 features of ``(batch, 1, 64, 64)`` float32 images."""
        features = self.image_encoder(images)
        return {"logits": self.classifier(features), "features": features}


def build(
    num_classes: int,
    *,
    use_higita_enhancement: bool = True,
    stroke_dim: int = 128,
    radical_dim: int = 256,
    character_dim: int = 512,
) -> nn.Module:
    """Return a hiercode-higita; without the enhancement the dims do not matter."""
    if not use_higita_enhancement:
        return PlainClassifier(num_classes)
    return HierarchicalClassifier(num_classes, stroke_dim, radical_dim, character_dim)


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    if "image_encoder.0.weight" in shapes:
        return Reading({"use_higita_enhancement": False})
    return Reading(
        {
            "use_higita_enhancement": True,
            "stroke_dim": shapes.size("image_encoder.stroke_encoder.fc.weight"),
            "radical_dim": shapes.size("image_encoder.radical_encoder.stroke_to_radical.weight"),
            "character_dim": shapes.size("classifier.weight", axis=1),
        }
    )


def _matches(shapes: Shapes) -> bool:
    return "image_encoder.stroke_encoder.fc.weight" in shapes or "image_encoder.0.weight" in shapes


HIERCODE_HIGITA = ModelType(
    name="hiercode-higita",
    build=build,
    classifier_key="classifier.weight",
    matches=_matches,
    read=_read,
    inputs=image_input,
    synthetic_inputs=synthetic_images,
)
