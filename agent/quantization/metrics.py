"""How much one model's answers differ from another's. Pure functions of tensors; no model, no file.

Rows in which either side is NaN or infinite are counted by ``non_finite_rows`` and never averaged away: they count as
disagreement, and cosine and divergence are taken over the finite rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from agent.quantization import neighbours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def finite_rows(logits: Tensor) -> Tensor:
    """Return which rows of ``(rows, classes)`` are finite, ``(rows,) bool``."""
    return torch.isfinite(logits).all(dim=1)


def non_finite_rows(logits: Tensor) -> int:
    """Return in how many rows of ``(rows, classes)`` a value is NaN or infinite."""
    return int((~finite_rows(logits)).sum())


def agreement(source: Tensor, other: Tensor) -> float:
    """Return the share of rows whose largest logit is at the same class; a non-finite row never agrees."""
    same = source.argmax(dim=1) == other.argmax(dim=1)
    return float((same & finite_rows(source) & finite_rows(other)).double().mean())


def neighbour_agreement(source: Tensor, other: Tensor) -> float | None:
    """Return the share of rows of ``(rows, width)`` embeddings whose nearest other row by cosine is the same.

    None if the rows are too few to tell; see ``neighbours`` for that, for ties and for rows that are not finite.
    """
    return neighbours.agreement(source.numpy(), other.numpy())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest logit is at ``labels``, ``(rows,) int64``."""
    return float(((logits.argmax(dim=1) == labels) & finite_rows(logits)).double().mean())


def cosine(source: Tensor, other: Tensor) -> float | None:
    """Return the mean cosine between rows of logits; None if no row is finite on both sides."""
    rows = finite_rows(source) & finite_rows(other)
    if not rows.any():
        return None
    return float(functional.cosine_similarity(source[rows].double(), other[rows].double(), dim=1).mean())


def divergence(source: Tensor, other: Tensor) -> float | None:
    """Return the mean Kullback-Leibler divergence KL(source || other) of the softmaxes, in nats.

    None if no row is finite on both sides. Rounding can make the sum a hair negative; it is cut at 0.
    """
    rows = finite_rows(source) & finite_rows(other)
    if not rows.any():
        return None
    p, q = (functional.log_softmax(logits[rows].double(), dim=1) for logits in (source, other))
    return max(0.0, float((p.exp() * (p - q)).sum(dim=1).mean()))


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return ``p50`` and ``p99``, nearest rank: always a time that was measured."""
    ordered = sorted(milliseconds)
    return {f"p{share}": ordered[max(0, -(-len(ordered) * share // 100) - 1)] for share in (50, 99)}
