"""What devices said of themselves over time, as lines: operations, the audit trail, and logs. Pure."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from agent.contract.wire import rfc3339
from agent.fleet.rows import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.fleet.view import Device

JsonObject = dict[str, Any]
LEVELS = ("debug", "info", "warning", "error", "critical")
_ABOUT_ITSELF = ("schema", "boot_id", "at", "event", "timestamp", "level", "device")
_AGO = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def operations(devices: Iterable[Device]) -> list[JsonObject]:
    """Return every operation that is retained, oldest word first, in short and with its device."""
    names = ("id", "command", "model", "state", "phase", "error", "at")
    found = [
        {"device": device.name, **{name: state.get(name) for name in names}}
        for device in devices
        for state in device.operations.values()
    ]
    return sorted(found, key=lambda each: (str(each["at"]), str(each["id"])))


def operation_line(told: JsonObject) -> str:
    """Return one of ``operations`` as a line."""
    error = told["error"] if isinstance(told["error"], dict) else {}
    why = f"{error.get('code')}: {error.get('detail')}" if error else None
    parts = (told["at"], told["device"], told["id"], told["command"], told["model"], told["state"], told["phase"], why)
    return printable(" ".join(str(part) for part in parts if part))


def event_line(device: str, body: JsonObject) -> str:
    """Return one line of the audit trail."""
    return printable(f"{body.get('at')} {device} {body.get('event')}{_details(body)}")


def log_line(entry: JsonObject) -> str:
    """Return one entry of a device's log."""
    return printable(f"{entry.get('timestamp')} {entry.get('level')} {entry.get('event')}{_details(entry)}")


def is_wanted(entry: JsonObject, level: str | None, operation: str | None) -> bool:
    """Return whether an entry is at least as grave as ``level`` and, if one is named, about the operation."""
    own = entry.get("level")
    is_grave = level is None or own not in LEVELS or LEVELS.index(own) >= LEVELS.index(level)
    return is_grave and (operation is None or entry.get("id") == operation)


def moment(text: str, now: datetime) -> str:
    """Return an RFC 3339 time; ``text`` is one, or how long ago it was, such as ``10m`` or ``2h``.

    Raises:
        ValueError: it is neither.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return rfc3339(now - timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if found.tzinfo is None:
        raise ValueError(f"{text} has no time zone, such as Z")
    return rfc3339(found)


def _details(body: JsonObject) -> str:
    told = {name: value for name, value in body.items() if name not in _ABOUT_ITSELF and value is not None}
    return "".join(f" {name}={_value(value)}" for name, value in told.items())


def _value(value: Any) -> str:
    if isinstance(value, dict) and "code" in value:
        return f"{value['code']}: {value.get('detail')}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
