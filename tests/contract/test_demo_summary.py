"""What the demo shows at its end, of a deploy that built and of one that found its model served already."""

from __future__ import annotations

from typing import Any

import pytest

from agent.demo import files
from agent.demo.load import Load
from agent.demo.scenario import MODEL, rows, summarise

SIZES = {"artifact_bytes": 1000, "resident_bytes": 2000}
BUILT = {**SIZES, "gate": {"agreement": 0.99, "accuracy": 0.97, "accuracy_source": 0.98}}
REPORTED = {**SIZES, "method": "nf4", "agreement": 0.99, "accuracy": 0.97, "since": "2026-11-29T12:00:00.000Z"}


@pytest.mark.parametrize(
    ("measured", "source", "shown"),
    [(BUILT, 0.98, "98.0 %"), (REPORTED, None, "not measured")],
    ids=["built", "reused"],
)
def test_the_figures_come_from_the_build_or_from_what_the_device_reports_to_serve(
    measured: dict[str, Any], source: float | None, shown: str
) -> None:
    root = files.directory()
    load = Load("http://127.0.0.1:1", MODEL, files.images(root, 1))
    load.requests, load.latencies_ms = 1, [1.0]
    health = {"supervisor_rss_bytes": 1, "server_rss_bytes": 2}
    summary = summarise(measured, {"scenario": "cpu", "method": "nf4"}, load, health, root)
    told = {name: summary[name] for name in ("agreement", "accuracy", "accuracy_source", *SIZES)}
    assert told == {"agreement": 0.99, "accuracy": 0.97, "accuracy_source": source, **SIZES}
    assert dict(rows(summary, load))["accuracy in source precision"] == shown
