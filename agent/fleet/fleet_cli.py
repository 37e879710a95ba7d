"""The commands of ``nibblectl`` that look at devices: all of them, or one."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live

from agent.fleet import shapes
from agent.fleet.client import NoAnswerError
from agent.fleet.gather import Fleet
from agent.fleet.rows import HEAD, described, number_of, printable, rows, summary, table
from agent.fleet.screen import QUIT, Keyboard, Screen, coloured, lines_of, lost_line
from agent.fleet.shapes import UnreadableError
from agent.fleet.target import Target, fail
from agent.fleet.view import HEALTH, ONLINE, PRESENCE, REPORTED, RETAINED, UNKNOWN
from agent.fleet.words import health_lines, status_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from queue import SimpleQueue

    from agent.adapters.mqtt_operator import Heard, Messages
    from agent.fleet.view import Device

REFRESH_S = 0.5
NOTHING_FOUND = 1
LISTEN = click.option(
    "--listen",
    "listen_s",
    metavar="SECONDS",
    default=0.0,
    type=click.FloatRange(min=0),
    help="Wait so long for the health of what is online: devices tell it every 30 s, and brokers do not keep it.",
)


@click.command(short_help="List the devices.")
@click.option("--watch", is_flag=True, help="Keep the table up to date, what needs a look first; q ends it.")
@click.option("--model", help="Only devices that serve it.")
@click.option("--presence", type=click.Choice([ONLINE, "offline", UNKNOWN]), help="Only these.")
@LISTEN
@click.pass_obj
def devices(target: Target, *, watch: bool, model: str | None, presence: str | None, listen_s: float) -> None:
    """List the devices under the prefix, what they serve and how they are.

    Nothing is asked of the devices: it is what the broker keeps, so devices that are away are there as well. With
    --json one object per device.
    """

    def chosen(every: Iterable[Device]) -> list[Device]:
        return [
            device
            for device in every
            if (model is None or model in device.models) and (presence is None or device.presence == presence)
        ]

    if watch and (target.as_json or not sys.stdout.isatty()):
        fail("--watch draws on a terminal; for programs: nibblectl devices --json, or events --follow", 2)
    one = [target.device] if target.device else []
    with target.connection() as messages:
        fleet = Fleet(messages, target.prefix, [target.topics(name).device for name in one])
        with fleet.heard(PRESENCE, REPORTED, live=[HEALTH]) as inbox:
            if watch:
                _watch(fleet, inbox, chosen, target, messages)
            fleet.await_health(inbox, listen_s)
    found = chosen(fleet.view)
    _print(found, target)
    if not found:
        asked = ((model, f"serves {model}"), (presence, f"is {presence}"))
        which = " and ".join(words for value, words in asked if value is not None)
        many = len(fleet.view)
        fail(none_of(target, many, which) if many else no_devices(target, "no device"), NOTHING_FOUND)


@click.command(short_help="Show one device.")
@click.argument("name", metavar="[DEVICE]", required=False)
@LISTEN
@click.pass_obj
def show(target: Target, name: str | None, listen_s: float) -> None:
    """Show what DEVICE serves and can do, how it is, and its newest operations.

    DEVICE is --device by default. With --json all that it said: presence, reported, capabilities, health, operations.
    """
    topics = target.topics(name)
    with target.connection() as messages:
        fleet = Fleet(messages, target.prefix, [topics.device])
        with fleet.heard(*RETAINED, "op/+", live=[HEALTH]) as inbox:
            if PRESENCE in fleet.view.device(topics.device).said:
                fleet.await_health(inbox, listen_s)
        found = fleet.view.device(topics.device)
        missing = [kind for kind in RETAINED if kind not in found.said]
        if missing and found.unreadable:
            raise UnreadableError(f"messages of {found.name} cannot be read: its {missing[0]} is not known")
        if PRESENCE in missing:
            raise NoAnswerError(unknown_device(target, topics.device))
        if missing:
            raise NoAnswerError(f"nothing on {topics.kind(missing[0])}: may this login read it? nibblectl doctor")
        if not target.as_json:
            for kind, shape in shapes.SAID.items():
                if kind in found.said:
                    shapes.check(topics.kind(kind), found.said[kind], shape)
    if target.as_json:
        kept = {kind: found.said[kind] for kind in RETAINED}
        health = found.health(time.monotonic())
        click.echo(json.dumps({**kept, "health": health, "operations": list(found.operations.values())}))
        return
    lines = [
        *status_lines(found.name, found.said, found.operations),
        *health_lines(found.health(time.monotonic()), found.operations.values()),
    ]
    click.echo("\n".join(printable(line) for line in lines))


def no_devices(target: Target, what: str) -> str:
    """Return what to say where nothing was found, and the next step."""
    if target.device:
        return unknown_device(target, target.device)
    hint = "are --host, --prefix and what was asked for right, and may this login read? nibblectl doctor"
    return f"{what} under {target.prefix} on {target.host}:{target.port}\n  {hint}"


def none_of(target: Target, many: int, which: str) -> str:
    """Return what to say where there are ``many`` devices, and nothing of what was asked for on any."""
    where = f"under {target.prefix} on {target.host}:{target.port}"
    return f"none of {number_of(many, 'device')} {where} {which}\n  nibblectl devices shows all of them"


def unknown_device(target: Target, device: str) -> str:
    """Return what to say of a device that the broker keeps nothing of."""
    return (
        f"the broker {target.host}:{target.port} knows no device {device!r} under {target.prefix}: "
        "are --device, --host and --prefix right, and did it ever connect?"
    )


def _print(found: list[Device], target: Target) -> None:
    now_s = time.monotonic()
    if target.as_json:
        for device in found:
            click.echo(json.dumps(described(device, now_s)))
        return
    if not found:
        return
    every = [row for device in found for row in rows(device, now_s)]
    if sys.stdout.isatty():
        console = Console(highlight=False)
        console.print(coloured(every, console.width))
    else:
        click.echo("\n".join(table(HEAD, [row.cells() for row in every])))
    click.echo(summary(found, now_s, target.device or None), err=True)


def _watch(
    fleet: Fleet,
    inbox: SimpleQueue[Heard],
    chosen: Callable[[Iterable[Device]], list[Device]],
    target: Target,
    messages: Messages,
) -> None:
    """Draw until a key or Ctrl-C ends it."""
    broker = f"{target.host}:{target.port}"
    console, keyboard = Console(highlight=False), Keyboard()
    screen = Screen(console.height, console.width)
    try:
        with keyboard.raw(), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                fleet.take(inbox, 0.0)
                screen.height, screen.width = console.size.height, console.size.width
                now_s, lost_s = time.monotonic(), messages.lost_s
                lost = "" if lost_s is None else lost_line(broker, datetime.now().astimezone(), now_s - lost_s)
                drawn = screen.render(chosen(fleet.view), now_s, f"{broker} {target.prefix}", lost)
                live.update(drawn, refresh=True)
                key = keyboard.pressed(REFRESH_S)
                if key == QUIT:
                    break
                screen.scroll(lines_of(key))
    except KeyboardInterrupt:
        pass
    sys.exit(0)
