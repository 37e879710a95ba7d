"""Operations whose plan found no room for two releases: the old one goes first, and comes back when it has to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent.deployment.phases import Phase
from agent.planning.plan import Plan
from tests.fakes.device import checkpoint

if TYPE_CHECKING:
    from tests.fakes.box import Box


@pytest.fixture(autouse=True)
def no_room_for_two(serving_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every plan after the first deploys admit its choice in the place of what is served."""
    assert serving_box.serving()
    planned = Plan.to_json

    def to_json(made: Plan) -> dict[str, Any]:
        return planned(made) | {"admission": "unload_first"}

    monkeypatch.setattr(Plan, "to_json", to_json)


def switch(box: Box) -> None:
    box.send("set_method", {"id": "switch", "model": "kanji", "method": "fp4-dq"})


def test_the_old_release_is_gone_before_the_new_one_answers_and_the_gap_is_recorded(serving_box: Box) -> None:
    served = serving_box.serving()
    switch(serving_box)
    serving_box.go_to("switch", Phase.CANARY)
    assert serving_box.server.answers() == {}
    assert served not in serving_box.server.held("kanji")
    serving_box.settle()

    report = serving_box.report("switch")
    assert report["state"] == "succeeded"
    assert report["decision"]["admission"] == "unload_first"
    assert report["decision"]["measured"]["gap_ms"] == serving_box.server.gap_ms
    assert (serving_box.serving() or "").endswith("-fp4-dq")


@pytest.mark.parametrize("verb", ["load", "canary", "activate", "status"])
@pytest.mark.parametrize("dies", [False, True], ids=["fails", "dies"])
def test_whatever_fails_after_the_old_release_went_brings_it_back(serving_box: Box, verb: str, *, dies: bool) -> None:
    served = serving_box.serving()
    (serving_box.server.die_in if dies else serving_box.server.fail)(verb)
    switch(serving_box)
    serving_box.settle()

    assert serving_box.states("switch")[-2:] == [("running", "rolling_back"), ("rolled_back", None)]
    assert serving_box.serving() == served
    assert serving_box.server.held("kanji") == {served}


def test_a_canary_that_answers_badly_brings_the_old_release_back(serving_box: Box) -> None:
    served = serving_box.serving()
    serving_box.server.canary_answer |= {"agreement": 0.1}
    switch(serving_box)
    serving_box.settle()

    assert serving_box.report("switch")["error"]["code"] == "canary_failed"
    assert serving_box.serving() == served


def test_a_cancel_in_the_gap_brings_the_old_release_back(serving_box: Box) -> None:
    served = serving_box.serving()
    switch(serving_box)
    serving_box.go_to("switch", Phase.CANARY)
    serving_box.send("cancel", {"id": "stop", "operation": "switch"})
    serving_box.settle()

    assert serving_box.report("switch")["state"] == "canceled"
    assert serving_box.serving() == served


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.CANARY, Phase.ACTIVATING, Phase.TRIAL])
def test_a_restart_in_the_gap_never_leaves_the_model_unanswered(serving_box: Box, phase: Phase) -> None:
    switch(serving_box)
    serving_box.go_to("switch", phase)
    serving_box.reboot()
    serving_box.settle()

    assert serving_box.serving() is not None


def test_beside_what_is_served_a_switch_records_that_there_was_no_gap(
    serving_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    serving_box.sources.files["https://models.example/other.pt"] = content = checkpoint(50_000, seed=1)
    serving_box.deploy("beside", content=content, url="https://models.example/other.pt")
    serving_box.settle()

    assert serving_box.report("beside")["decision"]["measured"]["gap_ms"] == 0.0
