"""One model's queue: what is joined, what fails alone, what waits, and for how long."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog

from agent.serving.batcher import AT_ONCE_S, Batcher, Batching
from agent.serving.errors import ExpiredError, UnavailableError
from agent.serving.slots import Slot
from agent.serving.tensors import TensorSpec
from agent.serving.validation import Question
from tests.fakes.serving import POISON, WEIGHTS, FakeNetwork, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OPEN = (TensorSpec("input", "FP32", (-1, -1)),)


def question(*rows: float, width: int = 4) -> Question:
    return Question((np.array([[row] * width for row in rows], np.float32),), len(rows))


def answer_to(asked: Question, bias: float = 0.0) -> Any:
    return asked.arrays[0] @ WEIGHTS + np.float32(bias)


def slot_of(network: FakeNetwork, release: str = "r1") -> Slot:
    return Slot("m", release, "1", network)


@asynccontextmanager
async def batcher(*networks: FakeNetwork, **limits: float) -> AsyncIterator[Batcher]:
    it = Batcher("m", asyncio.get_running_loop(), Batching(**limits))  # type: ignore[arg-type]  # names and values of limits
    try:
        yield it
    finally:
        for network in networks:
            network.gate.set()
        it.stop()


async def occupy(it: Batcher, slot: Slot, network: FakeNetwork) -> asyncio.Future[Any]:
    """Keep the thread inside a forward pass until ``network.gate`` is set."""
    network.gate.clear()
    first = it.submit(slot, question(0.5))
    await until(network.entered.is_set)
    return first


def test_an_idle_model_computes_each_request_at_once() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network) as it:
            for value in (1.0, 2.0, 3.0):
                answer = await it.submit(slot, question(value))
                np.testing.assert_array_equal(answer.outputs[0], answer_to(question(value)))
        assert network.calls == [1, 1, 1]
        assert (slot.stats.executions, slot.in_flight) == (3, 0)

    run(scenario)


def test_requests_that_waited_are_answered_together_and_as_if_alone() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        asked = [question(*np.arange(count) + count) for count in (1, 3, 2)]
        async with batcher(network) as it:
            alone = [(await it.submit(slot, each)).outputs[0] for each in asked]
            network.calls.clear()
            network.entered.clear()
            first = await occupy(it, slot, network)
            waiting = [it.submit(slot, each) for each in asked]
            assert slot.in_flight == 4
            network.gate.set()
            await first
            for single, future in zip(alone, waiting, strict=True):
                np.testing.assert_array_equal((await future).outputs[0], single, strict=True)
        assert network.calls == [1, 6]
        assert slot.stats.batch_rows.total == 6 + 1 + 6

    run(scenario)


def test_a_batch_counts_rows_and_never_exceeds_its_limit() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network, max_rows=4) as it:
            first = await occupy(it, slot, network)
            waiting = [it.submit(slot, question(*[1.0] * rows)) for rows in (3, 2, 1, 4)]
            network.gate.set()
            await asyncio.gather(first, *waiting)
        # The 2 do not fit beside the 3, the 1 does; then the 2 alone, because the 4 do not fit either.
        assert network.calls == [1, 4, 2, 4]

    run(scenario)


def test_a_request_of_more_rows_than_a_batch_is_computed_in_pieces() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        asked = question(*range(10))
        async with batcher(network, max_rows=4) as it:
            answer = await it.submit(slot, asked)
        np.testing.assert_array_equal(answer.outputs[0], answer_to(asked))
        assert network.calls == [4, 4, 2]
        assert slot.stats.executions == 3

    run(scenario)


def test_forward_passes_are_told_by_their_rows_with_what_each_took() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network, max_rows=4) as it:
            alone = [(await it.submit(slot, question(value))).timing for value in (1.0, 2.0)]
            pieces = (await it.submit(slot, question(*range(10)))).timing
            await asyncio.gather(it.submit(slot, question(POISON)), return_exceptions=True)
            await it.submit(slot, question(3.0, 4.0, 5.0), is_probe=True)
        passes = slot.stats.passes
        assert {rows: alike.count for rows, alike in passes.items()} == {1: 2, 4: 2, 2: 1}
        assert sum(alike.count for alike in passes.values()) == slot.stats.executions
        for part in ("input_s", "output_s"):
            assert getattr(passes[1], part) == pytest.approx(sum(getattr(timing, part) for timing in alone))
            assert getattr(passes[4], part) == pytest.approx(getattr(pieces, part) * 0.8)
            assert getattr(passes[2], part) == pytest.approx(getattr(pieces, part) * 0.2)
        assert 0 < passes[1].infer_s <= sum(timing.infer_s for timing in alone)
        assert 0 < passes[4].infer_s + passes[2].infer_s <= pieces.infer_s

    run(scenario)


def test_rows_that_no_limit_bounds_are_not_told_one_by_one() -> None:
    async def scenario() -> None:
        network = FakeNetwork(is_batchable=False)
        slot = slot_of(network)
        async with batcher(network, max_rows=4) as it:
            for rows in (3, *range(5, 50), 4):
                await it.submit(slot, question(*[1.0] * rows))
        assert sorted(slot.stats.passes) == [3, 4]
        assert slot.stats.executions == 47

    run(scenario)


def test_requests_of_different_shapes_are_not_joined() -> None:
    async def scenario() -> None:
        network = FakeNetwork(inputs=OPEN, error=ValueError("width"))
        slot = slot_of(network)
        async with batcher(network) as it:
            first = await occupy(it, slot, network)
            waiting = [it.submit(slot, question(1.0)), it.submit(slot, question(1.0, width=5))]
            waiting.append(it.submit(slot, question(2.0)))
            network.gate.set()
            await first
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert network.calls == [1, 2, 1]
        assert [isinstance(outcome, Exception) for outcome in outcomes] == [False, True, False]

    run(scenario)


def test_requests_of_different_releases_are_not_joined() -> None:
    async def scenario() -> None:
        old, new = FakeNetwork(), FakeNetwork(bias=100.0)
        slots = slot_of(old), slot_of(new, "r2")
        async with batcher(old, new) as it:
            first = await occupy(it, slots[0], old)
            waiting = [it.submit(slots[number % 2], question(1.0)) for number in range(4)]
            old.gate.set()
            await first
            answers = [(await future).outputs[0] for future in waiting]
        for number, got in enumerate(answers):
            np.testing.assert_array_equal(got, answer_to(question(1.0), 100.0 * (number % 2)))
        assert (old.calls, new.calls) == ([1, 2], [2])

    run(scenario)


def test_a_type_whose_rows_influence_each_other_is_never_joined_nor_split() -> None:
    async def scenario() -> None:
        network = FakeNetwork(is_batchable=False)
        slot = slot_of(network)
        async with batcher(network, max_rows=4) as it:
            first = await occupy(it, slot, network)
            waiting = [it.submit(slot, question(*[1.0] * rows)) for rows in (1, 1, 6)]
            network.gate.set()
            await asyncio.gather(first, *waiting)
        assert network.calls == [1, 1, 1, 6]

    run(scenario)


def test_a_poisoned_request_fails_alone() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network) as it:
            first = await occupy(it, slot, network)
            waiting = [it.submit(slot, question(value)) for value in (1.0, POISON, 2.0)]
            network.gate.set()
            await first
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(outcome, RuntimeError) for outcome in outcomes] == [False, True, False]
        assert network.calls == [1, 3, 1, 1, 1]
        assert slot.in_flight == 0

    run(scenario)


def test_one_that_cannot_be_told_of_its_answer_keeps_no_other_from_its_own() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)

        def fails(_outcome: Any) -> None:
            raise RuntimeError("the handler is closed")

        async with batcher(network) as it:
            first = await occupy(it, slot, network)
            it.ask(slot, question(1.0), fails)
            waiting = it.submit(slot, question(2.0))
            network.gate.set()
            with structlog.testing.capture_logs() as lines:
                await asyncio.gather(first, waiting)
        assert network.calls == [1, 2], "they were joined"
        assert slot.in_flight == 0
        assert [line["event"] for line in lines] == ["not_told"]

    run(scenario)


def test_an_answer_with_too_few_rows_is_a_fault_and_not_someone_elses_answer() -> None:
    class Forgetful(FakeNetwork):
        def run(self, arrays: Any) -> Any:
            return [output[:1] for output in super().run(arrays)]

    async def scenario() -> None:
        network = Forgetful()
        async with batcher(network) as it:
            with pytest.raises(RuntimeError, match="1 rows to 2 rows"):
                await it.submit(slot_of(network), question(1.0, 2.0))

    run(scenario)


def test_a_full_queue_refuses_at_once_with_its_length() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network, max_queue=2) as it:
            accepted = [await occupy(it, slot, network)]
            accepted += [it.submit(slot, question(1.0)) for _ in range(2)]
            with pytest.raises(UnavailableError, match="full: 2 requests wait"):
                it.submit(slot, question(1.0))
            probe = it.submit(slot, question(1.0), is_probe=True)
            network.gate.set()
            await asyncio.gather(*accepted, probe)
        assert slot.stats.executions == 2
        assert network.calls == [1, 2, 1]

    run(scenario)


def test_a_request_that_waited_for_its_timeout_is_not_computed() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network) as it:
            first = await occupy(it, slot, network)
            late = it.submit(slot, question(1.0), timeout_s=0.001)
            with pytest.raises(ExpiredError, match="1000 us"):
                await late
            assert slot.in_flight == 1
            network.gate.set()
            await first
        assert network.calls == [1]

    run(scenario)


def test_what_a_request_waited_before_it_came_into_the_queue_counts() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network) as it:
            first = await occupy(it, slot, network)
            with pytest.raises(ExpiredError, match="60000000 us"):
                await it.submit(slot, question(1.0), timeout_s=60.0, waited_s=61.0)
            network.gate.set()
            await first

    run(scenario)


def test_a_request_that_is_being_computed_is_not_interrupted_by_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        network.gate.clear()
        async with batcher(network) as it:
            loop = asyncio.get_running_loop()
            timers: list[Any] = []

            def call_later(_delay: float, *call: Any) -> asyncio.Handle:
                timers.append(call)
                return loop.call_soon(int)

            monkeypatch.setattr(loop, "call_later", call_later)
            future = it.submit(slot, question(1.0), timeout_s=0.001)
            await until(network.entered.is_set)
            ((expire, *arguments),) = timers
            expire(*arguments)
            network.gate.set()
            assert (await future).outputs[0].shape == (1, 3)

    run(scenario)


def test_a_client_that_left_is_taken_out_of_the_queue() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network) as it:
            first = await occupy(it, slot, network)
            gone = it.submit(slot, question(1.0))
            gone.cancel()
            await until(lambda: slot.in_flight == 1)
            assert len(it) == 0
            network.gate.set()
            await first
        assert network.calls == [1]

    run(scenario)


def test_what_waits_when_the_model_is_unloaded_is_told_so() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network) as it:
            first = await occupy(it, slot, network)
            waiting = it.submit(slot, question(1.0))
            it.stop()
            with pytest.raises(UnavailableError, match="was unloaded"):
                await waiting
            network.gate.set()
            await first
        assert slot.in_flight == 0

    run(scenario)


def test_queue_and_compute_time_are_told_apart() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network) as it:
            first = await occupy(it, slot, network)
            waiting = it.submit(slot, question(1.0))
            passed = asyncio.Event()
            asyncio.get_running_loop().call_later(0.02, passed.set)
            await passed.wait()
            network.gate.set()
            assert (await first).timing.infer_s >= 0.02
            timing = (await waiting).timing
        assert timing.queue_s >= 0.02
        assert timing.compute_s < timing.queue_s

    run(scenario)


def test_a_busy_model_collects_until_the_batch_is_full_or_the_oldest_waited_long_enough() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network, max_rows=4, max_delay_s=60.0) as it:
            first = await occupy(it, slot, network)
            waiting = [it.submit(slot, question(1.0))]
            network.gate.set()
            await first
            waiting += [it.submit(slot, question(2.0)), it.submit(slot, question(3.0, 4.0))]
            await asyncio.gather(*waiting)
        assert network.calls == [1, 4], "the fourth row ended a wait of a minute"
        async with batcher(network, max_rows=4, max_delay_s=0.05) as it:
            network.calls.clear()
            network.entered.clear()
            first = await occupy(it, slot, network)
            late = it.submit(slot, question(1.0))
            network.gate.set()
            await asyncio.gather(first, late)
        assert network.calls == [1, 1], "nobody else came"

    run(scenario)


def test_an_idle_model_does_not_collect() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network, max_delay_s=3600.0) as it:
            answer = await it.submit(slot, question(1.0))
        np.testing.assert_array_equal(answer.outputs[0], answer_to(question(1.0)))

    run(scenario)


def test_a_request_that_leaves_while_a_busy_model_collects_is_not_computed() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        slot = slot_of(network)
        async with batcher(network, max_delay_s=0.2) as it:
            first = await occupy(it, slot, network)
            leaving = it.submit(slot, question(1.0))
            network.gate.set()
            await first
            leaving.cancel()
            await it.submit(slot, question(2.0), timeout_s=None)
        assert network.calls == [1, 1]

    run(scenario)


class Threads(FakeNetwork):
    """Writes down in which thread it computes; a row takes next to nothing."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**{"row_s": AT_ONCE_S / 2, **named})
        self.threads: list[str] = []

    def run(self, arrays: Any) -> Any:
        here = threading.current_thread() is threading.main_thread()
        self.threads.append("event loop" if here else "model")
        return super().run(arrays)


def test_what_takes_next_to_nothing_is_computed_by_the_event_loop_while_nothing_else_is_asked() -> None:
    async def scenario() -> None:
        network = Threads()
        slot = slot_of(network)
        async with batcher(network) as it:
            for value in (1.0, 2.0):
                answer = await it.submit(slot, question(value))
                np.testing.assert_array_equal(answer.outputs[0], answer_to(question(value)))
                assert answer.timing.infer_s > 0
            assert (network.threads, slot.stats.executions, slot.in_flight) == (["event loop"] * 2, 2, 0)
            with pytest.raises(RuntimeError, match="poisoned"):
                await it.submit(slot, question(POISON))
            assert (network.threads[2:], slot.in_flight) == (["event loop"], 0)

    run(scenario)


def test_requests_that_come_together_are_joined_all_the_same() -> None:
    async def scenario() -> None:
        network = Threads()
        slot = slot_of(network)
        async with batcher(network) as it:
            await asyncio.gather(*(it.submit(slot, question(value)) for value in (1.0, 2.0, 3.0)))
            assert network.threads[0] == "event loop"
            assert set(network.threads[1:]) == {"model"}
            first = await occupy(it, slot, network)
            joined = [it.submit(slot, question(value)) for value in (1.0, 2.0, 3.0)]
            network.gate.set()
            await asyncio.gather(first, *joined)
            network.threads.clear()
            await it.submit(slot, question(1.0))
            assert network.threads == ["model"], "where requests were joined, the next ones are"
            await it.submit(slot, question(1.0))
            assert network.threads == ["model", "event loop"]

    run(scenario)


@pytest.mark.parametrize(
    ("named", "rows", "is_probe"),
    [
        pytest.param({"row_s": AT_ONCE_S * 2}, (1.0,), False, id="it takes longer"),
        pytest.param({"row_s": float("inf")}, (1.0,), False, id="nobody knows"),
        pytest.param({}, (1.0, 2.0), False, id="rows"),
        pytest.param({}, (1.0,), True, id="a canary"),
    ],
)
def test_all_else_is_the_threads(named: dict[str, Any], rows: tuple[float, ...], *, is_probe: bool) -> None:
    async def scenario() -> None:
        network = Threads(**named)
        async with batcher(network) as it:
            await it.submit(slot_of(network), question(*rows), is_probe=is_probe)
        assert network.threads == ["model"]

    run(scenario)


def test_a_row_that_took_far_longer_than_measured_is_the_last_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        network = Threads()
        slot = slot_of(network)
        async with batcher(network) as it:
            monkeypatch.setattr("agent.serving.batcher.FAR_LONGER", 0)
            monkeypatch.setattr("agent.serving.batcher.REST_S", 3600.0)
            await it.submit(slot, question(1.0))
            await it.submit(slot, question(1.0))
            assert network.threads == ["event loop", "model"]

    run(scenario)


def test_while_texts_are_made_the_thread_computes() -> None:
    class Writing:
        """Has a step to do for as long as it is told."""

        def __init__(self) -> None:
            self.goes_on = True

        def step(self) -> bool:
            return self.goes_on

    async def scenario() -> None:
        network, writing = Threads(), Writing()
        async with batcher(network) as it:
            it.wake(writing)
            await it.submit(slot_of(network), question(1.0))
            writing.goes_on = False
        assert network.threads == ["model"]

    run(scenario)


def test_while_another_release_of_the_model_computes_the_thread_is_waited_for() -> None:
    async def scenario() -> None:
        old, new = FakeNetwork(), Threads()
        async with batcher(old, new) as it:
            first = await occupy(it, slot_of(old), old)
            second = it.submit(slot_of(new, "r2"), question(1.0))
            assert new.threads == []
            old.gate.set()
            await asyncio.gather(first, second)
        assert new.threads == ["model"]

    run(scenario)
