"""Documents of groups that devices join by themselves, and halts: what begins, what waits, and what is said of it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.adapters.signatures import KeyDirectory
from agent.contract.staged import delay_share, position
from agent.contract.wire import rfc3339
from agent.deployment.phases import Phase
from agent.fleet import keys
from agent.settings import Deployment, Mqtt, Settings, Trust
from tests.fakes.box import CONTENT, TOPICS, URL, Box
from tests.fakes.clock import START
from tests.fakes.device import checkpoint, sha256
from tests.fakes.journal import ProcessDeathError
from tests.fakes.server import DAMAGED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENOUGH = 120
OTHER_URL = "https://models.example/kana.pt"
OTHER = checkpoint(20_000, 3000, seed=1)
PLACE = position("lab-2", "box-1")
"""About 17.2 percent."""
GROUPED = Settings(mqtt=Mqtt(groups=("lab", "all")), deployment=Deployment(soak_s=0.0))


def entry(method: str = "nf4", content: bytes = CONTENT, url: str = URL, **fields: Any) -> dict[str, Any]:
    return {"artifact": {"url": url, "sha256": sha256(content), "size": len(content)}, "method": method, **fields}


KANA = entry(content=OTHER, url=OTHER_URL)
OLD, NEW = {"kanji": entry("fp4")}, {"kanji": entry("nf4")}


def staged(*stages: tuple[float, float], **fields: Any) -> dict[str, Any]:
    """Return a rollout that begins when the box was made: pairs of a percentage and seconds."""
    told = [{"percent": percent, "after_s": after_s} for percent, after_s in stages]
    return {"id": "lab-2", "start": rfc3339(START), "stages": told, **fields}


def methods(box: Box) -> dict[str, str]:
    served = box.journal.served()
    assert {name: item.current.id for name, item in served.items()} == box.server.answers()
    return {name: item.current.method for name, item in served.items()}


def events(box: Box, name: str) -> list[Any]:
    return [body for body in box.broker.bodies(TOPICS.event) if body["event"] == name]


def group(box: Box, name: str = "lab") -> Any:
    return box.broker.retained(TOPICS.reported)["desired"]["groups"].get(name)


def state(box: Box, name: str = "lab") -> Any:
    told = group(box, name)
    return told and told["state"]


def go_on(box: Box, seconds: float = 0.0) -> None:
    """Let time pass, and the device have a turn without a message."""
    box.clock.advance(seconds)
    box.engine.turn(wait_s=0)
    box.settle()


def make(root: Path, settings: Settings = GROUPED, **options: Any) -> Box:
    box = Box(root, **options)
    box.sources.files[OTHER_URL] = OTHER
    box.settings = settings
    box.reboot()
    box.settle()
    return box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A device in the groups ``lab`` and ``all``, which serves what ``lab`` wanted first."""
    box = make(tmp_path)
    box.want(1, "lab", models=OLD)
    box.settle()
    assert methods(box) == {"kanji": "fp4"}
    yield box
    box.journal.close()


def test_a_device_beyond_the_percentage_keeps_the_document_of_before(box: Box) -> None:
    acknowledged = box.want(2, "lab", models=NEW, rollout={"id": "lab-2", "percent": 17})
    box.settle()
    assert acknowledged == ["ack"]
    assert methods(box) == {"kanji": "fp4"}
    told = box.broker.retained(TOPICS.reported)["desired"]
    assert (told["generations"], told["reached"], told["missing"]) == ({"lab": 1}, {"lab": 1}, {})
    assert group(box) == {
        "generation": 2, "state": "outside", "rollout": "lab-2", "percent": 17.0, "position": round(PLACE, 3),
        "joins_at": None, "halt": None,
    }  # fmt: skip
    assert events(box, "desired_waiting")[0]["state"] == "outside"


def test_a_higher_percentage_under_the_same_id_takes_it_in(box: Box) -> None:
    box.want(2, "lab", models=NEW, rollout={"id": "lab-2", "percent": 17})
    box.settle()
    box.want(3, "lab", models=NEW, rollout={"id": "lab-2", "percent": 18})
    box.settle()
    assert methods(box) == {"kanji": "nf4"}
    assert (state(box), group(box)["generation"]) == ("joined", 3)
    assert box.journal.waiting() == {}


def test_a_document_without_a_rollout_is_for_everybody(box: Box) -> None:
    box.want(2, "lab", models=NEW, rollout={"id": "lab-2", "percent": 0})
    box.want(3, "lab", models=NEW)
    box.settle()
    assert methods(box) == {"kanji": "nf4"}
    assert group(box) is None


def test_it_joins_by_itself_when_its_turn_comes(box: Box) -> None:
    box.want(2, "lab", models=NEW, rollout=staged((5, 0), (25, 600), (100, 6000), spread_s=100))
    box.settle()
    at = 600 + 100 * delay_share("lab-2", "box-1")
    assert group(box)["joins_at"] == rfc3339(START + timedelta(seconds=at))
    go_on(box, at - (box.clock.seconds - 1000.0) - 1)
    assert (methods(box), state(box)) == ({"kanji": "fp4"}, "waiting")
    go_on(box, 1.1)
    assert (methods(box), state(box)) == ({"kanji": "nf4"}, "joined")
    assert group(box)["percent"] == 25
    assert box.report("lab-2-kanji")["state"] == "succeeded"


def test_a_stage_that_brings_nothing_here_is_not_told(box: Box) -> None:
    """A thousand devices would say at each stage that they still wait."""
    box.want(2, "lab", models=NEW, rollout=staged((1, 0), (2, 60), (3, 120), (100, 6000)))
    box.settle()
    before = len(box.broker.log)
    for _ in range(3):
        go_on(box, 60)
    assert len(box.broker.log) == before
    box.send("status", {"id": "s-1"})
    box.settle()
    assert group(box)["percent"] == 3


def test_without_a_synchronised_clock_it_waits_and_says_so(box: Box) -> None:
    box.clock.synchronised = False
    box.want(2, "lab", models=NEW, rollout=staged((100, 0)))
    box.settle()
    assert (methods(box), state(box), group(box)["percent"]) == ({"kanji": "fp4"}, "no_clock", None)
    box.clock.synchronised = True
    go_on(box)
    assert (methods(box), state(box)) == ({"kanji": "nf4"}, "joined")


def test_a_percentage_without_a_time_needs_no_clock(box: Box) -> None:
    box.clock.synchronised = False
    box.want(2, "lab", models=NEW, rollout={"id": "lab-2", "percent": 18})
    box.settle()
    assert methods(box) == {"kanji": "nf4"}


def test_what_waits_and_what_is_in_force_outlive_a_reboot(box: Box) -> None:
    box.want(2, "lab", models=NEW, rollout=staged((100, 600)))
    box.settle()
    box.reboot()
    box.settle()
    assert (methods(box), state(box)) == ({"kanji": "fp4"}, "waiting")
    assert len(events(box, "desired_waiting")) == 1, "what the broker replays is not told again"
    go_on(box, 600)
    assert methods(box) == {"kanji": "nf4"}


def test_a_generation_that_waits_counts_as_seen(box: Box) -> None:
    box.want(3, "lab", models=NEW, rollout=staged((100, 600)))
    box.settle()
    box.want(2, "lab", models={})
    box.settle()
    assert events(box, "desired_rejected")[0]["error"]["code"] == "stale_generation"
    assert methods(box) == {"kanji": "fp4"}


@pytest.mark.parametrize(
    "rollout", [{"id": "r"}, {"id": "r", "percent": 5, "spread_s": 60}, {"id": "r/1", "percent": 5}]
)
def test_a_rollout_that_says_nothing_clear_is_refused_and_the_document_of_before_stays(
    box: Box, rollout: dict[str, Any]
) -> None:
    box.want(2, "lab", models=NEW, rollout=rollout)
    box.settle()
    error = events(box, "desired_rejected")[0]["error"]
    assert (error["code"], error["detail"].startswith("desired: rollout")) == ("bad_request", True)
    assert methods(box) == {"kanji": "fp4"}


def test_a_device_s_own_document_has_no_rollout(box: Box) -> None:
    box.want(1, models=NEW, rollout={"id": "r", "percent": 100})
    box.settle()
    assert "of this one device there is no percentage" in events(box, "desired_rejected")[0]["error"]["detail"]


def test_a_halt_keeps_a_document_from_being_followed_until_it_is_lifted(box: Box) -> None:
    acknowledged = box.halt("lab", reason="wrong labels")
    box.want(2, "lab", models=NEW)
    box.settle()
    assert acknowledged == ["ack"]
    assert (methods(box), state(box)) == ({"kanji": "fp4"}, "halted")
    assert group(box)["halt"] == {"generation": None, "reason": "wrong labels"}
    assert events(box, "group_halted")[0]["reason"] == "wrong labels"
    box.halt("lab", b"")
    box.settle()
    assert (methods(box), group(box)) == ({"kanji": "nf4"}, None)
    assert events(box, "group_resumed")[0]["group"] == "lab"


def test_a_halt_for_a_generation_lets_a_higher_one_go_on(box: Box) -> None:
    box.halt("lab", generation=2, reason="bad")
    box.want(2, "lab", models={"kanji": entry("int8")})
    box.settle()
    assert methods(box) == {"kanji": "fp4"}
    box.want(3, "lab", models=NEW)
    box.settle()
    assert methods(box) == {"kanji": "nf4"}


def test_a_halt_that_cannot_be_read_halts(box: Box) -> None:
    box.halt("lab", b"STOP")
    box.want(2, "lab", models=NEW)
    box.settle()
    assert methods(box) == {"kanji": "fp4"}
    assert "cannot be read" in group(box)["halt"]["reason"]


def test_a_halt_of_one_group_holds_no_other_and_nothing_of_the_device_s_own(box: Box) -> None:
    box.halt("lab")
    box.want(1, "all", models={"kana": KANA})
    box.settle()
    assert methods(box) == {"kanji": "fp4", "kana": "nf4"}
    box.want(1, models={"kanji": entry("int8")})
    box.settle()
    assert methods(box) == {"kanji": "int8", "kana": "nf4"}


def test_an_operator_s_command_passes_a_halt(box: Box) -> None:
    box.halt("lab")
    box.send("set_method", {"id": "mine", "model": "kanji", "method": "int8"})
    box.settle()
    assert box.report("mine")["state"] == "succeeded"


def test_what_has_begun_goes_on_and_what_waits_for_its_turn_does_not_begin(box: Box) -> None:
    box.want(2, "lab", models={"kanji": entry("nf4", priority=5), "kana": KANA})
    box.go_to("lab-2-kanji", Phase.BUILDING)
    assert box.record("lab-2-kana").phase is Phase.QUEUED
    box.halt("lab", reason="stop")
    box.settle()
    assert box.report("lab-2-kanji")["state"] == "succeeded"
    assert box.report("lab-2-kana")["state"] == "accepted"
    assert methods(box) == {"kanji": "nf4"}
    assert state(box) == "halted"
    box.send("set_method", {"id": "mine", "model": "kanji", "method": "int8"})
    box.settle()
    assert box.report("mine")["state"] == "succeeded", "what is held holds up nobody"
    box.reboot()
    box.settle()
    assert box.report("lab-2-kana")["state"] == "accepted"
    box.halt("lab", b"")
    box.settle()
    assert (box.report("lab-2-kana")["state"], state(box)) == ("succeeded", None)


@pytest.mark.parametrize("groups", [{}, {"groups": ["lab"]}, {"groups": []}])
def test_a_goal_is_held_whatever_an_older_agent_kept_of_its_groups(box: Box, groups: dict[str, Any]) -> None:
    box.want(2, "lab", models={"kanji": entry("nf4", priority=5), "kana": KANA})
    box.go_to("lab-2-kanji", Phase.BUILDING)
    with box.journal._db as db:
        for number, body in db.execute("SELECT number, body FROM goal").fetchall():
            old = {key: value for key, value in json.loads(body).items() if key != "groups"}
            db.execute("UPDATE goal SET body = ? WHERE number = ?", (json.dumps({**old, **groups}), number))
    box.halt("lab", reason="stop")
    box.reboot()
    box.settle()
    assert (box.report("lab-2-kana")["state"], state(box)) == ("accepted", "halted")
    box.halt("lab", b"")
    box.settle()
    assert box.report("lab-2-kana")["state"] == "succeeded"


def test_a_held_operation_does_not_keep_a_damaged_release_from_being_built_again(box: Box) -> None:
    box.want(2, "lab", models={"kanji": entry("nf4"), "kana": {**KANA, "priority": 5}})
    box.go_to("lab-2-kana", Phase.BUILDING)
    box.halt("lab")
    box.settle()
    assert [each.id for each in box.engine.open_operations] == ["lab-2-kanji"]
    Path(box.journal.served()["kanji"].current.artifact).write_bytes(DAMAGED)
    box.reboot()
    box.settle()
    assert any(each.id.startswith("repair-") for each in box.journal.recent_operations(20))
    assert box.report("lab-2-kanji")["state"] == "accepted"


def test_a_device_that_comes_back_under_a_halt_does_not_start(box: Box) -> None:
    box.transport.is_connected = False
    box.want(2, "lab", models=NEW)
    box.halt("lab", reason="stop")
    box.reboot()
    box.settle()
    assert (methods(box), state(box)) == ({"kanji": "fp4"}, "halted")


def test_it_does_not_begin_before_it_has_heard_what_the_broker_keeps(box: Box) -> None:
    """A session may hold a document from before the halt."""
    box.quiet_s = 2.0
    box.want(2, "lab", models=NEW, rollout=staged((100, 60)))
    box.settle()
    box.transport.is_connected = False
    go_on(box, 100)
    assert (methods(box), state(box)) == ({"kanji": "fp4"}, "waiting"), "a halt could not reach it"
    box.reboot()
    box.settle()
    go_on(box, 1.0)
    assert (methods(box), state(box)) == ({"kanji": "fp4"}, "listening")
    go_on(box, 1.1)
    assert methods(box) == {"kanji": "nf4"}


def test_what_an_older_connection_heard_counts_no_more(box: Box) -> None:
    box.connections += 1
    box.transport.number = box.connections  # a new connection, of which nothing was heard yet
    box.want(2, "lab", models=NEW)
    box.settle()
    assert methods(box) == {"kanji": "fp4"}
    box.connect()
    box.settle()
    assert methods(box) == {"kanji": "nf4"}


def test_a_device_that_may_not_read_its_own_presence_waits_half_a_minute(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.quiet_s = 1e9  # the echo never comes
    box.reboot()
    box.want(1, "lab", models=NEW)
    box.settle()
    go_on(box, 29)
    assert methods(box) == {}
    go_on(box, 2)
    assert methods(box) == {"kanji": "nf4"}
    box.journal.close()


def test_a_halt_that_was_lifted_while_the_device_was_away_is_lifted_here(box: Box) -> None:
    box.halt("lab", reason="stop")
    box.want(2, "lab", models=NEW)
    box.settle()
    box.transport.is_connected = False
    box.halt("lab", b"")
    box.reboot()
    box.settle()
    assert methods(box) == {"kanji": "nf4"}


def test_a_broker_that_forgot_everything_lifts_no_halt(box: Box) -> None:
    box.halt("lab", reason="stop")
    box.want(2, "lab", models=NEW)
    box.settle()
    box.retained.clear()
    box.reboot()
    box.settle()
    assert (methods(box), state(box)) == ({"kanji": "fp4"}, "halted")


def test_a_journal_that_cannot_take_a_halt_in_lets_nothing_begin(box: Box) -> None:
    box.journal.error = OSError("database or disk is full")
    box.halt("lab", reason="stop")
    box.settle()
    box.journal.error = None
    box.want(2, "lab", models=NEW)
    box.settle()
    assert methods(box) == {"kanji": "fp4"}
    go_on(box, 60)
    assert (methods(box), state(box)) == ({"kanji": "fp4"}, "halted")


@pytest.mark.parametrize("words", [[b"", b"{}"], [b"{}", b""], [b"{}", b"", b"{}"]], ids=["halted", "lifted", "again"])
def test_a_word_that_the_journal_could_not_take_in_does_not_undo_the_ones_behind_it(
    box: Box, words: list[bytes]
) -> None:
    if not words[0]:
        halt(box)
    box.journal.error = OSError("database or disk is full")
    acknowledged = box.halt("lab", words[0])
    box.settle()
    box.journal.error = None
    for word in words[1:]:
        box.halt("lab", word)
        box.settle()
    for _ in range(ENOUGH):
        go_on(box, 1.0)
    assert bool(box.journal.halts()) == bool(words[-1])
    assert acknowledged == ["ack"]


def test_of_a_group_that_is_halted_before_it_wants_anything_the_reason_is_told(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.halt("lab", reason="not yet")
    box.settle()
    assert group(box) == {"state": "halted", "halt": {"generation": None, "reason": "not yet"}}
    box.journal.close()


@pytest.fixture
def strict(tmp_path: Path, trust: Path, private: Path) -> Iterator[Box]:
    """A device that demands signatures, and serves what its group wanted first."""
    needs = Trust(require_command_signature=True)
    settings = Settings(trust=needs, mqtt=Mqtt(groups=("lab",)), deployment=Deployment(soak_s=0.0))
    box = make(tmp_path, settings, signatures=KeyDirectory(trust))
    want_signed(box, private, 1, "fp4", sequence=1)
    assert methods(box) == {"kanji": "fp4"}
    yield box
    box.journal.close()


def want_signed(box: Box, private: Path, generation: int, method: str, sequence: int) -> None:
    file = {"name": "kanji.pt", "url": URL, "sha256": sha256(CONTENT), "size": len(CONTENT)}
    body = {"model": "kanji", "version": "v1", "sequence": sequence, "files": [file]}
    models = {"kanji": {"manifest": keys.sign(body, private), "method": method}}
    document = {"schema": 1, "generation": generation, "models": models}
    signed = keys.sign_message({"group": "lab"}, "desired", document, private)
    box.want(generation, "lab", models=models, signature=signed["signature"])
    box.settle()


def halt_signed(box: Box, private: Path, **fields: Any) -> None:
    body = {"schema": 1, "reason": "signed", **fields}
    box.halt("lab", keys.sign_message({"group": "lab"}, "halt", body, private))
    box.settle()


def test_where_signatures_are_demanded_a_halt_needs_none_and_an_empty_message_lifts_it(
    strict: Box, private: Path
) -> None:
    strict.halt("lab", reason="anybody")
    want_signed(strict, private, 2, "nf4", sequence=2)
    assert methods(strict) == {"kanji": "fp4"}
    strict.halt("lab", b"")
    strict.settle()
    assert methods(strict) == {"kanji": "nf4"}


def test_a_signed_halt_is_lifted_by_a_higher_generation_only(strict: Box, private: Path) -> None:
    halt_signed(strict, private, generation=2)
    want_signed(strict, private, 2, "nf4", sequence=2)
    for attempt in (b"", {"schema": 1, "generation": 0}, b"x"):
        strict.halt("lab", attempt)
        strict.halt("lab", b"")
        strict.reboot()
        strict.settle()
        assert (methods(strict), state(strict)) == ({"kanji": "fp4"}, "halted"), attempt
    assert events(strict, "group_halted")[0]["signature"] == "trusted"
    want_signed(strict, private, 3, "nf4", sequence=3)
    assert methods(strict) == {"kanji": "nf4"}


def test_a_signed_halt_that_the_journal_could_not_take_in_at_once_is_not_lifted_by_an_empty_message(
    strict: Box, private: Path
) -> None:
    strict.journal.error = OSError("database or disk is full")
    strict.halt("lab", keys.sign_message({"group": "lab"}, "halt", {"schema": 1, "generation": 2}, private))
    strict.settle()
    strict.journal.error = None
    strict.halt("lab", b"")
    strict.settle()
    assert strict.journal.halts()["lab"]["signed"]["generation"] == 2


def test_a_halt_with_a_wrong_signature_halts_as_one_without(strict: Box, private: Path, tmp_path: Path) -> None:
    stranger, _ = keys.generate(tmp_path, "stranger")
    halt_signed(strict, stranger, generation=2)
    want_signed(strict, private, 2, "nf4", sequence=2)
    assert methods(strict) == {"kanji": "fp4"}
    assert events(strict, "group_halted")[0]["signature"] == "untrusted_key"
    strict.halt("lab", b"")
    strict.settle()
    assert methods(strict) == {"kanji": "nf4"}


def want_staged(box: Box) -> None:
    box.want(2, "lab", models=NEW, rollout=staged((1, 0), (100, 300)))


def want_all(box: Box) -> None:
    box.want(2, "lab", models=NEW)


def let_time_pass(box: Box) -> None:
    go_on(box, 300)


def halt(box: Box) -> None:
    box.halt("lab", reason="stop")


def lift(box: Box) -> None:
    box.halt("lab", b"")


def has_died(box: Box, step: Callable[[Box], None]) -> bool:
    """Take a step; what it publishes is retained before the device hears it. Return whether the device died of it."""
    try:
        step(box)
        box.settle()
    except ProcessDeathError:
        box.reboot()
        box.settle()
        return True
    return False


@pytest.mark.parametrize("before", [False, True], ids=["after_the_commit", "before_the_commit"])
@pytest.mark.parametrize("steps", [(want_staged, let_time_pass), (halt, want_all, lift), (want_all, halt, lift)])
def test_a_crash_at_any_commit_around_joining_leads_to_the_same_state(
    tmp_path: Path, steps: tuple[Callable[[Box], None], ...], *, before: bool
) -> None:
    for number in range(1, ENOUGH):
        root = tmp_path / str(number)
        root.mkdir()
        box = make(root)
        box.want(1, "lab", models=OLD)
        box.settle()
        box.journal.commits, box.journal.cut_at, box.journal.is_cut_before = 0, number, before
        deaths = 0
        for step in steps:
            deaths += has_died(box, step)
        go_on(box)
        assert not box.journal.open_operations()
        assert (box.journal.waiting(), box.journal.halts()) == ({}, {})
        missing = box.broker.retained(TOPICS.reported)["desired"]["missing"]
        ends = {each["state"] for each in missing.values()}
        assert ends <= {"rolled_back"}, "a release that died in its trial has not proved itself"
        assert methods(box) == {"kanji": "fp4" if ends else "nf4"}
        box.journal.close()
        if not deaths:
            assert number > 10
            return
    raise AssertionError("more commits than a document has")
