"""The steps that are being done: begun on a runner's thread, watched, and interrupted when they are not wanted.

There are two threads: a server that dies during a build of an hour is restored at once, and not behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.contract.reports import Progress
from agent.deployment.attempt import attempt
from agent.deployment.inbox import Moved, Outcome
from agent.deployment.runner import WorkWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.deployment.inbox import Message
    from agent.deployment.machine import Operation
    from agent.deployment.models import Served
    from agent.deployment.phases import Phase
    from agent.deployment.ports import Clock
    from agent.deployment.runner import Runner
    from agent.deployment.steps import Steps


class Performing:
    """Begins and interrupts steps; used by the engine's thread, but for ``interrupt_all``.

    Args:
        steps: returns what does the work of a phase, as configured now.
        runner: where work is done that leaves the server alone.
        server_runner: where the work is done that speaks to it, in turn with what the keeper restores.
        clock: time.
        post: takes what becomes of a step, from any thread.
        informed: returns an operation with what its step should know at its begin, which may be long after ``begin``.
    """

    def __init__(
        self,
        steps: Callable[[], Steps],
        runner: Runner,
        server_runner: Runner,
        clock: Clock,
        *,
        post: Callable[[Message], None],
        informed: Callable[[Operation], Operation],
    ) -> None:
        self._steps = steps
        self._runner = runner
        self._server_runner = server_runner
        self._clock = clock
        self._post = post
        self._informed = informed
        self._watches: dict[str, WorkWatch] = {}

    def begin(self, operation: Operation, phase: Phase, served: Mapping[str, Served]) -> None:
        """Do the work of ``phase``; its outcome is posted."""

        def moved(done: int, total: int | None, unit: str) -> None:
            self._post(Moved(operation.id, phase, Progress(done, total, unit, watch.method)))

        watch = WorkWatch(moved, self._clock.monotonic)
        self._watches[operation.id] = watch

        def work() -> None:
            event = attempt(self._steps(), phase, self._informed(operation), served, watch)
            if event is not None:
                self._post(Outcome(operation.id, event))

        (self._server_runner if phase.is_of_server else self._runner).submit(work)

    def ended(self, operation_id: str) -> None:
        """Forget the step of an operation whose outcome is here."""
        self._watches.pop(operation_id, None)

    def interrupt(self, operation_id: str) -> None:
        """Ask the step of an operation to stop, if it has one."""
        watch = self._watches.pop(operation_id, None)
        if watch is not None:
            watch.interrupt()

    def interrupt_all(self) -> None:
        """Ask every step to stop."""
        for watch in list(self._watches.values()):
            watch.interrupt()
