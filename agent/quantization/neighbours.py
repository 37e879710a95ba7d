"""Whether embeddings keep their nearest neighbours: what agreement is where an answer has no classes.

The builder's gate and the server's canary both measure it here, so this file knows numpy alone: no torch.

Rules:
- Near is by cosine, among the other rows. A row has kept its neighbour if the one that the other side names is the
  source's, or one that the source holds equally near, as it does duplicates.
- The other side names one row, ties or not: a model that answers everything alike must not agree with anything.
- A row that is not finite has no neighbour, and is none: it never agrees, and who loses it as a neighbour disagrees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MIN_ROWS = 3
"""With two rows each has but one neighbour, which every model keeps."""
TIE = 8 * float(np.finfo(np.float32).eps)
"""Cosines closer than this are equal: float32 vectors are not known better after a forward pass."""
CHUNK_ROWS = 64
"""Rows whose cosines with all others are in memory at a time."""


def agreement(source: Array, other: Array) -> float | None:
    """Return the share of rows whose nearest other row is the same; None for fewer than ``MIN_ROWS``.

    Args:
        source: ``(rows, width)`` floats.
        other: ``(rows, width)`` floats for the same rows.
    """
    rows = len(source)
    if rows < MIN_ROWS:
        return None
    ours, theirs = _directions(source), _directions(other)
    kept = sum(_kept(_cosines(*ours, start), _cosines(*theirs, start)) for start in range(0, rows, CHUNK_ROWS))
    return kept / rows


def _directions(vectors: Array) -> tuple[Array, Array]:
    """Return the rows at length 1, ``(rows, width) float64``, and which are finite; zeros and the others are 0."""
    finite = np.all(np.isfinite(vectors), axis=1)
    wide = np.where(finite[:, None], vectors, 0).astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1), finite


def _cosines(directions: Array, finite: Array, start: int) -> Array:
    """Return those of a chunk's rows with every row, ``(chunk, rows)``; -inf for who is no neighbour."""
    chunk = slice(start, start + CHUNK_ROWS)
    found: Array = directions[chunk] @ directions.T
    found[~finite[chunk]] = -np.inf
    found[:, ~finite] = -np.inf
    itself = np.arange(len(found))
    found[itself, start + itself] = -np.inf
    return found


def _kept(source: Array, other: Array) -> int:
    """Return how many rows of two chunks of cosines have the same neighbour."""
    rows, named = np.arange(len(other)), other.argmax(axis=1)
    near = source[rows, named]
    is_neighbour = np.isfinite(near) & np.isfinite(other[rows, named])
    return int((is_neighbour & (near >= source.max(axis=1) - TIE)).sum())
