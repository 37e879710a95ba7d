"""A watch for tests of downloads, which have no time to wait."""

from __future__ import annotations

from agent.deployment.runner import WorkWatch


class EagerWatch(WorkWatch):
    """Waits for nothing."""

    def __init__(self) -> None:
        super().__init__(lambda _done, _total, _unit: None)

    def wait(self, seconds: float) -> None:
        """Return at once, unless the work is to stop."""
        del seconds
        super().wait(0.0)


class LeavingWatch(EagerWatch):
    """Stops waiting as soon as something came."""

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """Wish to stop."""
        super().progress(done, total, unit)
        self.interrupt()
