"""How much memory a model needs under a method. Exact for weights, an upper bound for what comes on top.

Sizes are estimates until the builder has measured; the decision record carries both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.planning.methods import DEFAULT_BLOCKSIZE, MIN_PACKED_NUMEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.planning.methods import Method

COMPUTE_BYTES = 4
"""Bytes of one unpacked weight: float32 on a CPU, the larger of the compute dtypes."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of a served model.

    Attributes:
        weights_bytes: resident weights, packed ones and those that stay as they are.
        transient_bytes: the largest weight, unpacked for the moment in which it is used.
    """

    weights_bytes: int
    transient_bytes: int

    @property
    def total_bytes(self) -> int:
        """What has to be free for the model to be loaded and to answer."""
        return self.weights_bytes + self.transient_bytes


def estimate(numels: Sequence[int], method: Method, blocksize: int = DEFAULT_BLOCKSIZE) -> Estimate:
    """Estimate a model whose tensors have ``numels`` weights each, read as float32.

    Tensors below ``MIN_PACKED_NUMEL`` stay at four bytes a weight under every blockwise method.
    """
    packed = [n for n in numels if not method.is_blockwise or n >= MIN_PACKED_NUMEL]
    plain = sum(numels) - sum(packed)
    weights = sum(method.tensor_bytes(n, blocksize) for n in packed) + 4 * plain
    return Estimate(weights, COMPUTE_BYTES * max(packed, default=0))
