"""A bridge at work: two connections, one thread. What is to be done is the machines' to say.

Nothing is recorded. A connection that was lost ends `run`; begun again, it reads where everything stands from what both
sides keep. A device for which a broker refuses a message is left out for a while: others do not wait for its rights.
"""

from __future__ import annotations

import math
import queue
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from agent.adapters.mqtt_operator import BrokerError, RefusedMessageError
from agent.contract.topics import FleetTopics, Topics
from agent.contract.wire import dump
from agent.fleet.bridge.requests import Command, Foreign
from agent.fleet.gather import FIRST_S, QUIET_S
from agent.fleet.view import PRESENCE, RETAINED, FleetView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.adapters.mqtt_operator import Heard, Messages
    from agent.fleet.bridge.requests import Out
    from agent.fleet.view import Device

JsonObject = dict[str, Any]
TICK_S = 0.5
LEFT_OUT_S = 600.0


class Machine(Protocol):
    """What one device and the other side's idea of it have to tell each other."""

    @property
    def root(self) -> str:
        """What its topics on the other side begin with, and no other machine's; ends with a slash."""

    @property
    def filters(self) -> tuple[str, ...]:
        """What it listens to there."""

    def take(self, topic: str, payload: bytes, now_s: float, *, is_retained: bool = False) -> None:
        """Take in a message of the other side."""

    def act(self, now_s: float) -> list[Out]:
        """Return what is to be sent and said now."""


class Bridge:
    """Devices, each with its machine.

    Args:
        prefix: of the devices' topics.
        devices: only these; all that the broker knows when empty.
        make: returns the machine of a device; raises `ValueError` for one that the other side cannot name.
        tell: is told what happens, a line each.
    """

    def __init__(
        self, prefix: str, devices: Sequence[str], make: Callable[[Device], Machine], tell: Callable[[str], None]
    ) -> None:
        self._prefix = prefix
        self._devices = devices
        self._make = make
        self._tell = tell
        self._view = FleetView(prefix)
        self._machines: dict[str, Machine] = {}
        self._by_root: dict[str, Machine] = {}
        self._left_out: set[str] = set()
        self._anew_at_s = math.inf
        self._unheard: set[str] = set(devices)

    def run(self, ours: Messages, theirs: Messages) -> None:
        """Carry messages until a connection is lost.

        Args:
            ours: an open connection to the devices' broker.
            theirs: one to the other side's, which may be the same broker.

        Raises:
            BrokerError: a connection was lost, or it is time to take up who was left out.
        """
        inbox: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        heard_of: set[str] = set()
        with ExitStack() as stack:
            stack.enter_context(ours.hear(*self._filters(), inbox=inbox))
            quiet_at_s = time.monotonic() + FIRST_S
            while True:
                if self._take(inbox, TICK_S):
                    # What is retained comes first: to act before it has come would be to do things twice.
                    quiet_at_s = max(quiet_at_s, time.monotonic() + QUIET_S)
                for name in sorted(set(self._machines) - heard_of):
                    stack.enter_context(theirs.hear(*self._machines[name].filters, inbox=inbox))
                    heard_of.add(name)
                    quiet_at_s = max(quiet_at_s, time.monotonic() + QUIET_S)
                if ours.was_lost or theirs.was_lost:
                    raise BrokerError("the connection to a broker was lost")
                if time.monotonic() >= self._anew_at_s:
                    raise BrokerError("who was left out is taken up again")
                if time.monotonic() >= quiet_at_s:
                    self._tell_of_the_unheard()
                    self._act(ours, theirs)

    def _filters(self) -> list[str]:
        kinds = (*RETAINED, "op/+")
        if not self._devices:
            return [FleetTopics(self._prefix).every(kind) for kind in kinds]
        return [Topics(self._prefix, device).kind(kind) for device in self._devices for kind in kinds]

    def _take(self, inbox: queue.SimpleQueue[Heard], timeout_s: float) -> bool:
        """Take in what came, waiting for the first; return whether anything of it had been retained."""
        was_retained = False
        try:
            heard = inbox.get(timeout=timeout_s)
            while True:
                was_retained |= heard.is_retained
                self._hear(heard)
                heard = inbox.get_nowait()
        except queue.Empty:
            return was_retained

    def _hear(self, heard: Heard) -> None:
        now_s = time.monotonic()
        if (machine := self._whose(heard.topic)) is not None:
            machine.take(heard.topic, heard.payload, now_s, is_retained=heard.is_retained)
            return
        device = self._view.take(heard.topic, heard.payload, now_s)
        if device is None or device.name in self._machines or device.name in self._left_out or not device.said:
            return
        try:
            machine = self._machines[device.name] = self._make(device)
        except ValueError as error:
            self._left_out.add(device.name)
            self._tell(f"{device.name} is left out: {error}")
            return
        self._by_root.setdefault(machine.root, machine)
        self._tell(f"{device.name} is bridged, it is {device.said.get(PRESENCE, {}).get('state', 'there')}")

    def _whose(self, topic: str) -> Machine | None:
        """Return the machine on whose root a topic lies: a look for each level, however many machines there are."""
        roots = (topic[: at + 1] for at, char in enumerate(topic) if char == "/")
        return next((self._by_root[root] for root in roots if root in self._by_root), None)

    def _tell_of_the_unheard(self) -> None:
        unheard, self._unheard = self._unheard - set(self._machines) - self._left_out, set()
        for name in sorted(unheard):
            self._tell(f"nothing is known of {name} yet: is it its id? It is bridged once it has connected")

    def _act(self, ours: Messages, theirs: Messages) -> None:
        for name in list(self._machines):
            self._carry(name, ours, theirs)

    def _carry(self, name: str, ours: Messages, theirs: Messages) -> None:
        try:
            for out in self._machines[name].act(time.monotonic()):
                if isinstance(out, Command):
                    ours.publish(Topics(self._prefix, out.device).command(out.name), dump(out.body))
                elif isinstance(out, Foreign):
                    theirs.publish(out.topic, out.payload, retain=out.retain)
                if out.note:
                    self._tell(out.note)
        except RefusedMessageError as error:  # what else it had to say is lost: it has to begin anew
            self._by_root.pop(self._machines.pop(name).root, None)
            self._left_out.add(name)
            self._anew_at_s = min(self._anew_at_s, time.monotonic() + LEFT_OUT_S)
            self._tell(f"{name} is left out for {LEFT_OUT_S:.0f} s: {error}")
