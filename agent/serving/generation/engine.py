"""Texts of one release between the event loop, where they are asked for, and the thread that makes them.

INVARIANTS:
- Sequences begin in the order in which they came; what waits is bounded in number and in time.
- A stream that nobody reads any more is dropped before the next step; its slot is free then.
- A stream is settled exactly once, on the event loop; until then it holds its slot.

``step`` runs in the thread, all else on the event loop. Both meet in the inbox, which is locked.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from agent.exhaustion import is_out_of_memory
from agent.serving.errors import ExpiredError, ModelFailedError, ServingError, UnavailableError
from agent.serving.generation.limits import QUEUE_S
from agent.serving.generation.sequence import TokenSequence
from agent.serving.generation.stepper import Piece, Stepper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.serving.generation.limits import Limits
    from agent.serving.generation.sequence import Order, TextStream
    from agent.serving.generation.stepper import Decoder, Outcome
    from agent.serving.slots import Slot

log = structlog.get_logger("generation")


@dataclass(frozen=True)
class _Load:
    """What a release makes just now."""

    running: int
    reserved_tokens: int
    passes: int


@dataclass(eq=False)
class Stream:
    """An answer as the event loop sees it: pieces, the last of which has a reason, or an error.

    Attributes:
        tokens: how many have been made.
    """

    sequence: TokenSequence
    arrived_at: float
    tokens: int = 0
    is_settled: bool = False
    expiry: asyncio.TimerHandle | None = None
    _told_at: float | None = None
    _pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)

    async def next(self) -> Piece:
        """Return the next piece; raises what ended the stream otherwise."""
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        return piece

    def put(self, piece: Piece | Exception) -> None:
        """Let the reader have ``piece``."""
        self._pieces.put_nowait(piece)

    def token_at(self, at: float) -> float:
        """Count a token; return the seconds since the one before, or since the request came."""
        before = self.arrived_at if self._told_at is None else self._told_at
        self._told_at = at
        self.tokens += 1
        return at - before


class Engine:
    """Makes the texts of one release. Created on the event loop.

    Args:
        slot: the release; held by every stream.
        decoder: computes.
        limits: what it may take.
        wake: asks the model's thread to call ``step`` until it returns False.
    """

    def __init__(self, slot: Slot, decoder: Decoder, limits: Limits, wake: Callable[[Engine], None]) -> None:
        self.limits = limits
        self._slot = slot
        self._stepper = Stepper(decoder, limits)
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._streams: dict[TokenSequence, Stream] = {}
        self._lock = threading.Lock()
        self._waiting: deque[TokenSequence] = deque()
        self._dropped: list[TokenSequence] = []
        self._steps_before = slot.generated.steps

    def submit(self, order: Order, text: TextStream, timeout_s: float | None = None, waited_s: float = 0.0) -> Stream:
        """Queue an order, which must fit the limits when it is alone.

        Args:
            order: what to make.
            text: turns its tokens into text.
            timeout_s: how long it may wait for its first step, in seconds; None for ``QUEUE_S``, which is the most.
            waited_s: how much of that has passed already.

        Raises:
            UnavailableError: too many wait already.
        """
        if len(self._waiting) >= self.limits.max_waiting:
            limit = self.limits.max_waiting
            raise UnavailableError(f"the queue of model {self._slot.model!r} is full: {limit} texts wait")
        sequence = TokenSequence(order, text)
        stream = self._streams[sequence] = Stream(sequence, time.perf_counter() - waited_s)
        limit_s = QUEUE_S if timeout_s is None else min(QUEUE_S, timeout_s)
        stream.expiry = self._loop.call_later(max(0.0, limit_s - waited_s), self._expire, stream, limit_s)
        self._slot.acquire()
        with self._lock:
            self._waiting.append(sequence)
        self._slot.generated.waiting = len(self._waiting)
        self._wake(self)
        return stream

    def drop(self, stream: Stream) -> None:
        """Stop making what nobody reads any more."""
        if stream.is_settled:
            return
        if self._withdraw(stream.sequence):
            self._settle(stream)
            return
        with self._lock:
            self._dropped.append(stream.sequence)
        self._wake(self)

    def end(self, error: ServingError) -> None:
        """Stop everything; readers get ``error``."""
        for stream in list(self._streams.values()):
            stream.put(error)
            self.drop(stream)

    def close(self) -> None:
        """Let go of the weights; nothing is made any more, while streams may still be read."""
        self._stepper.close()

    def _withdraw(self, sequence: TokenSequence) -> bool:
        with self._lock:
            if sequence not in self._waiting:
                return False
            self._waiting.remove(sequence)
        self._slot.generated.waiting = len(self._waiting)
        return True

    def _expire(self, stream: Stream, limit_s: float) -> None:
        if self._withdraw(stream.sequence):
            waited = f"the request waited {limit_s:g} s for its first step, {len(self._streams) - 1} others are served"
            self._settle(stream, ExpiredError(waited))

    def _settle(self, stream: Stream, error: Exception | None = None) -> None:
        if stream.is_settled:
            return
        stream.is_settled = True
        if stream.expiry is not None:
            stream.expiry.cancel()
        del self._streams[stream.sequence]
        self._slot.free()
        if error is not None:
            stream.put(error)

    def _forget(self, dropped: Sequence[TokenSequence], load: _Load) -> None:
        self._count(load)
        for sequence in dropped:
            if sequence in self._streams:
                self._settle(self._streams[sequence])

    def _deliver(self, outcomes: Sequence[Outcome], at: float, load: _Load) -> None:
        self._count(load)
        for sequence, outcome in outcomes:
            stream = self._streams.get(sequence)
            if stream is None:
                continue
            if isinstance(outcome, Exception):
                self._settle(stream, self._explain(outcome))
            else:
                self._tell(stream, outcome, at)

    def _count(self, load: _Load) -> None:
        generated = self._slot.generated
        generated.running, generated.reserved_tokens = load.running, load.reserved_tokens
        generated.waiting, generated.steps = len(self._waiting), self._steps_before + load.passes

    def _tell(self, stream: Stream, piece: Piece, at: float) -> None:
        generated = self._slot.generated
        passed_s = stream.token_at(at)
        generated.tokens += 1
        if stream.tokens == 1:
            generated.prompt_tokens += len(stream.sequence.order.prompt)
            generated.first_s.observe(passed_s)
        else:
            generated.next_s.observe(passed_s)
        if piece.text or piece.reason is not None:
            stream.put(piece)
        if piece.reason is not None:
            self._settle(stream)

    def _explain(self, error: Exception) -> ServingError:
        if isinstance(error, ServingError):
            return error
        self._slot.judge(error)
        if is_out_of_memory(error):
            return UnavailableError("the device has not enough free memory to go on with this text")
        kind = type(error).__name__
        log.error("model_failed", model=self._slot.model, release=self._slot.release, error=f"{kind}: {error}"[:2000])
        return ModelFailedError(f"the model failed: {kind}")

    # What follows runs in the thread.

    def step(self) -> bool:
        """Do one step; return whether there is another."""
        stepper = self._stepper
        with self._lock:
            dropped, self._dropped = self._dropped, []
            for sequence in dropped:
                stepper.drop(sequence)
            before = len(stepper)
            while self._waiting and stepper.has_room(self._waiting[0].order):
                stepper.begin(self._waiting.popleft())
        if dropped or len(stepper) != before:
            # Told before the step, which may take long: a place that became free is free now.
            self._loop.call_soon_threadsafe(self._forget, dropped, self._load())
        outcomes = stepper.step()
        self._loop.call_soon_threadsafe(self._deliver, outcomes, time.perf_counter(), self._load())
        with self._lock:
            return bool(len(stepper) or self._waiting or self._dropped)

    def _load(self) -> _Load:
        return _Load(len(self._stepper), self._stepper.reserved_tokens, self._stepper.passes)
