"""Choosing the next token from logits. Pure, on numpy; the same seed and logits give the same tokens.

The order is the customary one: temperature, then ``top_k``, then ``top_p``, then a draw from what is left
(``transformers/generation/logits_process.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token always.
        top_p: the likeliest tokens that together have at least this probability take part; 0 leaves one.
        top_k: at most so many take part; 0 for all.
        seed: of the draws; None for one that nobody knows.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


class Sampler:
    """Chooses the tokens of one sequence."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Logits) -> int:
        """Return the next token for finite ``(vocabulary,) float32`` logits."""
        if self._sampling.temperature == 0:
            return int(np.argmax(logits))
        tokens, probabilities = candidates(logits, self._sampling)
        place = np.searchsorted(np.cumsum(probabilities), self._random.random(), side="right")
        return int(tokens[min(int(place), len(tokens) - 1)])


def candidates(logits: Logits, sampling: Sampling) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return the tokens that take part in a draw, and their probabilities, which add up to 1."""
    tokens: Any = np.arange(len(logits))
    if 0 < sampling.top_k < len(logits):
        tokens = np.sort(np.argpartition(logits, -sampling.top_k)[-sampling.top_k :])
    scaled = (logits[tokens].astype(np.float64) - float(logits.max())) / sampling.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        before = np.cumsum(probabilities[order]) - probabilities[order]
        kept = order[(before < sampling.top_p) | (np.arange(len(order)) == 0)]
        tokens, probabilities = tokens[kept], probabilities[kept] / probabilities[kept].sum()
    return tokens, probabilities
