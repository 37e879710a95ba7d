"""``nibblectl bridge``: lets AWS IoT Jobs or thin-edge.io drive nibbled devices, as a process of the operator's."""

from __future__ import annotations

import json
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from agent.adapters.mqtt_operator import BrokerError, TlsFilesError
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.topics import Topics, is_id
from agent.exits import INTERRUPTED
from agent.fleet.bridge import requests
from agent.fleet.bridge.aws_machine import ThingJobs
from agent.fleet.bridge.running import Bridge
from agent.fleet.bridge.thin_edge import MAIN, EntityCommands, EntityTopics
from agent.fleet.options import target_of_profile
from agent.fleet.rows import printable
from agent.fleet.sealing import SealError, sealed
from agent.fleet.target import UNREACHABLE, fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.fleet.bridge.requests import JsonObject, Seal
    from agent.fleet.bridge.running import Machine
    from agent.fleet.target import Target
    from agent.fleet.view import Device

MAX_PAUSE_S = 30.0
STEADY_S = 60.0
"""A bridge that ran for so long begins again at once."""
_ANY = "d" * 64
_DEVICES = click.argument("devices", metavar="[DEVICE]...", nargs=-1)
_FROM = click.option(
    "--from",
    "from_profile",
    metavar="PROFILE",
    help="Profile of the other side's broker. Default: the same broker, over a connection of its own.",
)
_CLIENT_ID = click.option("--client-id", default="", help="Of the other side's connection. Default: what it assigns.")


def _name_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--name",
        default=default,
        show_default=True,
        callback=_checked_name,
        help="Of this bridge: ids of its operations begin with it. Two bridges to one device need two names.",
    )


def _checked_name(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not is_id(name) or len(name) > requests.MAX_NAME:
        raise click.BadParameter(f"{name!r} must be 1 to {requests.MAX_NAME} of A-Z, a-z, 0-9, _ and -")
    return name


@click.group(
    short_help="Let AWS IoT Jobs or thin-edge.io drive devices.",
)
def bridge() -> None:
    """Let other people's device management drive nibbled devices.

    DEVICEs are named by their ids; without any, all that the broker knows are bridged. --sign-key before the word
    bridge signs what is sent to them.

    It runs until it is stopped, and may be stopped at any time: it keeps nothing, and reads where everything stands
    from both sides.
    """


@bridge.command("aws-jobs", short_help="Carry out jobs of AWS IoT.")
@_DEVICES
@_FROM
@_CLIENT_ID
@click.option("--things-prefix", default="", help="What stands before the device's id in the name of its thing.")
@click.option(
    "--step-timeout",
    "step_timeout_min",
    type=click.IntRange(1, 10_080),
    metavar="MINUTES",
    help="Have the service time a job out that was not updated for so long.",
)
@_name_option("aws")
@click.pass_obj
def aws_jobs(target: Target, /, devices: tuple[str, ...], **options: Any) -> None:
    """Carry out jobs of AWS IoT whose document asks for it: {"nibbled": {"command": "rollback", "model": "kanji"}}.

    Each device is the thing of its name. Jobs whose document says nothing to nibbled are left alone.
    """
    seal = _seal(target)

    def make(device: Device) -> Machine:
        thing = f"{options['things_prefix']}{device.name}"
        run = uuid.uuid4().hex[:12]  # another one after each connection: an answer of before may still come
        timeout_min = options["step_timeout_min"]
        return ThingJobs(device, thing, bridge=options["name"], run=run, seal=seal, step_timeout_min=timeout_min)

    _carry(_Sides.of(target, options), devices, make)


@bridge.command("thin-edge", short_help="Carry out commands of thin-edge.io.")
@_DEVICES
@_FROM
@_CLIENT_ID
@click.option("--root", default="te", show_default=True, help="First level of thin-edge's topics.")
@click.option("--main", metavar="DEVICE", help="The device that thin-edge runs on, te/device/main there.")
@_name_option("te")
@click.pass_obj
def thin_edge(target: Target, /, devices: tuple[str, ...], **options: Any) -> None:
    """Carry out commands of thin-edge.io, such as te/device/main///cmd/nibbled_rollback/1.

    Capabilities, the twin's fragment nibbled and the health of the service nibbled are published as well.
    """
    seal = _seal(target)

    def make(device: Device) -> Machine:
        entity = MAIN if device.name == options["main"] else device.name
        return EntityCommands(device, EntityTopics(options["root"], entity), bridge=options["name"], seal=seal)

    try:
        EntityTopics(options["root"], MAIN)
    except ValueError as error:
        fail(str(error), 2)
    _carry(_Sides.of(target, options), devices, make)


@dataclass(frozen=True)
class _Sides:
    """The two brokers, which may be one.

    Attributes:
        ours, theirs: how to reach them.
        client_id: of the connection to theirs.
    """

    ours: Target
    theirs: Target
    client_id: str

    @classmethod
    def of(cls, target: Target, options: dict[str, Any]) -> _Sides:
        """Return them from the options of a command."""
        profile = options["from_profile"]
        return cls(target, target if profile is None else target_of_profile(profile), options["client_id"])


def _carry(sides: _Sides, devices: tuple[str, ...], make: Callable[[Device], Machine]) -> NoReturn:
    """Run until somebody stops it."""
    target = sides.ours
    named = devices or (() if target.device is None else (target.device,))
    try:
        for each in named:
            Topics(target.prefix, each)
    except ValueError as error:
        fail(str(error), 2)

    def tell(line: str) -> None:
        click.echo(json.dumps({"bridge": line}) if target.as_json else printable(line))
        sys.stdout.flush()

    try:
        _go_on(sides, lambda: Bridge(target.prefix, named, make, tell), tell)
    except KeyboardInterrupt:
        fail("operations that were begun go on; the bridge takes them up when it is started again", INTERRUPTED)


def _go_on(sides: _Sides, begin: Callable[[], Bridge], tell: Callable[[str], None]) -> NoReturn:
    """Begin a bridge, and another one when a connection was lost; what never was connected ends the program."""
    pause_s, was_connected = 1.0, False
    while True:
        began_s = time.monotonic()
        try:
            with sides.ours.messages() as ours, sides.theirs.messages(sides.client_id) as theirs:
                was_connected = True
                where = f"{sides.ours.host}:{sides.ours.port} and {sides.theirs.host}:{sides.theirs.port}"
                tell(f"bridge between {where}")
                begin().run(ours, theirs)
        except BrokerError as error:
            if not was_connected:
                if isinstance(error, TlsFilesError):
                    fail(str(error), 2)
                fail(f"{error}\n  check --host and --port, and the profile of --from; nibblectl doctor", UNREACHABLE)
            pause_s = 1.0 if time.monotonic() - began_s > STEADY_S else min(MAX_PAUSE_S, pause_s * 2)
            tell(f"{error}; again in {pause_s:.0f} s")
        time.sleep(pause_s)


def _seal(target: Target) -> Seal:
    """Return what signs commands; a key that cannot be used ends the program, here before anything is sent."""

    def seal(device: str, name: str, body: JsonObject) -> JsonObject:
        try:
            return sealed(device, name, body, target.sign_keys, target.expires_in_s)
        except SealError as error:
            if error.is_of_key:
                fail(str(error), 2)
            raise RefusalError(ErrorCode.BAD_REQUEST, str(error)) from None  # too large: the request's fault

    seal(_ANY, "cancel", {})
    return seal


if __name__ == "__main__":
    bridge()
