"""When health is told between two intervals: whenever what answers may have changed, and to a new connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.deployment.inbox import Connected, ServerLost
from agent.deployment.recovery import Mode

if TYPE_CHECKING:
    from tests.fakes.box import Box


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
