"""Which reports there are, how often, and what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from agent.contract import reports
from agent.contract.errors import ErrorCode, ErrorInfo
from agent.contract.reports import OPERATION_EXPIRY_S, Progress
from agent.contract.topics import Topics
from agent.deployment.phases import Phase, State
from agent.deployment.reporting import Reporting
from tests.fakes.clock import FakeClock
from tests.fakes.strategies import fresh

TOPICS = Topics("edge/v1", "box-1")
RUNNING = replace(fresh("deploy"), state=State.RUNNING, phase=Phase.DOWNLOADING)


@pytest.fixture
def reporting() -> Reporting:
    return Reporting(TOPICS, FakeClock(), boot_id="boot", agent="1.0", facts=lambda _served: {})


def test_an_operation_s_report_has_the_contract_s_fields(reporting: Reporting) -> None:
    (report,) = reporting.operation(RUNNING, Progress(1, 4, "bytes"))
    assert (report.topic, report.qos, report.retain, report.expiry_s) == (
        "edge/v1/box-1/op/op", 1, True, OPERATION_EXPIRY_S,
    )  # fmt: skip
    assert json.loads(report.payload) == {
        "schema": 1, "id": "op", "command": "deploy", "model": "kanji", "state": "running", "phase": "downloading",
        "attempt": 1, "detail": None, "decision": None, "error": None,
        "progress": {"done": 1, "total": 4, "unit": "bytes"},
        "boot_id": "boot", "seq": 1, "at": "2026-11-23T10:40:00.000Z",
    }  # fmt: skip


def test_reports_are_numbered(reporting: Reporting) -> None:
    numbers = [json.loads(reporting.operation(RUNNING)[0].payload)["seq"] for _ in range(3)]
    assert numbers == [1, 2, 3]


def test_a_terminal_report_names_no_phase_but_its_error_does(reporting: Reporting) -> None:
    error = ErrorInfo(code=ErrorCode.DOWNLOAD_FAILED, detail="d", phase="downloading", retryable=True)
    body = json.loads(reporting.operation(replace(RUNNING, state=State.FAILED, error=error))[0].payload)
    assert body["phase"] is None
    assert body["error"] == {
        "code": "download_failed", "detail": "d", "hint": None, "kept": None, "phase": "downloading", "retryable": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([(0.0, 0), (0.1, 1), (0.2, 2)], [0]),
        ([(0.0, 0), (0.1, 5), (0.2, 6), (0.3, 10)], [0, 5, 10]),
        ([(0.0, 0), (1.0, 1), (1.5, 2), (2.0, 3)], [0, 1, 3]),
    ],
)
def test_progress_is_told_once_a_second_and_at_each_five_percent(
    reporting: Reporting, steps: list[tuple[float, int]], told: list[int]
) -> None:
    made = [reporting.progress(RUNNING, Progress(done, 100, "bytes"), now) for now, done in steps]
    assert [json.loads(report.payload)["progress"]["done"] for report in made if report] == told
    assert all(report.qos == 0 for report in made if report)


def test_a_new_phase_begins_to_tell_at_once(reporting: Reporting) -> None:
    assert reporting.progress(RUNNING, Progress(1, 100, "bytes"), 0.0)
    assert reporting.progress(replace(RUNNING, phase=Phase.VERIFYING), Progress(1, 100, "bytes"), 0.1)


def test_the_next_method_of_a_build_is_told_at_once(reporting: Reporting) -> None:
    made = [reporting.progress(RUNNING, Progress(1, 100, "tensors", method), 0.0) for method in ("nf4", "nf4", "int8")]
    told = [json.loads(report.payload)["progress"] for report in made if report]
    assert [progress["method"] for progress in told] == ["nf4", "int8"]


def test_progress_without_a_total_is_told_once_a_second(reporting: Reporting) -> None:
    made = [reporting.progress(RUNNING, Progress(done, None, "bytes"), done / 2) for done in range(5)]
    assert [bool(report) for report in made] == [True, False, True, False, True]


def test_a_number_that_is_not_finite_is_told_as_unknown(reporting: Reporting) -> None:
    decision: dict[str, Any] = {"measured": {"gate": {"agreement": float("nan"), "rows": [float("inf"), 1.0]}}}
    body = json.loads(reporting.operation(replace(RUNNING, decision=decision))[0].payload)
    assert body["decision"]["measured"]["gate"] == {"agreement": None, "rows": [None, 1.0]}


def test_a_will_has_no_time_of_its_own() -> None:
    will = reports.presence(TOPICS, state="offline", epoch=3, boot_id="b", agent="1", reason="lost", at=None)
    assert will.retain
    assert json.loads(will.payload)["at"] is None


def test_telemetry_expires_after_three_intervals_and_is_not_kept() -> None:
    at = datetime(2026, 11, 23, tzinfo=timezone.utc)
    for report in (
        reports.health(TOPICS, {"status": "ok"}, interval_s=30, at=at),
        reports.telemetry(TOPICS, {"rss_bytes": 1.0}, interval_s=0.2, at=at),
    ):
        assert (report.qos, report.retain) == (0, False)
        assert report.expiry_s == (90 if report.topic == TOPICS.health else 1)
