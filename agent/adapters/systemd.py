"""Telling systemd how the service is: the ``sd_notify(3)`` datagram, and nothing when nobody listens."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def notify(*lines: str) -> bool:
    """Send ``lines`` such as ``READY=1`` to the service manager; return whether one was there to take them."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    target = "\0" + address[1:] if address.startswith("@") else address
    # A manager that does not listen must not hold up the agent: what its queue has no room for is not said.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
        try:
            channel.sendto("\n".join(lines).encode(), target)
        except OSError:
            return False
    return True


class Watchdog:
    """Feeds the service manager's watchdog, at a sixth of the time that it allows (``sd_watchdog_enabled(3)``).

    Half would do for an agent that hangs. The rest is for the server: while it is silent the watchdog may go hungry,
    and what was left of its time must then be enough for the server to be replaced.

    Args:
        environment: ``WATCHDOG_USEC`` there says how long the agent may be silent; without it nobody is told anything.
        monotonic: the time.
        is_well: whether what the agent keeps answers; the watchdog is not fed while it does not.
        tell: takes the lines for the service manager.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
        is_well: Callable[[], bool] = lambda: True,
        tell: Callable[..., object] = notify,
    ) -> None:
        told = environment.get("WATCHDOG_USEC", "")
        self._every_s = int(told) / 6e6 if told.isdigit() and int(told) else None
        self._monotonic = monotonic
        self._is_well = is_well
        self._tell = tell
        self._fed_at = float("-inf")

    def feed(self) -> None:
        """Say that the agent's loop has gone round, if it is time to."""
        now = self._monotonic()
        if self._every_s is not None and now - self._fed_at >= self._every_s and self._is_well():
            self._fed_at = now
            self._tell("WATCHDOG=1")


class StatusLine:
    """What ``systemctl status`` shows; said when it changes, once a second at most.

    Args:
        text: returns it, one line; called at every turn, so it must be cheap.
        monotonic: the time.
        tell: takes the lines for the service manager.
    """

    def __init__(
        self,
        text: Callable[[], str],
        monotonic: Callable[[], float] = time.monotonic,
        tell: Callable[..., object] = notify,
    ) -> None:
        self._text = text
        self._monotonic = monotonic
        self._tell = tell
        self._said, self._looked_at = "", float("-inf")

    def look(self) -> None:
        """Say it if it has changed."""
        now = self._monotonic()
        if now - self._looked_at < 1.0:
            return
        self._looked_at = now
        text = self._text().replace("\n", " ")
        if text != self._said:
            self._said = text
            self._tell(f"STATUS={text}")
