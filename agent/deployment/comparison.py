"""``compare``: every method asked for is built and measured on this device, and the table is the answer.

Decides what is best and words the record; building is the caller's. The best is the method with the least memory that
passes the gate and fits, unless one with more memory answers clearly better (`agent.planning.evidence`), which is then
compared with the next ones in its place. A method that cannot be built gets a row that says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.contract.errors import ErrorCode
from agent.deployment.facts import measurements
from agent.deployment.ports import StepError
from agent.planning import evidence
from agent.planning.gate import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.planning.gate import Thresholds
    from agent.planning.plan import Plan

    Measure = Callable[[str], tuple[dict[str, Any], bool]]

JsonObject = dict[str, Any]


def prospect(plan: Plan) -> JsonObject:
    """Return what a plan for one named method says of it: whether it fits, and how it would get into memory."""
    chosen = plan.chosen
    if chosen is None:
        return {"fits": False, "why": plan.reason}
    return {
        "fits": True,
        "estimated_bytes": chosen.estimated_bytes,
        "admission": plan.admission,
        "estimate": chosen.estimate.to_json(),
    }


def table(
    methods: Sequence[str],
    prospects: Mapping[str, JsonObject],
    measure: Measure,
    demanded: Thresholds,
    on_row: Callable[[int], None],
) -> tuple[list[JsonObject], dict[str, JsonObject]]:
    """Build and measure ``methods``; return a row for each, and the builder's results of those that were built.

    Args:
        methods: in the order of the rows.
        prospects: what was planned for each.
        measure: builds a method, or finds it built; returns the builder's result and whether it was there.
        demanded: the gate's thresholds.
        on_row: called with the number of finished rows.
    """
    rows, results = [], {}
    for number, method in enumerate(methods, 1):
        planned = {name: prospects[method].get(name) for name in ("fits", "estimated_bytes", "why")}
        result, complaints = _built(method, measure)
        if result is None:
            rows.append({"method": method, **planned, "passes": False, "complaints": complaints})
        else:
            results[method] = result
            gate, sizes = result["gate"], {name: result.get(name) for name in ("artifact_bytes", "coverage")}
            summary = evidence.summary(method, result, judge(gate, demanded))
            rows.append({**summary, **planned, **sizes, "inputs": gate.get("inputs"), "rows": gate.get("rows")})
        on_row(number)
    return rows, results


def best(rows: Sequence[JsonObject], results: Mapping[str, JsonObject]) -> str | None:
    """Return the method to keep, None if none passes and fits."""
    usable = [row["method"] for row in rows if row["passes"] and row["fits"]]
    found: str | None = None
    for method in sorted(usable, key=lambda name: results[name]["resident_bytes"]):
        if found is None or evidence.is_better(results[method]["gate"], results[found]["gate"]):
            found = method
    return found


def kept(decision: JsonObject, rows: Sequence[JsonObject], results: Mapping[str, JsonObject]) -> JsonObject:
    """Return the record of a comparison whose best method is to be served.

    Raises:
        StepError: ``gate_failed`` when there is none, with the table as its facts.
    """
    method = best(rows, results)
    if method is None:
        raise StepError(
            ErrorCode.GATE_FAILED,
            f"of {len(rows)} methods none passes the gate and fits",
            "see decision.compare for each; give the gate other thresholds or free memory",
            facts=decision,
        )
    chosen = decision["prospects"][method]
    return {
        **decision,
        "method": method,
        "planned": method,
        "admission": chosen["admission"],
        "estimates": {method: chosen["estimate"]},
        "measured": measurements(results[method]),
        "reason": f"{method} is the best of {len(rows)} that were measured: {evidence.told(results[method]['gate'])}",
    }


def _built(method: str, measure: Measure) -> tuple[JsonObject | None, list[str]]:
    try:
        return measure(method)[0], []
    except StepError as error:
        return None, [f"{error.code}: {error.detail}"]
