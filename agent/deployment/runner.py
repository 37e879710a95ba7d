"""A thread for what takes long: steps run there in order, so two of them never meet.

The thread lives as long as the process: children started from it are tied to it by the kernel (PR_SET_PDEATHSIG is
sent when the *thread* that forked ends), so none of them outlives the agent.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

import structlog

from agent.deployment.ports import InterruptedStepError

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger("steps")
PROGRESS_EVERY_S = 0.2


class WorkWatch:
    """The watch of one piece of work: progress out, the wish to stop in.

    Args:
        on_progress: called at most five times a second, and for the last item.
        monotonic: the time.
    """

    def __init__(
        self, on_progress: Callable[[int, int | None, str], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_progress = on_progress
        self._monotonic = monotonic
        self.method: str | None = None
        self._last = float("-inf")
        self._stop = threading.Event()

    def interrupt(self) -> None:
        """Ask the work to stop; it does at its next look."""
        self._stop.set()

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """Tell how far the work is."""
        now = self._monotonic()
        if done == total or now - self._last >= PROGRESS_EVERY_S:
            self._last = now
            self._on_progress(done, total, unit)

    def check(self) -> None:
        """Raise ``InterruptedStepError`` when the work should stop."""
        if self._stop.is_set():
            raise InterruptedStepError

    def wait(self, seconds: float) -> None:
        """Sleep, or raise ``InterruptedStepError`` as soon as the work should stop."""
        if self._stop.wait(max(0.0, seconds)):
            raise InterruptedStepError


class Runner:
    """Runs tasks one after another on its own thread.

    Args:
        name: of the thread.
        after: called after each task.
    """

    def __init__(self, name: str = "steps", after: Callable[[], None] = lambda: None) -> None:
        self._after = after
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, task: Callable[[], None]) -> None:
        """Run ``task`` after those submitted before. Tasks catch their own errors: what comes out is logged."""
        self._tasks.put(task)

    def stop(self, timeout_s: float) -> bool:
        """Finish what is queued, then end the thread; return whether it ended in time."""
        self._tasks.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._do(task)
            self._do(self._after)
            del task  # the next wait may be long

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # without this thread nothing is done any more, and its children would be killed
            log.exception("task_failed", thread=self._thread.name)
