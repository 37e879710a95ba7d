"""The thread of the steps: one task after another, and what is done after each."""

from __future__ import annotations

from agent.adapters.processes import give_memory_back
from agent.deployment.runner import Runner

LONG_S = 60.0


def test_tasks_run_in_order_and_each_is_followed_by_what_is_done_after_it() -> None:
    done: list[str] = []
    runner = Runner(after=lambda: done.append("after"))
    runner.start()
    for name in ("first", "second"):
        runner.submit(lambda name=name: done.append(name))  # type: ignore[misc]  # bound now, not when it runs
    assert runner.stop(LONG_S)
    assert done == ["first", "after", "second", "after"]


def test_memory_can_be_given_back_at_any_time() -> None:
    give_memory_back()
