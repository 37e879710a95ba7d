"""Sending one command to one device and watching what becomes of it, for people and for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from agent.exits import INTERRUPTED
from agent.fleet import shapes
from agent.fleet.client import FleetClient, NoAnswerError
from agent.fleet.fleet_cli import unknown_device
from agent.fleet.progress import Watching
from agent.fleet.rows import printable
from agent.fleet.sealing import sealer
from agent.fleet.shapes import UnreadableError
from agent.fleet.target import UNREACHABLE, fail
from agent.fleet.words import presence_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.adapters.mqtt_operator import Messages
    from agent.contract.topics import Topics
    from agent.fleet.target import Target

JsonObject = dict[str, Any]
ANSWER_S = 5.0
"""How long the broker may take to hand over what it keeps."""


def send(
    target: Target, command: str, more: Callable[[JsonObject], Iterable[str]] = lambda _: (), **fields: Any
) -> NoReturn:
    """Send a command and follow its operation; end the program with what became of it.

    Args:
        target: whom.
        command: its name in the contract, such as ``set_method``.
        more: lines for people from the last state of the operation.
        fields: of the command.
    """

    def talk(client: FleetClient, topics: Topics) -> int:
        is_there(target, client, topics)
        operation = client.send(command, **fields)
        if target.wait_s:
            return follow_operation(target, client, operation, more)
        click.echo(json.dumps({"id": operation}) if target.as_json else operation)
        return 0

    connected(target, talk)


def connected(target: Target, talk: Callable[[FleetClient, Topics], int]) -> NoReturn:
    """Talk to the device, and end the program with the exit status that comes of it."""
    topics = target.topics()
    with target.connection() as messages:
        sys.exit(talk(client_of(target, messages), topics))


def client_of(target: Target, messages: Messages) -> FleetClient:
    """Return who sends commands to the device over an open connection, signed where the target has keys for that."""
    topics, seal = target.topics(), sealer(target)
    return FleetClient(messages, topics, lambda name, body: seal(topics.device, name, body))


def is_there(target: Target, client: FleetClient, topics: Topics) -> bool:
    """Return whether the device is online, and say so if it is not.

    Raises:
        NoAnswerError: it was never there; a broker keeps nothing for it then, not even commands.
        UnreadableError: what is told of it is nonsense.
    """
    try:
        presence = client.read(topics.presence, ANSWER_S, shapes.Presence)
    except NoAnswerError:
        raise NoAnswerError(unknown_device(target, topics.device)) from None
    if presence["state"] == "online":
        return True
    line = printable(presence_line(topics.device, presence))
    click.echo(f"nibblectl: {line}; the broker keeps commands until it is back", err=True)
    return False


def follow_operation(
    target: Target,
    client: FleetClient,
    operation: str,
    more: Callable[[JsonObject], Iterable[str]] = lambda _: (),
) -> int:
    """Show an operation until its end; return 0 if it succeeded, else 1."""
    state: JsonObject = {}
    try:
        with Watching(as_json=target.as_json) as watching:
            for state in client.follow(operation, target.wait_s or ANSWER_S):
                watching.show(state)
    except (NoAnswerError, UnreadableError) as error:
        fail(f"{printable(error)}\n  {_later(operation)}", UNREACHABLE)
    except KeyboardInterrupt:
        fail(f"{operation} goes on without being watched\n  {_later(operation)}", INTERRUPTED)
    if not target.as_json:
        for line in more(state):
            click.echo(printable(line))
    return 0 if state.get("state") == "succeeded" else 1


def _later(operation: str) -> str:
    return f"see what becomes of it: nibblectl follow {operation}; stop it: nibblectl cancel {operation}"
