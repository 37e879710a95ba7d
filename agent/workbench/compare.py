"""Measure every method on one checkpoint, on this machine, and write what came out as text, JSON and a page."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.deployment.selection import select
from agent.planning.budget import size
from agent.planning.methods import METHODS, MIXED
from agent.workbench import builds
from agent.workbench.report import agreement, percent, render, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from agent.planning.gate import Thresholds

JsonObject = dict[str, Any]
_FATAL = frozenset({ErrorCode.BAD_CHECKPOINT, ErrorCode.UNSAFE_CHECKPOINT, ErrorCode.UNKNOWN_MODEL_TYPE})
"""What is wrong with the checkpoint is wrong under every method."""
_MEASURED = (
    "source_tensor_bytes", "artifact_bytes", "resident_bytes", "coverage", "gate", "peak_rss_bytes", "seconds",
)  # fmt: skip


def compare(
    request: builds.Request, methods: Sequence[str], output: Path, on_progress: builds.OnProgress
) -> JsonObject:
    """Build and measure each method; write ``compare.json`` and ``compare.html`` into ``output``.

    Artifacts are thrown away: the comparison says which one to build.

    Args:
        request: what to build from.
        methods: their names, in the order of the rows.
        output: where the two files go.
        on_progress: called with the number of methods that are done.

    Raises:
        StepError: when the checkpoint itself cannot be used.
    """
    with builds.scratch(output):  # where nothing can be written nothing has to be measured
        decision = builds.decide(request, builds.this_device())
    rows: dict[str, JsonObject] = {}
    for method in methods:
        on_progress(len(rows), len(methods), "methods")
        rows[method] = _row(request, method, output)

    def measured(method: str) -> JsonObject | None:
        # The search for a mix takes as long as several builds: made only where auto would make it.
        if method == MIXED and method not in rows and set(methods) >= set(METHODS):
            rows[method] = _row(request, method, output)
        return rows.get(method)

    kept, overruled = keeps(decision.to_json(), measured, request.demanded)
    table: JsonObject = {
        "model_path": request.path.name,
        "model_type": next((row["model_type"] for row in rows.values() if "model_type" in row), None),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "device": request.device},
        "auto": {
            "keeps": kept,
            "planned": decision.to_json()["planned"],
            "reason": decision.reason,
            "overruled": overruled,
        },
        "rows": list(rows.values()),
    }
    (output / "compare.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    (output / "compare.html").write_text(render(table), encoding="utf-8")
    return table


def _row(request: builds.Request, method: str, output: Path) -> JsonObject:
    """Build and measure one method; what it cannot do is its row."""
    row: JsonObject = {"method": method}
    if method in METHODS:
        row["bits_per_weight"] = METHODS[method].bits_per_weight(request.blocksize)
    try:
        with builds.scratch(output) as directory:
            job = builds.build_job(request, method, directory)
            result = builds.run_builder(job, lambda _done, _total, _unit: None, threads=request.threads)
    except StepError as error:
        if error.code in _FATAL:
            raise
        return {**row, "error": f"{error.code}: {error.detail}"}
    if "mixed" in result:
        row |= {"bits_per_weight": result["mixed"]["bits_per_weight"], "mixed": result["mixed"]}
    return {**row, "model_type": result["model_type"], **{name: result[name] for name in _MEASURED}}


def keeps(
    decision: Mapping[str, Any], measured: Callable[[str], JsonObject | None], demanded: Thresholds
) -> tuple[str | None, list[str]]:
    """Return the method that ``auto`` keeps, and what overruled the plan.

    It keeps none where nothing fits or the gate refuses all that fit, and where one of them was not measured none can
    be told.

    Args:
        decision: the plan's record.
        measured: returns a method's row of the comparison, or None.
        demanded: the gate's thresholds.
    """

    def look_up(method: str) -> tuple[JsonObject, bool]:
        row = measured(method)
        if row is None or "gate" not in row:
            raise StepError(ErrorCode.UNSUPPORTED_METHOD, f"{method}: not measured")
        return row, True

    if decision["method"] is None:
        return None, [decision["reason"]]
    try:
        kept, record = select(decision, look_up, demanded)
    except StepError as error:
        return None, error.facts.get("overruled") or [error.detail]
    return kept.method, record.get("overruled", [])


def lines(table: Mapping[str, Any]) -> list[str]:
    """Return the table as text, one line a method, and what ``auto`` keeps."""
    head = ("  method", "artifact", "resident", "of source", "agreement", "accuracy", "p50 ms", "source p50")
    body = [_cells(row, is_kept=row["method"] == table["auto"]["keeps"]) for row in table["rows"]]
    full = [row for row in (head, *body) if len(row) == len(head)]
    widths = [max(len(row[column]) for row in full) for column in range(len(head))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *body)] + [verdict(table)]


def _cells(row: JsonObject, *, is_kept: bool) -> tuple[str, ...]:
    name = f"{'→' if is_kept else ' '} {row['method']}"
    if "error" in row:
        return (name, row["error"])
    gate = row["gate"]
    return (
        name,
        size(row["artifact_bytes"]),
        size(row["resident_bytes"]),
        f"1/{row['source_tensor_bytes'] / row['resident_bytes']:.2f}",
        agreement(gate),
        percent(gate["accuracy"]),
        f"{gate['latency_ms']['p50']:.2f}",
        f"{gate['source_latency_ms']['p50']:.2f}",
    )
