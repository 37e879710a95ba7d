"""The fleet as rows of a table and as JSON. Pure: from the view to values and text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.fleet.view import DEGRADED, FAILING, HEALTH, OFFLINE, ONLINE, PRESENCE, REPORTED, UNKNOWN
from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.fleet.view import Device

JsonObject = dict[str, Any]
HEAD = ("device", "presence", "model", "version", "method", "takes", "room", "agrees", "health", "what")
NOTHING = "-"


@dataclass(frozen=True)
class Row:
    """One model of one device; a device that serves none has one row all the same.

    Attributes:
        device, presence: who, and whether it is there.
        model, version, method: what is served, None for nothing.
        resident_bytes: what the model takes.
        room_bytes: what models of this device may still take.
        agreement: share of the source's answers, 0 to 1.
        health: ``ok``, ``degraded``, ``failing``; None where it was not heard.
        what: why it is not well, or what it is doing.
        is_missed: whether it did not come to what it is to serve.
    """

    device: str
    presence: str
    model: str | None = None
    version: str | None = None
    method: str | None = None
    resident_bytes: int | None = None
    room_bytes: int | None = None
    agreement: float | None = None
    health: str | None = None
    what: str = ""
    is_missed: bool = False

    @property
    def urgency(self) -> int:
        """How soon somebody should look: 0 at once."""
        if self.presence == OFFLINE or self.health == FAILING:
            return 1 if self.presence == OFFLINE else 0
        if self.health == DEGRADED or self.is_missed:
            return 2
        return 3 if self.presence == UNKNOWN else 4

    def cells(self) -> tuple[str, ...]:
        """Return the texts under ``HEAD``."""
        return (
            self.device,
            self.presence,
            shown(self.model),
            shown(self.version),
            shown(self.method),
            NOTHING if self.resident_bytes is None else size(self.resident_bytes),
            NOTHING if self.room_bytes is None else size(self.room_bytes),
            NOTHING if self.agreement is None else f"{self.agreement:.1%}",
            shown(self.health),
            printable(self.what),
        )


def printable(value: Any) -> str:
    """Return what a device said as text that does nothing to a terminal: devices may have been taken over."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))


def shown(value: Any) -> str:
    """Return a value for a cell of a table; ``-`` for none."""
    return NOTHING if value in (None, "") else printable(value)


def number_of(many: int, what: str) -> str:
    """Return how many there are of something: ``1 device``, ``3 devices``."""
    return f"{many} {what}" if many == 1 else f"{many} {what}s"


def number(value: Any) -> Any:
    """Return a figure that a device said, None where it is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def rows(device: Device, now_s: float) -> list[Row]:
    """Return the rows of one device, its models by name."""
    health = device.health(now_s) or {}
    common: dict[str, Any] = {
        "device": device.name,
        "presence": device.presence,
        "room_bytes": number(device.memory.get("room_bytes")),
        "health": health.get("status"),
        "what": _what(device, health),
        "is_missed": device.missed is not None,
    }
    return [
        Row(
            **common,
            model=name,
            version=model.get("version"),
            method=model.get("method"),
            resident_bytes=number(model.get("resident_bytes")),
            agreement=number(model.get("agreement")),
        )
        for name, model in sorted(device.models.items())
    ] or [Row(**common)]


def described(device: Device, now_s: float) -> JsonObject:
    """Return one device for programs: presence, what it serves in short, memory, health and open operations."""
    presence, reported = device.said.get(PRESENCE, {}), device.said.get(REPORTED, {})
    health = device.health(now_s)
    names = ("version", "sha256", "model_type", "method", "state", "resident_bytes", "agreement", "accuracy", "since")
    return {
        "device": device.name,
        "presence": device.presence,
        "since": presence.get("at"),
        "reason": presence.get("reason"),
        "agent": presence.get("agent"),
        "models": {name: {key: model.get(key) for key in names} for name, model in device.models.items()},
        "memory": {key: device.memory.get(key) for key in ("room_bytes", "total_bytes", "source")},
        "generation": reported.get("generation"),
        "groups": device.groups,
        "desired": {key: device.desired.get(key, {}) for key in ("generations", "reached", "missing")},
        "health": health and {"status": health.get("status"), "reasons": health.get("reasons", [])},
        "operations": (health or {}).get("operations", []),
        "unreadable": device.unreadable,
    }


def summary(devices: Iterable[Device], now_s: float, only: str | None = None) -> str:
    """Return a line that counts: devices by presence, those that are not well, and methods in use.

    ``only`` is the device that others were left out for, perhaps by a variable that was set long ago.
    """
    every = list(devices)
    presence = Counter(device.presence for device in every)
    health = Counter((device.health(now_s) or {}).get("status") for device in every)
    methods = Counter(model.get("method") for device in every for model in device.models.values())
    counted = [f"{presence[name]} {name}" for name in (ONLINE, OFFLINE, UNKNOWN) if presence[name]]
    unwell = [f"{health[name]} {name}" for name in (FAILING, DEGRADED) if health[name]]
    missed = sum(device.missed is not None for device in every)
    late = [f"{missed} missed what {'it is' if missed == 1 else 'they are'} to serve"] if missed else []
    unheard = sum(device.presence == ONLINE and HEALTH not in device.said for device in every)
    told = [f"health of {unheard} not heard"] if unheard else []
    used = ", ".join(f"{count} {name}" for name, count in sorted(methods.items(), key=lambda item: str(item[0])))
    left_out = f"; others were left out: --device, NIBBLECTL_DEVICE or the profile asks for {only}" if only else ""
    return (
        f"{number_of(len(every), 'device')}: {', '.join([*counted, *unwell, *late, *told]) or 'none'}"
        + (f"; models by method: {used}" if used else "")
        + left_out
    )


def table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Return lines whose columns are as wide as what is in them."""
    every = [head, *cells]
    widths = [max(len(row[index]) for row in every) for index in range(len(head))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in every]


def _what(device: Device, health: JsonObject) -> str:
    """Return the most telling word: why it went, what is wrong, what it does."""
    presence = device.said.get(PRESENCE, {})
    if device.presence == OFFLINE:
        return str(presence.get("reason") or "it was cut off")
    if device.unreadable:
        return f"{device.unreadable} unreadable messages"
    if health.get("reasons"):
        return str(health["reasons"][0])
    if device.missed is not None:
        return str(device.missed)
    running = [each for each in health.get("operations") or () if isinstance(each, dict)]
    if running:
        return " ".join(str(running[0].get(key) or "") for key in ("id", "phase")).strip()
    return _held(device)


def _held(device: Device) -> str:
    """Return in a word that a group's document is not followed yet, nothing where all are."""
    for name, told in device.groups.items():
        if told.get("state") == "halted":
            return f"{name} halted: {(told.get('halt') or {}).get('reason')}"
        if told.get("state") != "joined":
            return f"{name} {told.get('state')}"
    return ""
