"""A served release whose artifact cannot be loaded any more: what was before answers, and it is built again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.contract.errors import ErrorCode
from agent.deployment.again import LONGEST_PAUSE_S
from agent.deployment.phases import MAX_ATTEMPTS, Phase
from agent.deployment.ports import StepError
from agent.deployment.recovery import Mode
from tests.fakes.box import CONTENT, TOPICS, URL, Box
from tests.fakes.device import checkpoint, sha256
from tests.fakes.server import DAMAGED

if TYPE_CHECKING:
    from agent.deployment.models import Release

OTHER = checkpoint(30_000, seed=2)
OTHER_URL = "https://models.example/kana.pt"


def current(box: Box, model: str = "kanji") -> Release:
    return box.journal.served()[model].current


def damage(release: Release) -> None:
    Path(release.artifact).write_bytes(DAMAGED)


def damage_source(box: Box, content: bytes = CONTENT) -> None:
    source = box.store.source(sha256(content))
    assert source is not None
    source.write_bytes(content[:-1] + b"?")


def events(box: Box, name: str) -> list[dict[str, Any]]:
    return [body for body in box.broker.bodies(TOPICS.event) if body["event"] == name]


def repairs(box: Box) -> list[dict[str, Any]]:
    """Return the last report of every repair."""
    kept = box.broker.retained_operations(TOPICS)
    return [json.loads(payload) for operation_id, payload in kept if operation_id.startswith("repair-")]


def start(box: Box) -> None:
    """Start the next process on the same disk, and let it restore what it can before anything else is done."""
    box.reboot()
    box.runner.pump()


def told(box: Box) -> str | None:
    """Return the method of ``kanji`` that is reported."""
    model = box.broker.retained(TOPICS.reported)["models"].get("kanji")
    return str(model["method"]) if model else None


def test_the_release_before_answers_until_it_is_built_again(serving_box: Box) -> None:
    box, release = serving_box, current(serving_box)
    builds = len(box.builder.jobs)
    damage(release)
    start(box)
    assert box.server.answers()["kanji"].endswith("-fp4"), "the release before answers at once"
    box.settle()

    assert box.serving() == release.id
    assert [job["method"] for job in box.builder.jobs[builds:]] == ["nf4"]
    (event,) = events(box, "release_unusable")
    assert (event["model"], event["release"]) == ("kanji", release.id)
    assert event["answers"].endswith("-fp4")
    assert "damaged" in event["detail"]
    (repair,) = repairs(box)
    assert (repair["command"], repair["state"]) == ("set_method", "succeeded")
    assert current(box).chosen_by == "operator"
    assert box.keeper.alarms == ()


def test_while_it_is_built_the_release_before_is_what_is_reported(serving_box: Box) -> None:
    box, release = serving_box, current(serving_box)
    damage(release)
    start(box)
    box.engine.turn(wait_s=0)
    box._drain()
    assert told(box) == "fp4"
    reported = box.broker.retained(TOPICS.reported)["models"]["kanji"]
    assert (reported["stands_in_for"]["method"], reported["previous"]) == ("nf4", None)
    assert any(release.id in alarm for alarm in box.keeper.alarms)
    assert not box.keeper.serves_current


def test_what_auto_chose_is_chosen_again(box: Box) -> None:
    box.deploy("first")
    box.settle()
    release = current(box)
    damage(release)
    box.reboot()
    box.settle()
    assert box.serving() == release.id
    assert current(box).chosen_by == "auto"
    assert [repair["command"] for repair in repairs(box)] == ["replan"]


def test_without_a_release_before_it_answers_once_it_is_built(box: Box) -> None:
    box.deploy("first", method="nf4")
    box.settle()
    damage(current(box))
    start(box)
    assert box.server.answers() == {}
    box.settle()
    assert (box.serving() or "").endswith("-nf4")
    assert events(box, "release_unusable")[0]["answers"] is None


def test_a_checkpoint_that_changed_too_is_told_and_the_release_before_goes_on(serving_box: Box) -> None:
    box = serving_box
    damage(current(box))
    damage_source(box)
    box.reboot()
    box.settle()

    (repair,) = repairs(box)
    assert (repair["state"], repair["error"]["code"]) == ("failed", "checksum_mismatch")
    assert sha256(CONTENT)[:12] in repair["error"]["detail"]
    assert repair["error"]["kept"].endswith("-fp4")
    (alarm,) = box.keeper.alarms
    assert "its repair ended failed" in alarm
    assert "fetched anew" in alarm
    assert box.store.source(sha256(CONTENT)) is None
    assert box.server.answers()["kanji"].endswith("-fp4")
    assert told(box) == "fp4"

    box.deploy("again", method="nf4")
    box.settle()
    assert box.report("again")["state"] == "succeeded", "the file is fetched anew"
    assert box.keeper.alarms == ()
    assert (box.serving() or "").endswith("-nf4")


def test_with_nothing_left_it_is_tried_again_and_repaired_once(box: Box) -> None:
    box.deploy("first", method="nf4")
    box.settle()
    release = current(box)
    whole = Path(release.artifact).read_bytes()
    damage(release)
    damage_source(box)
    box.reboot()
    box.settle()
    for _ in range(5):
        box.clock.advance(300.0)
        box.engine.turn(wait_s=0)
        box.settle()
        box.engine.turn(wait_s=0)
    assert len(repairs(box)) == 1
    assert told(box) is None

    Path(release.artifact).write_bytes(whole)
    for _ in range(3):
        box.clock.advance(300.0)
        box.engine.turn(wait_s=0)
        box.settle()
    assert box.server.answers() == {"kanji": release.id}
    assert told(box) == "nf4"


def test_both_releases_damaged(serving_box: Box) -> None:
    box = serving_box
    item = box.journal.served()["kanji"]
    assert item.previous is not None
    damage(item.current)
    damage(item.previous)
    start(box)
    assert box.server.answers() == {}
    box.settle()
    assert box.serving() == item.current.id


def test_what_is_set_aside_is_what_was_tried_whatever_the_engine_decides_meanwhile(serving_box: Box) -> None:
    box, release = serving_box, current(serving_box)
    damage(release)

    def die_often() -> None:
        for _ in range(MAX_ATTEMPTS):
            box.keeper.crashed(box.clock.monotonic(), ())

    box.reboot()
    box.server.before("restore", die_often)
    box.runner.pump()
    assert box.keeper.mode is Mode.LAST_GOOD
    (alarm,) = box.keeper.alarms
    assert release.id in alarm


def test_other_models_are_not_touched(serving_box: Box) -> None:
    box = serving_box
    box.sources.files[OTHER_URL] = OTHER
    box.deploy("kana", OTHER, OTHER_URL, model="kana", method="nf4")
    box.settle()
    kana = current(box, "kana")
    damage(current(box))
    start(box)
    assert box.server.answers()["kana"] == kana.id
    box.settle()
    assert box.server.answers()["kana"] == kana.id


def test_a_restart_in_the_middle_of_the_repair(serving_box: Box) -> None:
    box, release = serving_box, current(serving_box)
    damage(release)
    start(box)
    box._drain()
    (repair,) = (each.id for each in box.engine.open_operations)
    box.go_to(repair, Phase.BUILDING)
    box.reboot()
    box.settle()
    assert box.serving() == release.id
    assert box.report(repair)["state"] == "succeeded"
    assert len(repairs(box)) == 1


def test_a_deploy_that_waits_takes_the_place_of_a_repair(serving_box: Box) -> None:
    box = serving_box
    box.sources.files[OTHER_URL] = OTHER
    box.deploy("newer", OTHER, OTHER_URL, method="int8")
    box.go_to("newer", Phase.DOWNLOADING)
    damage(current(box))
    box.reboot()
    box.settle()
    assert box.report("newer")["state"] == "succeeded"
    assert repairs(box) == []
    item = box.journal.served()["kanji"]
    assert (item.current.method, item.previous and item.previous.method) == ("int8", "fp4")


def test_a_damaged_release_is_known_until_the_end_of_the_one_that_takes_its_place_is_committed(
    serving_box: Box,
) -> None:
    box = serving_box
    box.sources.files[OTHER_URL] = OTHER
    box.deploy("newer", OTHER, OTHER_URL, method="int8")
    box.go_to("newer", Phase.DOWNLOADING)
    damage(current(box))
    box.reboot()
    box.go_to("newer", Phase.TRIAL)
    alarms = list(box.keeper.alarms)
    assert len(alarms) == 1
    box.journal.error = OSError("database or disk is full")
    box.settle()
    assert list(box.keeper.alarms) == alarms
    box.journal.error = None
    for _ in range(int(LONGEST_PAUSE_S)):
        box.clock.advance(1.0)
        box.engine.turn(wait_s=0)
        box.settle()
    assert box.report("newer")["state"] == "succeeded"
    assert not box.keeper.alarms
    previous = box.journal.served()["kanji"].previous
    assert previous is not None
    assert previous.method == "fp4", "not the one that cannot be loaded"


@pytest.mark.parametrize("verb", ["canary", "activate"])
def test_a_rollback_onto_a_damaged_release_ends_at_the_one_before(serving_box: Box, verb: str) -> None:
    box, release = serving_box, current(serving_box)
    damage(release)  # on the disk: the server still holds it
    box.server.die_in(verb)
    box.send("set_method", {"id": "third", "model": "kanji", "method": "int8"})
    box.settle()
    assert box.report("third")["state"] in ("rolled_back", "rollback_failed")
    assert box.serving() == release.id, "after its repair"
    assert [repair["state"] for repair in repairs(box)] == ["succeeded"]


def test_a_build_from_a_file_that_changed_in_the_store_says_so(serving_box: Box) -> None:
    box = serving_box
    damage_source(box)
    box.send("set_method", {"id": "third", "model": "kanji", "method": "int8"})
    box.settle()
    report = box.report("third")
    assert (report["state"], report["error"]["code"]) == ("failed", "checksum_mismatch")
    assert report["error"]["retryable"]
    assert URL not in report["error"]["detail"]
    assert (box.serving() or "").endswith("-nf4")


def test_what_is_refused_meanwhile_says_what_answers(serving_box: Box) -> None:
    box = serving_box
    damage(current(box))
    damage_source(box)
    box.reboot()
    box.settle()
    box.send("set_method", {"id": "late", "model": "kanji", "method": "int8", "expires_at": "2020-01-01T00:00:00Z"})
    box.settle()
    assert box.report("late")["error"]["kept"].endswith("-fp4")


def test_an_operation_that_waits_for_the_clock_does_not_hold_up_a_repair(serving_box: Box) -> None:
    box, release = serving_box, current(serving_box)
    box.clock.synchronised = False
    box.send("rollback", {"id": "waits", "model": "kanji", "expires_at": "2999-01-01T00:00:00Z"})
    box.settle()
    assert box.report("waits")["state"] == "accepted"
    damage(release)
    box.reboot()
    box.settle()
    assert box.serving() == release.id
    assert [repair["state"] for repair in repairs(box)] == ["succeeded"]


def test_a_deploy_of_a_file_that_changed_in_the_store_fetches_it_again(serving_box: Box) -> None:
    box = serving_box
    fetched = box.sources.fetched.count(URL)
    damage_source(box)
    box.deploy("again", method="int8")
    box.settle()
    assert box.report("again")["state"] == "succeeded"
    assert box.sources.fetched.count(URL) == fetched + 1


def test_a_file_in_the_store_that_cannot_be_looked_at_now_is_not_taken_for_one_that_was_fetched(
    serving_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = serving_box
    fetched = box.sources.fetched.count(URL)

    def exhausted(_digest: str, _watch: Any) -> None:
        raise StepError(ErrorCode.DOWNLOAD_FAILED, "Too many open files", retryable=True)

    monkeypatch.setattr(box.store, "verify_again", exhausted)
    box.deploy("again", method="int8")
    box.settle()
    report = box.report("again")
    assert (report["state"], report["error"]["code"], report["error"]["retryable"]) == (
        "failed",
        "download_failed",
        True,
    )
    assert box.sources.fetched.count(URL) == fetched


def test_what_a_build_reads_is_hashed_once_and_not_what_was_just_admitted(
    serving_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, hashed = serving_box, list[str]()
    verify = box.store.verify_again

    def note(digest: str, watch: Any) -> None:
        hashed.append(digest)
        verify(digest, watch)

    monkeypatch.setattr(box.store, "verify_again", note)
    box.sources.files[OTHER_URL] = OTHER
    box.deploy("new", OTHER, OTHER_URL, method="nf4")
    box.settle()
    assert hashed == []
    box.send("compare", {"id": "table", "model": "kanji", "methods": ["int8", "fp16", "fp4"]})
    box.settle()
    assert box.report("table")["state"] == "succeeded"
    assert hashed == [sha256(OTHER)]
