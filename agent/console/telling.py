"""Checks as lines on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.console.check import Check, State, counts

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME_WIDTH = 22
"""Of the longest, ``port serving.http_port``."""
_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "red", State.NOT_ASKED: "cyan"}


def show(check: Check) -> None:
    """Print one check, and below it the next step."""
    click.echo(
        f"{click.style(f'{check.state.value:<9}', fg=_COLOURS[check.state])}  {check.name:<{NAME_WIDTH}} {check.detail}"
    )
    if check.next_step is not None:
        click.echo(f"{'':<11}{'':<{NAME_WIDTH}} → {check.next_step}")


def summary(found: Sequence[Check]) -> str:
    """Return how many checks there are of each state."""
    return f"{len(found)} checks: " + ", ".join(
        f"{number} {state}" for state, number in counts(found).items() if number
    )
