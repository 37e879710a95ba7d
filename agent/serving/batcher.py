"""One model's queue and the thread that computes.

INVARIANTS:
- An idle model computes a request at once; requests are joined only when they waited anyway.
- A model that was busy may wait for more, but the oldest request never longer than ``max_delay_s`` for that.
- Joined requests belong to the same slot, have equal shapes behind the rows, and do not exceed ``max_rows`` together.
- The oldest request is always in the next batch.
- When a batch fails, each of its requests is computed alone: only those that fail alone are answered with an error.
- Work that takes turns gets one step after each batch, or at once while none waits.
- A work is settled exactly once, on the event loop; until then it holds its slot.

The queue is shared by two threads and guarded by one condition; futures are touched on the event loop only.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from agent.planning.memory import SERVED_ROWS
from agent.serving.errors import ExpiredError, UnavailableError
from agent.serving.stats import Timing

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from agent.serving.slots import Slot
    from agent.serving.tensors import Array
    from agent.serving.validation import Question


@dataclass(frozen=True)
class Batching:
    """How requests of one model are joined.

    Attributes:
        max_rows: rows of a batch at most; not above what memory is planned for.
        max_delay_s: how long a busy model collects requests after the oldest one came, in seconds.
        max_queue: requests that may wait; further ones are refused.
    """

    max_rows: int = SERVED_ROWS
    max_delay_s: float = 0.0
    max_queue: int = 256


@dataclass(frozen=True)
class Answer:
    """Outputs in the order of the model's, and where the time went."""

    outputs: list[Array]
    timing: Timing


@dataclass(eq=False)
class Work:
    """A question on its way through the queue.

    Attributes:
        is_probe: a canary's question: neither bounded by the queue's length nor counted.
    """

    slot: Slot
    question: Question
    future: asyncio.Future[Answer]
    is_probe: bool
    queued_at: float
    form: tuple[tuple[int, ...], ...]
    expiry: asyncio.TimerHandle | None = None


@dataclass
class _Executed:
    """What became of a batch: one outcome for each work, and the rows of each forward pass."""

    outcomes: list[Answer | Exception]
    passes: list[int] = field(default_factory=list)


_DEFAULT = Batching()


class Turns(Protocol):
    """Work that takes turns with batches, a step at a time."""

    def step(self) -> bool:
        """Do one step, in the thread; return whether there is another."""


class Batcher:
    """Computes the requests of one model, one batch at a time, in a thread of its own."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, batching: Batching = _DEFAULT) -> None:
        self.max_rows = batching.max_rows
        self.max_queue = batching.max_queue
        self._max_delay_s = batching.max_delay_s
        self._loop = loop
        self._changed = threading.Condition()
        self._queue: deque[Work] = deque()
        self._turns: list[Turns] = []
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name=f"model-{name}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    def most_rows(self, slot: Slot) -> int:
        """Return how many rows are joined at most; a request of rows that are not joined is computed as it came."""
        return self.max_rows if slot.network.is_batchable else 1

    def submit(
        self,
        slot: Slot,
        question: Question,
        timeout_s: float | None = None,
        *,
        waited_s: float = 0.0,
        is_probe: bool = False,
    ) -> asyncio.Future[Answer]:
        """Queue a question.

        Cancelling the future takes the question out of the queue if it is still there.

        Args:
            slot: what shall answer.
            question: checked against the slot's specs.
            timeout_s: how long it may wait, in seconds; it is not interrupted once it is being computed.
            waited_s: how much of that has passed already.
            is_probe: whether it is a canary's.

        Raises:
            UnavailableError: the queue is full.
        """
        if len(self._queue) >= self.max_queue and not is_probe:
            raise UnavailableError(f"the queue of model {slot.model!r} is full: {self.max_queue} requests wait")
        form = tuple(array.shape[1:] for array in question.arrays)
        work = Work(slot, question, self._loop.create_future(), is_probe, time.perf_counter(), form)
        if timeout_s is not None:
            work.expiry = self._loop.call_later(max(0.0, timeout_s - waited_s), self._expire, work, timeout_s)
        work.future.add_done_callback(lambda future: self._drop(work) if future.cancelled() else None)
        slot.acquire()
        with self._changed:
            self._queue.append(work)
            self._changed.notify()
        return work.future

    def wake(self, turns: Turns) -> None:
        """Let the thread call ``turns.step`` until it returns False, one step after each batch; from any thread."""
        with self._changed:
            if turns not in self._turns and not self._is_stopping:
                self._turns.append(turns)
                self._changed.notify()

    def stop(self) -> None:
        """End the thread; what is still queued is answered with 503."""
        with self._changed:
            self._is_stopping = True
            left = list(self._queue)
            self._queue.clear()
            self._turns.clear()
            self._changed.notify()
        for work in left:
            self._settle(work, UnavailableError(f"model {work.slot.model!r} was unloaded"))

    def _withdraw(self, work: Work) -> bool:
        with self._changed:
            if work not in self._queue:
                return False
            self._queue.remove(work)
            self._changed.notify()  # whoever collects may have waited for this one
            return True

    def _expire(self, work: Work, timeout_s: float) -> None:
        if self._withdraw(work):
            self._settle(work, ExpiredError(f"the request waited for its timeout of {timeout_s * 1e6:.0f} us"))

    def _drop(self, work: Work) -> None:
        if self._withdraw(work):
            self._settle(work, UnavailableError("canceled"))

    def _settle(self, work: Work, outcome: Answer | Exception) -> None:
        if work.expiry is not None:
            work.expiry.cancel()
        work.slot.free()
        if work.future.done():
            return
        if isinstance(outcome, Answer):
            work.future.set_result(outcome)
        else:
            work.future.set_exception(outcome)

    def _deliver(self, batch: Sequence[Work], executed: _Executed) -> None:
        if not batch[0].is_probe:
            for rows in executed.passes:
                batch[0].slot.stats.executed(rows)
        for work, outcome in zip(batch, executed.outcomes, strict=True):
            if isinstance(outcome, Exception):
                work.slot.judge(outcome)
            self._settle(work, outcome)

    # What follows runs in the thread.

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            batch, turns = taken
            if batch:
                self._loop.call_soon_threadsafe(self._deliver, batch, self._execute(batch))
            for each in turns:
                if each.step():
                    self.wake(each)
                del each
            # The next wait may be long: do not keep a release alive meanwhile.
            del batch, turns, taken

    def _take(self) -> tuple[list[Work], list[Turns]] | None:
        """Wait for work and return the next batch, which may be empty, and who has a turn; None means the end."""
        with self._changed:
            if self._queue and self._max_delay_s:
                self._collect()
            while not self._queue and not self._turns:
                if self._is_stopping:
                    return None
                self._changed.wait()
            turns, self._turns = self._turns, []
            batch = [self._queue.popleft()] if self._queue else []
            if self._queue and batch[0].slot.network.is_batchable:
                self._join(batch)
            return batch, turns

    def _collect(self) -> None:
        """Wait until a batch is full or the oldest request has waited long enough; it may leave meanwhile."""
        # A step that is due is not held up by a batch that may fill.
        while self._queue and not (self._is_stopping or self._turns) and self._queue[0].slot.network.is_batchable:
            left_s = self._queue[0].queued_at + self._max_delay_s - time.perf_counter()
            if left_s <= 0 or sum(work.question.rows for work in self._queue) >= self._joined_rows(self._queue[0]):
                return
            self._changed.wait(left_s)

    def _joined_rows(self, work: Work) -> int:
        return min(self.max_rows, work.slot.network.joined_rows)

    def _join(self, batch: list[Work]) -> None:
        first, rows = batch[0], batch[0].question.rows
        most = self._joined_rows(first)
        for work in list(self._queue):
            fits = work.slot is first.slot and work.form == first.form and work.is_probe == first.is_probe
            if fits and rows + work.question.rows <= most:
                rows += work.question.rows
                batch.append(work)
                self._queue.remove(work)

    def _execute(self, batch: Sequence[Work]) -> _Executed:
        try:
            return self._compute(batch)
        except Exception as error:  # noqa: BLE001 - whatever a model raises must not end the thread
            if len(batch) == 1:
                return _Executed([error])
        alone = [self._execute([work]) for work in batch]
        return _Executed(
            [outcome for one in alone for outcome in one.outcomes], [rows for one in alone for rows in one.passes]
        )

    def _compute(self, batch: Sequence[Work]) -> _Executed:
        began = time.perf_counter()
        arrays = batch[0].question.arrays
        if len(batch) > 1:
            columns = zip(*(work.question.arrays for work in batch), strict=True)
            arrays = tuple(np.concatenate(column) for column in columns)
        joined = time.perf_counter()
        outputs, passes = self._run(batch[0].slot, arrays, sum(work.question.rows for work in batch))
        computed = time.perf_counter()
        parts = _split(outputs, [work.question.rows for work in batch])
        split = time.perf_counter()
        return _Executed(
            [
                Answer(part, Timing(began - work.queued_at, joined - began, computed - joined, split - computed))
                for work, part in zip(batch, parts, strict=True)
            ],
            passes,
        )

    def _run(self, slot: Slot, arrays: Sequence[Array], rows: int) -> tuple[list[Array], list[int]]:
        """Return the outputs for ``rows`` rows; more than ``max_rows`` of a batchable model are computed in pieces."""
        if not slot.network.is_batchable:
            return slot.network.run(arrays), [rows]
        pieces = [[array[at : at + self.max_rows] for array in arrays] for at in range(0, rows, self.max_rows)]
        answers = [_run_checked(slot, piece) for piece in pieces]
        outputs = [np.concatenate(column) for column in zip(*answers, strict=True)] if len(pieces) > 1 else answers[0]
        return outputs, [len(piece[0]) for piece in pieces]


def _run_checked(slot: Slot, arrays: Sequence[Array]) -> list[Array]:
    # A row too few would give every later request of the batch the answer of another one.
    outputs = slot.network.run(arrays)
    for output, spec in zip(outputs, slot.network.outputs, strict=False):
        if len(output) != len(arrays[0]):
            raise RuntimeError(f"output {spec.name!r} has {len(output)} rows to {len(arrays[0])} rows of input")
    return outputs


def _split(outputs: list[Array], rows: Sequence[int]) -> list[list[Array]]:
    if len(rows) == 1:
        return [outputs]
    cuts = list(np.cumsum(rows)[:-1])
    return [list(part) for part in zip(*(np.split(output, cuts) for output in outputs), strict=True)]
