"""The journal on a real file: what it promises to keep, and what it refuses to touch."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.adapters.journal import (
    KEEP_EVENTS,
    KEEP_FINISHED,
    SCHEMA_VERSION,
    JournalVersionError,
    SqliteJournal,
)
from agent.adapters.journal_rows import dump_operation
from agent.contract.errors import ErrorCode, ErrorInfo
from agent.contract.halt import Halt, Halts
from agent.contract.reports import Report
from agent.deployment.convergence import Goal
from agent.deployment.machine import Operation
from agent.deployment.models import Release, Served
from agent.deployment.phases import Phase, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPEN = Operation("op-1", "deploy", "kanji", "f" * 64, {"gate": {"soak_s": 1.5}}, State.RUNNING, Phase.BUILDING, 2, 7)
RELEASE = Release("v1-abc-nf4", "v1", "a" * 64, "cnn", "nf4", "/a", "/g", 10, 12, 0.98, 0.99, None, None, "now", 3)
SERVED = Served("kanji", RELEASE, replace(RELEASE, id="v0"), "d" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(path)
    yield journal
    journal.close()


def event(number: int) -> Report:
    return Report("edge/v1/box/event", str(number).encode())


def state(number: int, topic: str = "edge/v1/box/op/op-1") -> Report:
    return Report(topic, str(number).encode(), retain=True, expiry_s=60)


def payloads(journal: SqliteJournal) -> list[bytes]:
    return [report.payload for _, report in journal.outbox()]


def test_every_commit_waits_for_the_disk(journal: SqliteJournal) -> None:
    full, wal = 2, "wal"
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (full,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == (wal,)


def test_what_was_saved_is_there_after_a_reopening(path: Path) -> None:
    error = ErrorInfo(code=ErrorCode.GATE_FAILED, detail="0.9", hint="try int8", kept="kanji v0", phase="building")
    finished = replace(OPEN, id="op-2", state=State.FAILED, error=error, facts={"a": [1]}, decision={"method": "nf4"})
    first = SqliteJournal(path)
    first.save(OPEN, [event(1)], sequence=4)
    first.save(finished, [state(2)], served=SERVED)
    first.close()

    again = SqliteJournal(path)
    assert again.operation("op-1") == OPEN
    assert again.operation("op-2") == finished
    assert again.open_operations() == [OPEN]
    assert again.served() == {"kanji": SERVED}
    assert again.highest_sequence("kanji") == 4
    assert [report for _, report in again.outbox()] == [event(1), state(2)]
    again.close()


def test_another_process_sees_a_commit_as_soon_as_save_returned(path: Path, journal: SqliteJournal) -> None:
    journal.save(OPEN, [event(1)])
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT id FROM operation").fetchall() == [("op-1",)]
        assert other.execute("SELECT payload FROM outbox").fetchall() == [(b"1",)]
    other.close()


def test_an_unknown_id_is_not_known(journal: SqliteJournal) -> None:
    assert journal.operation("nobody") is None
    assert journal.highest_sequence("nobody") is None
    assert journal.served() == {}


def test_open_operations_come_in_the_order_of_their_acceptance(journal: SqliteJournal) -> None:
    for name in ("z", "a", "m"):
        journal.save(replace(OPEN, id=name, state=State.ACCEPTED), [])
    journal.save(replace(OPEN, id="z", state=State.RUNNING), [])
    assert [operation.id for operation in journal.open_operations()] == ["z", "a", "m"]
    journal.save(replace(OPEN, id="a", state=State.CANCELED), [])
    assert [operation.id for operation in journal.open_operations()] == ["z", "m"]


def test_the_newest_operations_come_first_in_the_recent_ones(journal: SqliteJournal) -> None:
    for name in ("one", "two", "three"):
        journal.save(replace(OPEN, id=name), [])
    assert [operation.id for operation in journal.recent_operations(2)] == ["three", "two"]


def test_a_newer_retained_report_replaces_the_one_that_was_not_sent(journal: SqliteJournal) -> None:
    passing = Report(state(1).topic, b"not retained")
    journal.queue([state(1), passing, event(2), state(3, "edge/v1/box/reported")])
    journal.queue([state(4)])
    assert payloads(journal) == [b"not retained", b"2", b"3", b"4"]


def test_events_are_all_kept_in_their_order(journal: SqliteJournal) -> None:
    journal.queue([event(1), event(2)])
    journal.queue([event(3)])
    assert payloads(journal) == [b"1", b"2", b"3"]


def test_of_the_events_that_wait_the_newest_thousand_are_kept_and_every_state(journal: SqliteJournal) -> None:
    journal.queue([Report("edge/v1/box/reported", b"{}", retain=True)])
    journal.queue([Report("edge/v1/box/event", b"%d" % number) for number in range(KEEP_EVENTS + 20)])

    reports = [report for _, report in journal.outbox()]

    assert [report.topic for report in reports if report.retain] == ["edge/v1/box/reported"]
    events = [report.payload for report in reports if not report.retain]
    assert events == [b"%d" % number for number in range(20, KEEP_EVENTS + 20)]


def test_a_report_comes_back_as_it_went_in(journal: SqliteJournal) -> None:
    report = Report("answers/me", b"{}", correlation=b"\xff\x00")
    journal.queue([report])
    assert [item for _, item in journal.outbox()] == [report]


def test_an_acknowledged_report_leaves_and_its_number_is_never_used_again(journal: SqliteJournal) -> None:
    journal.queue([event(1), event(2)])
    numbers = [number for number, _ in journal.outbox()]
    journal.acknowledged(numbers[-1])
    journal.queue([event(3)])
    later = [number for number, _ in journal.outbox()]
    assert payloads(journal) == [b"1", b"3"]
    assert later[-1] > numbers[-1]


def test_the_highest_sequence_never_goes_down(journal: SqliteJournal) -> None:
    for sequence, expected in ((5, 5), (3, 5), (9, 9)):
        journal.save(OPEN, [], sequence=sequence)
        assert journal.highest_sequence("kanji") == expected


def test_a_model_s_name_can_be_removed(journal: SqliteJournal) -> None:
    journal.save(OPEN, [], served=SERVED)
    journal.save(OPEN, [], remove=True)
    assert journal.served() == {}


def test_a_counter_grows_by_one_across_reopenings(path: Path) -> None:
    seen = []
    for _ in range(3):
        journal = SqliteJournal(path)
        seen.append(journal.count("epoch"))
        journal.close()
    assert seen == [1, 2, 3]


def test_finished_operations_are_bounded_and_open_ones_are_never_forgotten(journal: SqliteJournal) -> None:
    journal._db.execute("PRAGMA synchronous=OFF")  # a thousand commits need not wait for the disk here
    journal.save(OPEN, [])
    for number in range(KEEP_FINISHED + 10):
        for stage in (State.ACCEPTED, State.RUNNING, State.SUCCEEDED):
            journal.save(replace(OPEN, id=f"d-{number}", state=stage), [])

    assert journal.operation("op-1") == OPEN
    whole, remains = journal.operation("d-10"), journal.operation("d-9")
    assert whole == replace(OPEN, id="d-10", state=State.SUCCEEDED)
    assert remains == replace(OPEN, id="d-9", state=State.SUCCEEDED, request={})
    assert len(journal.recent_operations(10_000)) == KEEP_FINISHED + 1


def test_ids_are_remembered_for_as_long_as_a_command_can_be_valid(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("KEEP_FINISHED", 2), ("KEEP_USED", 3), ("MOST_USED", 8)):
        monkeypatch.setattr(f"agent.adapters.journal.{name}", value)

    def finish(name: str, expires_at: str | None) -> None:
        request = {} if expires_at is None else {"expires_at": expires_at}
        journal.save(replace(OPEN, id=name, state=State.FAILED, request=request), [])

    def known(*names: str) -> list[str]:
        return [name for name in names if journal.operation(name) is not None]

    finish("plain", None)
    finish("over", "2020-01-01T00:00:00+02:00")
    finish("valid", "2999-01-01T00:00:00.25+02:00")
    for number in range(2 + 3):
        finish(f"later-{number}", None)
    assert known("plain", "over", "valid", "later-0") == ["valid", "later-0"]
    for number in range(2 + 8):
        finish(f"valid-{number}", "2999-01-01T00:00:00Z")
    assert known("valid", "later-4", "valid-0", "valid-9") == ["valid-0", "valid-9"], "however late they expire"


def test_what_ended_long_ago_is_cleared_at_the_broker_once(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.adapters.journal.KEEP_FINISHED", 2)
    days = [f"2026-01-{day:02}T00:00:00.000Z" for day in range(1, 7)]
    for number, day in enumerate(days):
        journal.save(replace(OPEN, id=f"d-{number}", state=State.FAILED, facts={"ended_at": day}), [])
    journal.save(OPEN, [])

    assert journal.clear(days[4], 3, "op/{}".format) == 3
    assert journal.clear(days[5], 9, "op/{}".format) == 2
    assert journal.clear(days[5], 9, "op/{}".format) == 0
    told = [(report.topic, report.payload, report.retain) for _, report in journal.outbox()]
    assert sorted(told) == [(f"op/d-{number}", b"", True) for number in range(5)]
    assert journal.operation("d-0") is not None


def test_a_save_that_fails_leaves_nothing_of_itself(journal: SqliteJournal) -> None:
    bad = Report("edge/v1/box/event", b"x")
    object.__setattr__(bad, "payload", object())  # what SQLite cannot bind
    with pytest.raises(sqlite3.Error):
        journal.save(OPEN, [event(1), bad], served=SERVED, sequence=1)

    assert journal.operation("op-1") is None
    assert journal.outbox() == []
    assert journal.served() == {}
    journal.save(OPEN, [event(2)])
    assert payloads(journal) == [b"2"]


def test_a_full_disk_fails_a_save_and_the_next_one_works(journal: SqliteJournal) -> None:
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        journal.save(OPEN, [Report("t", b"x" * 60_000)])

    journal._db.execute("PRAGMA max_page_count=100000")
    assert journal.operation("op-1") is None
    journal.save(OPEN, [Report("t", b"x" * 60_000)])
    assert journal.operation("op-1") == OPEN


def test_a_commit_that_is_refused_does_not_block_the_next_one(journal: SqliteJournal) -> None:
    journal._db.execute("PRAGMA foreign_keys=ON")
    journal._db.execute("CREATE TABLE p (id INTEGER PRIMARY KEY)")
    journal._db.execute("CREATE TABLE c (p INTEGER REFERENCES p (id) DEFERRABLE INITIALLY DEFERRED)")
    journal._db.execute("CREATE TRIGGER t AFTER INSERT ON outbox BEGIN INSERT INTO c VALUES (7); END")
    with pytest.raises(sqlite3.IntegrityError):  # raised by COMMIT itself
        journal.save(OPEN, [event(1)])

    journal._db.execute("DROP TRIGGER t")
    journal.save(OPEN, [event(2)])
    assert payloads(journal) == [b"2"]


def test_settings_are_kept_with_the_record_that_changed_them_and_forgotten_by_none(path: Path) -> None:
    first = SqliteJournal(path)
    first.save(OPEN, [], config={"health.interval_s": 5.0, "memory.budget": "auto", "planning.matrix": {"row": [1]}})
    first.save(OPEN, [], config={"health.interval_s": 7.0, "memory.budget": None})
    first.close()

    again = SqliteJournal(path)
    assert again.config() == {"health.interval_s": 7.0, "planning.matrix": {"row": [1]}}
    again.close()


VERSION_1 = """
CREATE TABLE operation (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, is_open INTEGER NOT NULL, record TEXT NOT NULL
);
CREATE INDEX open_operation ON operation (number) WHERE is_open;
CREATE TABLE served (model TEXT PRIMARY KEY, item TEXT NOT NULL);
CREATE TABLE sequence (model TEXT PRIMARY KEY, highest INTEGER NOT NULL);
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL, retain INTEGER NOT NULL,
    expiry_s INTEGER, correlation BLOB
);
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
PRAGMA user_version = 1;
"""


def test_a_journal_of_the_first_version_is_brought_up_to_date_with_all_that_it_held(path: Path) -> None:
    item = SERVED.to_json()
    for release in (item["current"], item["previous"]):
        for name in ("decision", "chosen_by", "gate"):
            del release[name]
    with sqlite3.connect(path) as old:
        old.executescript(VERSION_1)
        old.execute("INSERT INTO operation (id, is_open, record) VALUES ('op-1', 1, ?)", (dump_operation(OPEN),))
        old.execute("INSERT INTO served VALUES ('kanji', ?)", (json.dumps(item),))
        old.execute("INSERT INTO sequence VALUES ('kanji', 4)")
        old.execute("INSERT INTO counter VALUES ('epoch', 8)")
    old.close()

    for _ in range(2):
        journal = SqliteJournal(path)
        assert journal._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert journal.open_operations() == [OPEN]
        assert journal.served() == {"kanji": SERVED}
        assert (journal.served()["kanji"].current.chosen_by, journal.served()["kanji"].current.gate) == ("operator", {})
        assert (journal.highest_sequence("kanji"), journal.config()) == (4, {})
        journal.close()
    journal = SqliteJournal(path)
    assert journal.count("epoch") == 9
    journal.save(OPEN, [], config={"health.interval_s": 5.0})
    assert journal.config() == {"health.interval_s": 5.0}
    journal.close()


GENERATION = {"schema": 1, "generation": 4, "models": None, "config": None, "rollout": None, "signature": None}
LATER = {**GENERATION, "generation": 5, "rollout": {"id": "r", "percent": 5.0}}
GOAL = Goal("lab-4-kanji", "deploy", "kanji", {"method": "nf4"})


def test_a_group_s_documents_are_kept_side_by_side_until_the_one_that_waits_is_adopted(path: Path) -> None:
    first = SqliteJournal(path)
    first.adopt({"lab": GENERATION}, [GOAL], {"stamp": "lab-4"}, [])
    first.defer("lab", LATER, [event(1)])
    first.close()
    again = SqliteJournal(path)
    assert (again.documents(), again.waiting()) == ({"lab": GENERATION}, {"lab": LATER})
    assert again.goals() == [GOAL]
    assert payloads(again) == [b"1"]
    again.defer("lab", {**LATER, "generation": 6}, [])
    assert again.waiting()["lab"]["generation"] == 6
    again.adopt({"lab": LATER}, [], {}, [])
    assert (again.documents(), again.waiting()) == ({"lab": LATER}, {})
    again.defer("lab", {**LATER, "generation": 7}, [])
    again.adopt({"": GENERATION}, [], {}, [])
    assert again.waiting()["lab"]["generation"] == 7, "another source's document changes nothing of what waits"
    again.close()


def test_halts_are_kept_until_they_are_taken_back(path: Path) -> None:
    halts = Halts(Halt(reason="stop"), Halt(generation=4))
    first = SqliteJournal(path)
    first.halt("lab", halts.to_json(), [event(1)])
    first.halt("all", Halts(Halt()).to_json(), [])
    first.halt("all", None, [event(2)])
    first.close()
    again = SqliteJournal(path)
    assert {name: Halts.from_json(body) for name, body in again.halts().items()} == {"lab": halts}
    assert payloads(again) == [b"1", b"2"]
    again.close()


def test_a_journal_of_the_version_before_groups_halted_keeps_its_wanted_state(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.adopt({"lab": GENERATION}, [GOAL], {"stamp": "lab-4"}, [event(1)])
    journal.close()
    with sqlite3.connect(path) as old:
        for table in ("waiting", "halt"):
            old.execute(f"DROP TABLE {table}")
        old.execute("UPDATE note SET value = '4' WHERE name = 'schema'")
        document = {key: value for key, value in GENERATION.items() if key != "rollout"}
        old.execute("UPDATE desired SET document = ?", (json.dumps(document),))
        old.execute("PRAGMA user_version = 4")
    old.close()

    for _ in range(2):
        journal = SqliteJournal(path)
        assert journal._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert (journal.documents(), journal.waiting(), journal.halts()) == ({"lab": document}, {}, {})
        assert journal.goals() == [GOAL]
        assert journal.notes()["stamp"] == "lab-4"
        assert "recovered" not in journal.notes()
        assert payloads(journal) == [b"1"]
        journal.close()


def test_a_migration_that_fails_leaves_the_old_version(path: Path) -> None:
    with sqlite3.connect(path) as old:
        old.executescript(VERSION_1)
        old.execute("CREATE TABLE config (mine)")
    old.close()
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        SqliteJournal(path)
    with sqlite3.connect(path) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
    old.close()


def test_a_journal_of_a_newer_agent_is_refused_and_left_as_it_is(path: Path) -> None:
    SqliteJournal(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        newer.execute("UPDATE note SET value = ? WHERE name = 'schema'", (str(SCHEMA_VERSION + 1),))
    newer.close()
    before = path.read_bytes()

    with pytest.raises(JournalVersionError, match=f"schema {SCHEMA_VERSION + 1}.*up to {SCHEMA_VERSION}"):
        SqliteJournal(path)
    assert path.read_bytes() == before
    assert {item.name for item in path.parent.iterdir()} == {path.name, "served.json"}


def test_who_listens_hears_of_every_report_once_it_is_committed(path: Path) -> None:
    heard: list[bytes] = []
    journal = SqliteJournal(path, lambda report: heard.append(report.payload))
    journal.save(OPEN, [state(1)])
    journal.queue([event(2)])
    journal.adopt({}, [], {}, [event(3)])
    journal.note({"a": 1}, [event(4)])
    journal.defer("lab", LATER, [event(5)])
    journal.halt("lab", None, [event(6)])
    assert heard == [b"1", b"2", b"3", b"4", b"5", b"6"]
    journal.close()
    with pytest.raises(sqlite3.ProgrammingError):
        journal.queue([event(7)])
    assert heard[-1] == b"6"
