"""The journal's file: its schema and migrations, whether it is whole, and what is done when it is not.

A file that SQLite, a record's own form or the second copy of what is served shows to be damaged is set aside as
``journal.db.damaged``, and a new one is begun with every row that can still be read. What is served, and what
``set_config`` changed, then comes from the second copy: SQLite keeps no checksums of pages, the copy has one. A WAL
that is missing leaves a file that looks whole and is older; the copy's revision shows it. The new file is made beside
the damaged one and takes its place, as ``journal.db.recovered`` for a moment, when it is whole: a start that is cut
short before that is begun again by the next one, and after it ended by the next one.

A newer agent's file is never touched.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import structlog

from agent.adapters.journal_rows import OWN_TABLES, TABLES, is_readable
from agent.adapters.served_copy import Essence
from agent.deployment.losses import NOTE
from agent.deployment.models import Served
from agent.failpoints import around

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.adapters.served_copy import ServedCopy

log = structlog.get_logger("journal")
SCHEMA_VERSION = 5
EPOCH_LEAP = 1000
"""Added to the last known number of a connection when it may not be the last one: numbers must not come again."""

_SCHEMA = """
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
"""
_CONFIG = "CREATE TABLE config (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
_DESIRED = """
CREATE TABLE desired (source TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE goal (
    number INTEGER PRIMARY KEY AUTOINCREMENT, operation_id TEXT UNIQUE NOT NULL, body TEXT NOT NULL, outcome TEXT
);
CREATE TABLE note (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO note VALUES ('schema', '3')
"""
_USED = """
CREATE TABLE used (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, expires_at TEXT,
    is_cleared INTEGER NOT NULL DEFAULT 0, record TEXT NOT NULL
);
ALTER TABLE operation ADD COLUMN is_cleared INTEGER NOT NULL DEFAULT 0;
UPDATE note SET value = '4' WHERE name = 'schema'
"""
_GROUPS = """
CREATE TABLE waiting (source TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE halt (source TEXT PRIMARY KEY, body TEXT NOT NULL);
UPDATE note SET value = '5' WHERE name = 'schema'
"""
_STEPS = {0: _SCHEMA, 1: _CONFIG, 2: _DESIRED, 3: _USED, 4: _GROUPS}
"""The statements that lead from each version to the next; each also notes the version, so that a head that was spoilt
is not taken for a newer agent's. Records need none: a key that is missing has its default."""
_PASSING = ("database is locked", "disk I/O error", "unable to open", "database or disk is full", "readonly database")
"""Errors of the disk or of another process, which a new file would not cure."""
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What a damaged file raises; the second one when SQLite's own words quote bytes of it."""


class JournalVersionError(Exception):
    """The journal was written by a newer version of the agent."""


class JournalUnusableError(Exception):
    """The disk does not let the journal be opened; the text says what to do."""


class _DamagedError(Exception):
    """The file is not whole; the text says how that showed."""


def open_database(path: Path, copy: ServedCopy) -> sqlite3.Connection:
    """Return a whole database at ``path``, recovered if need be: then the note ``recovered`` says what was lost.

    Raises:
        JournalVersionError: the file has a newer schema; it is left untouched.
        sqlite3.Error: the disk does not let it be read or written.
    """
    known = copy.read()
    _take_place(path)
    try:
        db = _ready(path)
    except _DamagedError as damage:
        return _recover(path, known, str(damage))
    try:
        complaint = _disagreement(db, known)
    except BaseException:
        db.close()
        raise
    if complaint is None:
        return db
    db.close()
    return _recover(path, known, complaint)


@contextlib.contextmanager
def telling_unusable(path: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises while a journal is opened into a ``JournalUnusableError``."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        free = shutil.disk_usage(path.parent).free
        raise JournalUnusableError(
            f"{path} cannot be opened: {error}; {free} bytes are free there: free space, or see to the disk (dmesg)"
        ) from None


def essence(db: sqlite3.Connection) -> Essence:
    """Return what the second copy is to hold."""
    counters = dict(db.execute("SELECT name, value FROM counter"))
    served = {model: Served.from_json(json.loads(item)) for model, item in db.execute("SELECT model, item FROM served")}
    sequences = dict(db.execute("SELECT model, highest FROM sequence"))
    config = {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM config")}
    return Essence(counters.get("served", 0), served, sequences, counters.get("epoch", 0), config)


def empty_log(db: sqlite3.Connection) -> None:
    """Zero the write-ahead log, in which earlier versions of a record stand; a failure is made up for next time."""
    with contextlib.suppress(sqlite3.OperationalError):
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


class Transaction:
    """``BEGIN IMMEDIATE`` to ``COMMIT``, or ``ROLLBACK`` when the block raises; ``name`` is its fail point's."""

    def __init__(self, db: sqlite3.Connection, name: str) -> None:
        self._db = db
        self._name = name

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                with around(f"journal.{self._name}"):
                    self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # a COMMIT that failed leaves it open; SQLite ends it itself on a full disk
                self._db.execute("ROLLBACK")


def _ready(path: Path) -> sqlite3.Connection:
    """Return a database that is whole and of this version, or raise."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        _check_version(db, path)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA secure_delete=ON")
        _migrate(db)
        _check(db)
    except _DAMAGE as error:
        db.close()
        if isinstance(error, sqlite3.OperationalError) and any(words in str(error) for words in _PASSING):
            raise
        if isinstance(error, sqlite3.OperationalError) and "already exists" in str(error):
            raise  # somebody else's table: not damage, and not ours to set aside
        raise _DamagedError(str(error)) from None
    except BaseException:
        db.close()
        raise
    return db


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version <= SCHEMA_VERSION:
        return
    noted = _noted_version(db)
    if noted is not None and noted != version:
        raise _DamagedError(f"its head says schema {version}, but it was written as schema {noted}: the head is spoilt")
    raise JournalVersionError(
        f"{path} is of schema {version}, this version knows up to {SCHEMA_VERSION}: install the newer version again, "
        "or move the file away (what is served and the settings are in served.json, too)"
    )


def _noted_version(db: sqlite3.Connection) -> int | None:
    try:
        row = db.execute("SELECT value FROM note WHERE name = 'schema'").fetchone()
        return None if row is None else int(json.loads(row[0]))
    except (sqlite3.Error, ValueError, TypeError):  # among them UnicodeDecodeError
        return None


def _migrate(db: sqlite3.Connection) -> None:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version < SCHEMA_VERSION:
        with Transaction(db, "migrate"):
            for step in range(version, SCHEMA_VERSION):
                for statement in _STEPS[step].split(";"):
                    db.execute(statement)
            if version == 0:
                _note_loss(db, "new")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _note_loss(db: sqlite3.Connection, why: str) -> None:
    """Note that operations may be unknown here that a broker still tells of; see `agent.deployment.losses`."""
    db.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (NOTE, json.dumps({"why": why, "looks": 0})))


def _check(db: sqlite3.Connection) -> None:
    """Look at every page, every index and the tables' definitions, and read every row that a later start depends on."""
    told = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if told != "ok":
        raise _DamagedError(str(told))
    odd = _made_anew() - _definitions(db)
    if odd:
        raise _DamagedError(f"it lacks {min(odd):.60}")
    for table, (columns, read) in TABLES.items():
        for row in db.execute(f"SELECT {', '.join(columns)} FROM {table}"):  # noqa: S608 - names of our own
            if not is_readable(read, row):
                raise _DamagedError(f"a row of {table} cannot be read: {row[0]!r:.80}")


def _definitions(db: sqlite3.Connection) -> frozenset[str]:
    rows = db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
    return frozenset(" ".join(str(sql).split()) for (sql,) in rows)


@functools.cache
def _made_anew() -> frozenset[str]:
    """Return the definitions that a new file has; a byte changed in one is no damage to SQLite."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        _migrate(db)
        return _definitions(db)


def _disagreement(db: sqlite3.Connection, known: Essence | None) -> str | None:
    if known is None:
        return None
    own = essence(db)
    if known.revision > own.revision:
        return f"it lacks the last {known.revision - own.revision} changes of what is served and set"
    if known.revision == own.revision and known.served != own.served:
        return "what it says is served is not what was written"
    if known.revision == own.revision and known.config not in (None, own.config):
        return "what it says was changed by set_config is not what was written"
    return None


def _recover(path: Path, known: Essence | None, reason: str) -> sqlite3.Connection:
    rows = {table: list(_salvage(path, table)) for table in TABLES}
    if known is not None:
        rows["served"] = [(name, json.dumps(item.to_json())) for name, item in known.served.items()]
    if known is not None and known.config is not None:
        rows["config"] = [(key, json.dumps(value)) for key, value in known.config.items()]
    told: dict[str, Any] = {"reason": reason, "kept_as": f"{path.name}.damaged"}
    draft = path.with_name(f"{path.name}.draft")
    for file in _files(draft):
        file.unlink(missing_ok=True)
    db = _ready(draft)
    with Transaction(db, "recover"):
        for table, (columns, _) in TABLES.items():
            names, marks = ", ".join(columns), ", ".join("?" * len(columns))
            insert = f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})"  # noqa: S608 - names of our own
            db.executemany(insert, rows[table])
        _raise_counters(db, known or Essence())
        told["rows"] = {table: _count(db, table) for table in TABLES if table not in OWN_TABLES}
        log.error("journal_recovered", **told)
        db.execute("INSERT OR REPLACE INTO note VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
        db.execute("INSERT OR REPLACE INTO note VALUES ('recovered', ?)", (json.dumps(told),))
        _note_loss(db, "damaged")
    db.close()  # which leaves one file, without a log
    _move(draft, _recovered(path))
    _take_place(path)
    return _ready(path)


def _count(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - names of our own


def _take_place(path: Path) -> None:
    """Set the damaged file aside and put the recovered one in its place, if there is one; what is done is skipped."""
    if not _recovered(path).exists():
        return
    for file, kept_as in zip(_files(path), _files(path.with_name(f"{path.name}.damaged")), strict=True):
        if file.exists():
            _move(file, kept_as)
    _move(_recovered(path), path)


def _move(source: Path, target: Path) -> None:
    with around("journal.file.rename"):
        source.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        with around("journal.file.fsync"):
            os.fsync(directory)
    finally:
        os.close(directory)


def _recovered(path: Path) -> Path:
    return path.with_name(f"{path.name}.recovered")


def _files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def _raise_counters(db: sqlite3.Connection, known: Essence) -> None:
    """Let nothing that only grows go back."""
    for name, least in (("served", known.revision), ("epoch", known.epoch)):
        db.execute(
            "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
            (name, least),
        )
    db.execute("UPDATE counter SET value = value + 1 WHERE name = 'served'")
    db.execute("UPDATE counter SET value = value + ? WHERE name = 'epoch'", (EPOCH_LEAP,))
    for model, highest in known.sequences.items():
        db.execute(
            "INSERT INTO sequence VALUES (?, ?)"
            " ON CONFLICT (model) DO UPDATE SET highest = max(highest, excluded.highest)",
            (model, highest),
        )


def _salvage(path: Path, table: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table that can be read, from both ends up to where the file is broken, in their order."""
    columns, read = TABLES[table]
    found: dict[int, tuple[Any, ...]] = {}
    for direction in ("ASC", "DESC"):
        try:
            db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error:
            return
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        query = f"SELECT rowid, {', '.join(columns)} FROM {table} ORDER BY rowid {direction}"  # noqa: S608 - our own
        try:
            for number, *row in db.execute(query):
                if is_readable(read, tuple(row)):
                    found.setdefault(number, tuple(row))
        except _DAMAGE as error:
            log.debug("salvage_ended", table=table, direction=direction, error=str(error))
        finally:
            db.close()
    yield from (found[number] for number in sorted(found))
