"""Keeps the server at what the journal says, and the store at what is needed: at boot, after a crash, after each end.

The server is restored on the thread of the steps that speak to it, the store swept on that of the others, each behind
whatever step is running there; nothing that goes wrong here stops the agent.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from agent.contract.errors import ErrorCode
from agent.deployment.facts import UNUSABLE
from agent.deployment.phases import MAX_ATTEMPTS, RULES, OnFailure, Phase, State
from agent.deployment.ports import RestoreError, StepError
from agent.deployment.recovery import Mode, mode, select
from agent.deployment.repair import REPAIR, Unusable
from agent.deployment.retention import in_use, needed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

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
        runner: where the store is swept.
        server_runner: where the server is restored.
        on_change: called when what answers may have changed, from any thread.
        on_fallen: called when what is made to answer is not, or is again, what the journal says; from the runner's
            thread.
    """

    def __init__(
        self,
        journal: Journal,
        server: Server,
        store: Store,
        runner: Runner,
        server_runner: Runner,
        *,
        on_change: Callable[[], None] = lambda: None,
        on_fallen: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._server = server
        self._store = store
        self._runner = runner
        self._server_runner = server_runner
        self._on_change = on_change
        self._on_fallen = on_fallen
        self._lock = threading.Lock()
        self._unusable: dict[str, dict[str, str]] = {}
        self._told: set[str] = set()
        self._repairs: dict[str, str] = {}
        self._has_fallen = False
        self._problem: str | None = None
        self._is_restoring = self._is_stopping = False
        self._is_starting = True
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

    def facts(self) -> dict[str, Any]:
        """Return what health has to know: ``mode``, ``problem``, and ``is_starting``.

        ``is_starting`` says whether what was served before the start is being loaded for the first time: it has not
        failed, and is not there yet. It ends with the first try, or with a death of the server before that.
        """
        return {"mode": str(self._mode), "problem": self._problem, "is_starting": self._is_starting}

    @property
    def is_restoring(self) -> bool:
        """Whether the server is being made to answer with what the journal says."""
        return self._is_restoring

    @property
    def alarms(self) -> tuple[str, ...]:
        """What cannot be loaded, a sentence per release, and what became of its repair."""
        unusable, repairs = self._unusable, self._repairs
        return tuple(
            f"{model}: release {release} cannot be loaded: {detail}{repairs.get(model, '')}"
            for model, releases in unusable.items()
            for release, detail in releases.items()
        )

    @property
    def serves_current(self) -> bool:
        """Whether everything that should be served is tried, in its current release."""
        return self._mode is Mode.CURRENT and not self._unusable

    def unusable(self, served: Mapping[str, Served]) -> list[Unusable]:
        """Return the current releases that cannot be loaded and of which ``told`` was not yet called."""
        answering, unusable = self.selected(served), self._unusable
        return [
            Unusable(item, unusable[name][item.current.id], answering[name].current.id if name in answering else None)
            for name, item in served.items()
            if item.current.id in unusable.get(name, ()) and item.current.id not in self._told
        ]

    def ended(self, operation: Operation) -> None:
        """Take note of the end of an operation: of a repair that failed, people are told as long as it matters."""
        if operation.id.startswith(REPAIR) and operation.error is not None:
            error = operation.error
            failed = f"; its repair ended {operation.state}: {error.detail}" + (f": {error.hint}" if error.hint else "")
            self._repairs = {**self._repairs, str(operation.model): failed}

    def told(self, found: Unusable) -> None:
        """Take note that something is done about a release; it is done once in the life of this process."""
        self._told.add(found.item.current.id)

    def selected(self, served: Mapping[str, Served]) -> dict[str, Served]:
        """Return what of the served is made to answer, after the deaths so far and without what cannot be loaded."""
        return select(served, self._mode, self._unusable)

    def foundation(self, item: Served | None, operation: Operation) -> Served | None:
        """Return what a succeeded operation's release comes after: never a release that cannot be loaded.

        Args:
            item: what the journal says stood behind the name.
            operation: what has succeeded.
        """
        release = operation.facts.get("release")
        if item is None or release is None or release["id"] == item.current.id:
            return item
        return select({item.name: item}, Mode.CURRENT, self._unusable).get(item.name, item)

    def informed(self, operation: Operation) -> Operation:
        """Return an operation whose steps know which of its model's releases cannot be loaded."""
        unusable = sorted(self._unusable.get(str(operation.model), ()))
        return replace(operation, facts={**operation.facts, UNUSABLE: unusable}) if unusable else operation

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
        self._is_starting = False
        if before is not Mode.SAFE:
            self.restore("server_lost")
        self._on_change()

    @contextlib.contextmanager
    def proving(self, model: str) -> Iterator[None]:
        """Forget the deaths, and what of ``model`` could not be loaded: a release has just passed its trial.

        The block commits that; if it raises, all is known as before.
        """
        crashes, mode_before, told, repairs = [*self._crashes], self._mode, {*self._told}, self._repairs
        known = self._unusable.get(model)
        self._forgive(model)
        try:
            yield
        except BaseException:
            self._crashes.extend(crashes)
            self._mode, self._told, self._repairs = mode_before, told, repairs
            if known is not None:
                with self._lock:
                    self._unusable = {**self._unusable, model: {**known, **self._unusable.get(model, {})}}
            raise

    def _forgive(self, model: str) -> None:
        self._crashes.clear()
        self._mode = Mode.CURRENT
        with self._lock:
            self._told.difference_update(self._unusable.get(model, ()))
            self._repairs = {name: failed for name, failed in self._repairs.items() if name != model}
            self._unusable = {name: releases for name, releases in self._unusable.items() if name != model}

    def restore(self, why: str) -> None:
        """Make the server answer with what the journal says."""

        def work() -> None:
            try:
                self._bring_back()
            except Exception as error:  # noqa: BLE001 - whatever stops the server must not stop the agent
                if not self._is_stopping:
                    log.error("restore_failed", why=why, error=str(error))  # noqa: TRY400 - one line; the server logs more
                self._has_failed, self._problem = True, str(error)
            else:
                self._has_failed, self._pause_s, self._problem = False, FIRST_PAUSE_S, None
            self._is_restoring = self._is_starting = False
            with contextlib.suppress(Exception):  # a journal that cannot be read now: the next restore compares again
                self._compare()
            self._on_change()

        self._problem, self._is_restoring = "it is being loaded", True
        self._server_runner.submit(work)

    def stop(self) -> None:
        """Take note that the agent stops: the server goes, and what is not restored for that has not failed."""
        self._is_stopping = True

    def _bring_back(self) -> None:
        """Restore what is selected; where a release cannot be loaded, what is then selected in its place."""
        served = self._journal.served()
        while (error := self._restore_once(chosen := self.selected(served))) is not None:
            if not self._set_aside(chosen, error):
                raise error
        left = self.selected(served)
        if self._mode is not Mode.SAFE and any(name not in left for name in served):
            raise StepError(ErrorCode.LOAD_FAILED, "; ".join(self.alarms))  # they are tried again, after pauses

    def _compare(self) -> None:
        """Have it told when what is made to answer is not what the journal says, or is so again."""
        served = self._journal.served()
        before, self._has_fallen = self._has_fallen, self.selected(served) != served
        if before or self._has_fallen:
            self._on_fallen()

    def _restore_once(self, chosen: Mapping[str, Served]) -> RestoreError | None:
        try:
            self._server.restore(chosen)
        except RestoreError as error:
            return error
        return None

    def _set_aside(self, chosen: Mapping[str, Served], error: RestoreError) -> bool:
        """Remember which of the chosen releases the server cannot load; return whether there was one."""
        is_found = False
        for name, failure in error.failures.items():
            # Not what failed for want of memory, or of an answer: that may be over at the next try.
            if name in chosen and failure.code is ErrorCode.LOAD_FAILED and not failure.retryable:
                release = chosen[name].current.id
                log.error("release_unusable", model=name, release=release, error=failure.detail)
                with self._lock:
                    known = self._unusable.get(name, {})
                    self._unusable = {**self._unusable, name: {**known, release: failure.detail}}
                is_found = True
        return is_found

    def _try_again(self) -> None:
        """Restore with another look at the releases of models of which nothing answers."""
        answering = self.selected(self._journal.served())
        with self._lock:
            self._unusable = {name: releases for name, releases in self._unusable.items() if name in answering}
        self.restore("again")

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
            self._try_again()

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
