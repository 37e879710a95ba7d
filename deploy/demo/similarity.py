"""How alike two fonts draw the same characters: the check that a held-out font is no sibling of a training font.

The measure is the correlation of pixels, averaged over characters. Weights of one family and fonts drawn from one
source stand near or above 0.8, a copy at 1; unrelated designs below 0.7. It sees outlines, not history: that no
common source is known is for `fonts` to say.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def closest(fonts: torch.Tensor, others: torch.Tensor) -> tuple[tuple[float, int], ...]:
    """Find for each font the most alike of the others.

    Args:
        fonts: `(F, C, 1, 64, 64)` uint8, the same C characters by F fonts.
        others: `(G, C, 1, 64, 64)` uint8.

    Returns:
        Per font the mean Pearson correlation of the pixels with its closest, and that one's index in `others`.
    """
    best = _alike(fonts, others).max(dim=1)
    return tuple(zip(best.values.tolist(), best.indices.tolist(), strict=True))


def most_alike_pair(fonts: torch.Tensor) -> tuple[float, int, int]:
    """Find the two most alike among `(F, C, 1, 64, 64)` fonts: their correlation and both indices."""
    alike = _alike(fonts, fonts).fill_diagonal_(-1)
    first, second = divmod(int(alike.argmax()), len(fonts))
    return float(alike.max()), first, second


def _alike(fonts: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return torch.einsum("fcp,gcp->fg", _standardised(fonts), _standardised(others)) / fonts.shape[1]


def _standardised(fonts: torch.Tensor) -> torch.Tensor:
    pixels = fonts.flatten(2).float()
    return functional.normalize(pixels - pixels.mean(dim=2, keepdim=True), dim=2)
