"""The thread of the steps: one task after another, and what is done after each."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

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


@pytest.mark.parametrize("at", ["task", "after"])
def test_an_error_that_comes_out_of_a_task_is_logged_and_the_next_one_is_done(at: str) -> None:
    done: list[str] = []

    def fail() -> None:
        done.append("failed")
        raise KeyError(at)

    runner = Runner(name="steps", after=fail if at == "after" else lambda: None)
    runner.start()
    with capture_logs() as lines:
        runner.submit(fail if at == "task" else lambda: None)
        runner.submit(lambda: done.append("next"))
        assert runner.stop(LONG_S)
    assert done[:2] == ["failed", "next"]
    assert (lines[0]["event"], lines[0]["thread"]) == ("task_failed", "steps")


# What lies on top of the heap goes by itself (mallopt(3), M_TRIM_THRESHOLD): a block above the freed ones keeps it.
KEEPS = """
from agent.adapters.processes import give_memory_back, use_one_arena
from agent.serving.memory import rss_bytes

use_one_arena()
blocks = [bytes([1]) * 65536 for _ in range(512)]
last = bytes([1]) * 65536
blocks.clear()
kept = rss_bytes()
give_memory_back()
print(kept - rss_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep nothing that could be given back")
def test_freed_memory_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 512 * 65536 * 3 // 4
