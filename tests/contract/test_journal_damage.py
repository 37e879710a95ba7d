"""A journal that is not whole: what is served survives, what can be read is kept, and it is said what was lost."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent import failpoints
from agent.adapters import served_copy
from agent.adapters.journal import (
    SCHEMA_VERSION,
    JournalUnusableError,
    JournalVersionError,
    SqliteJournal,
    open_journal,
)
from agent.adapters.served_copy import Essence, ServedCopy
from agent.contract.reports import Report
from agent.deployment.machine import Operation
from agent.deployment.models import Release, Served
from agent.deployment.phases import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FINISHED = 60


class ProcessDeathError(BaseException):
    """The process ends here."""


def release(version: str) -> Release:
    return Release(
        id=version, version=version, sha256="a" * 64, model_type="cnn", method="nf4", artifact="a", gate_file="g",
        artifact_bytes=1, resident_bytes=1, coverage=1.0, agreement=1.0, accuracy=None, accuracy_source=None,
    )  # fmt: skip


SERVED = Served("kanji", release("v2"), release("v1"))
CONFIG = {"health.interval_s": 5.0}
OPERATION = Operation("d-1", "deploy", "kanji", "f" * 64, {"id": "d-1"})


def lived(path: Path) -> None:
    """Write a journal as a device's life leaves it: a model, its sequence, settings, finished operations, reports."""
    journal = SqliteJournal(path)
    journal._db.execute("PRAGMA synchronous=OFF")
    journal.save(replace(OPERATION, state=State.SUCCEEDED), [], served=SERVED, sequence=9)
    for number in range(FINISHED):
        journal.save(replace(OPERATION, id=f"o-{number}", state=State.FAILED), [Report("t", b"x" * 500)])
    journal.save(replace(OPERATION, id="open"), [], config=CONFIG)
    for _ in range(7):
        journal.count("epoch")
    journal.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    lived(directory / "journal.db")
    return directory


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "state")
    return tmp_path / "state" / "journal.db"


def check(path: Path) -> bool:
    """Open, demand what must have survived and that it works; return whether it was recovered."""
    journal = SqliteJournal(path)
    journal._db.execute("PRAGMA synchronous=OFF")
    recovered = journal.notes().get("recovered")
    assert journal.served() == {"kanji": SERVED}
    assert journal.highest_sequence("kanji") == 9
    assert journal.config() == CONFIG
    assert journal.count("epoch") > (1000 if recovered else 7)
    assert all(isinstance(each.id, str) for each in journal.recent_operations(10_000))
    journal.save(replace(OPERATION, id="next", state=State.SUCCEEDED), [Report("t", b"{}")], served=SERVED)
    journal.close()
    again = SqliteJournal(path)
    assert again.operation("next") is not None
    again.close()
    return recovered is not None


def test_a_whole_journal_is_left_as_it_is(path: Path) -> None:
    assert check(path) is False
    assert not path.with_name("journal.db.damaged").exists()


def test_wherever_it_is_cut_off_the_last_good_model_survives(path: Path) -> None:
    content = path.read_bytes()
    points = sorted({0, 1, 16, 100, 4096, len(content) - 1, *random.Random(7).sample(range(len(content)), 12)})
    for point in points:
        for file in path.parent.iterdir():
            if file.name.startswith("journal.db"):
                file.unlink()
        path.write_bytes(content[:point])
        assert check(path), f"cut off at {point} of {len(content)}"


def test_whichever_bit_flips_the_last_good_model_survives(path: Path) -> None:
    """A flip in a page's free space, or in a text that stays one, changes nothing that anybody could notice."""
    content = path.read_bytes()
    draw, noticed = random.Random(11), 0
    for _ in range(40):
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        position, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        path.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
        _copy_of(path)
        noticed += check(path)
    assert noticed > 0


def _copy_of(path: Path) -> None:
    """Put the second copy back that belongs to the untouched journal."""
    ServedCopy(path.with_name("served.json")).keep(Essence(2, {"kanji": SERVED}, {"kanji": 9}, 7, CONFIG))


@pytest.mark.parametrize("point", [f"journal.{place}" for place in ("recover", "file.rename", "file.fsync")])
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_recovery_that_is_cut_short_loses_nothing_more(
    path: Path, monkeypatch: pytest.MonkeyPatch, point: str, side: str, number: int
) -> None:
    spoil_a_record(path)
    left = number

    def die(_name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise ProcessDeathError

    with monkeypatch.context() as patch:
        patch.setitem(failpoints.armed, f"{point}.{side}", die)
        with contextlib.suppress(ProcessDeathError):
            SqliteJournal(path).close()
    journal = SqliteJournal(path)
    assert len(journal.recent_operations(2 * FINISHED)) == FINISHED + 1
    assert journal.notes()["recovered"]["rows"]["operation"] == FINISHED + 1
    journal.close()


def overwrite(path: Path) -> None:
    path.write_bytes(random.Random(3).randbytes(20_000))


def cut_in_the_middle(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\x00" * 5000 + content[len(content) // 2 + 5000 :])


def spoil_a_record(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE operation SET record = '{\"id\"' WHERE id = 'o-5'")
    db.close()


def spoil_what_is_served(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE served SET item = replace(item, 'v2', 'v3')")
    db.close()


def spoil_a_setting(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE config SET value = '50.0'")
    db.close()


def raise_the_version(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 64}")
    db.close()


def rename_a_column(path: Path) -> None:
    """One letter of a table's definition: every page is whole to SQLite."""
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, 'payload', 'paxload') WHERE name = 'outbox'")
    db.close()


def spoil_a_name(path: Path) -> None:
    """A table's name that is no text: SQLite's own complaint then cannot be read."""
    content = path.read_bytes()
    assert b"CREATE TABLE operation" in content
    path.write_bytes(content.replace(b"CREATE TABLE operation", b"CREATE TA\x93LE operation"))


def spoil_a_report(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE outbox SET payload = 7 WHERE number = 9")
    db.close()


def spoil_a_topic(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE outbox SET topic = 'a/#' WHERE number = 9")
    db.close()


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_a_report,
        spoil_a_topic,
        overwrite,
        cut_in_the_middle,
        spoil_a_record,
        spoil_what_is_served,
        spoil_a_setting,
        raise_the_version,
        rename_a_column,
        spoil_a_name,
        lambda path: path.unlink(),
    ],
)
def test_what_is_damaged_is_set_aside_and_said(path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(path)
    assert check(path) is True
    assert path.with_name("journal.db.damaged").exists()


def test_everything_that_can_be_read_is_kept(path: Path) -> None:
    spoil_a_record(path)
    journal = SqliteJournal(path)
    told = journal.notes()["recovered"]
    assert "a row of operation cannot be read" in told["reason"]
    assert told["rows"]["operation"] == FINISHED + 1
    assert journal.operation("o-5") is None
    assert journal.operation("o-4") is not None
    assert [each.id for each in journal.open_operations()] == ["open"]
    journal.close()


def test_the_rows_that_are_told_are_those_that_are_there_now(path: Path) -> None:
    path.unlink()
    journal = SqliteJournal(path)
    told = journal.notes()["recovered"]["rows"]
    empty = dict.fromkeys(("operation", "used", "desired", "waiting", "halt", "goal", "outbox"), 0)
    assert told == {**empty, "served": 1, "sequence": 1, "config": 1}
    assert journal.highest_sequence("kanji") == 9
    journal.close()


def test_a_head_that_was_spoilt_is_told_from_a_newer_file(path: Path) -> None:
    raise_the_version(path)
    journal = SqliteJournal(path)
    reason = journal.notes()["recovered"]["reason"]
    written = f"its head says schema {SCHEMA_VERSION + 64}, but it was written as schema {SCHEMA_VERSION}"
    assert reason == f"{written}: the head is spoilt"
    journal.close()


def test_a_wal_that_is_missing_does_not_bring_an_older_model_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    lived(path)
    older = path.read_bytes()
    journal = SqliteJournal(path)
    newer = replace(SERVED, current=release("v3"), previous=SERVED.current)
    journal.save(replace(OPERATION, id="d-2", state=State.SUCCEEDED), [], served=newer)
    journal.close()
    path.write_bytes(older)  # what a file without its WAL is: whole, and as it was before

    again = SqliteJournal(path)
    assert again.served() == {"kanji": newer}
    assert "lacks the last 1 changes" in again.notes()["recovered"]["reason"]
    again.close()


def test_a_crash_between_the_journal_and_its_second_copy_is_no_damage(path: Path) -> None:
    journal = SqliteJournal(path)
    older = path.with_name("served.json").read_bytes()
    newer = replace(SERVED, current=release("v3"), previous=SERVED.current)
    journal.save(replace(OPERATION, id="d-2", state=State.SUCCEEDED), [], served=newer)
    journal.close()
    path.with_name("served.json").write_bytes(older)

    again = SqliteJournal(path)
    assert again.served() == {"kanji": newer}
    assert "recovered" not in again.notes()
    again.close()
    kept = ServedCopy(path.with_name("served.json")).read()
    assert kept is not None
    assert kept.served == {"kanji": newer}


def test_a_copy_that_was_written_before_it_held_settings_says_nothing_of_them(path: Path) -> None:
    ServedCopy(path.with_name("served.json")).keep(Essence(2, {"kanji": SERVED}, {"kanji": 9}, 7))
    assert check(path) is False


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 1}', b'{"schema": 9, "sha256": "", "body": {}}'])
def test_a_second_copy_that_is_not_whole_is_no_word_against_the_journal(path: Path, content: bytes) -> None:
    path.with_name("served.json").write_bytes(content)
    assert check(path) is False


def test_a_second_copy_that_was_altered_is_not_believed(path: Path) -> None:
    file = path.with_name("served.json")
    told = json.loads(file.read_text())
    told["body"]["revision"] += 5
    file.write_text(json.dumps(told))
    assert ServedCopy(file).read() is None
    assert check(path) is False


def test_a_disk_that_is_full_keeps_the_older_copy_and_fails_no_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    journal = SqliteJournal(path)
    before = path.with_name("served.json").read_bytes()
    monkeypatch.setattr(journal._copy, "_sync", full)
    journal.save(replace(OPERATION, id="d-2", state=State.SUCCEEDED), [], remove=True)
    assert journal.served() == {}
    assert path.with_name("served.json").read_bytes() == before
    journal.close()
    assert served_copy.SCHEMA == 1


def test_a_journal_of_a_newer_agent_that_says_so_twice_is_refused_and_not_set_aside(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        db.execute("UPDATE note SET value = ? WHERE name = 'schema'", (str(SCHEMA_VERSION + 1),))
    db.close()
    words = f"is of schema {SCHEMA_VERSION + 1}, this version knows up to {SCHEMA_VERSION}: install the newer version"
    with pytest.raises(JournalVersionError, match=words):
        SqliteJournal(path)
    assert not path.with_name("journal.db.damaged").exists()


def test_a_disk_that_fails_is_not_taken_for_damage(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        SqliteJournal(tmp_path / "nowhere" / "journal.db")


def test_a_journal_that_the_disk_does_not_let_be_opened_is_told_with_the_free_bytes_and_the_next_step(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"
    path.mkdir()
    told = r"journal\.db cannot be opened: unable to open database file; \d+ bytes are free there: free space"
    with pytest.raises(JournalUnusableError, match=told):
        open_journal(path, lambda _report: None)
