"""Measure every method on one checkpoint, on this machine, and write what came out as text, JSON and a page."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.planning.methods import METHODS
from agent.planning.plan import size
from agent.workbench import builds
from agent.workbench.report import render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

JsonObject = dict[str, Any]
_FATAL = frozenset({ErrorCode.BAD_CHECKPOINT, ErrorCode.UNSAFE_CHECKPOINT, ErrorCode.UNKNOWN_MODEL_TYPE})
"""What is wrong with the checkpoint is wrong under every method."""


def compare(
    request: builds.Request, methods: Sequence[str], output: Path, on_method: Callable[[str, int], None]
) -> JsonObject:
    """Build and measure each method; write ``compare.json`` and ``compare.html`` into ``output``.

    Artifacts are thrown away: the comparison says which one to build.

    Args:
        request: what to build from.
        methods: names from the method table, in the order of the rows.
        output: where the two files go.
        on_method: called with a method and its position when its turn comes.

    Raises:
        StepError: when the checkpoint itself cannot be used.
    """
    rows = []
    for position, method in enumerate(methods):
        on_method(method, position)
        rows.append(_measure(request, method, output))
    good = next((row for row in rows if "error" not in row), {})
    table: JsonObject = {
        "model_path": request.path.name,
        "model_type": good.get("model_type"),
        "inputs": good.get("inputs"),
        "gate_rows": good.get("gate_rows"),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "device": good.get("device")},
        "rows": rows,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "compare.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    (output / "compare.html").write_text(render(table), encoding="utf-8")
    return table


def lines(table: JsonObject) -> list[str]:
    """Return the table as text, one line a method."""
    head = ("method", "artifact", "resident", "of source", "agreement", "accuracy", "p50 ms", "source p50")
    body = [_cells(row) for row in table["rows"]]
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *body)]  # noqa: B905 - equal by construction


def _measure(request: builds.Request, method: str, output: Path) -> JsonObject:
    try:
        with builds.scratch(output) as directory:
            result = builds.run_builder(builds.build_job(request, method, directory), _silent, threads=request.threads)
    except StepError as error:
        if error.code in _FATAL:
            raise
        return {"method": method, "error": f"{error.code}: {error.detail}"}
    gate = result["gate"]
    return {
        "method": method,
        "bits_per_weight": METHODS[method].bits_per_weight(request.blocksize),
        "model_type": result["model_type"],
        "inputs": gate["inputs"],
        "gate_rows": gate["rows"],
        "device": gate.get("device"),
        "source_bytes": result["source_tensor_bytes"],
        "artifact_bytes": result["artifact_bytes"],
        "resident_bytes": result["resident_bytes"],
        "coverage": result["coverage"],
        "agreement": gate["agreement"],
        "cosine": gate["cosine"],
        "kl": gate["kl"],
        "accuracy": gate["accuracy"],
        "accuracy_source": gate["accuracy_source"],
        "latency_ms": gate["latency_ms"],
        "source_latency_ms": gate["source_latency_ms"],
        "peak_rss_bytes": result["peak_rss_bytes"],
        "seconds": result["seconds"],
    }


def _cells(row: JsonObject) -> tuple[str, ...]:
    if "error" in row:
        return (row["method"], row["error"], "", "", "", "", "", "")
    return (
        row["method"],
        size(row["artifact_bytes"]),
        size(row["resident_bytes"]),
        f"1/{row['source_bytes'] / row['resident_bytes']:.2f}",
        f"{100 * row['agreement']:.2f} %",
        "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f} %",
        f"{row['latency_ms']['p50']:.2f}",
        f"{row['source_latency_ms']['p50']:.2f}",
    )


def _silent(_done: int, _total: int | None, _unit: str) -> None:
    """Progress within one method is not shown."""
