"""What the demo shows: phases as they happen, the decision as a table, the measurements at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

JsonObject = dict[str, Any]


class View:
    """Prints to one console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, text: str) -> None:
        """Say what happens next."""
        self._console.print(f"[bold cyan]▸[/] {text}")

    def note(self, text: str) -> None:
        """Say something about it."""
        self._console.print(f"  {text}")

    def follow(self, states: Iterable[JsonObject]) -> JsonObject:
        """Show an operation from state to state and return the last one."""
        state: JsonObject = {}
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        with bar:
            task, phase, began = bar.add_task("accepted", total=None, unit=""), "", time.monotonic()
            for state in states:
                now = state["phase"] or state["state"]
                if now != phase:
                    if phase:
                        self.note(f"[green]✓[/] {phase} [dim]{time.monotonic() - began:.1f} s[/]")
                    phase, began = now, time.monotonic()
                    bar.reset(task, description=phase, total=None, unit="")
                progress = state["progress"]
                if progress:
                    bar.update(task, completed=progress["done"], total=progress["total"], unit=_what(progress))
        good = state["state"] == "succeeded"
        self.note(f"[{'green' if good else 'red'}]{state['state']}[/] {self._reason(state)}")
        return state

    def decision(self, decision: JsonObject) -> None:
        """Show why a method was chosen."""
        budget = decision["budget"]
        table = Table(title=f"decision: {decision['scenario']} → {decision['method']}", title_justify="left")
        for name in ("method", "estimated", "fits", "why"):
            table.add_column(name)
        for candidate in decision["candidates"]:
            mark = "→ " if candidate["method"] == decision["method"] else "  "
            fits = "yes" if candidate["fits"] else "no"
            table.add_row(mark + candidate["method"], size(candidate["estimated_bytes"]), fits, candidate["why"])
        self._console.print(table)
        share = "more than all" if decision["share"] is None else f"{100 * decision['share']:.2g} %"
        self.note(f"rule: {decision['rule']}; the model takes {share} of the budget under nf4")
        self.note(
            f"budget: {size(budget['bytes'])} of {size(budget['available_bytes'])} available"
            f" ({budget['source']}), reserve {size(budget['reserve_bytes'])}"
        )
        self.note(f"reason: {decision['reason']}")

    def summary(self, rows: Iterable[tuple[str, str]]) -> None:
        """Show what was measured."""
        table = Table(title="measured in this run", title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def _reason(self, state: JsonObject) -> str:
        if state["error"]:
            return f"[red]{state['error']['code']}[/]: {state['error']['detail']}"
        return ""


def _what(progress: JsonObject) -> str:
    return f"{progress['unit']} ({progress['method']})" if "method" in progress else str(progress["unit"])
