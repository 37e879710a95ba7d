"""``nibbled status``: what the running agent says of itself, once or again and again."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from agent import exits, settings
from agent.console import ask, screen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVERY_S = 2.0
_CLEAR = "\x1b[H\x1b[2J"


def show(config: Path | None, *, watch: bool, as_json: bool, pause: Callable[[float], None] = time.sleep) -> int:
    """Print the status and return the exit status: 0, 1 when it is failing, 4 when no agent answers.

    Args:
        config: the file of the configuration, which says where the agent listens.
        watch: print it anew until Ctrl-C, also while no agent answers.
        as_json: print what the agent says as it is, on one line.
        pause: waits between two looks, in seconds.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    own = settings.load(config).status
    if not own.enabled:
        click.echo(
            "nibbled: the agent's own port is off\n  set status.enabled = true and start the agent again", err=True
        )
        return exits.NO_ANSWER
    if own.port == 0:
        told = (
            "status.port is 0, so the agent takes any that is free\n  give it a number, or look for 'page' in the log"
        )
        click.echo(f"nibbled: {told}", err=True)
        return exits.NO_ANSWER
    address = ask.url(own.host, own.port)
    if not watch:
        return _once(address, as_json=as_json)
    try:
        while True:
            if not as_json and sys.stdout.isatty():
                click.echo(_CLEAR, nl=False)
            _once(address, as_json=as_json)
            pause(EVERY_S)
    except KeyboardInterrupt:
        return 0


def _once(address: str, *, as_json: bool) -> int:
    try:
        found = ask.status(address)
    except ask.NoAgentError as error:
        hint = "sudo systemctl start nibbled, or: nibbled run; nibbled doctor says what else is wrong"
        click.echo(f"nibbled: {error}\n  {hint}", err=True)
        return exits.NO_ANSWER
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # a pipe has no edge
    click.echo(json.dumps(found) if as_json else "\n".join(screen.lines(found, width)))
    return exits.FAILED if found["health"]["status"] == "failing" else exits.DONE
