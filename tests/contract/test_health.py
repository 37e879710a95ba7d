"""What the health report makes of what its witnesses say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent.contract.topics import Topics
from agent.health.reporter import HealthReporter
from tests.fakes.box import Box
from tests.fakes.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.journal.close()


QUIET: dict[str, Any] = {
    "mode": "current",
    "served": [],
    "operations": [],
    "alarms": [],
    "problem": None,
    "is_starting": False,
}


def collect(box: Box, state_dir: Path, *, models: tuple[str, ...] = (), **engine: Any) -> dict[str, Any]:
    reporter = HealthReporter(
        Topics("edge/v1", "box-1"),
        box.transport,
        FakeClock(),
        interval_s=lambda: 30.0,
        state_dir=state_dir,
        device=box.device.facts,
        server=lambda: {"models": {name: {"requests": 0, "failures": 0} for name in models}},
        engine=lambda: {**QUIET, **engine},
        relaxations=(),
    )
    return reporter.collect()


def test_a_memory_alarm_degrades_the_device_and_is_the_reason(box: Box, tmp_path: Path) -> None:
    assert collect(box, tmp_path)["status"] == "ok"
    body = collect(box, tmp_path, alarms=["the reserve is broken"])
    assert (body["status"], body["reasons"]) == ("degraded", ["the reserve is broken"])


SWITCH = {"operations": [{"id": "d-7", "state": "running", "phase": "loading"}]}


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"problem": "it is being loaded"}, "kana: no answer, it is being loaded"),
        ({"problem": "load of kana: no such file"}, "kana: no answer, load of kana: no such file"),
        (SWITCH, "kana: no answer, operation d-7 is loading"),
        ({}, "kana: no answer, the server lacks it"),
        ({"mode": "safe"}, "the server kept dying: nothing is served (mode safe)"),
    ],
)
def test_a_device_never_fails_without_a_reason(box: Box, tmp_path: Path, engine: dict[str, Any], reason: str) -> None:
    body = collect(box, tmp_path, models=("kanji",), served=["kanji", "kana"], **engine)
    assert (body["status"], body["reasons"]) == ("failing", [reason])


def test_what_is_loaded_after_a_start_has_not_failed_yet(box: Box, tmp_path: Path) -> None:
    start: dict[str, Any] = {"served": ["kanji", "kana"], "problem": "it is being loaded", "is_starting": True}
    body = collect(box, tmp_path, models=("kanji",), **start)
    assert (body["status"], body["reasons"]) == ("degraded", ["kana: no answer, it is being loaded"])
    assert "is_starting" not in body, "of the agent's own, no figure"
    assert collect(box, tmp_path, models=("kanji", "kana"), **start)["status"] == "ok"
    assert collect(box, tmp_path, **{**start, "mode": "safe"})["status"] == "failing"
