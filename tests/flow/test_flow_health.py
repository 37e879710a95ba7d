"""When health is told between two intervals: whenever what answers may have changed, and to a new connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.deployment.inbox import Connected, ServerLost
from agent.deployment.phases import Phase
from agent.deployment.recovery import Mode
from agent.health.reporter import HealthReporter
from tests.fakes.box import TOPICS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.box import Box


def health(box: Box, disk: Path) -> tuple[str, list[str]]:
    """Return the status that the device would publish now, and what it says of models."""
    reporter = HealthReporter(
        TOPICS,
        box.transport,
        box.clock,
        interval_s=lambda: 30.0,
        state_dir=disk,
        device=box.device.facts,
        server=box.server.status,
        engine=lambda: {"served": list(box.journal.served()), "operations": [], "alarms": [], **box.keeper.facts()},
        relaxations=(),
    )
    body = reporter.collect()
    return body["status"], [reason for reason in body["reasons"] if not reason.startswith("server: ")]


def test_a_restart_is_told_once_what_is_served_answers_again(serving_box: Box) -> None:
    serving_box.answered.clear()
    serving_box.reboot()
    assert serving_box.keeper.problem == "it is being loaded"
    serving_box.settle()
    assert serving_box.answered[-1] == {"kanji": serving_box.serving()}
    assert serving_box.keeper.problem is None


def test_a_restart_whose_model_cannot_be_loaded_says_why(serving_box: Box) -> None:
    serving_box.reboot()
    serving_box.server.fail("restore")
    serving_box.settle()
    assert "restore was told to fail" in str(serving_box.keeper.problem)
    assert serving_box.answered[-1] == {}


def test_a_start_that_loads_what_was_served_before_is_degraded_until_it_answers(
    serving_box: Box, tmp_path: Path
) -> None:
    assert health(serving_box, tmp_path) == ("ok", [])
    serving_box.reboot()
    assert health(serving_box, tmp_path) == ("degraded", ["kanji: no answer, it is being loaded"])
    serving_box.settle()
    assert health(serving_box, tmp_path) == ("ok", [])


def test_a_start_whose_model_did_not_come_back_has_failed(serving_box: Box, tmp_path: Path) -> None:
    serving_box.reboot()
    serving_box.server.fail("restore")
    serving_box.settle()
    status, (reason,) = health(serving_box, tmp_path)
    assert (status, "restore was told to fail" in reason) == ("failing", True)


def test_a_server_that_dies_fails_what_is_served_also_while_it_is_loaded_again(
    serving_box: Box, tmp_path: Path
) -> None:
    serving_box.server.die()
    serving_box.engine.turn(wait_s=0)
    assert health(serving_box, tmp_path) == ("failing", ["kanji: no answer, it is being loaded"])
    serving_box.reboot()
    serving_box.engine.post(ServerLost("was killed by SIGSEGV"))
    serving_box._drain()
    assert health(serving_box, tmp_path)[0] == "failing", "a death during the start is none that a start explains"


def test_a_death_of_the_server_is_told_before_and_after_its_models_are_back(serving_box: Box) -> None:
    serving_box.answered.clear()
    serving_box.server.die()
    serving_box.settle()
    assert list(serving_box.answered) == [{}, {"kanji": serving_box.serving()}]


def test_a_server_that_is_given_up_is_told_at_once(serving_box: Box) -> None:
    while serving_box.keeper.mode is not Mode.SAFE:
        serving_box.settle()
        serving_box.answered.clear()
        serving_box.engine.post(ServerLost("was killed by SIGSEGV"))
        serving_box._drain()
    assert serving_box.answered


def test_a_new_connection_is_told_health(serving_box: Box) -> None:
    before = serving_box.statuses
    serving_box.engine.post(Connected())
    serving_box.settle()
    assert serving_box.statuses == before + 1


def test_health_tells_what_is_served_and_what_runs_and_brings_the_alarms_together(serving_box: Box) -> None:
    serving_box.send("set_method", {"id": "m-1", "model": "kanji", "method": "int8"})
    serving_box.go_to("m-1", Phase.PLANNING)
    told = serving_box.core.health(alarms=["a certificate ends"], server_starts=2)
    assert told == {
        "mode": "current",
        "problem": None,
        "is_starting": False,
        "alarms": ["a certificate ends"],
        "served": ["kanji"],
        "operations": [{"id": "m-1", "state": "running", "phase": "planning"}],
        "server_starts": 2,
        "broker_connected": True,
    }
