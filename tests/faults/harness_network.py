"""A way between a device and what it talks to that can be cut, slowed down or made lossy, and devices beyond it."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.device import Agent
from tests.e2e.harness.mqtt import HOST
from tests.e2e.harness.operator import Operator

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness.files import HostedFile
    from tests.e2e.harness.mqtt import Broker, Subscriber
    from tests.e2e.harness.world import World

CHUNK = 64 * 1024
READY_S = 150.0
"""How long a start may take when other tests want the same processor cores."""
minutes = pytest.mark.minutes
"""Marks what the normal suite leaves out."""


@dataclass
class Link:
    """A port of the loopback interface behind which a server answers, while the link stands.

    A cut lets nothing through, either way, and refuses nothing: a black hole, in which connections hang and are not
    reset. What was under way arrives when the link is mended, as TCP would send it again.

    Attributes:
        target: the server's port.
        delay_s: by which every chunk is late, each way.
        stall_share, stall_s: how many chunks are lost, and how long TCP takes to send such a one again.
        made: connections so far.
    """

    target: int
    delay_s: float = 0.0
    stall_share: float = 0.0
    stall_s: float = 0.4
    made: int = 0
    _open: threading.Event = field(default_factory=threading.Event)
    _sockets: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._open.set()
        self._draw = random.Random(1)
        self._is_closed = False
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name=f"link-{self.port}", daemon=True).start()

    def cut(self) -> None:
        """Let nothing through from now on."""
        self._open.clear()

    def mend(self) -> None:
        """Let everything through again."""
        self._open.set()

    def cut_for(self, seconds: float) -> None:
        """Be cut for so long."""
        self.cut()
        time.sleep(seconds)  # the fault itself
        self.mend()

    def reset(self) -> None:
        """End every connection; new ones are made."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def reach(self, file: HostedFile) -> HostedFile:
        """Return a file of the server that the link leads to, by its address on this side."""
        return replace(file, url=file.url.replace(f":{self.target}/", f":{self.port}/"))

    def close(self) -> None:
        """End it with all connections."""
        self._is_closed = True
        self._open.set()
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.made += 1
                self._sockets.append(near)
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._open.wait()
        try:
            far = socket.create_connection((HOST, self.target))
        except OSError:
            near.close()
            return
        self._sockets.append(far)
        threading.Thread(target=self._carry, args=(far, near), daemon=True).start()
        self._carry(near, far)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not self._is_closed:
                data = source.recv(CHUNK)
                self._open.wait()
                late_s = self.delay_s + (self.stall_s if self._draw.random() < self.stall_share else 0.0)
                if late_s:
                    time.sleep(late_s)  # the fault itself
                if not data:
                    break
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Remote:
    """A device beyond links, and the person who operates it from this side of them."""

    agent: Agent
    operator: Operator
    link: Link
    files: Link

    def deploy(self, world: World, file: HostedFile, *, gate: dict[str, Any] | None = None, **fields: Any) -> str:
        """Deploy a file that the device fetches over its link; return the operation's id."""
        manifest = self.operator.manifest(self.files.reach(file))
        dataset = self.files.reach(world.dataset).reference()
        return self.operator.deploy(manifest, gate={"dataset": dataset, **(gate or {})}, method="nf4", **fields)

    def cut_for(self, seconds: float) -> None:
        """Cut both links for so long."""
        self.files.cut()
        self.link.cut_for(seconds)
        self.files.mend()


def remote(
    stack: contextlib.ExitStack, world: World, directory: Path, name: str, *, broker: Broker, subscriber: Subscriber
) -> Remote:
    """Start a device beyond links to a broker and to the world's files; both end with ``stack``."""
    directory.mkdir(exist_ok=True)
    link, files = Link(broker.port), Link(int(world.dataset.url.split(":")[2].partition("/")[0]))
    stack.callback(link.close)
    stack.callback(files.close)
    agent = Agent(name, directory, link.port, world.keys_dir)
    stack.callback(agent.close)
    operator = Operator(name, broker.port, subscriber, world.signer, world.dataset)
    agent.start()
    operator.await_online()
    return Remote(agent, operator, link, files)


def logged_end(agent: Agent, operation: str, timeout_s: float) -> dict[str, Any]:
    """Wait until the agent's own log says how an operation ended, for when no broker can."""
    deadline = time.monotonic() + timeout_s
    mark = 0
    while True:
        entry = agent.logged("operation", since=mark, timeout_s=max(0.1, deadline - time.monotonic()))
        mark = agent.log().index(entry, mark) + 1
        if entry["id"] == operation and entry["state"] not in ("accepted", "running"):
            return entry
