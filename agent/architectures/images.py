"""The image input that most types share: 64x64 grey images, bright strokes on black, values in [0, 1].

Values are not normalised to a mean or deviation: the models were trained on the plain range.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agent.architectures.model_type import Options, TensorSpec

SIDE = 64
"""Height and width in pixels of every image input."""

_MIN_STROKES, _MAX_STROKES = 3, 8
_HALF_WIDTH_RANGE = (0.02, 0.05)
_SOFTNESS = 0.02


def image_input(_options: Options) -> tuple[TensorSpec, ...]:
    """Return the one input of image types: ``(batch, 1, 64, 64)`` float32."""
    return (TensorSpec("input", "FP32", (-1, 1, SIDE, SIDE)),)


def as_images(images: Tensor) -> Tensor:
    """Return images of any layout, flat ``(batch, 4096)`` included, as ``(batch, 1, 64, 64)``."""
    return images.reshape(images.shape[0], 1, SIDE, SIDE)


def draw_strokes(rows: int, generator: np.random.Generator) -> np.ndarray:
    """Return ``(rows, 64, 64)`` float32 images of three to eight straight strokes each, bright on black.

    Written characters are mostly such strokes, so every layer sees activations of the usual size; pure noise would
    wash out in the mean pooling of most types.
    """
    axis = np.linspace(0.0, 1.0, SIDE, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    images = np.zeros((rows, SIDE, SIDE), dtype=np.float32)
    for image in images:
        for _ in range(generator.integers(_MIN_STROKES, _MAX_STROKES + 1)):
            ends = generator.uniform(0.1, 0.9, (2, 2)).astype(np.float32)
            half_width = generator.uniform(*_HALF_WIDTH_RANGE)
            ink = np.clip((half_width - _distance(grid, ends)) / _SOFTNESS + 1.0, 0.0, 1.0)
            np.maximum(image, ink * generator.uniform(0.7, 1.0), out=image)
    return images


def _distance(grid: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return each grid point's distance to the segment between two points."""
    start, along = ends[0], ends[1] - ends[0]
    length_squared = float(along @ along) + np.finfo(np.float32).tiny
    position = np.clip((grid - start) @ along / length_squared, 0.0, 1.0)
    distance: np.ndarray = np.linalg.norm(grid - start - position[..., None] * along, axis=-1)
    return distance


def synthetic_images(_options: Options, rows: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """Return drawn images as the input of an image type."""
    return {"input": torch.from_numpy(draw_strokes(rows, generator)).unsqueeze(1)}
