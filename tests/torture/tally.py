"""What became of the cases of a campaign: counted by fault, told as a line while it runs and as a table at its end."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import click

from deploy.bench.page import markdown

TOLD_EVERY = 10
CAME, BROKEN, RESTARTS, CASES = "the fault came", "broken", "restarts", "cases"


@dataclass
class Tally:
    """The counts, from any thread."""

    began: float = field(default_factory=time.monotonic)
    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    missed: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> Counter[str]:
        """The counts of all faults together."""
        with self._lock:
            return sum(self.counts.values(), Counter[str]())

    def add(
        self, what: str, fault: str, *, struck: bool, end: str | None, restarts: int, why: str | None = None
    ) -> None:
        """Count a case.

        Args:
            what: the case, for people.
            fault: what was to come in it.
            struck: whether it came.
            end: of the operation; None when an invariant was broken.
            restarts: how often the agent had to be started again.
            why: what the operation's report said, if it did not succeed.
        """
        with self._lock:
            self.counts[fault] += Counter({CASES: 1, CAME: struck, RESTARTS: restarts, end or BROKEN: 1})
            if not struck:
                self.missed.append(what)
            if why:
                click.echo(f"        {what}: {end}, {why}", err=True)
            count = sum(each[CASES] for each in self.counts.values())
        if count % TOLD_EVERY == 0:
            click.echo(f"{self}", err=True)

    def break_(self, what: str, error: BaseException) -> None:
        """Remember a case that broke an invariant."""
        with self._lock:
            self.violations.append(f"{what}: {error}")
            click.echo(f"BROKEN  {what}: {error}", err=True)

    def table(self) -> str:
        """Return a row for each fault, and one for all; below it what was broken."""
        total = self.total
        ends = sorted(set(total) - {CAME, BROKEN, RESTARTS, CASES}, key=lambda end: -total[end])
        columns = (CASES, CAME, RESTARTS, *ends, BROKEN)
        rows = [(name, *(str(counts[column]) for column in columns)) for name, counts in sorted(self.counts.items())]
        rows.append(("all", *(str(total[column]) for column in columns)))
        head = ("fault", CASES, CAME, "restarts of the agent", *(f"ended {end}" for end in ends), "invariants broken")
        lines = [markdown(head, rows), "", f"It took {self._minutes:.1f} minutes."]
        return "\n".join([*lines, *(f"* broken: {each:.200}" for each in self.violations)])

    @property
    def _minutes(self) -> float:
        return (time.monotonic() - self.began) / 60

    def __str__(self) -> str:
        total = self.total
        ends = ", ".join(
            f"{count} {name}" for name, count in total.most_common() if name not in {CASES, CAME, RESTARTS}
        )
        return (
            f"{total[CASES]} cases, the fault came in {total[CAME]}; {total[RESTARTS]} restarts of the agent; "
            f"operations ended: {ends or 'none'}; invariants broken: {len(self.violations)}; {self._minutes:.1f} min"
        )
