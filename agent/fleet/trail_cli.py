"""The commands of ``nibblectl`` that show what happened: operations, events as they come, and a device's log."""

from __future__ import annotations

import json
import queue
import sys
import uuid
from datetime import datetime, timezone
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

import click

from agent.adapters.mqtt_operator import RefusedFilterError
from agent.contract.errors import RefusalError
from agent.contract.topics import FleetTopics
from agent.contract.wire import parse_object, rfc3339
from agent.deployment.phases import State
from agent.fleet import shapes, trail
from agent.fleet.client import NoAnswerError
from agent.fleet.gather import Fleet
from agent.fleet.rows import printable
from agent.fleet.sending import client_of, is_there
from agent.fleet.target import fail

if TYPE_CHECKING:
    from agent.adapters.mqtt_operator import Heard, Messages
    from agent.fleet.target import Target

JsonObject = dict[str, Any]


@click.command(short_help="Show what happened, and what happens.")
@click.option("-f", "--follow", is_flag=True, help="Show the audit trail as it comes, until Ctrl-C.")
@click.option("--count", type=click.IntRange(min=1), help="With --follow: end after so many.")
@click.option("--event", "names", multiple=True, help="With --follow: only events of that name; may be repeated.")
@click.pass_obj
def events(target: Target, *, follow: bool, count: int | None, names: tuple[str, ...]) -> None:
    """Show the operations of the last seven days, of all devices or of --device, as the broker keeps them.

    With --follow the audit trail instead: brokers keep nothing of it, so it begins now.
    """
    if (count or names) and not follow:
        raise click.UsageError("--count and --event go with --follow")
    with target.connection() as messages:
        if follow:
            _follow(target, messages, count, names)
        fleet = Fleet(messages, target.prefix, [target.topics().device] if target.device else [])
        with fleet.heard("op/+"):
            pass
    for told in trail.operations(fleet.view):
        click.echo(json.dumps(told) if target.as_json else trail.operation_line(told))


@click.command(short_help="Show a device's log.")
@click.option("--since", metavar="TIME", help="RFC 3339, or how long ago: 10m, 2h.")
@click.option(
    "--max-bytes",
    type=click.IntRange(1024, 512 * 1024),
    default=256 * 1024,
    show_default=True,
    help="The newest that fit.",
)
@click.option("--level", type=click.Choice(trail.LEVELS), help="At least as grave.")
@click.option("--id", "operation", metavar="OPERATION", help="Only what has to do with an operation.")
@click.pass_obj
def logs(target: Target, since: str | None, max_bytes: int, level: str | None, operation: str | None) -> None:
    """Show the newest entries of the log of --device. With --json one entry a line, as it was written."""
    request: JsonObject = {"id": f"collect-logs-{uuid.uuid4().hex[:12]}", "max_bytes": max_bytes}
    if since is not None:
        try:
            request["since"] = trail.moment(since, datetime.now(timezone.utc))
        except (ValueError, OverflowError) as error:
            fail(f"--since {since!r}: {error}; expected such as 2027-01-01T00:00:00Z or 10m", 2)
    topics = target.topics()
    with target.connection() as messages:
        client = client_of(target, messages)
        is_there(target, client, topics)
        with messages.hear(topics.log(request["id"]), topics.operation(request["id"])) as inbox:
            client.send("collect_logs", **request)
            chunks = _chunks(inbox, topics.log(request["id"]), target.wait_s or target.__class__.wait_s)
    for entry in (entry for chunk in chunks for entry in chunk["entries"]):
        if trail.is_wanted(entry, level, operation):
            click.echo(json.dumps(entry) if target.as_json else trail.log_line(entry))
    if chunks and chunks[-1].get("cut"):
        click.echo(f"nibblectl: older entries do not fit into {max_bytes} bytes; see --max-bytes, --since", err=True)


def _chunks(inbox: SimpleQueue[Heard], log: str, wait_s: float) -> list[JsonObject]:
    """Return all chunks in order.

    Args:
        inbox: what comes of the log, and of the operation.
        log: the topic of the former.
        wait_s: how long the device may be silent.

    Raises:
        NoAnswerError: it is, for longer.
        UnreadableError: what came is neither.
    """
    chunks: dict[int, JsonObject] = {}
    while True:
        try:
            heard = inbox.get(timeout=wait_s)
        except queue.Empty:
            raise NoAnswerError(f"no log for {wait_s:.0f} s") from None
        if heard.topic != log:
            state = shapes.read(heard.topic, heard.payload, shapes.Operation)
            if shapes.is_over(state) and state["state"] != State.SUCCEEDED:
                error = state.get("error")
                fail(printable(f"{error['code']}: {error['detail']}" if error else f"no log: {state['state']}"), 1)
            continue
        body = shapes.read(heard.topic, heard.payload, shapes.Chunk)
        chunks[body["sequence"]] = body
        last = next((number for number, chunk in chunks.items() if chunk["last"]), None)
        if last is not None and len(chunks) == last + 1:
            return [chunks[number] for number in sorted(chunks)]


def _follow(target: Target, messages: Messages, count: int | None, names: tuple[str, ...]) -> NoReturn:
    topics = FleetTopics(target.prefix)
    one = target.topics().event if target.device else topics.every("event")
    shown = 0
    where = f"{target.host}:{target.port}"
    inbox: SimpleQueue[Heard | RefusedFilterError] = SimpleQueue()

    def refuse(what: str, reason: str) -> None:
        inbox.put(RefusedFilterError(f"broker {where} does not let this login hear {what}: {reason}"))

    messages.on_change, messages.on_refused = partial(_say_gap, where), refuse
    try:
        with messages.hear(one, inbox=inbox):
            while count is None or shown < count:
                heard = inbox.get()
                if isinstance(heard, RefusedFilterError):
                    raise heard
                parsed, body = topics.parse(heard.topic), _body(heard.payload)
                if parsed is None or body is None or (names and body.get("event") not in names):
                    continue
                told = (
                    json.dumps({"device": parsed[0], **body}) if target.as_json else trail.event_line(parsed[0], body)
                )
                click.echo(told)
                shown += 1
    except KeyboardInterrupt:
        pass
    sys.exit(0)


def _say_gap(where: str, is_back: bool) -> None:  # noqa: FBT001 - a callback has no keywords
    """Say on stderr where the trail has a hole: stdout is for events alone."""
    now = rfc3339(datetime.now(timezone.utc))
    lost, back = "lost: no event is heard until it is back", "back: events since it was lost are missing here"
    click.echo(f"nibblectl: {now} the connection to the broker {where} is {back if is_back else lost}", err=True)


def _body(payload: bytes) -> JsonObject | None:
    try:
        return parse_object(payload)
    except RefusalError:
        return None
