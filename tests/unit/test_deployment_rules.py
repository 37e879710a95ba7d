"""The small rules beside the machine: what serves after an operation, what to try after crashes, which files stay."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent.deployment.models import Release, Served, release_id, settle
from agent.deployment.phases import Phase, State
from agent.deployment.recovery import WINDOW_S, Mode, mode, select
from agent.deployment.retention import in_use, needed
from tests.fakes.strategies import fresh

if TYPE_CHECKING:
    from agent.deployment.machine import Operation


def release(name: str) -> Release:
    return Release(name, "v1", f"{name}-sha", "cnn", "nf4", "/a", "/g", 10, 12, 0.98, 0.99, None, None, "before")


OLD, NEW = release("old"), release("new")
SERVED = Served("kanji", OLD, release("older"), "data-1")


def done(command: str, **facts: Any) -> Operation:
    if "release" in facts:
        facts["release"] = facts["release"].to_json()
    return replace(fresh(command), state=State.SUCCEEDED, facts=facts)


@pytest.mark.parametrize("phase", Phase)
def test_a_phase_has_words_for_a_moment_in_it(phase: Phase) -> None:
    assert re.fullmatch(r"while it waited|during [a-z]+( [a-z]+)?", phase.when)


def test_a_first_deploy_has_nothing_before_it() -> None:
    assert settle(None, done("deploy", release=NEW, dataset="data-2"), "now") == Served(
        "kanji", replace(NEW, since="now"), None, "data-2"
    )


@pytest.mark.parametrize("command", ["deploy", "set_method", "replan"])
def test_a_new_release_makes_the_current_one_the_previous(command: str) -> None:
    settled = settle(SERVED, done(command, release=NEW), "now")
    assert settled == Served("kanji", replace(NEW, since="now"), OLD, "data-1")


def test_a_release_that_is_served_again_does_not_become_its_own_previous() -> None:
    settled = settle(SERVED, done("deploy", release=OLD, dataset="data-2"), "now")
    assert settled == Served("kanji", replace(OLD, since="now"), SERVED.previous, "data-2")


def test_a_rollback_forgets_what_it_came_from() -> None:
    settled = settle(SERVED, done("rollback", release=release("older")), "now")
    assert settled == Served("kanji", replace(release("older"), since="now"), None, "data-1")


def test_an_undeploy_leaves_nothing() -> None:
    assert settle(SERVED, done("undeploy"), "now") is None


@pytest.mark.parametrize("chooser", ["auto", "operator"])
def test_the_last_one_to_ask_for_what_is_served_has_chosen_it_and_demands_of_it(chooser: str) -> None:
    settled = settle(SERVED, done("set_method", already_applied=True, chosen_by=chooser, gate={"soak_s": 1.0}), "now")
    assert settled is not None
    assert settled.current == replace(SERVED.current, chosen_by=chooser, gate={"soak_s": 1.0})


def test_what_a_rollback_brings_back_was_chosen_by_a_person() -> None:
    older = replace(release("older"), chosen_by="auto", gate={"min_agreement": 0.9})
    settled = settle(SERVED, done("rollback", release=older), "now")
    assert settled is not None
    assert settled.current == replace(older, since="now", chosen_by="operator")


def test_what_was_served_already_stays_as_it_is() -> None:
    assert settle(SERVED, done("deploy", already_applied=True), "now") == SERVED


def test_a_release_is_named_by_version_checkpoint_and_method() -> None:
    assert release_id("v2", "0123456789abcdef", "nf4-dq") == "v2-0123456789ab-nf4-dq"


@pytest.mark.parametrize(
    ("ages", "expected"),
    [
        ([], Mode.CURRENT),
        ([1, 2], Mode.CURRENT),
        ([1, 2, 3], Mode.LAST_GOOD),
        ([1, 2, 3, 4, 5], Mode.LAST_GOOD),
        ([1, 2, 3, 4, 5, 6], Mode.SAFE),
        ([1, 2, WINDOW_S], Mode.CURRENT),
        ([1, 2, WINDOW_S - 1], Mode.LAST_GOOD),
        ([WINDOW_S] * 6, Mode.CURRENT),
    ],
)
def test_crashes_in_ten_minutes_decide_what_is_tried(ages: list[float], expected: Mode) -> None:
    now = 10_000.0
    assert mode([now - age for age in ages], now) is expected


def test_each_mode_selects_less() -> None:
    alone = Served("kana", NEW)
    served = {"kanji": SERVED, "kana": alone}
    assert select(served, Mode.CURRENT, {}) == served
    assert select(served, Mode.LAST_GOOD, {}) == {
        "kanji": replace(SERVED, current=release("older"), previous=None),
        "kana": alone,
    }
    assert select(served, Mode.SAFE, {}) == {}


def test_files_stay_for_what_is_served_what_was_served_and_what_is_worked_on() -> None:
    request = {
        "artifact": {"url": "u", "sha256": "fetching", "size": 1},
        "gate": {"dataset": {"url": "u", "sha256": "data-9"}},
    }
    deploy = replace(fresh("deploy"), request=request)
    switch = replace(fresh("set_method"), facts={"sha256": "switching", "dataset": "data-3"})
    assert needed({"kanji": SERVED}, [deploy, switch]) == {
        "old-sha", "older-sha", "data-1", "fetching", "data-9", "switching", "data-3",
    }  # fmt: skip
    assert needed({}, []) == set()
    assert needed({"kana": Served("kana", NEW)}, [fresh("rollback")]) == {"new-sha"}


def test_artifacts_stay_that_serve_served_before_or_are_about_to() -> None:
    begun = replace(fresh("set_method"), facts={"release": {"artifact": "fresh"}})
    served = Served("kanji", replace(NEW, artifact="now"), replace(NEW, artifact="before"))
    assert in_use({"kanji": served}, [begun, fresh("deploy")]) == {"now", "before", "fresh"}
