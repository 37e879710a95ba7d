"""Signing what is sent: each command of ``nibblectl --sign-key``, and messages that others publish."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.contract import commands, desired, halt, signed
from agent.contract.errors import RefusalError
from agent.contract.topics import ID_PATTERN, is_id
from agent.contract.wire import MAX_PAYLOAD_BYTES, dump, parse_object, rfc3339
from agent.fleet import keys
from agent.fleet.target import fail
from agent.fleet.trust_cli import checked_groups, fail_refused, read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.fleet.target import Target

JsonObject = dict[str, Any]
_RETAINED = (signed.DESIRED, signed.HALT)


class SealError(Exception):
    """A message cannot be signed, or not be sent once it is.

    Attributes:
        is_of_key: whether a key is to blame, and not what was to be signed.
    """

    def __init__(self, text: str, *, is_of_key: bool) -> None:
        super().__init__(text)
        self.is_of_key = is_of_key


def seal(device: str, name: str, body: JsonObject, key_files: Sequence[Path], expires_in_s: float) -> JsonObject:
    """Return a command as ``sealed`` does; ends the program where it cannot be sealed."""
    try:
        return sealed(device, name, body, key_files, expires_in_s)
    except SealError as error:
        fail(str(error), 2)


def sealed(device: str, name: str, body: JsonObject, key_files: Sequence[Path], expires_in_s: float) -> JsonObject:
    """Return a command as it is to be sent: signed, and with an end, if there are keys.

    Raises:
        SealError: a key cannot be used, or the signed command is larger than a broker may carry.
    """
    if not key_files:
        return body
    if expires_in_s:
        body = {**body, "expires_at": rfc3339(datetime.now(timezone.utc) + timedelta(seconds=expires_in_s))}
    return _signed({"device": device}, name, body, key_files)


def sealer(target: Target) -> Callable[[str, str, JsonObject], JsonObject]:
    """Return what makes of a device, the name of a command and its body what is to be sent."""

    def sealer_of(device: str, name: str, body: JsonObject) -> JsonObject:
        return seal(device, name, body, target.sign_keys, target.expires_in_s)

    return sealer_of


@click.command("sign-command", short_help="Sign a command that something else publishes.")
@click.argument("name", type=click.Choice([*commands.COMMANDS, *_RETAINED]), metavar="NAME")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--key",
    "key_files",
    required=True,
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="NAME.key; twice while keys rotate.",
)
@click.option("--for-device", help="Who is to take it. Default: --device.")
@click.option("--for-group", callback=checked_groups, help="Of the wanted state or the halt of a group: the group.")
@click.pass_context
def sign_command(
    context: click.Context, /, name: str, file: Path, key_files: tuple[Path, ...], **asked: str | None
) -> None:
    """Print the command in FILE (- for stdin) with its signature.

    NAME is the command, the last level of its topic: desired for a wanted state, halt for what stops a group. It is
    good for one device or one group, and has to be published as it is printed. Give commands an expires_at: it is
    signed too.
    """
    for_group = asked["for_group"]
    if for_group is not None and name not in _RETAINED:
        fail(f"--for-group is for {' and '.join(_RETAINED)} only: groups take no commands", 2)
    if for_group is None and name == signed.HALT:
        fail("a halt is for a group: give --for-group", 2)
    who = for_group or asked["for_device"] or context.obj.device
    if who is None:
        fail("for whom? give --for-device, or --for-group for a group's wanted state", 2)
    if not is_id(who):
        fail(f"{who!r} must match {ID_PATTERN}", 2)
    content = read_file(file, "a command as JSON")
    try:
        if name == signed.DESIRED:
            desired.parse(content)
        elif name == signed.HALT:
            _check_halt(file, halt.parse(content))
        else:
            commands.parse(name, content)
        body = parse_object(content)
    except RefusalError as refusal:
        fail_refused(file, refusal)
    click.echo(dump(seal_message({"group" if for_group else "device": who}, name, body, key_files)).decode())


def _check_halt(file: Path, found: halt.Halt | None) -> None:
    """End the program with what is wrong with a halt that is to be signed."""
    if found is None or found.generation is None:
        why = found.reason if found and found.reason.startswith(halt.UNREADABLE) else "this one says none"
        fail(f"{file}: a signed halt says up to which generation; {why}", 2)


def seal_message(recipient: dict[str, str], name: str, body: JsonObject, key_files: Sequence[Path]) -> JsonObject:
    """Return a message as it is to be sent, signed for a device or for a group.

    Ends the program when a key cannot be used, or the signed message is larger than a broker may carry.
    """
    try:
        return _signed(recipient, name, body, key_files)
    except SealError as error:
        fail(str(error), 2)


def _signed(recipient: dict[str, str], name: str, body: JsonObject, key_files: Sequence[Path]) -> JsonObject:
    try:
        message = keys.sign_message(recipient, name, body, *key_files)
    except keys.SigningKeyError as error:
        raise SealError(str(error), is_of_key=True) from None
    size = len(json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_PAYLOAD_BYTES:
        raise SealError(
            f"signed, the {name} has {size} bytes, at most {MAX_PAYLOAD_BYTES} are sent: make it smaller",
            is_of_key=False,
        )
    return message
