"""Hearing a whole fleet: what the broker retains of every device, and what comes after that.

A broker does not say when it has handed over what it keeps, so it is taken to be done when nothing retained came for a
moment. One that has more to hand over than it may queue for a client leaves messages out without a word (mosquitto:
``max_queued_messages``). What is missing of a device that is known is therefore asked for once more, topic by topic; a
device of which nothing was handed over cannot be known.
"""

from __future__ import annotations

import contextlib
import queue
import time
from typing import TYPE_CHECKING

from agent.adapters.mqtt_operator import MAX_FILTERS
from agent.contract.topics import FleetTopics, Topics
from agent.fleet.view import HEALTH, FleetView

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.adapters.mqtt_operator import Heard, Messages

FIRST_S = 2.0
"""How long the first retained message may take."""
QUIET_S = 0.4
"""Nothing retained for so long: that was all."""
AT_ONCE = 64 * MAX_FILTERS
"""Topics that are asked for again at the same time."""


class Fleet:
    """A view that is filled from a connection.

    Args:
        messages: an open connection.
        prefix: of the devices.
        devices: only these; all when empty.
    """

    def __init__(self, messages: Messages, prefix: str, devices: Sequence[str] = ()) -> None:
        self._messages = messages
        self._prefix = prefix
        self._devices = devices
        self.view = FleetView(prefix)

    @contextlib.contextmanager
    def heard(self, *kinds: str, live: Sequence[str] = ()) -> Iterator[queue.SimpleQueue[Heard]]:
        """Gather what is retained of these kinds, then give the inbox of what comes while the block runs.

        Args:
            kinds: retained ones, such as ``presence`` or ``op/+``.
            live: others that are wanted while the block runs, such as ``health``.
        """
        filters = self._filters((*kinds, *live))
        with self._messages.hear(*filters) as inbox:
            self._until_quiet(inbox, FIRST_S)
            self._fill([kind for kind in kinds if "/" not in kind])
            yield inbox

    def take(self, inbox: queue.SimpleQueue[Heard], timeout_s: float) -> bool:
        """Take what came into the view, waiting ``timeout_s`` for the first; return whether anything did."""
        try:
            heard = inbox.get(timeout=max(0.0, timeout_s)) if timeout_s > 0 else inbox.get_nowait()
        except queue.Empty:
            return False
        while True:
            self.view.take(heard.topic, heard.payload, time.monotonic())
            try:
                heard = inbox.get_nowait()
            except queue.Empty:
                return True

    def await_health(self, inbox: queue.SimpleQueue[Heard], limit_s: float) -> None:
        """Take what comes until every device that is online has told its health, at most ``limit_s``."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            waiting = [each for each in self.view if each.presence == "online" and HEALTH not in each.said]
            if not waiting:
                return
            self.take(inbox, end_s - time.monotonic())

    def _filters(self, kinds: Sequence[str]) -> list[str]:
        if not self._devices:
            return [FleetTopics(self._prefix).every(kind) for kind in kinds]
        return [Topics(self._prefix, device).kind(kind) for device in self._devices for kind in kinds]

    def _until_quiet(self, inbox: queue.SimpleQueue[Heard], first_s: float) -> None:
        for heard in until_quiet(inbox, first_s):
            self.view.take(heard.topic, heard.payload, time.monotonic())

    def _fill(self, kinds: Sequence[str]) -> None:
        gaps = self.view.gaps(kinds)
        for begin in range(0, len(gaps), AT_ONCE):
            topics = [Topics(self._prefix, name).kind(kind) for name, kind in gaps[begin : begin + AT_ONCE]]
            with self._messages.hear(*topics) as inbox:
                self._until_quiet(inbox, QUIET_S)


def until_quiet(inbox: queue.SimpleQueue[Heard], first_s: float) -> Iterator[Heard]:
    """Yield what comes until nothing retained came for a moment; live messages do not prolong that.

    Args:
        inbox: what is heard.
        first_s: how long the first one may take.
    """
    end_s = time.monotonic() + first_s
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            heard = inbox.get(timeout=left_s)
        except queue.Empty:
            return
        if heard.is_retained:
            end_s = time.monotonic() + QUIET_S
        yield heard
