"""Ends a connection that takes too long to answer, or that nobody waits for any more.

A socket knows how long nothing came; not how long a handshake or headers trickle, nor that the work should stop. A
thread looks after that and cuts the line, which the reader sees as the end of the stream.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

from agent.deployment.ports import InterruptedStepError

if TYPE_CHECKING:
    from agent.deployment.ports import Watch

LOOK_S = 0.2
"""How often it is looked whether the line has to be cut."""


class Lifeline:
    """Looks after one connection while its block runs.

    Args:
        head_s: how long it may take until the head of the answer is here.
        watch: whether somebody waits.

    Attributes:
        why: why it was cut, None if it was not.
    """

    def __init__(self, head_s: float, watch: Watch) -> None:
        self._head_s = head_s
        self._watch = watch
        self._own: socket.socket | None = None
        self._head_is_here = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="lifeline", daemon=True)
        self.why: str | None = None

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        if self._own is not None:
            self._own.close()

    def holding(self, sock: socket.socket) -> socket.socket:
        """Return ``sock``; a descriptor of its own outlives its wrapping for TLS."""
        self._own = sock.dup()
        return sock

    def head_is_here(self) -> None:
        """From now on the reader judges the speed."""
        self._head_is_here = True

    def _look_after(self) -> None:
        began = time.monotonic()
        while not self._is_over.wait(min(LOOK_S, self._head_s)):
            try:
                self._watch.check()
            except InterruptedStepError:
                self._cut("nobody waits for it")
            if not self._head_is_here and time.monotonic() - began > self._head_s:
                self._cut(f"no answer began within {self._head_s:g} s")

    def _cut(self, why: str) -> None:
        if self._own is not None:
            self.why = self.why or why
            with contextlib.suppress(OSError):
                self._own.shutdown(socket.SHUT_RDWR)
