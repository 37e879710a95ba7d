"""One model's queue and the thread that computes.

INVARIANTS:
- An idle model computes a request at once; requests are joined only when they waited anyway.
- The event loop itself computes a row that was measured to take less than ``AT_ONCE_S``, where nothing else is asked of
  the model: two changes of threads take longer. One that took far longer than that is the last for ``REST_S``.
- A model that was busy may wait for more, but the oldest request never longer than ``max_delay_s`` for that.
- Joined requests belong to the same slot, have equal shapes behind the rows, and do not exceed ``max_rows`` together.
- The oldest request is always in the next batch.
- When a batch fails, each of its requests is computed alone: only those that fail alone are answered with an error.
- Work that takes turns gets one step after each batch, or at once while none waits.
- A work is settled exactly once, on the event loop; until then it holds its slot.

The queue is shared by two threads and guarded by one condition; whoever asked is told on the event loop only.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import numpy as np
import structlog

from agent.planning.memory import SERVED_ROWS
from agent.serving.errors import ExpiredError, UnavailableError
from agent.serving.stats import Pass, Timing

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

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
        settled: hears what became of it, once, on the event loop.
        is_probe: a canary's question: neither bounded by the queue's length nor counted.
    """

    slot: Slot
    question: Question
    settled: Callable[[Answer | Exception], None]
    is_probe: bool
    queued_at: float
    form: tuple[tuple[int, ...], ...]
    expiry: asyncio.TimerHandle | None = None


@dataclass
class _Executed:
    """What became of a batch: one outcome for each work, and the forward passes that ended well."""

    outcomes: list[Answer | Exception]
    passes: list[Pass] = field(default_factory=list)


log = structlog.get_logger("batcher")
_DEFAULT = Batching()
AT_ONCE_S = 0.001
"""Reading a JSON request of some hundred kilobytes keeps the event loop as long."""
FAR_LONGER, REST_S = 8, 1.0


class Turns(Protocol):
    """Work that takes turns with batches, a step at a time."""

    def step(self) -> bool:
        """Do one step, in the thread; return whether there is another."""


class Batcher:
    """Computes the requests of one model, one batch at a time, in a thread of its own.

    Attributes:
        max_rows, max_queue: see ``Batching``.
        shed: requests that were refused because the queue was full.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, batching: Batching = _DEFAULT) -> None:
        self.max_rows = batching.max_rows
        self.max_queue = batching.max_queue
        self.shed = 0
        self._max_delay_s = batching.max_delay_s
        self._loop = loop
        self._changed = threading.Condition()
        self._queue: deque[Work] = deque()
        self._turns: list[Turns] = []
        self._is_stopping = False
        self._is_computing = False
        self._joined = 1
        self._rests_until = 0.0
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
        """Queue a question, as ``ask`` does; cancelling the future takes it out of the queue if it is still there."""
        future: asyncio.Future[Answer] = self._loop.create_future()

        def settled(outcome: Answer | Exception) -> None:
            if future.done():
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        work = self.ask(slot, question, settled, timeout_s, waited_s=waited_s, is_probe=is_probe)
        future.add_done_callback(lambda done: self.drop(work) if done.cancelled() else None)
        return future

    def ask(
        self,
        slot: Slot,
        question: Question,
        settled: Callable[[Answer | Exception], None],
        timeout_s: float | None = None,
        *,
        waited_s: float = 0.0,
        is_probe: bool = False,
    ) -> Work:
        """Queue a question.

        Args:
            slot: what shall answer.
            question: checked against the slot's specs.
            settled: hears what became of it, once, on the event loop; it must not raise.
            timeout_s: how long it may wait, in seconds; it is not interrupted once it is being computed.
            waited_s: how much of that has passed already.
            is_probe: whether it is a canary's.

        Raises:
            UnavailableError: the queue is full.
        """
        if len(self._queue) >= self.max_queue and not is_probe:
            self.shed += 1
            raise UnavailableError(f"the queue of model {slot.model!r} is full: {self.max_queue} requests wait")
        form = tuple(array.shape[1:] for array in question.arrays)
        work = Work(slot, question, settled, is_probe, time.perf_counter(), form)
        if timeout_s is not None:
            work.expiry = self._loop.call_later(max(0.0, timeout_s - waited_s), self._expire, work, timeout_s)
        is_alone = slot.in_flight == 0
        slot.acquire()
        if is_alone and self._may_compute_at_once(work):
            self._compute_at_once(work)
            return work
        with self._changed:
            self._queue.append(work)
            self._changed.notify()
        return work

    def _may_compute_at_once(self, work: Work) -> bool:
        # What was joined last time shows that there are several clients: their next requests are joined again.
        if work.question.rows > 1 or work.slot.network.row_s > AT_ONCE_S or self._joined > 1 or work.is_probe:
            return False
        with self._changed:
            is_busy = self._is_computing or self._queue or self._turns or self._is_stopping
        return not is_busy and work.queued_at >= self._rests_until

    def _compute_at_once(self, work: Work) -> None:
        executed = self._execute([work])
        now = time.perf_counter()
        if now - work.queued_at > FAR_LONGER * AT_ONCE_S:
            self._rests_until = now + REST_S
        # Behind what the event loop has at hand: requests that came meanwhile find this one, and are joined.
        self._loop.call_soon(self._deliver, [work], executed)

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

    def drop(self, work: Work) -> None:
        """Take a question out of the queue if it is still there: nobody waits for its answer."""
        if self._withdraw(work):
            self._settle(work, UnavailableError("canceled"))

    def _settle(self, work: Work, outcome: Answer | Exception) -> None:
        if work.expiry is not None:
            work.expiry.cancel()
        work.slot.free()
        try:
            work.settled(outcome)
        except Exception:  # it must not, and others of the batch are still to be told of theirs
            log.exception("not_told", model=work.slot.model)

    def _deliver(self, batch: Sequence[Work], executed: _Executed) -> None:
        self._joined = len(batch)
        if not batch[0].is_probe:
            for done in executed.passes:
                batch[0].slot.stats.executed(done, self.max_rows)
        for work, outcome in zip(batch, executed.outcomes, strict=True):
            if isinstance(outcome, Exception):
                work.slot.judge(outcome)
            self._settle(work, outcome)

    # What follows runs in the thread.

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            batch, turns = taken
            if batch:
                executed = self._execute(batch)
                self._is_computing = bool(turns)  # before anybody hears of it: who was answered may ask again at once
                self._loop.call_soon_threadsafe(self._deliver, batch, executed)
                del executed
            for each in turns:
                if each.step():
                    self.wake(each)
                del each
            # The next wait may be long: do not keep a release alive meanwhile.
            del batch, turns, taken

    def _take(self) -> tuple[list[Work], list[Turns]] | None:
        """Wait for work and return the next batch, which may be empty, and who has a turn; None means the end."""
        with self._changed:
            self._is_computing = False
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
            self._is_computing = True
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
            [outcome for one in alone for outcome in one.outcomes], [done for one in alone for done in one.passes]
        )

    def _compute(self, batch: Sequence[Work]) -> _Executed:
        began = time.perf_counter()
        arrays = batch[0].question.arrays
        if len(batch) > 1:
            columns = zip(*(work.question.arrays for work in batch), strict=True)
            arrays = tuple(np.concatenate(column) for column in columns)
        joined = time.perf_counter()
        rows = sum(work.question.rows for work in batch)
        outputs, ran = self._run(batch[0].slot, arrays, rows)
        computed = time.perf_counter()
        parts = _split(outputs, [work.question.rows for work in batch])
        split = time.perf_counter()
        return _Executed(
            [
                Answer(part, Timing(began - work.queued_at, joined - began, computed - joined, split - computed))
                for work, part in zip(batch, parts, strict=True)
            ],
            # What joining and splitting took is shared out to the pieces of a request of too many rows.
            [Pass(n, (joined - began) * n / rows, took_s, (split - computed) * n / rows) for n, took_s in ran],
        )

    def _run(self, slot: Slot, arrays: Sequence[Array], rows: int) -> tuple[list[Array], list[tuple[int, float]]]:
        """Return the outputs for ``rows`` rows, and for each forward pass its rows and seconds.

        More than ``max_rows`` of a batchable model are computed in pieces.
        """
        most, run = (self.max_rows, _run_checked) if slot.network.is_batchable else (rows, _run_whole)
        answers, ran, began = [], [], time.perf_counter()
        for at in range(0, rows, most):
            answers.append(run(slot, arrays if rows <= most else [array[at : at + most] for array in arrays]))
            now = time.perf_counter()
            ran.append((min(most, rows - at), now - began))
            began = now
        outputs = [np.concatenate(column) for column in zip(*answers, strict=True)] if len(ran) > 1 else answers[0]
        return outputs, ran


def _run_whole(slot: Slot, arrays: Sequence[Array]) -> list[Array]:
    return slot.network.run(arrays)


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
    ends = list(accumulate(rows))
    return [[output[end - count : end] for output in outputs] for count, end in zip(rows, ends, strict=True)]
