"""Keeps the server at what the journal says, and the store at what is needed: at boot, after a crash, after each end.

Everything is done on the runner's thread, behind whatever step is running, and nothing that goes wrong here stops the
agent.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import structlog

from agent.deployment.phases import MAX_ATTEMPTS, RULES, OnFailure, Phase, State
from agent.deployment.recovery import Mode, mode, select
from agent.deployment.retention import in_use, needed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.deployment.machine import Operation
    from agent.deployment.models import Served
    from agent.deployment.ports import Journal, Server, Store
    from agent.deployment.runner import Runner

log = structlog.get_logger("keeper")
_TRYING = {phase for phase, rule in RULES.items() if rule.on_failure is OnFailure.ROLL_BACK} | {Phase.ROLLING_BACK}
"""Phases in which the server may hold a release that has not proved itself."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 300.0
"""Pauses between tries to restore what could not be restored; they double."""


class Keeper:
    """Restores the server and sweeps the store.

    Args:
        journal: says what is served.
        server, store: what is kept in order.
        runner: where the work is done.
        on_change: called when what answers may have changed, from any thread.
    """

    def __init__(
        self,
        journal: Journal,
        server: Server,
        store: Store,
        runner: Runner,
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._server = server
        self._store = store
        self._runner = runner
        self._on_change = on_change
        self._problem: str | None = None
        self._crashes: deque[float] = deque(maxlen=2 * MAX_ATTEMPTS)
        self._mode = Mode.CURRENT
        self._has_failed = False
        self._try_at, self._pause_s = 0.0, FIRST_PAUSE_S

    @property
    def mode(self) -> Mode:
        """How much of what should be served is tried."""
        return self._mode

    @property
    def problem(self) -> str | None:
        """Why what is served may not answer now, None if there is no reason."""
        return self._problem

    def selected(self, served: Mapping[str, Served]) -> dict[str, Served]:
        """Return what of the served is made to answer, after the deaths so far."""
        return select(served, self._mode)

    def crashed(self, now: float, open_now: Sequence[Operation]) -> None:
        """Count a death of the server; restore it, except after so many that it is left alone until somebody deploys.

        Not counted against what is served is a death while an operation brings another release into the server: it
        fails for it.

        Args:
            now: monotonic seconds.
            open_now: the operations without an end.
        """
        if not any(operation.state is State.RUNNING and operation.phase in _TRYING for operation in open_now):
            self._crashes.append(now)
        before, self._mode = self._mode, mode(self._crashes, now)
        if before is not Mode.SAFE:
            self.restore("server_lost")
        self._on_change()

    def proved(self) -> None:
        """Forget the deaths: a release has just passed its trial."""
        self._crashes.clear()
        self._mode = Mode.CURRENT

    def restore(self, why: str) -> None:
        """Make the server answer with what the journal says."""

        def work() -> None:
            try:
                self._server.restore(self.selected(self._journal.served()))
            except Exception as error:  # noqa: BLE001 - whatever stops the server must not stop the agent
                log.error("restore_failed", why=why, error=str(error))  # noqa: TRY400 - one line; the server logs more
                self._has_failed, self._problem = True, str(error)
            else:
                self._has_failed, self._pause_s, self._problem = False, FIRST_PAUSE_S, None
            self._on_change()

        self._problem = "it is being loaded"
        self._runner.submit(work)

    def look(self, now: float, open_now: Sequence[Operation]) -> None:
        """Restore again, after pauses, what could not be restored: a disk or a driver may be in order by now.

        Args:
            now: monotonic seconds.
            open_now: the operations without an end; never under a running one, which restores when it ends.
        """
        if not self._has_failed or any(operation.state is State.RUNNING for operation in open_now):
            return
        if not self._try_at:
            self._try_at = now + self._pause_s
        elif now >= self._try_at:
            self._try_at, self._pause_s = 0.0, min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._has_failed = False
            self.restore("again")

    def tidy(self, open_now: Sequence[Operation]) -> None:
        """After an operation: the server lets go of what is no longer served, the store of what nobody needs."""
        if all(operation.state is not State.RUNNING for operation in open_now):
            self.restore("tidy")  # never under a running one, whose release is loaded and not yet in the journal
        self.sweep(open_now)

    def sweep(self, open_now: Sequence[Operation]) -> None:
        """Delete what neither a served model nor an open operation needs, and what cut-short builds left."""

        def work() -> None:
            try:
                served = self._journal.served()
                self._store.sweep(needed(served, open_now), in_use(served, open_now))
            except Exception:
                log.exception("sweep_failed")

        self._runner.submit(work)
