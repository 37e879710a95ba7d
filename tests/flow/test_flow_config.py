"""Settings that are changed over MQTT: at once, for good, visibly, and back again."""

from __future__ import annotations

from typing import Any

import pytest

from agent.settings import Deployment, Health, Settings
from tests.fakes.box import TOPICS, Box


def set_config(box: Box, operation_id: str, config: Any) -> Any:
    acknowledged = box.send("set_config", {"id": operation_id, "config": config})
    box.settle()
    assert acknowledged == ["ack"]
    return box.report(operation_id)


def reported(box: Box) -> Any:
    return box.broker.retained(TOPICS.reported)["config"]


def test_a_change_succeeds_at_once_with_the_old_and_the_new_value(box: Box) -> None:
    report = set_config(box, "c-1", {"health": {"interval_s": 5}, "memory": {"reserve": "300MiB"}})
    assert box.states("c-1") == [("succeeded", None)]
    assert report["decision"]["config"] == {
        "health.interval_s": {"old": 30.0, "new": 5.0},
        "memory.reserve": {"old": 512 * 2**20, "new": 300 * 2**20},
    }
    assert box.live.current.health.interval_s == 5.0
    assert box.live.reserve_bytes() == 300 * 2**20


def test_only_what_was_changed_is_reported_and_every_change_is_in_the_trail(box: Box) -> None:
    set_config(box, "c-1", {"health": {"interval_s": 5}})
    assert reported(box) == {"health": {"interval_s": 5.0}}
    set_config(box, "c-2", {"watch": {"mode": "off"}})
    assert reported(box) == {"health": {"interval_s": 5.0}, "watch": {"mode": "off"}}
    trail = [body for body in box.broker.bodies(TOPICS.event) if body["event"] == "config_changed"]
    assert [(body["id"], body["config"]) for body in trail] == [
        ("c-1", {"health.interval_s": {"old": 30.0, "new": 5.0}}),
        ("c-2", {"watch.mode": {"old": "act", "new": "off"}}),
    ]


def test_null_goes_back_to_the_file_s_value(box: Box) -> None:
    set_config(box, "c-1", {"health": {"interval_s": 5}})
    report = set_config(box, "c-2", {"health": {"interval_s": None}})
    assert report["decision"]["config"] == {"health.interval_s": {"old": 5.0, "new": None}}
    assert (reported(box), box.live.current.health.interval_s) == ({}, 30.0)


def test_a_change_outlives_the_process_and_the_file_is_back_once_it_is_taken_back(box: Box) -> None:
    set_config(box, "c-1", {"health": {"interval_s": 5}, "deployment": {"soak_s": 3}})
    box.settings = Settings(health=Health(interval_s=60.0), deployment=Deployment(soak_s=0.0))
    box.reboot()
    assert box.live.current.health.interval_s == 5.0
    assert box.live.current.deployment.soak_s == 3.0
    set_config(box, "c-2", {"health": {"interval_s": None}})
    box.reboot()
    assert box.live.current.health.interval_s == 60.0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"health": {"intervall_s": 5}}, ["health.intervall_s cannot be changed", "did you mean health.interval_s"]),
        ({"trust": {"require_signature": False}}, ["trust.require_signature cannot be changed", "allowed: health."]),
        ({"mqtt": None}, ["mqtt cannot be changed"]),
        ({"health": {"interval_s": 0}}, ["health.interval_s", "greater than or equal to 0.2", "got 0"]),
        ({"health": {"interval_s": True}}, ["health.interval_s", "valid number", "got True"]),
        ({"health": {"interval_s": "5"}}, ["health.interval_s", "valid number"]),
        ({"memory": {"reserve": "much"}}, ["memory.reserve", "KiB, MiB or GiB"]),
        ({"watch": {"mode": "maybe"}}, ["watch.mode", "'off', 'alarm' or 'act'"]),
        ({"planning": {"matrix": {"row": []}}}, ["planning.matrix", "row"]),
        ({"planning": {"matrix": 7}}, ["planning.matrix", "valid dictionary"]),
        ({}, ["names no setting"]),
    ],
)
def test_what_may_not_be_changed_so_is_refused_with_the_key_and_what_is_allowed(
    box: Box, config: Any, words: list[str]
) -> None:
    before = box.live.current
    report = set_config(box, "c-1", config)
    assert (report["state"], report["error"]["code"]) == ("rejected", "bad_request")
    told = f"{report['error']['detail']} {report['error']['hint']}"
    assert all(word in told for word in words), told
    assert "Value error" not in told
    assert told.count("much") <= 1, "a value is shown once"
    assert (box.live.current, box.journal.config()) == (before, {})


def test_one_wrong_value_leaves_all_as_it_was_and_every_complaint_is_told(box: Box) -> None:
    report = set_config(box, "c-1", {"health": {"interval_s": 5}, "memory": {"budget": "x"}, "deployment": {"soak": 1}})
    assert "memory.budget" in report["error"]["detail"]
    assert "deployment.soak" in report["error"]["detail"]
    assert box.live.overrides() == {}


def test_a_key_that_the_environment_fixes_is_refused_and_keeps_its_value(box: Box) -> None:
    set_config(box, "c-1", {"health": {"interval_s": 5}})
    box.fixed = ("health.interval_s",)
    box.reboot()
    assert box.live.current.health.interval_s == 30.0
    report = set_config(box, "c-2", {"health": {"interval_s": 7}})
    assert report["error"]["code"] == "bad_request"
    assert "NIBBLED_HEALTH__INTERVAL_S" in report["error"]["hint"]


def test_a_stored_value_that_is_no_longer_allowed_does_not_keep_the_device_from_starting(box: Box) -> None:
    set_config(box, "c-1", {"health": {"interval_s": 5}})
    box.journal._db.execute("INSERT INTO config VALUES ('watch.mode', '\"maybe\"'), ('gone.key', '1')")
    box.reboot()
    assert box.live.overrides() == {"health": {"interval_s": 5.0}}


def test_the_same_command_again_changes_nothing_more(box: Box) -> None:
    set_config(box, "c-1", {"health": {"interval_s": 5}})
    set_config(box, "c-2", {"health": {"interval_s": 9}})
    set_config(box, "c-1", {"health": {"interval_s": 5}})
    assert box.live.current.health.interval_s == 9.0


def test_a_matrix_from_afar_is_what_is_planned_by_until_it_is_taken_back(box: Box) -> None:
    rows = {"row": [{"scenario": "own", "methods": ["fp4"], "rationale": "ours"}]}
    set_config(box, "c-1", {"planning": {"matrix": rows, "matrix_only": True, "purpose": "research"}})
    policy = box.live.policy(box.policy.matrix)
    assert [row.scenario for row in policy.matrix] == ["own"]
    assert (policy.matrix_only, policy.purpose) == (True, "research")
    set_config(box, "c-2", {"planning": {"matrix": None}})
    assert box.live.policy(box.policy.matrix).matrix == box.policy.matrix


def test_a_soak_that_was_changed_counts_for_the_next_trial(box: Box) -> None:
    assert box.engine._performing._steps()._soak_s == 0.0
    set_config(box, "c-1", {"deployment": {"soak_s": 0.25}})
    assert box.engine._performing._steps()._soak_s == 0.25


def test_a_change_that_did_not_reach_the_disk_is_not_in_force(box: Box) -> None:
    box.journal.error = OSError("the disk is full")
    acknowledged = box.send("set_config", {"id": "c-1", "config": {"health": {"interval_s": 5}}})
    box.settle()
    assert acknowledged == []
    assert box.live.current.health.interval_s == 30.0


def test_the_pace_of_downloads_is_changed_while_they_run(box: Box) -> None:
    assert box.live.download_rate() == 0
    set_config(box, "c-1", {"downloads": {"max_bytes_per_s": "2MiB"}})
    assert box.live.download_rate() == 2 * 2**20
    report = set_config(box, "c-2", {"downloads": {"allowed_hosts": ["anywhere"]}})
    assert report["error"]["code"] == "bad_request"
    set_config(box, "c-3", {"downloads": {"max_bytes_per_s": None}})
    assert box.live.download_rate() == 0
