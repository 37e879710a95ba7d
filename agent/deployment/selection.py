"""From a plan to the artifact that is kept: build, measure, and let the measurement have the last word.

Decides in which order methods are built and which one is kept; building is the caller's. The rules:
* the planned method is built first. If the gate refuses it, the plan's fallbacks follow, each with better answers and
  more bytes, until one passes;
* if it passes, what takes no more memory is measured too, and kept instead if its answers are clearly better
  (`agent.planning.evidence`); where every row of real data keeps its answer, nothing can be better;
* an alternative that cannot be built is left out: the planned method stands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.contract.errors import ErrorCode
from agent.deployment.facts import measurements
from agent.deployment.ports import StepError
from agent.planning import evidence
from agent.planning.gate import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.planning.gate import Thresholds

    Measure = Callable[[str], tuple[dict[str, Any], bool]]

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """A method that was built: the builder's result, and whether it was there already."""

    method: str
    result: JsonObject
    is_cached: bool


def select(decision: Mapping[str, Any], measure: Measure, demanded: Thresholds) -> tuple[Kept, JsonObject]:
    """Build and measure as ``decision`` says; return what is kept, and the record with all that was measured.

    Args:
        decision: a plan's record: ``method``, ``alternatives``, ``fallbacks``, ``compares``, ``scenario``, ``reason``.
        measure: builds a method, or finds it built; returns the builder's result and whether it was there.
        demanded: the gate's thresholds.

    Raises:
        StepError: ``gate_failed`` when no method passes, with the record as its facts; whatever building raises.
    """
    search = _Search(decision, measure, demanded)
    for method in (decision["method"], *decision.get("fallbacks", ())):
        kept = search.attempt(method)
        if kept is not None:
            break
    else:
        raise StepError(
            ErrorCode.GATE_FAILED,
            " | ".join(search.refused),
            "choose a method with more bits, or give the gate other thresholds",
            facts=search.record(search.tried[-1], search.refused),
        )
    if search.refused:
        return kept, search.record(kept, search.refused)
    best = search.best_of(kept, decision.get("alternatives", ()))
    return best, search.record(best, [] if best is kept else [_better(best, kept)])


@dataclass
class _Search:
    decision: Mapping[str, Any]
    measure: Measure
    demanded: Thresholds
    refused: list[str] = field(default_factory=list)
    found: list[JsonObject] = field(default_factory=list)
    tried: list[Kept] = field(default_factory=list)

    def attempt(self, method: str) -> Kept | None:
        """Build and judge a method that is to be kept; None if the gate refuses it."""
        kept, complaints = self._measured(method)
        if complaints:
            self.refused.append(f"{method}: {'; '.join(complaints)}")
        self.tried.append(kept)
        return None if complaints else kept

    def best_of(self, kept: Kept, alternatives: Sequence[str]) -> Kept:
        """Return ``kept``, or the alternative with clearly better answers."""
        best = kept
        for method in alternatives:
            if evidence.is_perfect(best.result["gate"]) and not self.decision.get("compares"):
                break
            try:
                other, complaints = self._measured(method)
            except StepError as error:
                self.found.append({"method": method, "passes": False, "complaints": [error.detail]})
                continue
            if not complaints and evidence.is_better(other.result["gate"], best.result["gate"]):
                best = other
        return best

    def record(self, kept: Kept, overruled: Sequence[str]) -> JsonObject:
        """Return the decision record with what was measured."""
        told: JsonObject = {
            "method": kept.method,
            "measured": measurements(kept.result),
            "cached": kept.is_cached,
            "evidence": list(self.found),
        }
        if overruled:
            told |= {"overruled": list(overruled), "reason": f"measurement overruled the plan: {' | '.join(overruled)}"}
        return {**self.decision, **told}

    def _measured(self, method: str) -> tuple[Kept, list[str]]:
        result, is_cached = self.measure(method)
        complaints = judge(result["gate"], self.demanded)
        self.found.append(evidence.summary(method, result, complaints))
        return Kept(method, result, is_cached), complaints


def _better(best: Kept, planned: Kept) -> str:
    return (
        f"{best.method} takes no more memory than {planned.method} and answers better: "
        f"{evidence.told(best.result['gate'])} against {evidence.told(planned.result['gate'])}"
    )
