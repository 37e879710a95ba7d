"""Noticing that a client left while its request waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.serving.body import Receive

# Most requests are answered before this; only those that are not pay for a task that listens.
PATIENCE_S = 0.05


class DisconnectWatch:
    """Cancels the task that created it when the client leaves; the body must have been read to its end.

    Attributes:
        has_left: whether that is why the task was cancelled.
    """

    def __init__(self, receive: Receive) -> None:
        self.has_left = False
        self._receive = receive
        self._watched = asyncio.current_task()
        self._listener: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._listen)

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()

    def _listen(self) -> None:
        self._listener = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_left = True
        if self._watched is not None:
            self._watched.cancel()
