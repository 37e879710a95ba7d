"""An operation as it goes on: a bar on a terminal, else a line for every state; for programs a line of JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from agent.fleet.rows import printable
from agent.fleet.shapes import is_over
from agent.fleet.words import operation_lines

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import TaskID

JsonObject = dict[str, Any]
PHASES = ("downloading", "verifying", "planning", "building", "loading", "canary", "activating", "trial")
"""In the order of a deploy; what comes before them is waiting, and after them nothing."""


def where(state: JsonObject) -> tuple[str, int, int | None]:
    """Return what an operation is doing in words, and how far the phase is: done, and of how much where that is known.

    A phase without figures of its own is 0 of an unknown amount.
    """
    phase = state.get("phase") or state["state"]
    progress = state.get("progress") or {}
    number = f"{PHASES.index(phase) + 1}/{len(PHASES)} " if phase in PHASES else ""
    method = f" {progress['method']}" if progress.get("method") else ""
    words = f"{number}{phase}{method}"
    if state.get("detail"):
        words += f": {state['detail']}"
    total = progress.get("total")
    return words, int(progress.get("done") or 0), int(total) if total else None


class Watching:
    """Shows the states of one operation; use as a context manager.

    Args:
        as_json: print each state as it is, one a line.
        console: where bars are drawn; by default stdout, if that is a terminal.
    """

    def __init__(self, *, as_json: bool, console: Console | None = None) -> None:
        self._as_json = as_json
        self._told = ""
        self._task: TaskID | None = None
        if console is None and sys.stdout.isatty() and not as_json:
            console = Console(highlight=False)
        self._bars = None if console is None else _bars(console)

    def __enter__(self) -> Watching:  # noqa: PYI034 - typing.Self needs Python 3.11
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, state: JsonObject) -> None:
        """Show a state; the same again is not shown again."""
        if self._as_json:
            self._line(json.dumps(state))
        elif self._bars is None:
            self._line("\n".join(printable(line) for line in operation_lines(state)))
        elif is_over(state):  # the bar goes, the outcome stays
            if self._task is not None:
                self._bars.remove_task(self._task)
                self._task = None
            lines = "\n".join(printable(line) for line in operation_lines(state))
            self._bars.console.print(lines, markup=False, highlight=False)
        else:
            self._bar(state)

    def _bar(self, state: JsonObject) -> None:
        assert self._bars is not None  # noqa: S101 - only called where it is
        words, done, total = where(state)
        if self._task is None:
            self._task = self._bars.add_task("", total=None, name=escape(printable(state["id"])))
        self._bars.update(self._task, description=escape(printable(words)), completed=done, total=total)

    def _line(self, text: str) -> None:
        if text != self._told:
            self._told = text
            click.echo(text)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[name]}"),
        BarColumn(bar_width=30),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
