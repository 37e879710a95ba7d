"""Choose a method: the matrix gives the prior, the budget what fits, and the record says why.

Pure: the same device, model and wish always give the same plan. What is planned here is built and measured by others;
`agent.planning.evidence` says how measurement overrules the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agent.planning.budget import Budget, size
from agent.planning.matrix import MATRIX, Conditions, Gpu, Purpose, Row, match
from agent.planning.memory import Estimate, Footprint, Learned, estimate
from agent.planning.methods import METHODS, MIXED, known

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from agent.planning.texts import TextCache, TextRoom

Admission = Literal["side_by_side", "unload_first", "refuse"]

LADDER = ("nf4", "nf4-dq", "fp4", "fp4-dq")
"""The 4-bit methods from the best answers to the smallest tables."""

UPWARD = {
    "fp4": ("nf4", MIXED, "int8", "fp16"),
    "fp4-dq": ("nf4-dq", MIXED, "int8", "fp16"),
    "int8": ("fp16",),
    "fp16": (),
    "fp32": (),
}
"""Where a choice leads when the gate refuses it: better answers for more bytes, step by step."""
UPWARD_DEFAULT = (MIXED, "int8", "fp16")


@dataclass(frozen=True)
class Policy:
    """How freely the device may decide.

    Attributes:
        matrix: the rows to judge by.
        matrix_only: follow the matrix to the letter: its method or a refusal, whatever is measured.
        purpose: what the device is for; a row can ask for it.
    """

    matrix: tuple[Row, ...] = MATRIX
    matrix_only: bool = False
    purpose: Purpose = "serve"


@dataclass(frozen=True)
class Candidate:
    """One method, weighed.

    Attributes:
        method: its name.
        estimate: what it takes; of a mix the least.
        fits: whether it works here and there is room for it.
        why: that in words.
        is_broken: whether it failed the device's self-test.
    """

    method: str
    estimate: Estimate
    fits: bool
    why: str
    is_broken: bool = False

    @property
    def estimated_bytes(self) -> int:
        """Weights, what answering takes for a moment, and room for a text where texts are made."""
        return self.estimate.total_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the candidate for the decision record."""
        return {
            "method": self.method,
            "estimated_bytes": self.estimated_bytes,
            "weights_bytes": self.estimate.weights_bytes,
            "working_bytes": self.estimate.working_bytes,
            "texts_bytes": self.estimate.texts_bytes,
            "fits": self.fits,
            "why": self.why,
        }


@dataclass(frozen=True)
class Texts:
    """How a language model remembers, and how much of that there is room for."""

    cache: TextCache
    room: TextRoom

    def to_json(self) -> dict[str, Any]:
        """Return the figures for the decision record."""
        told = {"token_bytes": self.cache.token_bytes, "context_tokens": self.cache.context_tokens}
        return {**told, **self.room.to_json()}


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
        admission: how it gets into memory beside what is served now.
        alternatives: what is measured besides, for it takes no more memory and might answer better.
        fallbacks: what to build next, in this order, if the gate refuses.
        mixed_budget_bytes: what the weights of a mix may take, None where uniform int8 would fit too.
        texts: what a language model's keys and values may take, None where nothing is written.
        reason: one sentence.
    """

    requested: str
    row: Row
    share: float
    budget: Budget
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    admission: Admission
    alternatives: tuple[Candidate, ...]
    fallbacks: tuple[Candidate, ...]
    mixed_budget_bytes: int | None
    texts: Texts | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the decision record, to which measurements are added later."""
        return {
            "scenario": self.row.scenario,
            "rule": str(self.row.when),
            "share": round(self.share, 6) if math.isfinite(self.share) else None,
            "rationale": self.row.rationale,
            "requested": self.requested,
            "budget": self.budget.to_json(),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "method": self.chosen.method if self.chosen else None,
            "planned": self.chosen.method if self.chosen else None,
            "compares": len(self.row.methods) > 1,
            "alternatives": [candidate.method for candidate in self.alternatives],
            "fallbacks": [candidate.method for candidate in self.fallbacks],
            "mixed_budget_bytes": self.mixed_budget_bytes,
            "estimates": {each.method: each.estimate.to_json() for each in (*self.candidates, *self.fallbacks)},
            "admission": self.admission,
            "texts": self.texts.to_json() if self.texts else None,
            "reason": self.reason,
        }


def plan(
    model: Footprint | Sequence[int],
    budget: Budget,
    *,
    requested: str = "auto",
    usable: Collection[str] = tuple(METHODS),
    policy: Policy = Policy(),
    kernel: str = "bitsandbytes",
    learned: Learned | None = None,
    overhead_bytes: int = 0,
) -> Plan:
    """Choose a method for a model on a device.

    Args:
        model: what it needs, or the number of weights of each of its tensors.
        budget: the memory, and the device it belongs to.
        requested: a method's name, or ``auto`` for the matrix and what fits.
        usable: the methods that passed the device's self-test.
        policy: the matrix, and whether it alone decides.
        kernel: which arithmetic passed the self-test for 4-bit weights.
        learned: how far earlier estimates were off on this device.
        overhead_bytes: what the device takes besides, once, if this is its first model.

    Raises:
        UnknownMethodError: when ``requested`` is neither ``auto`` nor a method.
    """
    footprint = model if isinstance(model, Footprint) else Footprint.of_numels(model)
    weigh = _Weigher(footprint, budget, usable, learned, overhead_bytes)
    conditions = weigh.conditions(policy.purpose, kernel)
    row = match(conditions, policy.matrix)
    is_auto = requested == "auto"
    candidates = tuple(map(weigh, _names(requested, row, policy)))
    chosen = next((candidate for candidate in candidates if candidate.fits), None)
    free = is_auto and chosen is not None and not policy.matrix_only
    return Plan(
        requested,
        row,
        conditions.share,
        budget,
        candidates,
        chosen,
        _admission(chosen, budget),
        _alternatives(row, chosen, candidates) if free and chosen else (),
        _fallbacks(row, chosen, weigh) if free and chosen else (),
        weigh.mixed_budget_bytes(),
        _texts(footprint, chosen, budget),
        _reason(requested, row, candidates, chosen, budget),
    )


@dataclass(frozen=True)
class _Weigher:
    """Weighs methods for one model on one device."""

    footprint: Footprint
    budget: Budget
    usable: Collection[str]
    learned: Learned | None
    overhead_bytes: int

    def __call__(self, name: str) -> Candidate:
        """Return ``name`` with its bytes, and whether it works and fits here."""
        least = "nf4-dq" if name == MIXED else name
        needed = self._estimate(least)
        room = self.budget.room_bytes
        broken = [part for part in ((least, "int8") if name == MIXED else (name,)) if part not in self.usable]
        if broken:
            return Candidate(name, needed, fits=False, why="failed the self-test on this device", is_broken=True)
        at_least = "at least " if name == MIXED else ""
        if needed.total_bytes > room:
            return Candidate(
                name, needed, fits=False, why=f"needs {at_least}{size(needed.total_bytes)}, budget {self.budget}"
            )
        return Candidate(name, needed, fits=True, why=f"needs {at_least}{size(needed.total_bytes)} of {size(room)}")

    def mixed_budget_bytes(self) -> int | None:
        """Return what the weights of a mix may take, where it binds: a mix is never larger than uniform int8.

        In sixteenths of uniform int8: memory changes from minute to minute, and the same question should find the mix
        that was built for it.
        """
        whole, room = self._estimate("int8"), self.budget.room_bytes
        if whole.total_bytes <= room:
            return None
        step = max(1, whole.weights_bytes // 16)
        return max(0, room - whole.total_bytes + whole.weights_bytes) // step * step

    def _estimate(self, name: str) -> Estimate:
        return estimate(self.footprint, METHODS[name], learned=self.learned, overhead_bytes=self.overhead_bytes)

    def conditions(self, purpose: Purpose, kernel: str) -> Conditions:
        """Return what the rows of the matrix are judged by."""
        budget, room = self.budget, self.budget.room_bytes
        needed = self._estimate("nf4").total_bytes
        gpu: Gpu = "none" if not budget.has_gpu else "integrated" if budget.is_integrated else "dedicated"
        share = needed / room if room else math.inf
        return Conditions(gpu, budget.capability, budget.total_bytes, room, share, kernel, purpose)


def _names(requested: str, row: Row, policy: Policy) -> tuple[str, ...]:
    if requested != "auto":
        return (known(requested),)
    return row.methods if policy.matrix_only else _preference(row.method)


def _preference(prior: str) -> tuple[str, ...]:
    """The prior first; then what is smaller; last what is better, for a device on which nothing else runs."""
    if prior not in LADDER:
        return (prior, *LADDER)
    position = LADDER.index(prior)
    return LADDER[position:] + LADDER[:position][::-1]


def _admission(chosen: Candidate | None, budget: Budget) -> Admission:
    """Both forms at once where there is room for both, else one after the other while requests wait."""
    if chosen is None:
        return "refuse"
    return "side_by_side" if chosen.estimated_bytes <= budget.bytes else "unload_first"


def _texts(footprint: Footprint, chosen: Candidate | None, budget: Budget) -> Texts | None:
    """Return what texts may take of what the model leaves free, in the way it gets into memory."""
    if chosen is None or footprint.texts is None:
        return None
    room = budget.bytes if _admission(chosen, budget) == "side_by_side" else budget.room_bytes
    return Texts(footprint.texts, footprint.texts.room(room - chosen.estimated_bytes + chosen.estimate.texts_bytes))


def _alternatives(row: Row, chosen: Candidate, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return what a row with several methods demands, then what takes no more memory than the choice."""
    others = [each for each in candidates if each.fits and each is not chosen]
    demanded = [each for each in others if each.method in row.methods]
    rest = [each for each in others if each.estimated_bytes <= chosen.estimated_bytes and each not in demanded]
    return (*demanded, *rest)


def _fallbacks(row: Row, chosen: Candidate, weigh: _Weigher) -> tuple[Candidate, ...]:
    demanded = [name for name in row.methods if name != chosen.method]
    upward = UPWARD.get(chosen.method, UPWARD_DEFAULT)
    names = (*demanded, *(name for name in upward if name not in demanded))
    return tuple(each for each in map(weigh, names) if each.fits)


def _reason(requested: str, row: Row, candidates: Sequence[Candidate], chosen: Candidate | None, budget: Budget) -> str:
    if chosen is None:
        working = [each for each in candidates if not each.is_broken] or candidates
        least = min(working, key=lambda candidate: candidate.estimated_bytes)
        return f"{least.method} {least.why}"
    beside = "" if chosen.estimated_bytes <= budget.bytes else "; it does not fit beside its old form, which goes first"
    if requested != "auto":
        return f"{chosen.method} was asked for and fits: {chosen.why}{beside}"
    if chosen.method == row.method:
        return f"{row.scenario}: {row.rationale}; {chosen.why}{beside}"
    return f"{row.scenario} asks for {row.method}, which {candidates[0].why}; {chosen.method} {chosen.why}{beside}"
