"""The commands of ``nibblectl`` for retained wanted states: publish one for a group or a device, halt, go on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

from agent.adapters.mqtt_operator import BrokerError
from agent.contract import desired as documents
from agent.contract import halt as halting
from agent.contract import signed, wanted
from agent.contract.errors import RefusalError
from agent.contract.topics import FleetTopics, Topics
from agent.contract.wire import dump, parse_object, rfc3339
from agent.fleet import measuring
from agent.fleet.doctor_cli import NOBODY
from agent.fleet.generations import LIMIT, Known, latest, members
from agent.fleet.measuring import measured
from agent.fleet.retained import UnprovenError, every, one
from agent.fleet.rows import printable
from agent.fleet.sealing import seal_message
from agent.fleet.stages import duration_s, stages
from agent.fleet.target import UNREACHABLE, fail
from agent.fleet.trust_cli import MANIFEST, fail_refused, read_file
from agent.fleet.view import CAPABILITIES, REPORTED, FleetView

if TYPE_CHECKING:
    from pathlib import Path

    from agent.adapters.mqtt_operator import Messages
    from agent.contract.desired import Desired
    from agent.fleet.generations import Members
    from agent.fleet.target import Target

JsonObject = dict[str, Any]
_GROUP = click.argument("group")


@click.group(short_help="What a group is to serve: publish it, halt it.")
def desired() -> None:
    """Publish the wanted state of a group or a device, and halt what a group's devices have not begun.

    The messages are retained: devices follow them without this program, those that are away when they come back.
    """


@desired.command("set", short_help="Publish a wanted state.")
@click.argument("file", type=MANIFEST)
@click.option("--group", help="Of the devices that have it in mqtt.groups. Default: --device alone.")
@click.option(
    "--generation", type=click.IntRange(0), help="Default: FILE's, or one more than the broker and the devices have."
)
@click.option("--percent", type=click.FloatRange(0, 100), help="Only so many of the group's devices.")
@click.option("--stages", "staged", metavar="STAGES", help="More and more of them: 5%@0,25%@1h,100%@4h.")
@click.option("--spread", metavar="TIME", help="The devices of a stage join over so long, such as 10m.")
@click.option("--start", metavar="TIME", help="RFC 3339; what the times are counted from. Default: now.")
@click.option("--rollout", metavar="ID", help="Draws who comes first; the same id goes on. Default: GROUP-GENERATION.")
@measuring.OPTION
@click.pass_obj
def set_(
    target: Target, /, file: Path, group: str | None, generation: int | None, *, measure: bool, **asked: Any
) -> None:
    """Publish the wanted state in FILE (- for stdin), a JSON object with models, config, or both.

    With --percent or --stages the devices of a group join by themselves, each where its place in the order falls below
    the percentage in force; no operator has to be there. --sign-key signs it.
    """
    place = _place(target, group)
    body = _read(file, generation, measure=measure)
    with target.connection() as messages:
        known, view = _look(messages, place)
        number = _next(file, body, generation, known, place.name)
        body = {"schema": 1, **body, "generation": number, **_rollout(group, number, **asked)}
        document = _judged(file, body)
        if group is None and document.rollout is not None:
            fail(f"{file}: a rollout is for a --group: of one device there is no percentage", 2)
        messages.publish(place.topic, _sealed(target, file, place.recipient, document, body), retain=True)
    found = members(view, group) if group else None
    _warn(known.complaint(number), found.complaint if found else None)
    if target.as_json:
        more = {"devices_in_group": found.count} if found else {}
        click.echo(json.dumps({"topic": place.topic, **body, **more, "known": known.to_json()}))
        return
    why, see = known.why(number), f"what becomes of it: nibblectl show {place.name}"
    if group:
        see = "who follows it, and who missed it: nibblectl devices"
    lines = [f"{place.name}: generation {number} is wanted", *([f"  {why}"] if why else []), *_stage_lines(document)]
    click.echo("\n".join([*lines, f"  {see}"]))


@desired.command(short_help="Let a group's devices begin nothing.")
@_GROUP
@click.option("--generation", type=click.IntRange(0), help="Only documents up to this one. Default: all.")
@click.option("--reason", required=True, help="For people; every device of the group tells it.")
@click.pass_obj
def halt(target: Target, group: str, generation: int | None, reason: str) -> None:
    """Stop GROUP: what its devices have not begun does not begin. What they have begun goes on to its end.

    With --sign-key the halt stays for the generation that is out now, or --generation, and no empty message lifts it.
    """
    place = _place(target, group, signed.HALT)
    body: JsonObject = {"schema": 1, "reason": reason}
    with target.connection() as messages:
        if generation is None and target.sign_keys:
            generation = _generation_out(messages, _place(target, group))
        body |= {} if generation is None else {"generation": generation}
        payload = dump(seal_message(place.recipient, signed.HALT, body, target.sign_keys) if target.sign_keys else body)
        messages.publish(place.topic, payload, retain=True)
        if not target.as_json:
            click.echo(_halted(target, group, generation))
        found = _members(messages, place, group)  # who it concerns is looked up once it is out
    _warn(found.complaint if found else None)
    if target.as_json:
        count = None if found is None else found.count
        click.echo(json.dumps({"topic": place.topic, **body, "devices_in_group": count}))


@desired.command(short_help="Lift a group's halt.")
@_GROUP
@click.pass_obj
def resume(target: Target, group: str) -> None:
    """Lift the halt of GROUP: its devices go on where they were."""
    place = _place(target, group, signed.HALT)
    with target.connection() as messages:
        try:
            found = halting.parse(one(messages, place.topic, place.echo) or b"")
        except UnprovenError as error:
            fail(
                f"whether {group} is halted is not known: {error}\n  nibblectl doctor tries what this login may",
                UNREACHABLE,
            )
        if found is None:
            fail(f"{group} is not halted", 1)
        if found.signature is not None and found.generation is not None:
            fail(
                f"the halt is signed, and devices keep to it up to generation {found.generation}\n"
                f"  go on with a higher one: nibblectl desired set FILE --group {group}",
                1,
            )
        messages.publish(place.topic, b"", retain=True)
    if target.as_json:
        click.echo(json.dumps({"topic": place.topic}))
    else:
        click.echo(f"{group}: goes on; was: {printable(found.reason)}")


@dataclass(frozen=True)
class _Place:
    """Where a message is retained.

    Attributes:
        prefix: of all topics.
        group, name: whose it is; the group is None for a device's own.
        topic: where it is retained.
        echo: a topic of the same kind that nobody listens to.
        recipient: as a signature names it.
    """

    prefix: str
    group: str | None
    name: str
    topic: str
    echo: str
    recipient: dict[str, str]


def _place(target: Target, group: str | None, kind: str = signed.DESIRED) -> _Place:
    if group is None:
        topics = target.topics()
        echo = Topics(target.prefix, NOBODY).desired
        return _Place(target.prefix, None, topics.device, topics.desired, echo, {"device": topics.device})
    try:
        topics = Topics(target.prefix, NOBODY)
        named = topics.group_desired if kind == signed.DESIRED else topics.group_halt
        return _Place(target.prefix, group, group, named(group), named(NOBODY), {"group": group})
    except ValueError as error:
        fail(str(error), 2)


def _read(file: Path, generation: int | None, *, measure: bool) -> JsonObject:
    """Return the wanted state in a file; one that no device would take, or heed, ends the program."""
    try:
        body = parse_object(read_file(file, "a wanted state as JSON"))
    except RefusalError as refusal:
        fail_refused(file, refusal)
    if measure:
        body = _measured(body)
    _judged(file, {"schema": 1, "generation": 0, **body, **({} if generation is None else {"generation": generation})})
    return body


def _look(messages: Messages, place: _Place) -> tuple[Known, FleetView]:
    """Return which generations there are, and what devices say."""
    kept, unsure, view = None, None, FleetView(place.prefix)
    filters = [FleetTopics(place.prefix).every(kind) for kind in (REPORTED, CAPABILITIES)]
    if place.group is None:
        filters = [Topics(place.prefix, place.name).reported]
    try:
        for heard in every(messages, place.echo, place.topic, *filters):
            if heard.topic == place.topic:
                kept, unsure = _generation(heard.payload)
            else:
                view.take(heard.topic, heard.payload, 0.0)
    except UnprovenError as error:
        unsure = unsure or (str(error) if kept is None else None)
    return Known(kept, unsure, latest(view, place.group)), view


def _members(messages: Messages, place: _Place, group: str) -> Members | None:
    """Return who is in a group, None where that could not be heard."""
    view = FleetView(place.prefix)
    try:
        for heard in every(messages, place.echo, FleetTopics(place.prefix).every(CAPABILITIES)):
            view.take(heard.topic, heard.payload, 0.0)
    except (BrokerError, UnprovenError) as error:
        found = members(view, group)
        if not found.count:
            _warn(f"who is in {group} could not be heard: {error}")
        return found if found.count else None
    return members(view, group)


def _generation_out(messages: Messages, place: _Place) -> int:
    """Return the generation that a signed halt is for: the one that the broker keeps."""
    try:
        payload = one(messages, place.topic, place.echo)
    except UnprovenError as error:
        fail(f"a signed halt is for a generation, and the one of {place.name} is not known: {error}\n  --generation", 2)
    kept, unsure = _generation(payload or b"")
    if kept is None:
        why = unsure or f"the broker keeps none of {place.name}"
        fail(f"a signed halt is for a generation, and {why}: --generation", 2)
    return kept


def _generation(payload: bytes) -> tuple[int | None, str | None]:
    """Return the generation of a document, or why that cannot be said; neither of an empty one."""
    if not payload:
        return None, None
    try:
        return documents.parse(payload).generation, None
    except RefusalError as refusal:
        return None, f"what the broker keeps cannot be read: {refusal.detail}"


def _next(file: Path, body: JsonObject, asked: int | None, known: Known, name: str) -> int:
    """Return the generation to publish; what is not newer than what the broker keeps ends the program."""
    number: int | None = body.get("generation") if asked is None else asked
    newest = f"; {known.devices.device} has {known.devices.generation}" if known.devices else ""
    if number is None and known.unsure is not None:
        hint = f"say which this one is: --generation{newest}"
        fail(f"which generation of {name} is out is not known: {known.unsure}\n  {hint}", 2)
    if number is None:
        number = known.highest + 1
        if number >= LIMIT:
            fail(f"no generation is left above {known.highest}{newest}\n  say which this one is: --generation", 2)
    if known.kept is not None and number <= known.kept:
        where = "--generation" if asked is not None else str(file)
        hint = f"--generation {known.highest + 1}"
        fail(f"{where}: generation {number} is not newer than {known.kept}, which is out\n  {hint}", 2)
    return number


def _halted(target: Target, group: str, generation: int | None) -> str:
    until = "" if generation is None else f" up to generation {generation}"
    lift = f"go on with a higher generation: nibblectl desired set FILE --group {group}"
    if not target.sign_keys:
        lift = f"lift it: nibblectl desired resume {group}"
    return f"{group}: halted{until}; what has begun goes on to its end\n  {lift}"


def _warn(*complaints: str | None) -> None:
    for each in filter(None, complaints):
        click.echo(f"nibblectl: {each}", err=True)


def _rollout(group: str | None, number: Any, **asked: Any) -> JsonObject:
    """Return the field ``rollout`` as it was asked for, nothing where it was not."""
    if all(value is None for value in asked.values()):
        return {}
    if group is None:
        fail("--percent, --stages, --spread, --start and --rollout are for a --group", 2)
    try:
        found: JsonObject = {"id": asked["rollout"] or f"{group}-{number}"}
        if asked["staged"] is not None:
            found["stages"] = stages(asked["staged"])
        if asked["percent"] is not None or asked["staged"] is None:
            found["percent"] = 100.0 if asked["percent"] is None else asked["percent"]
        if asked["spread"] is not None:
            found["spread_s"] = duration_s(asked["spread"])
    except ValueError as error:
        fail(str(error), 2)
    if asked["start"] is not None or "stages" in found or "spread_s" in found:
        found["start"] = asked["start"] or rfc3339(datetime.now(timezone.utc))
    return {"rollout": found}


def _measured(body: JsonObject) -> JsonObject:
    models = body.get("models")
    if not isinstance(models, dict):
        return body
    return {**body, "models": {name: measured(each) for name, each in models.items()}}


def _judged(file: Path, body: JsonObject) -> Desired:
    """Return the document as a device reads it; one that no device takes, or heeds, ends the program."""
    try:
        return wanted.judge(body)
    except RefusalError as refusal:
        fail_refused(file, refusal)


def _sealed(target: Target, file: Path, recipient: dict[str, str], document: Desired, body: JsonObject) -> bytes:
    """Return a document as it is to be sent; a signature that is for something else ends the program."""
    if target.sign_keys:
        return dump(seal_message(recipient, signed.DESIRED, body, target.sign_keys))
    if document.signature is not None:
        try:
            signed.check(document.signature, recipient, signed.DESIRED, body)
        except RefusalError as refusal:
            fail_refused(file, refusal)
    return dump(body)


def _stage_lines(document: Desired) -> list[str]:
    """Return who joins when, a line for each stage."""
    rollout = document.rollout
    if rollout is None:
        return []
    spread = f", spread over {rollout.spread_s:g} s" if rollout.spread_s else ""
    if rollout.stages is None or rollout.start is None:
        begin = f" from {rfc3339(rollout.start)} on" if rollout.start else ""
        return [f"  rollout {rollout.id}: {rollout.percent:g} % of the devices{begin}{spread}"]
    return [
        f"  rollout {rollout.id}{spread}",
        *(
            f"  {stage.percent:g} % from {rfc3339(rollout.start + timedelta(seconds=stage.after_s))} on"
            for stage in rollout.stages
        ),
    ]


if __name__ == "__main__":
    desired()
