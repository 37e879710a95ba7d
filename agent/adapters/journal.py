"""The journal: SQLite in WAL mode with ``synchronous=FULL``, one writer, one durable transaction per change.

What it promises: ``save`` returns after the record, its reports and what it changes are on the disk together, or
raises and nothing of it is. The outbox holds reports until the broker acknowledged them; of a retained topic only the
newest is kept, since the older ones can no longer matter. An operation that ended keeps no presigned address: it was
needed to fetch the files, and is zeroed on the disk. Of old operations the id, what was asked for as a digest, and the
outcome remain, so that a command that comes again is known for longer than it can be valid. A file that is not whole is
recovered when it is opened; see `agent.adapters.journal_file`.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from agent.adapters.journal_file import (
    SCHEMA_VERSION,
    JournalUnusableError,
    JournalVersionError,
    Transaction,
    empty_log,
    essence,
    open_database,
    telling_unusable,
)
from agent.adapters.journal_rows import dump_operation, dump_remains, load_operation, load_report
from agent.adapters.served_copy import ServedCopy
from agent.contract.reports import Report
from agent.deployment.convergence import Goal
from agent.deployment.models import Served

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from agent.deployment.machine import Operation

__all__ = [
    "KEEP_EVENTS",
    "KEEP_FINISHED",
    "SCHEMA_VERSION",
    "JournalUnusableError",
    "JournalVersionError",
    "SqliteJournal",
    "open_journal",
]
KEEP_FINISHED = 500
"""Finished operations that are kept whole: a repeated command is answered from here."""
KEEP_USED, MOST_USED = 10_000, 50_000
"""Older ids that are remembered with their outcome, and how many if commands expire that late."""
KEEP_EVENTS = 1000
"""Events that wait for a broker that is away: older ones are dropped first, states never."""


def open_journal(path: Path, on_report: Callable[[Report], None]) -> SqliteJournal:
    """Return the journal for an agent that starts.

    Raises:
        JournalVersionError: the file has a newer schema; it is left untouched.
        JournalUnusableError: the disk does not let it be read or written.
    """
    with telling_unusable(path):
        return SqliteJournal(path, on_report)


class SqliteJournal:
    """The journal in one file.

    Threads: any; calls are serialised, since the engine writes while the transport empties the outbox.

    Args:
        path: of the file.
        on_report: hears of every report once it is committed; must neither block nor raise.

    Raises:
        JournalVersionError: the file has a newer schema; it is left untouched.
    """

    def __init__(self, path: Path, on_report: Callable[[Report], None] = lambda _report: None) -> None:
        self._on_report = on_report
        self._lock = threading.Lock()
        self._copy = ServedCopy(path.with_name("served.json"))
        self._db = open_database(path, self._copy)
        self._copy.keep(essence(self._db))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def operation(self, operation_id: str) -> Operation | None:
        """Return the record of an id, or what remains of it, as far as it is retained."""
        query = "SELECT record FROM operation WHERE id = ?1 UNION ALL SELECT record FROM used WHERE id = ?1"
        rows = self._read(query, operation_id)
        return load_operation(rows[0][0]) if rows else None

    def open_operations(self) -> list[Operation]:
        """Return the operations without an end, in the order in which they were accepted."""
        return [
            load_operation(row[0]) for row in self._read("SELECT record FROM operation WHERE is_open ORDER BY number")
        ]

    def recent_operations(self, count: int) -> list[Operation]:
        """Return the last ``count`` operations, newest first."""
        rows = self._read("SELECT record FROM operation ORDER BY number DESC LIMIT ?", count)
        return [load_operation(row[0]) for row in rows]

    def served(self) -> dict[str, Served]:
        """Return what stands behind every model name."""
        rows = self._read("SELECT model, item FROM served ORDER BY model")
        return {model: Served.from_json(json.loads(item)) for model, item in rows}

    def highest_sequence(self, model: str) -> int | None:
        """Return the highest manifest sequence accepted for ``model``."""
        rows = self._read("SELECT highest FROM sequence WHERE model = ?", model)
        return int(rows[0][0]) if rows else None

    def config(self) -> dict[str, Any]:
        """Return the settings that were changed over MQTT, by ``section.key``."""
        return {key: json.loads(value) for key, value in self._read("SELECT key, value FROM config ORDER BY key")}

    def save(
        self,
        operation: Operation,
        reports: Sequence[Report],
        *,
        served: Served | None = None,
        remove: bool = False,
        sequence: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit a record, its reports and what it changes, durably and together."""
        is_essential = served is not None or remove or sequence is not None or bool(config)
        with self._lock, self._transaction("save"):
            self._db.execute(
                "INSERT INTO operation (id, is_open, record) VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET is_open = excluded.is_open, record = excluded.record",
                (operation.id, not operation.state.is_terminal, dump_operation(operation)),
            )
            if served is not None:
                item = json.dumps(served.to_json())
                self._db.execute("INSERT OR REPLACE INTO served (model, item) VALUES (?, ?)", (served.name, item))
            if remove:
                self._db.execute("DELETE FROM served WHERE model = ?", (operation.model,))
            if sequence is not None:
                self._db.execute(
                    "INSERT INTO sequence (model, highest) VALUES (?, ?)"
                    " ON CONFLICT (model) DO UPDATE SET highest = max(highest, excluded.highest)",
                    (operation.model, sequence),
                )
            for key, value in (config or {}).items():
                self._db.execute("DELETE FROM config WHERE key = ?", (key,))
                if value is not None:
                    self._db.execute("INSERT INTO config (key, value) VALUES (?, ?)", (key, json.dumps(value)))
            if is_essential:
                self._count("served")
            if operation.state.is_terminal:
                self._decide(operation.id, str(operation.state))
            self._put(reports)
            self._forget_oldest()
        if is_essential:
            with self._lock:
                self._copy.keep(essence(self._db))
        if operation.state.is_terminal:
            with self._lock:
                empty_log(self._db)
        self._tell(reports)

    def queue(self, reports: Sequence[Report]) -> None:
        """Keep reports that belong to no operation until they are acknowledged."""
        with self._lock, self._transaction("queue"):
            self._put(reports)
        self._tell(reports)

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return the wanted documents in force, by source."""
        rows = self._read("SELECT source, document FROM desired ORDER BY source")
        return {source: json.loads(document) for source, document in rows}

    def waiting(self) -> dict[str, dict[str, Any]]:
        """Return the documents that are not in force yet, by group."""
        return {source: json.loads(body) for source, body in self._read("SELECT source, document FROM waiting")}

    def halts(self) -> dict[str, dict[str, Any]]:
        """Return what halts the groups, by group."""
        return {source: json.loads(body) for source, body in self._read("SELECT source, body FROM halt")}

    def goals(self) -> list[Goal]:
        """Return the goals of the wanted state, in the order in which they were given."""
        rows = self._read("SELECT body, outcome FROM goal ORDER BY number")
        return [Goal.from_json({**json.loads(body), "outcome": outcome}) for body, outcome in rows]

    def notes(self) -> dict[str, Any]:
        """Return what was noted, by name."""
        return {name: json.loads(value) for name, value in self._read("SELECT name, value FROM note")}

    def adopt(
        self,
        documents: Mapping[str, dict[str, Any]],
        goals: Sequence[Goal],
        notes: Mapping[str, Any],
        reports: Sequence[Report],
    ) -> None:
        """Commit changed documents, the goals that replace all before, notes and reports, durably and together.

        A document that waited for its source waits no more.
        """
        with self._lock, self._transaction("adopt"):
            for source, document in documents.items():
                self._db.execute("DELETE FROM waiting WHERE source = ?", (source,))
                self._db.execute("INSERT OR REPLACE INTO desired VALUES (?, ?)", (source, json.dumps(document)))
            self._db.execute("DELETE FROM goal")
            for goal in goals:
                row = (goal.operation_id, json.dumps(goal.to_json()), goal.outcome)
                self._db.execute("INSERT INTO goal (operation_id, body, outcome) VALUES (?, ?, ?)", row)
            self._note(notes)
            self._put(reports)
        self._tell(reports)

    def defer(self, group: str, document: Mapping[str, Any], reports: Sequence[Report]) -> None:
        """Commit a group's document that is not in force yet, durably and together with reports."""
        with self._lock, self._transaction("defer"):
            self._db.execute("INSERT OR REPLACE INTO waiting VALUES (?, ?)", (group, json.dumps(document)))
            self._put(reports)
        self._tell(reports)

    def halt(self, group: str, halts: Mapping[str, Any] | None, reports: Sequence[Report]) -> None:
        """Commit what halts a group, None for nothing, durably and together with reports."""
        with self._lock, self._transaction("halt"):
            self._db.execute("DELETE FROM halt WHERE source = ?", (group,))
            if halts is not None:
                self._db.execute("INSERT INTO halt VALUES (?, ?)", (group, json.dumps(halts)))
            self._put(reports)
        self._tell(reports)

    def settle(self, outcomes: Mapping[str, str]) -> None:
        """Commit the outcomes of goals that are still open, by operation id."""
        with self._lock, self._transaction("settle"):
            for operation_id, outcome in outcomes.items():
                self._decide(operation_id, outcome)

    def note(self, notes: Mapping[str, Any], reports: Sequence[Report]) -> None:
        """Remember JSON values by name, durably and together with reports."""
        with self._lock, self._transaction("note"):
            self._note(notes)
            self._put(reports)
        self._tell(reports)

    def clear(self, before: str, most: int, topic: Callable[[str], str]) -> int:
        """Queue an empty retained report for ``most`` operations that ended long ago, once for each.

        Args:
            before: RFC 3339 in UTC; what ended later stays.
            most: how many at once.
            topic: returns the topic of an id.

        Returns:
            how many.
        """
        ended = "coalesce(json_extract(record, '$.facts.ended_at'), '') < ?1 AND NOT is_cleared"
        query = (
            f"SELECT id FROM used WHERE {ended}"  # noqa: S608 - words of our own
            f" UNION ALL SELECT id FROM operation WHERE NOT is_open AND {ended} LIMIT ?2"
        )
        with self._lock, self._transaction("clear"):
            rows = self._db.execute(query, (before, most)).fetchall()
            for table in ("used", "operation"):
                self._db.executemany(f"UPDATE {table} SET is_cleared = 1 WHERE id = ?", rows)  # noqa: S608 - as above
            reports = [Report(topic(operation_id), b"", retain=True) for (operation_id,) in rows]
            self._put(reports)
        return len(rows)

    def outbox(self, most: int = -1) -> list[tuple[int, Report]]:
        """Return what the broker has not acknowledged, oldest first, each with its number; ``most`` of it, if given."""
        rows = self._read(
            "SELECT number, topic, payload, retain, expiry_s, correlation FROM outbox ORDER BY number LIMIT ?", most
        )
        return [(number, load_report(tuple(row))) for number, *row in rows]

    def acknowledged(self, number: int) -> None:
        """Forget a report that the broker has taken over."""
        with self._lock, self._transaction("acknowledged"):
            self._db.execute("DELETE FROM outbox WHERE number = ?", (number,))

    def count(self, name: str) -> int:
        """Increase a persistent counter and return its new value, from 1."""
        with self._lock, self._transaction("count"):
            return self._count(name)

    def _count(self, name: str) -> int:
        self._db.execute(
            "INSERT INTO counter (name, value) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1",
            (name,),
        )
        return int(self._db.execute("SELECT value FROM counter WHERE name = ?", (name,)).fetchone()[0])

    def _tell(self, reports: Sequence[Report]) -> None:
        for report in reports:
            self._on_report(report)

    def _read(self, query: str, *arguments: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, arguments).fetchall()

    def _transaction(self, name: str) -> Transaction:
        return Transaction(self._db, name)

    def _put(self, reports: Sequence[Report]) -> None:
        for report in reports:
            if report.retain:
                self._db.execute("DELETE FROM outbox WHERE topic = ? AND retain", (report.topic,))
            self._db.execute(
                "INSERT INTO outbox (topic, payload, retain, expiry_s, correlation) VALUES (?, ?, ?, ?, ?)",
                (report.topic, report.payload, report.retain, report.expiry_s, report.correlation),
            )
        self._db.execute(
            "DELETE FROM outbox WHERE NOT retain AND number <="
            " (SELECT number FROM outbox WHERE NOT retain ORDER BY number DESC LIMIT 1 OFFSET ?)",
            (KEEP_EVENTS,),
        )

    def _decide(self, operation_id: str, outcome: str) -> None:
        update = "UPDATE goal SET outcome = ? WHERE operation_id = ? AND outcome IS NULL"
        self._db.execute(update, (outcome, operation_id))

    def _note(self, notes: Mapping[str, Any]) -> None:
        for name, value in notes.items():
            self._db.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (name, json.dumps(value)))

    def _forget_oldest(self) -> None:
        # Counted, not subtracted: every update of a record uses up a number of AUTOINCREMENT, too.
        old = (
            "FROM operation WHERE NOT is_open AND number <="
            " (SELECT number FROM operation WHERE NOT is_open ORDER BY number DESC LIMIT 1 OFFSET ?)"
        )
        rows = self._db.execute(f"SELECT record, is_cleared {old} ORDER BY number", (KEEP_FINISHED,)).fetchall()
        if not rows:
            return
        for record, is_cleared in rows:
            operation = load_operation(record)
            row = (operation.id, operation.request.get("expires_at"), is_cleared, dump_remains(operation))
            insert = "INSERT OR REPLACE INTO used (id, expires_at, is_cleared, record) VALUES (?, ?, ?, ?)"
            self._db.execute(insert, row)
        self._db.execute(f"DELETE {old}", (KEEP_FINISHED,))
        self._db.execute(
            "DELETE FROM used WHERE number <= (SELECT number FROM used ORDER BY number DESC LIMIT 1 OFFSET ?1)"
            " AND (expires_at IS NULL OR julianday(expires_at) <= julianday('now')) OR number <="
            " (SELECT number FROM used ORDER BY number DESC LIMIT 1 OFFSET ?2)",
            (KEEP_USED, MOST_USED),
        )
