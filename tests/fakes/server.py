"""The inference server as a simulator: it holds releases, answers with the active one, and dies on request."""

from __future__ import annotations

from collections import defaultdict, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.contract.errors import ErrorCode
from agent.deployment.ports import RestoreError, StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.deployment.models import Release, Served

GOOD_CANARY = {
    "answer": "classes",
    "rows": 16,
    "non_finite": 0,
    "agreement": 1.0,
    "accuracy": None,
    "latency_ms": {"p50": 1.5},
}
DAMAGED = b"damaged"
"""An artifact with this content cannot be loaded."""
BASE_RSS_BYTES = 300 << 20
LOAD_FIGURES = {
    "load_ms": 2.0,
    "warm_up_ms": 1.0,
    "max_batch_rows": 32,
    "warm_up_rows": 32,
    "rss_before_bytes": BASE_RSS_BYTES,
    "rss_after_bytes": BASE_RSS_BYTES + (2 << 20),
    "peak_rss_bytes": BASE_RSS_BYTES + (12 << 20),
    "is_peak_exact": False,  # nothing was measured here, so nothing is to be learned from it unless a test says so
    "device": None,
    "texts": None,
    "residency": {"mode": "packed", "is_unpacked": False, "unpacked_bytes": 4000, "reason": "packed, as configured"},
}
_CODES = {
    "restore": ErrorCode.LOAD_FAILED,
    "load": ErrorCode.LOAD_FAILED,
    "canary": ErrorCode.CANARY_FAILED,
    "activate": ErrorCode.ACTIVATION_FAILED,
    "undeploy": ErrorCode.LOAD_FAILED,
    "status": ErrorCode.TRIAL_FAILED,
}


class FakeServer:
    """Implements the ``Server`` port.

    Attributes:
        canary_answer: what a canary measures.
        load_figures: what every load measures of memory and time.
        gap_ms: how long nothing answered, for every switch that lets the old release go first.
        on_exit: called when the server dies, as the real one's watcher does.
        starts: how often it was started.
    """

    def __init__(self) -> None:
        self.canary_answer: dict[str, Any] = dict(GOOD_CANARY)
        self.on_exit: Callable[[str], None] = lambda _detail: None
        self.starts = 0
        self.gap_ms = 250.0
        self.load_figures: dict[str, Any] = dict(LOAD_FIGURES)
        self.counters = {"requests": 0, "failures": 0, "non_finite": 0}
        self._pid: int | None = None
        self._held: dict[str, dict[str, bool]] = {}
        self._gaps: set[str] = set()
        self._faults: defaultdict[str, deque[Callable[[], None]]] = defaultdict(deque)

    def answers(self) -> dict[str, str]:
        """Return the release that answers for each model."""
        return {
            model: release for model, held in self._held.items() for release, is_active in held.items() if is_active
        }

    def held(self, model: str) -> set[str]:
        """Return every release of ``model`` in memory."""
        return set(self._held.get(model, {}))

    def before(self, verb: str, action: Callable[[], None]) -> None:
        """Do ``action`` at the next call of ``verb``, before its work; it may raise."""
        self._faults[verb].append(action)

    def fail(self, verb: str, *, times: int = 1, is_transient: bool = False) -> None:
        """Let the next ``times`` calls of ``verb`` fail."""

        def fault() -> None:
            raise StepError(_CODES[verb], f"{verb} was told to fail", is_transient=is_transient)

        for _ in range(times):
            self.before(verb, fault)

    def die_in(self, verb: str) -> None:
        """Let the server die during the next call of ``verb``."""

        def fault() -> None:
            self.die()
            raise StepError(_CODES[verb], "the server does not answer", retryable=True)

        self.before(verb, fault)

    def die(self) -> None:
        """End as after a SIGKILL: everything in memory is gone."""
        self._pid = None
        self._held, self._gaps = {}, set()
        self.on_exit("was killed by SIGKILL")

    def restore(self, served: Mapping[str, Served]) -> None:
        self._enter("restore", starts=True)
        failures = {}
        for name, item in served.items():
            if item.current.id not in self._held.get(name, {}) and _is_damaged(item.current):
                failures[name] = _refusal(name, item.current)
                self._held.pop(name, None)
                continue
            self._held.setdefault(name, {}).setdefault(item.current.id, False)
            self._point(name, item.current.id)
        self._held = {name: {item.current.id: True} for name, item in served.items() if name not in failures}
        self._gaps.clear()
        if failures:
            raise RestoreError(failures)

    def load(self, model: str, release: Release, *, unload_first: bool = False) -> dict[str, Any]:
        if unload_first and release.id not in self._held.get(model, {}):
            # Before any fault: a load that fails after the old release is gone is the case that matters.
            self._gaps |= {model} & set(self.answers())
            self._held.pop(model, None)
        self._enter("load", starts=True)
        if _is_damaged(release):
            raise _refusal(model, release)
        self._held.setdefault(model, {}).setdefault(release.id, False)
        gap_ms = self.gap_ms if model in self._gaps else 0.0
        return {**self.load_figures, "resident_bytes": release.resident_bytes, "gap_ms": gap_ms}

    def canary(self, model: str, release: Release) -> dict[str, Any]:
        self._enter("canary")
        self._demand(model, release, ErrorCode.CANARY_FAILED)
        return dict(self.canary_answer)

    def activate(self, model: str, release: Release) -> dict[str, Any]:
        self._enter("activate")
        self._demand(model, release, ErrorCode.ACTIVATION_FAILED)
        gap_ms = self.gap_ms if model in self._gaps else 0.0
        self._point(model, release.id)
        return {"gap_ms": gap_ms}

    def undeploy(self, model: str) -> None:
        self._enter("undeploy", starts=True)
        self._held.pop(model, None)

    def status(self) -> dict[str, Any]:
        self._enter("status")
        models = {model: {**self.counters, "release": release} for model, release in self.answers().items()}
        memory = {
            "base_rss_bytes": BASE_RSS_BYTES,
            "rss_bytes": self.load_figures["rss_after_bytes"],
            "peak_rss_bytes": self.load_figures["peak_rss_bytes"],
            "device": None,
        }
        gaps = {model: {"is_open": model in self._gaps} for model in {*self._held, *self._gaps}}
        return {"models": models, "gaps": gaps, "memory": memory, "pid": self._pid}

    def _enter(self, verb: str, *, starts: bool = False) -> None:
        if self._faults[verb]:
            self._faults[verb].popleft()()
        if self._pid is None and starts:
            self.starts += 1
            self._pid = 100 + self.starts
        if self._pid is None:
            raise StepError(_CODES[verb], "the server does not answer", retryable=True)

    def _demand(self, model: str, release: Release, code: ErrorCode) -> None:
        if release.id not in self._held.get(model, {}):
            raise StepError(code, f"{model} has no release {release.id}")

    def _point(self, model: str, release: str) -> None:
        self._held[model] = {name: name == release for name in self._held[model]}
        self._gaps.discard(model)


def _is_damaged(release: Release) -> bool:
    artifact = Path(release.artifact)
    return artifact.is_file() and artifact.read_bytes() == DAMAGED


def _refusal(model: str, release: Release) -> StepError:
    return StepError(ErrorCode.LOAD_FAILED, f"load of {model}: {release.id} is damaged")
