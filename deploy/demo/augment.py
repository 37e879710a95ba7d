"""Makes many writings of one drawn character: pen, hand, place and picture vary, the character does not.

Rules: everything is batched torch on `(B, 1, 64, 64)` float32 in [0, 1], each sample gets its own values, and all
randomness comes from the caller's generator. The ranges stay below what would turn one kanji into another: no
mirroring, no quarter turns, no cropping of strokes.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

THICKEN, THIN = 1.0, 0.6
"""Full steps of a 3x3 grey dilation and erosion; thinning stays short of one step, which would erase hairlines."""
TURN_RAD = math.radians(8)
SHEAR = 0.15
ASPECT = 0.1
SCALE = (0.8, 1.15)
SHIFT = 0.12
"""Of half the image: 0.12 is about four pixels."""
BEND = 0.07
"""Largest displacement of the elastic field's control points, of half the image: about two pixels."""
BEND_POINTS = 5
NOISE = 0.08
FAINTEST = 0.6

_BLUR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).view(1, 1, 3, 3) / 16


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return one random variation of each image, `(B, 1, 64, 64)` float32 in [0, 1]."""
    images = _vary_stroke_width(images, generator)
    images = _warp(images, generator)
    return _vary_picture(images, generator)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _vary_stroke_width(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    amount = _uniform((len(images), 1, 1, 1), -THIN, THICKEN, generator)
    thick = functional.max_pool2d(images, 3, stride=1, padding=1)
    thin = -functional.max_pool2d(-images, 3, stride=1, padding=1)
    return torch.lerp(images, torch.where(amount > 0, thick, thin), amount.abs())


def _warp(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count = len(images)
    grid = functional.affine_grid(_affine(count, generator), list(images.shape), align_corners=False)
    bend = _uniform((count, 2, BEND_POINTS, BEND_POINTS), -BEND, BEND, generator)
    field = functional.interpolate(bend, size=images.shape[-2:], mode="bicubic", align_corners=True)
    return functional.grid_sample(images, grid + field.permute(0, 2, 3, 1), align_corners=False)


def _affine(count: int, generator: torch.Generator) -> torch.Tensor:
    """`(count, 2, 3)` maps from output to input coordinates: shear, then turn, then size, then shift."""
    turn = _uniform((count,), -TURN_RAD, TURN_RAD, generator)
    shear = _uniform((count,), -SHEAR, SHEAR, generator)
    scale = 1 / _uniform((count,), *SCALE, generator)
    aspect = _uniform((count,), 1 - ASPECT, 1 + ASPECT, generator)
    cos, sin = turn.cos() * scale, turn.sin() * scale
    rows = torch.stack([cos * aspect, cos * shear - sin, sin * aspect, sin * shear + cos], dim=1).view(count, 2, 2)
    return torch.cat([rows, _uniform((count, 2, 1), -SHIFT, SHIFT, generator)], dim=2)


def _vary_picture(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shape = (len(images), 1, 1, 1)
    blurred = functional.conv2d(images, _BLUR, padding=1)
    images = torch.lerp(images, blurred, _uniform(shape, 0, 1, generator))
    noise = torch.randn(images.shape, generator=generator) * _uniform(shape, 0, NOISE, generator)
    return (images * _uniform(shape, FAINTEST, 1, generator) + noise).clamp(0, 1)
