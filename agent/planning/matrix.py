"""The decision matrix: which method a kind of device should use, as rows of data.

The rows are the scenarios of the 4-bit guide that this agent implements; each condition is a number that can be read
off a device. The first row whose condition holds applies. What a row promises is the prior only: what fits and what
the gate measures decide, unless an operator wants the matrix followed to the letter.

`MATRIX` is what `configs/matrix.toml` says; `agent.contract.matrix` reads such files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Callable

Gpu = Literal["none", "integrated", "dedicated"]
Purpose = Literal["serve", "research"]
Capability = tuple[int, int]

TURING = (7, 5)
"""Compute capability from which bitsandbytes recommends its 4-bit kernels (its README's support table)."""
CLOUD_BYTES = 12 * 2**30
"""Device memory from which a dedicated GPU counts as one that has no need to save: a T4, the smallest of the clouds'
usual ones, shows 14.8 GiB of its 16 GB, and a desktop's card of 12 GB a little less than 12 GiB."""


@dataclass(frozen=True)
class Conditions:
    """What a row is judged by.

    Attributes:
        gpu: whether there is a CUDA device, and whether it shares the CPU's memory.
        capability: CUDA compute capability, None without a GPU.
        total_bytes: the device's memory.
        budget_bytes: what the model may take of it.
        share: part of the budget that the model needs under nf4, 0 to 1 and above.
        kernel: which arithmetic passed the self-test for 4-bit weights: ``bitsandbytes`` or ``torch``.
        purpose: what the device is for, by configuration.
    """

    gpu: Gpu
    capability: Capability | None
    total_bytes: int
    budget_bytes: int
    share: float
    kernel: str = "bitsandbytes"
    purpose: Purpose = "serve"


@dataclass(frozen=True)
class When:
    """The condition of a row: all that is said has to hold, what is None is not asked for.

    Lower bounds are included, upper bounds are not, so that two rows can share a bound without a gap or an overlap.
    """

    purpose: Purpose | None = None
    gpu: Gpu | None = None
    kernel: str | None = None
    min_share: float | None = None
    below_share: float | None = None
    min_budget_bytes: int | None = None
    below_budget_bytes: int | None = None
    min_total_bytes: int | None = None
    below_total_bytes: int | None = None
    min_capability: Capability | None = None
    below_capability: Capability | None = None

    def holds(self, device: Conditions) -> bool:
        """Return whether every condition holds for ``device``; a capability that is unknown meets none."""
        named = (
            self.purpose in (None, device.purpose),
            self.gpu in (None, device.gpu),
            self.kernel in (None, device.kernel),
        )
        bounds = (
            _within(device.share, self.min_share, self.below_share),
            _within(device.budget_bytes, self.min_budget_bytes, self.below_budget_bytes),
            _within(device.total_bytes, self.min_total_bytes, self.below_total_bytes),
            _within(device.capability, self.min_capability, self.below_capability),
        )
        return all(named) and all(bounds)

    def __str__(self) -> str:
        parts = (
            self.purpose and f"the device is for {self.purpose}",
            self.gpu and _GPU_WORDS[self.gpu],
            self.kernel and f"4-bit weights run on {self.kernel}'s kernel",
            _bounds("the model takes", self.min_share, self.below_share, "{:.0%} of the budget".format),
            _bounds("the budget is", self.min_budget_bytes, self.below_budget_bytes, size),
            _bounds("device memory is", self.min_total_bytes, self.below_total_bytes, size),
            _bounds("compute capability is", self.min_capability, self.below_capability, "{0[0]}.{0[1]}".format),
        )
        return " and ".join(part for part in parts if part) or "no earlier row applies"


_GPU_WORDS = {
    "none": "no GPU",
    "integrated": "a GPU that shares the CPU's memory",
    "dedicated": "a GPU with memory of its own",
}


@dataclass(frozen=True)
class Row:
    """One scenario of the matrix.

    Attributes:
        scenario: its name in decision records.
        methods: the prior; of several, all are built and measured, and the best is kept.
        rationale: why, in words for an operator.
        when: its condition; the default always holds.
    """

    scenario: str
    methods: tuple[str, ...]
    rationale: str
    when: When = field(default_factory=When)

    @property
    def method(self) -> str:
        """The prior, or the first of them."""
        return self.methods[0]


MATRIX: tuple[Row, ...] = (
    Row(
        "research",
        ("nf4", "fp4"),
        "both are built and measured, and the one that agrees better is kept",
        When(purpose="research"),
    ),
    Row(
        "extreme-constraints",
        ("fp4-dq",),
        "the model takes half of what there is, so its tables have to be small",
        When(min_share=0.5),
    ),
    Row(
        "older-gpu",
        ("fp4",),
        "the guide's choice for older GPUs",
        When(below_capability=TURING),
    ),
    Row(
        "cloud-gpu",
        ("nf4",),
        "a GPU with room to spare: the best balance of accuracy and speed",
        When(gpu="dedicated", min_total_bytes=CLOUD_BYTES),
    ),
    Row(
        "edge-limited-memory",
        ("nf4-dq",),
        "quantizing the scales too saves 8 % of the weights' memory and costs hardly any accuracy",
        When(min_share=0.1),
    ),
    Row(
        "edge",
        ("nf4",),
        "it fits with room to spare: the recommended balance for edge deployments",
    ),
)


def match(device: Conditions, matrix: tuple[Row, ...] = MATRIX) -> Row:
    """Return the first row that applies.

    Raises:
        LookupError: when no row applies; a matrix that was read from a file always ends with one that does.
    """
    for row in matrix:
        if row.when.holds(device):
            return row
    raise LookupError(f"no row of the matrix applies to {device}")


def _within(value: Any, least: Any, below: Any) -> bool:
    """Whether ``least <= value < below``, where both bounds may be None; a value that is None is within no bound."""
    if value is None:
        return least is None and below is None
    return (least is None or value >= least) and (below is None or value < below)


def _bounds(subject: str, least: Any, below: Any, words: Callable[[Any], str]) -> str | None:
    told = [] if least is None else [f"at least {words(least)}"]
    told += [] if below is None else [f"below {words(below)}"]
    return f"{subject} {' and '.join(told)}" if told else None
