"""Image to sequence: what the rnn types are fed, computed from 64x64 images as their training computed it.

All functions take ``(n, 64, 64)`` images with bright strokes on dark. Sums are taken in the images' own precision;
thresholds and truncations follow the trainer exactly, because a radical id that is off by one is another radical.
"""

from __future__ import annotations

import numpy as np

CELL = 8
"""Side of a grid cell in pixels: 8 x 8 cells of 8 x 8 pixels, row-major."""

STROKE_FEATURES = 8
MAX_STROKES, MIN_STROKES = 30, 5
RADICAL_SLOTS = 5
RADICAL_IDS = 499
"""Hashed radical ids run from 1 to this; 0 is padding. The fallback ids of a nearly empty image can reach 500, one
more than the smallest vocabulary holds."""

_THRESHOLD_OVER_MEAN = 0.1
_BYTE_MAX = 255.0
_MIN_CELL_PIXELS = 2
_MIN_REGION_PIXELS = 5
_MIN_RADICALS = 2
_EMPTY_MEAN = 0.1
_CENTRE = slice(16, 48)


def cell_statistics(images: np.ndarray) -> np.ndarray:
    """Return ``(n, 64, 4)`` float32: mean, population standard deviation, max, min of each grid cell."""
    cells = _cells(images).reshape(len(images), -1, CELL * CELL)
    columns = (cells.mean(-1), cells.std(-1), cells.max(-1), cells.min(-1))
    return np.stack(columns, axis=-1).astype(np.float32)


def stroke_features(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(n, 30, 8)`` float32 rows, zero-padded, and ``(n,)`` int64 lengths.

    A row describes one grid cell with at least two bright pixels: mean, standard deviation, bright share, row and
    column of the cell over 8, max, mean of the bright pixels, bright share again.
    """
    rows = [_strokes_of(_scaled(image)) for image in images]
    padded = np.zeros((len(rows), MAX_STROKES, STROKE_FEATURES), dtype=np.float32)
    for target, found in zip(padded, rows, strict=True):
        target[: len(found)] = found
    return padded, np.array([len(found) for found in rows], dtype=np.int64)


def radical_ids(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(n, 5)`` int64 ids, zero-padded, and ``(n,)`` int64 lengths, at least 2.

    Ids are hashes of the density and brightness of the four quadrants and of the centre.
    """
    ids = [_radicals_of(_scaled(image)) for image in images]
    padded = np.zeros((len(ids), RADICAL_SLOTS), dtype=np.int64)
    for target, found in zip(padded, ids, strict=True):
        target[: len(found)] = found
    return padded, np.array([len(found) for found in ids], dtype=np.int64)


def _cells(images: np.ndarray) -> np.ndarray:
    """Return images of shape (n, 64, 64) as (n, 8, 8, 8, 8): cell row and column, then pixel row and column."""
    grid = images.shape[-1] // CELL
    cells: np.ndarray = images.reshape(-1, grid, CELL, grid, CELL).swapaxes(2, 3)
    return cells


def _scaled(image: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = image / _BYTE_MAX if image.max() > 1 else image
    return scaled


def _threshold(image: np.ndarray) -> float:
    return float(image.mean() + _THRESHOLD_OVER_MEAN)


def _mean_above(pixels: np.ndarray, threshold: float, otherwise: float = 0.0) -> float:
    bright = pixels[pixels > threshold]
    return float(bright.mean()) if bright.size else otherwise


def _strokes_of(image: np.ndarray) -> np.ndarray:
    """Return the stroke rows of one image, at most 30."""
    threshold = _threshold(image)
    rows = [
        [*_summary(cell, threshold, (i / CELL, j / CELL)), float((cell > threshold).mean())]
        for i, line in enumerate(_cells(image)[0])
        for j, cell in enumerate(line)
        if np.count_nonzero(cell > threshold) >= _MIN_CELL_PIXELS
    ]
    if len(rows) < MIN_STROKES:
        rows.append([*_summary(image, threshold, (0.5, 0.5)), float((image > 0).mean())])
    if len(rows) > MAX_STROKES:
        rows = [rows[int(kept)] for kept in np.linspace(0, len(rows) - 1, MAX_STROKES)]
    return np.array(rows, dtype=np.float32)


def _summary(pixels: np.ndarray, threshold: float, place: tuple[float, float]) -> list[float]:
    """Return the first seven features of a stroke row."""
    share = float((pixels > threshold).mean())
    return [
        float(pixels.mean()),
        float(pixels.std()),
        share,
        *place,
        float(pixels.max()),
        _mean_above(pixels, threshold),
    ]


def _radicals_of(image: np.ndarray) -> list[int]:
    """Return the two to five radical ids of one image."""
    threshold = _threshold(image)
    half = image.shape[0] // 2
    quadrants = [image[top : top + half, left : left + half] for top in (0, half) for left in (0, half)]
    ids = []
    for index, pixels in enumerate(quadrants):
        density, mean, enough = _brightness(pixels, threshold)
        if enough:
            ids.append(_hashed(100 * density + 50 * mean + 30 * float(pixels.max()) + 10 * index))
    density, mean, enough = _brightness(image[_CENTRE, _CENTRE], threshold)
    if enough:
        ids.append(_hashed(150 * density + 80 * mean))
    if len(ids) >= _MIN_RADICALS:
        return ids
    density = float((image > threshold).mean())
    return [int(density * RADICAL_IDS) + 1, int(_mean_above(image, threshold, _EMPTY_MEAN) * RADICAL_IDS) + 1]


def _brightness(pixels: np.ndarray, threshold: float) -> tuple[float, float, bool]:
    """Return the share of bright pixels, their mean, and whether there are enough of them."""
    bright = pixels > threshold
    return float(bright.mean()), _mean_above(pixels, threshold), bool(np.count_nonzero(bright) >= _MIN_REGION_PIXELS)


def _hashed(value: float) -> int:
    return int(value % RADICAL_IDS) + 1
