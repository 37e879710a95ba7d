"""A broker that remembers, and the device's way to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.adapters.journal import SqliteJournal
    from agent.contract.reports import Report
    from agent.contract.topics import Topics


class FakeBroker:
    """Keeps every message in order, and the retained one of each topic; outlives the device's crashes."""

    def __init__(self) -> None:
        self.log: list[Report] = []
        self._retained: dict[str, Report] = {}

    def receive(self, report: Report) -> None:
        """Take a message over."""
        self.log.append(report)
        if report.retain:
            self._retained[report.topic] = report

    def retained(self, topic: str) -> Any:
        """Return the body that a newcomer would get from ``topic``, or None."""
        report = self._retained.get(topic)
        return json.loads(report.payload) if report else None

    def retained_operations(self, topics: Topics) -> list[tuple[str, bytes]]:
        """Return what is kept of the operations of a device: their ids, each with its last report."""
        kept = [(topics.operation_id(topic), report.payload) for topic, report in self._retained.items()]
        return [(operation_id, payload) for operation_id, payload in kept if operation_id is not None]

    def bodies(self, topic: str) -> list[Any]:
        """Return every body that was published to ``topic``, in order."""
        return [json.loads(report.payload) for report in self.log if report.topic == topic]

    def states(self, topic: str) -> list[tuple[str, str | None]]:
        """Return the states and phases reported on an operation's topic, progress and repetitions left out."""
        seen = [(body["state"], body["phase"]) for body in self.bodies(topic) if body["progress"] is None]
        return [pair for index, pair in enumerate(seen) if index == 0 or pair != seen[index - 1]]


class RecordingTransport:
    """Hands the outbox to the broker; while ``is_connected`` is False nothing leaves."""

    def __init__(self, journal: SqliteJournal, broker: FakeBroker, number: int) -> None:
        self._journal = journal
        self._broker = broker
        self.is_connected = True
        self.number = number

    @property
    def connection(self) -> int | None:
        return self.number if self.is_connected else None

    def publish(self, report: Report) -> None:
        if self.is_connected:
            self._broker.receive(report)

    def flush(self) -> None:
        if not self.is_connected:
            return
        for number, report in self._journal.outbox():
            self._broker.receive(report)
            self._journal.acknowledged(number)

    def overhear_no_more(self) -> None:
        """What is retained was told at once."""
