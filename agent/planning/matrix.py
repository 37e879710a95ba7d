"""The decision matrix: which method a kind of device should use, as rows of data.

The rows are the scenarios of the 4-bit guide that this agent implements; each condition is a number that can be read
off a device. The first row whose condition holds applies. What a row promises is the prior only: what fits and what
the gate measures decide.
"""

from __future__ import annotations

from dataclasses import dataclass

TURING = (7, 5)
"""Compute capability from which bitsandbytes recommends its 4-bit kernels (its README's support table)."""
CLOUD_BYTES = 16 * 2**30
"""Device memory from which a dedicated GPU counts as one that has no need to save."""


@dataclass(frozen=True)
class Conditions:
    """What a row is judged by.

    Attributes:
        has_gpu: whether a CUDA device answered.
        is_integrated: whether GPU and CPU share one memory.
        capability: CUDA compute capability, None without a GPU.
        total_bytes: the device's memory.
        share: part of the budget that the model needs under nf4, 0 to 1 and above.
    """

    has_gpu: bool
    is_integrated: bool
    capability: tuple[int, int] | None
    total_bytes: int
    share: float


@dataclass(frozen=True)
class Row:
    """One scenario of the matrix; a bound that is None is not asked for."""

    scenario: str
    method: str
    rationale: str
    min_share: float | None = None
    needs_dedicated_gpu: bool = False
    min_total_bytes: int | None = None
    below_capability: tuple[int, int] | None = None

    def applies(self, device: Conditions) -> bool:
        """Return whether every condition of the row holds for ``device``."""
        if self.min_share is not None and device.share < self.min_share:
            return False
        if self.needs_dedicated_gpu and (not device.has_gpu or device.is_integrated):
            return False
        if self.min_total_bytes is not None and device.total_bytes < self.min_total_bytes:
            return False
        if self.below_capability is None:
            return True
        return device.capability is not None and device.capability < self.below_capability

    def rule(self) -> str:
        """Return the condition in words, with its numbers."""
        parts = []
        if self.min_share is not None:
            parts.append(f"the model takes at least {self.min_share:.0%} of the budget")
        if self.needs_dedicated_gpu:
            parts.append("a dedicated GPU")
        if self.min_total_bytes is not None:
            parts.append(f"at least {self.min_total_bytes / 2**30:.0f} GiB of device memory")
        if self.below_capability is not None:
            parts.append("compute capability below {}.{}".format(*self.below_capability))
        return " and ".join(parts) or "no earlier row applies"


MATRIX: tuple[Row, ...] = (
    Row("extreme-constraints", "fp4-dq", "smallest tables, acceptable loss", min_share=0.5),
    Row("older-gpu", "fp4", "the guide's choice for older hardware", below_capability=TURING),
    Row(
        "cloud-gpu",
        "nf4",
        "best balance of accuracy and speed",
        needs_dedicated_gpu=True,
        min_total_bytes=CLOUD_BYTES,
    ),
    Row("edge-limited-memory", "nf4-dq", "quantized scales save memory at minimal loss", min_share=0.1),
    Row("edge", "nf4", "fits with room to spare: the recommended balance for edge deployments"),
)


def match(device: Conditions, matrix: tuple[Row, ...] = MATRIX) -> Row:
    """Return the first row that applies.

    Raises:
        LookupError: when no row applies; the shipped matrix ends with one that always does.
    """
    for row in matrix:
        if row.applies(device):
            return row
    raise LookupError(f"no row of the matrix applies to {device}")
