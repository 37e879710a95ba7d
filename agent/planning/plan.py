"""Choose a method: the matrix gives the prior, the budget what fits, and the record says why.

Pure: the same device, checkpoint and wish always give the same plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.planning.matrix import MATRIX, Conditions, Row, match
from agent.planning.memory import estimate
from agent.planning.methods import METHODS, method

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

LADDER = ("nf4", "nf4-dq", "fp4", "fp4-dq")
"""The 4-bit methods from the best answers to the smallest tables."""

UPWARD = {"fp4": ("nf4", "int8", "fp16"), "fp4-dq": ("nf4-dq", "int8", "fp16")}
"""Where a 4-bit choice leads when the gate refuses it: better answers for more bytes, step by step."""
UPWARD_DEFAULT = ("int8", "fp16")


@dataclass(frozen=True)
class Budget:
    """The memory that a model may take, and how that is known.

    Attributes:
        available_bytes: what the device says is free for use.
        reserve_bytes: what stays free for everything else.
        source: where ``available_bytes`` comes from: ``nvml``, ``cuda``, ``meminfo`` or ``cgroup``.
        total_bytes: the device's memory.
        limit_bytes: a fixed budget from the configuration, or None for ``auto``.
        has_gpu, is_integrated, capability: the device, as the matrix judges it.
    """

    available_bytes: int
    reserve_bytes: int
    source: str
    total_bytes: int
    limit_bytes: int | None = None
    has_gpu: bool = False
    is_integrated: bool = False
    capability: tuple[int, int] | None = None

    @property
    def bytes(self) -> int:
        """What a model may take now."""
        free = max(0, self.available_bytes - self.reserve_bytes)
        return free if self.limit_bytes is None else min(free, self.limit_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for the decision record."""
        return {
            "bytes": self.bytes,
            "available_bytes": self.available_bytes,
            "reserve_bytes": self.reserve_bytes,
            "limit_bytes": self.limit_bytes,
            "total_bytes": self.total_bytes,
            "source": self.source,
        }

    def __str__(self) -> str:
        limited = "" if self.limit_bytes is None else f", limited to {size(self.limit_bytes)} by configuration"
        return (
            f"{size(self.bytes)} of {size(self.available_bytes)} available according to {self.source}, "
            f"reserve {size(self.reserve_bytes)}{limited}"
        )


@dataclass(frozen=True)
class Candidate:
    """One method, weighed."""

    method: str
    estimated_bytes: int
    fits: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return the candidate for the decision record."""
        return {
            "method": self.method,
            "estimated_bytes": self.estimated_bytes,
            "fits": self.fits,
            "why": self.why,
        }


@dataclass(frozen=True)
class Plan:
    """A decision that can be read back.

    Attributes:
        requested: the method asked for, or ``auto``.
        row: the row of the matrix that describes the device.
        share: part of the budget that the model needs under nf4, infinite without a budget.
        budget: the memory that decided.
        candidates: every method that was weighed, in order of preference.
        chosen: the one to build, or None when nothing fits.
        fallbacks: what to build next, in this order, if the gate refuses the chosen one; for ``auto`` only.
        reason: one sentence.
    """

    requested: str
    row: Row
    share: float
    budget: Budget
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    fallbacks: tuple[Candidate, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the decision record, to which measurements are added later."""
        return {
            "scenario": self.row.scenario,
            "rule": self.row.rule(),
            "share": round(self.share, 6) if math.isfinite(self.share) else None,
            "rationale": self.row.rationale,
            "requested": self.requested,
            "budget": self.budget.to_json(),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "method": self.chosen.method if self.chosen else None,
            "fallbacks": [candidate.method for candidate in self.fallbacks],
            "admission": "side_by_side" if self.chosen else "refuse",
            "reason": self.reason,
        }


def plan(
    numels: Sequence[int],
    budget: Budget,
    *,
    requested: str = "auto",
    usable: Collection[str] = tuple(METHODS),
    matrix: tuple[Row, ...] = MATRIX,
) -> Plan:
    """Choose a method for a checkpoint on a device.

    Args:
        numels: number of weights of each tensor of the checkpoint.
        budget: the memory, and the device it belongs to.
        requested: a method's name, or ``auto`` for the matrix and what fits.
        usable: the methods that passed the device's self-test.
        matrix: the rows to judge by.

    Raises:
        UnknownMethodError: when ``requested`` is neither ``auto`` nor a method.
    """
    conditions = _conditions(numels, budget)
    row = match(conditions, matrix)
    names = _preference(row.method) if requested == "auto" else (method(requested).name,)
    candidates = tuple(_weigh(name, numels, budget, usable) for name in names)
    chosen = next((candidate for candidate in candidates if candidate.fits), None)
    upward = UPWARD.get(chosen.method, UPWARD_DEFAULT) if chosen and requested == "auto" else ()
    fallbacks = tuple(_weigh(name, numels, budget, usable) for name in upward)
    return Plan(
        requested,
        row,
        conditions.share,
        budget,
        candidates,
        chosen,
        tuple(candidate for candidate in fallbacks if candidate.fits),
        _reason(requested, row, candidates, chosen),
    )


def size(count: int) -> str:
    """Return ``count`` bytes for people: ``412 MiB``, ``3.1 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"  # noqa: PLR2004
        value /= 1024
    return f"{value:.1f} GiB"


def _conditions(numels: Sequence[int], budget: Budget) -> Conditions:
    needed = estimate(numels, method("nf4")).total_bytes
    share = needed / budget.bytes if budget.bytes else float("inf")
    return Conditions(budget.has_gpu, budget.is_integrated, budget.capability, budget.total_bytes, share)


def _preference(prior: str) -> tuple[str, ...]:
    """The prior first; then what is smaller; last what is better, for a device on which nothing else runs."""
    if prior not in LADDER:
        return (prior, *LADDER)
    position = LADDER.index(prior)
    return LADDER[position:] + LADDER[:position][::-1]


def _weigh(name: str, numels: Sequence[int], budget: Budget, usable: Collection[str]) -> Candidate:
    needed = estimate(numels, method(name)).total_bytes
    if name not in usable:
        return Candidate(name, needed, fits=False, why="failed the self-test on this device")
    if needed > budget.bytes:
        return Candidate(name, needed, fits=False, why=f"needs {size(needed)}, budget {budget}")
    return Candidate(name, needed, fits=True, why=f"needs {size(needed)} of {size(budget.bytes)}")


def _reason(requested: str, row: Row, candidates: tuple[Candidate, ...], chosen: Candidate | None) -> str:
    if chosen is None:
        least = min(candidates, key=lambda candidate: candidate.estimated_bytes)
        return f"{least.method} {least.why}"
    if requested != "auto":
        return f"{chosen.method} was asked for and fits: {chosen.why}"
    if chosen.method == row.method:
        return f"{row.scenario}: {row.rationale}; {chosen.why}"
    return f"{row.scenario} asks for {row.method}, which {candidates[0].why}; {chosen.method} {chosen.why}"
