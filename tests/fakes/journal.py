"""The real journal with a switch that ends the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.adapters.journal import SqliteJournal
from agent.adapters.served_copy import ServedCopy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agent.contract.reports import Report
    from agent.deployment.machine import Operation


class ProcessDeathError(BaseException):
    """The process ends here: not an ``Exception``, so nothing in the agent can catch it and go on."""


class FaultyJournal(SqliteJournal):
    """A journal whose n-th commit is the process's last act, or which refuses to commit.

    It does not wait for the disk: what a process wrote survives its death without that.

    Attributes:
        commits: how many commits were asked for.
        cut_at: the number of the commit at which the process dies, None for never.
        is_cut_before: whether it dies before that commit is on the disk instead of after.
        error: raised instead of committing, until it is taken away.
    """

    commits = 0
    cut_at: int | None = None
    is_cut_before = False
    error: Exception | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._db.execute("PRAGMA synchronous=OFF")
        self._copy = ServedCopy(path.with_name("served.json"), sync=lambda _descriptor: None)

    def save(self, operation: Operation, reports: Sequence[Report], **changes: Any) -> None:
        self._before()
        super().save(operation, reports, **changes)
        self._after()

    def queue(self, reports: Sequence[Report]) -> None:
        self._before()
        super().queue(reports)
        self._after()

    def adopt(self, *arguments: Any) -> None:
        self._before()
        super().adopt(*arguments)
        self._after()

    def defer(self, *arguments: Any) -> None:
        self._before()
        super().defer(*arguments)
        self._after()

    def halt(self, *arguments: Any) -> None:
        self._before()
        super().halt(*arguments)
        self._after()

    def settle(self, outcomes: Mapping[str, str]) -> None:
        self._before()
        super().settle(outcomes)
        self._after()

    def note(self, notes: Mapping[str, Any], reports: Sequence[Report]) -> None:
        self._before()
        super().note(notes, reports)
        self._after()

    def _before(self) -> None:
        if self.error is not None:
            raise self.error
        self.commits += 1
        if self.is_cut_before and self.commits == self.cut_at:
            raise ProcessDeathError

    def _after(self) -> None:
        if not self.is_cut_before and self.commits == self.cut_at:
            raise ProcessDeathError
