"""Who is at the terminal of a rollout, if anybody: asked once for each thing, and never waited for."""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING

import click

from agent.fleet.rollout.events import Asked
from agent.fleet.rollout.state import Status

if TYPE_CHECKING:
    from pathlib import Path

    from agent.fleet.rollout.plan import Plan
    from agent.fleet.rollout.state import Rollout


class Person:
    """Who is at the terminal.

    Args:
        plan: the plan.
        file: where it lies, for the commands that are told.
        agreed: indices of the waves that were agreed to in advance.
    """

    def __init__(self, plan: Plan, file: Path, agreed: tuple[int, ...]) -> None:
        self._plan = plan
        self._file = file
        self._agreed = agreed
        self._question: str | None = None

    def ask(self, state: Rollout, is_asking: bool) -> Asked | None:  # noqa: FBT001 - the runner's port
        """Return what the person wants, without waiting for it; None for nothing or a no, which holds it."""
        after = state.wave + 1
        if is_asking and after in self._agreed:
            return Asked("approve", after)
        if is_asking:
            name = self._plan.waves[after].name
            begin = f"nibblectl rollout approve {self._file} --wave {name}"
            is_yes = self._has_agreed(f"wave {name} waits for approval", "begin it", begin)
            return Asked("approve", after) if is_yes else None
        if state.status is Status.PAUSED:
            begin = f"nibblectl rollout resume {self._file}"
            return Asked("resume") if self._has_agreed(f"paused: {state.reason}", "go on", begin) else None
        self._question = None
        return None

    def _has_agreed(self, question: str, what: str, later: str) -> bool:
        is_new, self._question = question != self._question, question
        if not sys.stdin.isatty():
            if is_new:
                click.echo(f"nibblectl: {question}; {what} with nibblectl rollout approve, resume or abort", err=True)
            return False
        if is_new:
            click.echo(f"{question}; {what}? [y/N] ", nl=False, err=True)
        if not select.select([sys.stdin], [], [], 0)[0]:
            return False
        line = sys.stdin.readline()
        if line.strip().lower() in ("y", "yes"):
            self._question = None
            return True
        if line:  # without one the terminal has gone
            click.echo(f"it waits; {what} later with y here, or with {later}", err=True)
        return False
