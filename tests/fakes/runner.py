"""The steps' thread without a thread: a task runs when the test says so."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from agent.deployment.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable


class InlineRunner(Runner):
    """Holds tasks in order until ``pump`` runs them on the caller's thread."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def start(self) -> None:
        """Nothing to start."""

    def submit(self, task: Callable[[], None]) -> None:
        self._waiting.append(task)

    def stop(self, timeout_s: float) -> bool:
        del timeout_s
        return not self._waiting

    def pump(self) -> bool:
        """Run the oldest task; return whether there was one."""
        if not self._waiting:
            return False
        self._waiting.popleft()()
        return True
