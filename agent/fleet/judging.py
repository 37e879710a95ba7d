"""What ``nibblectl doctor`` thinks of what it found: from values to checks. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from agent.console.check import Check, failed, not_asked, ok, warning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.fleet.view import Device

MOST_SKEW_S = 30.0
"""How far a device's clock may be from this one's: a message also takes its time."""
_NAMED = 5


@dataclass(frozen=True)
class Tried:
    """What became of a message to a topic that nobody uses.

    Attributes:
        refusal: the broker's words, None where it took the message.
        arrived: whether it came back to this login.
    """

    refusal: str | None
    arrived: bool

    @property
    def is_allowed(self) -> bool:
        """Whether the message went all the way."""
        return self.refusal is None and self.arrived


def encryption(host: str, *, is_encrypted: bool, has_password: bool) -> Check:
    """Judge how the connection is protected."""
    if is_encrypted:
        return ok("encryption", "TLS")
    if host in ("127.0.0.1", "::1", "localhost"):
        return ok("encryption", "none, and the broker is on this machine")
    told = "none: the password and every command can be read on the way" if has_password else "none"
    return warning("encryption", told, "--ca-file or --tls, and the broker's port for TLS")


def commands(tried: Tried) -> Check:
    """Judge whether this login may send commands and see what they come to."""
    if tried.refusal is not None:
        return warning("commands", f"may not send any: {tried.refusal}", "log in with the role operator or fleet")
    if not tried.arrived:
        told = "a command was taken and did not come back: the broker hides refusals, or this login may not read"
        return failed("commands", told, "log in with a role that reads everything; deploy/mosquitto has them")
    return ok("commands", "may send them, and sees what is sent")


def groups(wanted: Tried, halt: Tried, command: Tried) -> Check:
    """Judge whether this login may write the wanted state of groups, and stop them; an operator need not.

    Args:
        wanted: a wanted state.
        halt: a halt.
        command: a command to a device, which tells an operator from who only looks.
    """
    if wanted.is_allowed and not halt.is_allowed:
        told = "may write their wanted state, and not halt them: what goes wrong could not be stopped"
        return warning("groups", told, "let it write _group/+/halt, as the role fleet in deploy/mosquitto/people.acl")
    if wanted.is_allowed:
        return ok("groups", "may write their wanted state, and halt them")
    if halt.is_allowed:
        return ok("groups", "may not write their wanted state, but halt them")
    role = "as role operator" if command.is_allowed else "and may not send commands either, as role auditor"
    return ok("groups", f"may not write their wanted state, nor halt them, {role}")


def roles(tried: Tried) -> Check:
    """Judge whether the broker keeps people from speaking for devices."""
    if tried.is_allowed:
        told = "this login can speak for any device: what devices say proves nothing"
        return warning("roles", told, "give the broker an ACL with roles; deploy/mosquitto has one")
    return ok("roles", "this login cannot speak for devices")


def devices(seen: Sequence[Device], prefix: str) -> Check:
    """Judge what is seen of devices."""
    if not seen:
        return warning("devices", f"none under {prefix}", "is --prefix right, and did one ever connect?")
    online = sum(device.presence == "online" for device in seen)
    unreadable = [device.name for device in seen if device.unreadable]
    if unreadable:
        told = f"{len(unreadable)} of {len(seen)} said what cannot be read: {_some(unreadable)}"
        return warning("devices", told, "is --prefix that of nibbled alone, and are the agents current?")
    return ok("devices", f"{len(seen)}, {online} online")


def own_clock(now: datetime, *, is_synchronised: bool) -> Check:
    """Judge this machine's clock: what is signed here carries its time."""
    if is_synchronised:
        return ok("clock", f"synchronised, {now:%Y-%m-%d %H:%M:%S} UTC")
    told = f"not known to be synchronised, {now:%Y-%m-%d %H:%M:%S} UTC"
    return warning("clock", told, "timedatectl set-ntp true; dates in manifests and commands are of this clock")


def device_clocks(told: Mapping[str, tuple[str, datetime]], unset: Sequence[str]) -> Check:
    """Judge the clocks of devices.

    Args:
        told: by device, the time that it gave in a message, and when that came here.
        unset: devices that say that their own clock is not synchronised.
    """
    if not told:
        return not_asked("device clocks", "no device told its health meanwhile", "they do every 30 s: --listen 40")
    off = {
        name: (datetime.fromisoformat(at.replace("Z", "+00:00")) - came).total_seconds()
        for name, (at, came) in told.items()
    }
    wrong = sorted((name for name, skew in off.items() if abs(skew) > MOST_SKEW_S), key=lambda name: -abs(off[name]))
    if wrong:
        named = _some([f"{name} {off[name]:+.0f} s" for name in wrong])
        return warning(
            "device clocks", f"{len(wrong)} of {len(told)} differ: {named}", "set the clock of those devices"
        )
    if unset:
        hint = "manifests with dates wait there until it is"
        return warning("device clocks", f"{len(unset)} of {len(told)} are not synchronised: {_some(unset)}", hint)
    return ok("device clocks", f"{len(told)} within {MOST_SKEW_S:.0f} s of this one")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
