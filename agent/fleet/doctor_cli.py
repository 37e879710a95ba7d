"""``nibblectl doctor``: broker, rights and clocks, each looked at for real, with the next step.

Rights are tried with messages on topics of a device and a group that nobody has: nothing reaches a device, and nothing
is retained. A grant proves nothing, since brokers grant subscriptions that they never serve: a message has to come
back.
"""

from __future__ import annotations

import json
import queue
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from agent.adapters.clock import SystemClock
from agent.adapters.mqtt_operator import BrokerError
from agent.console.check import Check, failed, is_well, ok, to_json, warning
from agent.console.telling import show, summary
from agent.contract.topics import Topics
from agent.contract.wire import dump
from agent.fleet import judging
from agent.fleet.fleet_cli import LISTEN
from agent.fleet.gather import Fleet
from agent.fleet.judging import Tried
from agent.fleet.target import UNREACHABLE
from agent.fleet.view import HEALTH, PRESENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.adapters.mqtt_operator import Messages
    from agent.fleet.target import Target

NOBODY = "nibblectl-doctor"
"""A device and a group that do not exist."""
ANSWER_S = 3.0


@click.command(short_help="Look at broker, rights and clocks.")
@LISTEN
@click.pass_obj
def doctor(target: Target, listen_s: float) -> None:
    """Look at the broker, what this login may do there, and clocks, and say what to do about what is wrong.

    nibbled doctor looks at one device, on it.
    """
    found: list[Check] = []
    is_reached = False
    for check in _checks(target, listen_s):
        found.append(check)
        is_reached |= check.name == "broker" and is_well([check])
        if not target.as_json:
            show(check)
    click.echo(json.dumps(to_json(found)) if target.as_json else summary(found))
    sys.exit(UNREACHABLE if not is_reached else 0 if is_well(found) else 1)


def _checks(target: Target, listen_s: float) -> Iterator[Check]:
    clock = SystemClock()
    is_synchronised = clock.is_synchronised()
    yield judging.own_clock(datetime.now(timezone.utc), is_synchronised=is_synchronised)
    files = target.tls_files
    yield judging.encryption(target.host, is_encrypted=files is not None, has_password=target.has_password)
    problem = files.problem(datetime.now(timezone.utc) if is_synchronised else None) if files else None
    if problem is not None:
        yield warning("certificate", problem, "ask whoever issues them for a new one")
    try:
        with target.messages() as messages:
            who = f"as {target.username}" if target.username else "without a user name"
            yield ok("broker", f"{target.host}:{target.port} over {target.transport}, {who}")
            yield from _rights(target, messages)
            yield from _fleet(target, messages, listen_s)
    except BrokerError as error:
        hint = "is the port the broker's, and one for --transport? user name, password and certificates?"
        yield failed("broker", str(error), hint)


def _rights(target: Target, messages: Messages) -> Iterator[Check]:
    topics = Topics(target.prefix, NOBODY)
    command = _tried(messages, topics.command("status"))
    yield judging.commands(command)
    wanted, halt = (_tried(messages, topic) for topic in (topics.group_desired(NOBODY), topics.group_halt(NOBODY)))
    yield judging.groups(wanted, halt, command)
    yield judging.roles(_tried(messages, topics.log(NOBODY)))


def _tried(messages: Messages, topic: str) -> Tried:
    payload = dump({"schema": 1, "id": NOBODY})
    with messages.hear(topic) as inbox:
        try:
            messages.publish(topic, payload)
        except BrokerError as error:
            return Tried(str(error).rpartition(": ")[2], arrived=False)
        try:
            return Tried(None, arrived=inbox.get(timeout=ANSWER_S).payload == payload)
        except queue.Empty:
            return Tried(None, arrived=False)


def _fleet(target: Target, messages: Messages, listen_s: float) -> Iterator[Check]:
    fleet = Fleet(messages, target.prefix)
    told: dict[str, tuple[str, datetime]] = {}
    unset = []
    with fleet.heard(PRESENCE, live=[HEALTH]) as inbox:
        yield judging.devices(list(fleet.view), target.prefix)
        end = datetime.now(timezone.utc).timestamp() + listen_s
        while (left_s := end - datetime.now(timezone.utc).timestamp()) > 0:
            fleet.take(inbox, left_s)
            now = datetime.now(timezone.utc)
            for device in fleet.view:
                health: dict[str, Any] = device.said.get(HEALTH, {})
                if device.name not in told and isinstance(health.get("at"), str):
                    told[device.name] = (health["at"], now)
                    unset += [] if health.get("clock_synchronised", True) else [device.name]
            if len(told) >= sum(device.presence == "online" for device in fleet.view):
                break
    yield judging.device_clocks(told, unset)
