"""What crosses a bridge towards a device: which commands, under which id, judged before they are sent. Pure.

The id of an operation follows from what the other side calls the request, so a bridge that was restarted, or that is
told twice, sends the same command again, and a device runs it once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract import commands
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.wire import dump
from agent.fleet.shapes import is_over

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.fleet.view import Device

JsonObject = dict[str, Any]
Seal = Callable[[str, str, JsonObject], JsonObject]
"""Returns a command as it is to be sent, given the device and the command's name; raises `RefusalError`."""

BRIDGED = ("deploy", "set_method", "compare", "replan", "rollback", "undeploy", "set_config", "self_test")
"""Commands with a result that an operation tells. `cancel` has a word of its own on each side; what `status` and
`collect_logs` ask for comes on topics that no bridge carries."""
SET_HERE = ("schema", "id", "signature", "response_topic", "correlation_id")
"""Fields that a request may not have, as the bridge sets them, or nobody would hear the answer."""
MAX_NAME = 29
_DIGEST = 32
_CANCEL = "-x"
"""The id of a `cancel` is that of its operation and this: 64 characters at most, all in all."""


@dataclass(frozen=True)
class Command:
    """One of our commands, to be published to a device.

    Attributes:
        device: whom.
        name: the last level of its topic.
        body: as it is to be sent.
        note: for the person who watches.
    """

    device: str
    name: str
    body: JsonObject
    note: str


@dataclass(frozen=True)
class Foreign:
    """A message for the other side.

    Attributes:
        topic, payload: as they are to be published.
        retain: whether their broker keeps it.
        note: for the person who watches; empty where there is nothing to say.
    """

    topic: str
    payload: bytes
    retain: bool = False
    note: str = ""


@dataclass(frozen=True)
class Note:
    """Nothing to send, something to say."""

    note: str


Out = Command | Foreign | Note


def operation_id(bridge: str, *request: str | int) -> str:
    """Return the id of the operation that a request becomes.

    Args:
        bridge: the name of the bridge, at most 29 characters; ids of one bridge begin with it.
        request: all that the other side calls the request by.
    """
    digest = hashlib.sha256("\0".join(map(str, request)).encode()).hexdigest()
    return f"{bridge}-{digest[:_DIGEST]}"


def is_of(bridge: str, operation: str) -> bool:
    """Return whether ``operation`` is one that a bridge of this name began."""
    return re.fullmatch(rf"{re.escape(bridge)}-[0-9a-f]{{{_DIGEST}}}", operation) is not None


def open_operations(bridge: str, device: Device) -> frozenset[str]:
    """Return the operations of this bridge that a device has not ended."""
    return frozenset(each for each, body in device.operations.items() if is_of(bridge, each) and not is_over(body))


def part(body: Mapping[str, Any], name: str) -> JsonObject:
    """Return an object within a report, an empty one for anything else: a device may have been taken over."""
    found = body.get(name)
    return found if isinstance(found, dict) else {}


def command(name: object, fields: Mapping[str, Any], operation: str) -> JsonObject:
    """Return the body of a command that devices take.

    Args:
        name: of the command.
        fields: its own.
        operation: the id that it is to have.

    Raises:
        RefusalError: it is none that a bridge carries, or a device would refuse it as it stands.
    """
    if name not in BRIDGED:
        known = f"a bridge carries {', '.join(BRIDGED)}"
        raise RefusalError(ErrorCode.UNSUPPORTED_COMMAND, f"unknown command {str(name)[:64]!r}", known)
    taken = [field for field in SET_HERE if field in fields]
    if taken:
        raise RefusalError(
            ErrorCode.BAD_REQUEST,
            f"{name}: {', '.join(taken)} cannot be asked for",
            "leave it out: the bridge sets it, and signs with nibblectl --sign-key",
        )
    body = {"schema": 1, "id": operation, **fields}
    commands.parse(str(name), dump(body))
    return body


def cancel(device: str, operation: str, why: str, seal: Seal) -> Command:
    """Return the command that stops an operation; the same one every time, so that it is done once."""
    body = seal(device, "cancel", {"schema": 1, "id": f"{operation}{_CANCEL}", "operation": operation})
    return Command(device, "cancel", body, f"{device} {operation} is to be canceled: {why}")
