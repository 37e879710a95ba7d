"""The wanted state: what the device does to get there, and what it leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent.contract.desired import OWN, DesiredMessage
from agent.deployment.phases import RULES, OnFailure, Phase, State
from agent.settings import Deployment, Mqtt, Settings
from tests.fakes.box import CONTENT, TOPICS, URL, Box
from tests.fakes.device import checkpoint, sha256
from tests.fakes.journal import ProcessDeathError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENOUGH = 80
OTHER_URL = "https://models.example/kana.pt"
OTHER = checkpoint(20_000, 3000, seed=1)


def entry(method: str = "nf4", content: bytes = CONTENT, url: str = URL, **fields: Any) -> dict[str, Any]:
    return {"artifact": {"url": url, "sha256": sha256(content), "size": len(content)}, "method": method, **fields}


KANJI, KANA = entry(), entry(content=OTHER, url=OTHER_URL)


def events(box: Box, name: str) -> list[Any]:
    return [body for body in box.broker.bodies(TOPICS.event) if body["event"] == name]


def reported(box: Box) -> Any:
    return box.broker.retained(TOPICS.reported)


def methods(box: Box) -> dict[str, str]:
    served = box.journal.served()
    assert {name: item.current.id for name, item in served.items()} == box.server.answers()
    return {name: item.current.method for name, item in served.items()}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    box.sources.files[OTHER_URL] = OTHER
    yield box
    box.journal.close()


@pytest.fixture
def grouped(tmp_path: Path) -> Iterator[Box]:
    """A device in the groups ``lab`` and ``all``, of which ``lab`` comes first."""
    box = Box(tmp_path)
    box.sources.files[OTHER_URL] = OTHER
    box.settings = Settings(mqtt=Mqtt(groups=("lab", "all")), deployment=Deployment(soak_s=0.0))
    box.reboot()
    yield box
    box.journal.close()


def test_a_generation_leads_to_operations_that_look_like_an_operators(box: Box) -> None:
    acknowledged = box.want(7, models={"kanji": KANJI, "kana": KANA})
    box.settle()

    assert acknowledged == ["ack"]
    assert methods(box) == {"kanji": "nf4", "kana": "nf4"}
    assert box.states("gen7-kanji")[0] == ("accepted", "queued")
    assert box.report("gen7-kana")["state"] == "succeeded"
    assert (reported(box)["generation"], reported(box)["desired"]["missing"]) == (7, {})
    assert events(box, "desired_reached")[0]["generations"] == {"own": 7}


def test_until_it_is_reached_the_generation_before_is_reported_with_what_is_missing(box: Box) -> None:
    box.want(1, models={"kanji": KANJI})
    box.settle()
    box.want(2, models={"kanji": KANJI, "kana": KANA})
    box.go_to("gen2-kana", Phase.BUILDING)
    assert reported(box)["generation"] == 1
    assert reported(box)["desired"]["missing"] == {"kana": {"operation": "gen2-kana", "state": "pending"}}
    box.settle()
    assert (reported(box)["generation"], reported(box)["desired"]["missing"]) == (2, {})


def test_what_is_served_already_needs_no_operation(box: Box) -> None:
    box.want(1, models={"kanji": KANJI})
    box.settle()
    box.want(2, models={"kanji": KANJI})
    box.settle()
    assert box.journal.operation("gen2-kanji") is None
    assert reported(box)["generation"] == 2


@pytest.mark.parametrize(
    "changed",
    [{"method": "fp4"}, {"version": "two"}, {"gate": {"min_agreement": 0.5}}, {"method": "auto"}],
    ids=lambda changed: str(next(iter(changed))),
)
def test_an_entry_that_changed_is_deployed_again(box: Box, changed: dict[str, Any]) -> None:
    box.want(1, models={"kanji": KANJI})
    box.settle()
    box.want(2, models={"kanji": {**KANJI, **changed}})
    box.settle()
    assert box.report("gen2-kanji")["state"] == "succeeded"
    box.want(3, models={"kanji": {**KANJI, **changed}})
    box.settle()
    assert box.journal.operation("gen3-kanji") is None


def test_a_model_that_is_absent_or_null_is_undeployed(box: Box) -> None:
    box.want(1, models={"kanji": KANJI, "kana": KANA})
    box.settle()
    box.want(2, models={"kanji": KANJI})
    box.settle()
    assert methods(box) == {"kanji": "nf4"}
    assert (box.report("gen2-kana")["command"], box.report("gen2-kana")["state"]) == ("undeploy", "succeeded")
    box.want(3, models={"kanji": None})
    box.settle()
    assert methods(box) == {}


def test_a_document_without_models_undeploys_nothing(box: Box) -> None:
    box.deploy("d-1", method="nf4")
    box.settle()
    box.want(1, config={"health": {"interval_s": 5}})
    box.settle()
    assert methods(box) == {"kanji": "nf4"}
    assert reported(box)["generation"] == 1


def test_wanted_settings_are_the_whole_of_what_is_changed(box: Box) -> None:
    box.send("set_config", {"id": "c-1", "config": {"health": {"interval_s": 9}, "watch": {"mode": "alarm"}}})
    box.want(1, config={"health": {"interval_s": 5}})
    box.settle()
    assert reported(box)["config"] == {"health": {"interval_s": 5.0}}
    assert box.report("gen1_config")["state"] == "succeeded"
    box.want(2, config={"health": {"interval_s": 5}})
    box.settle()
    assert box.journal.operation("gen2_config") is None
    box.want(3, config={})
    box.settle()
    assert (reported(box)["config"], reported(box)["generation"]) == ({}, 3)


def test_a_wrong_setting_and_a_wrong_entry_miss_the_generation_and_hinder_nothing_else(box: Box) -> None:
    box.want(1, models={"kanji": KANJI, "kana": {"method": "int3"}}, config={"health": {"interval": 5}})
    box.settle()
    assert methods(box) == {"kanji": "nf4"}
    assert box.report("gen1-kana")["error"]["code"] == "unsupported_method"
    assert box.report("gen1_config")["error"]["code"] == "bad_request"
    assert reported(box)["generation"] is None
    assert {name: each["state"] for name, each in reported(box)["desired"]["missing"].items()} == {
        "config": "rejected",
        "kana": "rejected",
    }
    assert list(events(box, "desired_missed")[0]["missing"]) == ["config", "kana"]


@pytest.mark.parametrize("generation", [4, 5])
def test_an_older_or_equal_generation_is_ignored_and_told(box: Box, generation: int) -> None:
    box.want(5, models={"kanji": KANJI})
    box.settle()
    acknowledged = box.want(generation, models={})
    box.settle()
    assert acknowledged == ["ack"]
    assert methods(box) == {"kanji": "nf4"}
    (event,) = events(box, "desired_rejected")
    assert (event["source"], event["error"]["code"]) == ("own", "stale_generation")
    assert "not newer than 5" in event["error"]["detail"]


def test_what_the_broker_replays_at_every_connection_is_not_told_again(box: Box) -> None:
    box.want(5, models={"kanji": KANJI})
    box.settle()
    before = len(box.broker.bodies(TOPICS.event))
    assert box.want(5, is_replayed=True, models={"kanji": KANJI}) == []
    box.settle()
    assert len(box.broker.bodies(TOPICS.event)) == before


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b'{"schema":2,"generation":1}', b'{"schema":1,"generation":"1"}']
)
def test_what_is_no_document_changes_nothing_and_is_told(box: Box, payload: bytes) -> None:
    box.want(1, models={"kanji": KANJI})
    box.settle()
    box.engine.post(DesiredMessage(OWN, payload))
    box.settle()
    assert events(box, "desired_rejected")[0]["error"]["code"] == "bad_request"
    assert methods(box) == {"kanji": "nf4"}


def test_of_three_generations_in_a_second_only_the_last_one_is_served(box: Box) -> None:
    for generation, method in ((5, "nf4"), (6, "fp4"), (7, "int8")):
        box.want(generation, models={"kanji": entry(method)})
    box.settle()
    assert [box.report(f"gen{number}-kanji")["state"] for number in (5, 6, 7)] == [
        "superseded",
        "superseded",
        "succeeded",
    ]
    assert methods(box) == {"kanji": "int8"}
    assert [job["method"] for job in box.builder.jobs] == ["int8"]


@pytest.mark.parametrize("phase", [phase for phase in RULES if phase not in (Phase.QUEUED, Phase.ROLLING_BACK)])
def test_a_newer_generation_stops_what_may_be_stopped_and_waits_for_the_rest(box: Box, phase: Phase) -> None:
    box.want(1, models={"kanji": entry("nf4")})
    box.go_to("gen1-kanji", phase)
    box.want(2, models={"kanji": entry("fp4")})
    box.settle()
    expected = "superseded" if RULES[phase].is_cancelable else "succeeded"
    assert box.report("gen1-kanji")["state"] == expected
    rolled = ("running", "rolling_back") in box.states("gen1-kanji")
    assert rolled == (RULES[phase].on_failure is OnFailure.ROLL_BACK and expected == "superseded")
    if expected == "superseded":
        assert box.report("gen1-kanji")["error"]["code"] == "superseded"
        assert "generation gen2" in box.report("gen1-kanji")["error"]["detail"]
    assert methods(box) == {"kanji": "fp4"}
    assert reported(box)["generation"] == 2


def test_a_poison_generation_is_tried_once_even_after_reboots_and_again_with_the_next(box: Box) -> None:
    box.builder.gate = {**box.builder.gate, "agreement": 0.1}
    box.want(1, models={"kanji": KANJI})
    box.settle()
    for _ in range(3):
        box.reboot()
        box.want(1, is_replayed=True, models={"kanji": KANJI})
        box.settle()
    assert box.report("gen1-kanji")["state"] == "failed"
    jobs = len(box.builder.jobs)
    box.builder.gate = {**box.builder.gate, "agreement": 1.0}
    assert jobs == 1
    box.want(2, models={"kanji": {**KANJI, "gate": {"soak_s": 0.0, "min_agreement": 0.9}}})
    box.settle()
    assert box.record("gen1-kanji").state is State.FAILED
    assert box.record("gen2-kanji").state.is_terminal


def test_a_command_after_the_generation_stands_until_the_next_one_and_is_told(box: Box) -> None:
    box.want(1, models={"kanji": KANJI})
    box.settle()
    box.send("set_method", {"id": "s-1", "model": "kanji", "method": "fp4"})
    box.deploy("d-2", content=OTHER, url=OTHER_URL, model="kana")
    box.settle()
    assert methods(box)["kanji"] == "fp4"
    box.reboot()
    box.settle()
    assert methods(box)["kanji"] == "fp4"
    assert reported(box)["desired"]["changed_since"] == ["kanji"]
    box.want(2, models={"kanji": KANJI})
    box.settle()
    assert methods(box) == {"kanji": "nf4"}
    assert reported(box)["desired"]["changed_since"] == []


def test_a_generation_waits_for_an_operators_operation_on_the_same_model(box: Box) -> None:
    box.deploy("mine", method="fp4")
    box.go_to("mine", Phase.BUILDING)
    box.want(1, models={"kanji": entry("nf4")})
    box._drain()
    assert box.journal.operation("gen1-kanji") is None
    box.settle()
    assert box.report("mine")["state"] == "succeeded"
    assert methods(box) == {"kanji": "nf4"}


def test_an_id_that_an_operator_used_misses_the_generation_instead_of_going_round(box: Box) -> None:
    box.deploy("gen1-kanji", method="fp4")
    box.settle()
    box.want(1, models={"kanji": entry("nf4")})
    box.settle()
    assert reported(box)["desired"]["missing"] == {"kanji": {"operation": "gen1-kanji", "state": "rejected"}}
    assert methods(box) == {"kanji": "fp4"}


def test_more_models_than_may_wait_come_one_after_another(box: Box) -> None:
    box.want(1, models={f"m-{number}": KANJI for number in range(30)})
    box.settle()
    assert len(methods(box)) == 30
    assert reported(box)["generation"] == 1
    assert set(reported(box)["models"]) == set(methods(box))


def test_the_more_urgent_model_comes_first(box: Box) -> None:
    box.want(1, models={"a": KANJI, "b": {**KANJI, "priority": 5}})
    box.settle()
    ended = [event["id"] for event in events(box, "operation_ended")]
    assert ended == ["gen1-b", "gen1-a"]


def test_the_generation_survives_a_reboot_and_an_older_one_is_still_ignored(box: Box) -> None:
    box.want(3, models={"kanji": KANJI})
    box.settle()
    box.reboot()
    box.want(2, models={})
    box.settle()
    assert (methods(box), reported(box)["generation"]) == ({"kanji": "nf4"}, 3)
    assert events(box, "desired_rejected")[0]["error"]["code"] == "stale_generation"


@pytest.mark.parametrize(("expected", "state"), [(3, "succeeded"), (2, "rejected"), (4, "rejected")])
def test_a_command_can_demand_a_generation(box: Box, expected: int, state: str) -> None:
    box.want(3, models={"kanji": KANJI})
    box.settle()
    box.send("replan", {"id": "x", "model": "kanji", "expected_generation": expected})
    box.settle()
    assert box.report("x")["state"] == state
    if state == "rejected":
        assert box.report("x")["error"]["code"] == "stale_generation"


def test_without_a_generation_in_force_none_can_be_demanded(box: Box) -> None:
    box.deploy("x", expected_generation=1)
    box.settle()
    assert box.report("x")["error"]["code"] == "stale_generation"


def test_groups_are_laid_over_each_other_and_the_devices_own_document_over_both(grouped: Box) -> None:
    box = grouped
    box.want(4, "all", models={"kanji": entry("fp4"), "kana": KANA}, config={"health": {"interval_s": 9}})
    box.settle()
    assert methods(box) == {"kanji": "fp4", "kana": "nf4"}
    assert box.report("all-4-kanji")["state"] == "succeeded"

    box.want(2, "lab", models={"kanji": entry("int8")})
    box.settle()
    assert methods(box) == {"kanji": "int8", "kana": "nf4"}

    box.want(1, models={"kanji": entry("nf4"), "kana": None}, config={"watch": {"mode": "alarm"}})
    box.settle()
    assert methods(box) == {"kanji": "nf4"}
    assert box.report("gen1-lab-2-all-4-kana")["command"] == "undeploy"
    assert reported(box)["generation"] == 1
    assert reported(box)["desired"]["reached"] == {"own": 1, "lab": 2, "all": 4}
    assert reported(box)["config"] == {"health": {"interval_s": 9.0}, "watch": {"mode": "alarm"}}


def test_each_source_has_generations_of_its_own(grouped: Box) -> None:
    grouped.want(9, "all", models={"kanji": KANJI})
    grouped.want(1, models={"kana": KANA})
    grouped.want(8, "all", models={})
    grouped.settle()
    assert methods(grouped) == {"kanji": "nf4", "kana": "nf4"}
    assert [event["source"] for event in events(grouped, "desired_rejected")] == ["all"]


def test_a_device_that_leaves_a_group_drops_what_the_group_wanted(grouped: Box) -> None:
    grouped.want(1, "lab", models={"kanji": KANJI})
    grouped.want(1, models={"kana": KANA})
    grouped.settle()
    grouped.settings = Settings(mqtt=Mqtt(groups=("all",)), deployment=Deployment(soak_s=0.0))
    grouped.reboot()
    grouped.settle()
    assert methods(grouped) == {"kana": "nf4"}


def first(box: Box) -> None:
    box.want(1, models={"kanji": KANJI, "kana": KANA}, config={"health": {"interval_s": 5}})


def second(box: Box) -> None:
    box.want(2, models={"kanji": entry("fp4")})


@pytest.mark.parametrize("before", [False, True], ids=["after_the_commit", "before_the_commit"])
@pytest.mark.parametrize("want", [first, second])
def test_a_crash_at_any_commit_leads_to_the_wanted_state_all_the_same(
    tmp_path: Path, want: Callable[[Box], None], *, before: bool
) -> None:
    for number in range(1, ENOUGH):
        root = tmp_path / str(number)
        root.mkdir()
        box = Box(root)
        box.sources.files[OTHER_URL] = OTHER
        if want is second:
            first(box)
            box.settle()
        box.journal.commits, box.journal.cut_at, box.journal.is_cut_before = 0, number, before
        want(box)
        try:
            box.settle()
        except ProcessDeathError:
            box.reboot()
            want(box)  # the broker retains it, and delivers it again
            box.settle()
            generation = 1 if want is first else 2
            assert not box.journal.open_operations()
            ends = {name: body["state"] for name, body in reported(box)["desired"]["missing"].items()}
            assert set(ends.values()) <= {"rolled_back"}, ends  # a release that died in its trial has not proved itself
            if not ends:
                assert reported(box)["generation"] == generation
                assert set(methods(box)) == ({"kanji", "kana"} if want is first else {"kanji"})
            box.journal.close()
        else:
            box.journal.close()
            assert number > 10
            return
    raise AssertionError("more commits than any generation has")
