"""Requests that wait while nothing answers for their model, because the next release needs the memory of the last.

INVARIANTS:
- Requests wait only in a gap: from ``open`` until a release answers (``close``) or none is to be expected
  (``turn_away``).
- A request waits at most ``hold_s``, and no longer than its own timeout.
- What waits is bounded, in requests and in the bytes of their bodies; what comes beyond is refused at once.
- Whoever came first is let through first.

Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from agent.serving.batcher import Batching
from agent.serving.errors import ExpiredError, HeldTooLongError, UnavailableError
from agent.serving.limits import DEFAULT

HOLD_S = 30.0
# Memory is what such a switch is short of: together, bodies may take what a single one may.
MAX_WAITING_BYTES = DEFAULT.max_body_bytes


@dataclass(eq=False)
class WaitingRoom:
    """Where the requests of one model wait.

    Attributes:
        hold_s: how long a request may wait, in seconds; 0 refuses at once.
        max_waiting, max_bytes: how many requests may wait, and how large their bodies may be together.
        held: requests that have waited.
        expired, canceled: those of them whose time was over, or whose client left.
        shed: requests that were refused because too many waited already.
        last_gap_ms: how long nothing answered before the release that does, None if that never happened.
    """

    model: str
    hold_s: float = HOLD_S
    max_waiting: int = Batching.max_queue
    max_bytes: int = MAX_WAITING_BYTES
    held: int = 0
    expired: int = 0
    canceled: int = 0
    shed: int = 0
    last_gap_ms: float | None = None
    _waiting: dict[asyncio.Future[None], int] = field(default_factory=dict)
    _opened_at: float | None = None
    _changed_at: float = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_open(self) -> bool:
        """Whether there is a gap."""
        return self._opened_at is not None

    @property
    def is_forsaken(self) -> bool:
        """Whether nothing has been done about the gap for so long that waiting for its end is no use."""
        return time.monotonic() - self._changed_at >= self.hold_s

    @property
    def gap_ms(self) -> float:
        """Age of the gap in milliseconds, 0 without one."""
        if self._opened_at is None:
            return 0.0
        return round((time.monotonic() - self._opened_at) * 1e3, 3)

    def open(self) -> None:
        """Begin a gap: nothing answers from now on."""
        self._opened_at = time.monotonic()  # finer than the event loop's time

    def touch(self) -> None:
        """Note that something was done about the gap."""
        self._changed_at = time.monotonic()

    def close(self) -> None:
        """End the gap: a release answers from now on, to what waits as well."""
        if self.is_open:
            self.last_gap_ms = self.gap_ms
        self._end(None)

    def turn_away(self, reason: str) -> None:
        """End the gap without a release; what waits is answered with 503."""
        self._end(UnavailableError(reason))

    def expect_place(self, size: int = 0) -> None:
        """Raise ``UnavailableError`` when a request with a body of ``size`` bytes may not wait beside the others."""
        held = sum(self._waiting.values())
        if len(self) < self.max_waiting and held + size <= self.max_bytes:
            return
        self.shed += 1
        raise UnavailableError(
            f"model {self.model!r} is being switched, and {len(self)} requests with {held} bytes wait already; "
            f"at most {self.max_waiting} with {self.max_bytes} bytes may"
        )

    async def wait(self, size: int, since: float, timeout_s: float | None) -> None:
        """Return when the gap ended with a release.

        Args:
            size: of the request's body, in bytes.
            since: when the request came, in the event loop's time.
            timeout_s: the request's own, None for none.

        Raises:
            ExpiredError: it took longer than the request's timeout; ``HeldTooLongError``: than ``hold_s``.
            UnavailableError: too many wait already, or no release will come.
        """
        self.expect_place(size)
        loop = asyncio.get_running_loop()
        limit_s = self.hold_s if timeout_s is None else min(self.hold_s, timeout_s)
        kind = ExpiredError if limit_s == timeout_s else HeldTooLongError
        turn = loop.create_future()
        timer = loop.call_at(since + limit_s, self._expire, turn, limit_s, kind)
        self._waiting[turn] = size
        self.held += 1
        try:
            await turn
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        finally:
            timer.cancel()
            self._waiting.pop(turn, None)

    def to_json(self) -> dict[str, Any]:
        """Return the counters, and the gap: the running one, or else the last."""
        return {
            "is_open": self.is_open,
            "gap_ms": self.gap_ms if self.is_open else self.last_gap_ms,
            "waiting": len(self),
            "held": self.held,
            "expired": self.expired,
            "canceled": self.canceled,
            "shed": self.shed,
        }

    def _expire(self, turn: asyncio.Future[None], limit_s: float, kind: type[ExpiredError]) -> None:
        if turn.done():
            return
        self.expired += 1
        turn.set_exception(
            kind(
                f"model {self.model!r} is being switched: the request waited {limit_s:g} s, "
                f"nothing has answered for {self.gap_ms / 1e3:.1f} s, {len(self)} requests wait"
            )
        )

    def _end(self, error: UnavailableError | None) -> None:
        self._opened_at = None
        waiting, self._waiting = self._waiting, {}
        for turn in waiting:
            if turn.done():
                continue
            if error is None:
                turn.set_result(None)
            else:
                turn.set_exception(error)
