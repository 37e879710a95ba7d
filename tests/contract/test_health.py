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


def collect(box: Box, state_dir: Path, *, alarms: list[str]) -> dict[str, Any]:
    engine = {"mode": "current", "served": [], "operations": [], "alarms": alarms}
    reporter = HealthReporter(
        Topics("edge/v1", "box-1"),
        box.transport,
        FakeClock(),
        interval_s=lambda: 30.0,
        state_dir=state_dir,
        device=box.device.facts,
        server=lambda: {"models": {}},
        engine=lambda: engine,
        relaxations=(),
    )
    return reporter.collect()


def test_a_memory_alarm_degrades_the_device_and_is_the_reason(box: Box, tmp_path: Path) -> None:
    assert collect(box, tmp_path, alarms=[])["status"] == "ok"
    body = collect(box, tmp_path, alarms=["the reserve is broken"])
    assert (body["status"], body["reasons"]) == ("degraded", ["the reserve is broken"])
