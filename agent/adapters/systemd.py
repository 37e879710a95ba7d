"""Telling systemd how the service is: the ``sd_notify(3)`` datagram, and nothing when nobody listens."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> bool:
    """Send ``lines`` such as ``READY=1`` to the service manager; return whether one was there to take them."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(lines).encode(), target)
        except OSError:
            return False
    return True
