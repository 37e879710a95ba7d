"""The work behind each phase: one method a phase, effects only through ports.

A step returns ``Done`` with the facts it found or raises ``StepError``; it never changes a record and never looks at
another operation. Steps run one at a time, on one thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from agent.contract.errors import ErrorCode
from agent.deployment import comparison
from agent.deployment.admission import room_hint, unloads_first
from agent.deployment.facts import (
    amended,
    checkpoint_facts,
    gate_of,
    is_current,
    is_unusable,
    latency_before,
    lesson,
    mix_job,
    previous_release,
    release_of,
    source_of,
    thresholds_of,
    told,
    unverified,
    variant,
)
from agent.deployment.machine import Done
from agent.deployment.models import Release, release_id
from agent.deployment.phases import Phase
from agent.deployment.planner import budget_for
from agent.deployment.ports import StepError
from agent.deployment.selection import select
from agent.planning.gate import judge
from agent.planning.methods import METHODS, MIXED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.contract.commands import DatasetRef
    from agent.deployment.facts import Source
    from agent.deployment.machine import Operation
    from agent.deployment.models import Served
    from agent.deployment.planner import Planner
    from agent.deployment.ports import Ports, Watch
    from agent.planning.gate import Thresholds
    from agent.planning.memory import Footprint

log = structlog.get_logger("steps")
JsonObject = dict[str, Any]
TRIAL_POLL_S = 0.5
_MEND_MODEL = (
    "the log of the server has each error; ask the release before the same, and mend the model if that answers"
)
_LOADED = (
    "resident_bytes", "load_ms", "warm_up_rows", "rss_before_bytes", "rss_after_bytes", "peak_rss_bytes", "residency",
    "texts", "compile", "graphs",
)  # fmt: skip


class Steps:
    """Performs phases with the ports it is given.

    Args:
        ports: the world.
        planner: decides how a model is stored.
        soak_s: how long a trial lasts when the gate does not say.
    """

    def __init__(self, ports: Ports, planner: Planner, *, soak_s: float) -> None:
        self._ports = ports
        self._planner = planner
        self._soak_s = soak_s
        self._table = {
            Phase.DOWNLOADING: self._download,
            Phase.VERIFYING: self._verify,
            Phase.PLANNING: self._plan,
            Phase.BUILDING: self._build,
            Phase.LOADING: self._load,
            Phase.CANARY: self._canary,
            Phase.ACTIVATING: self._activate,
            Phase.TRIAL: self._trial,
            Phase.ROLLING_BACK: self._roll_back,
        }

    def perform(self, phase: Phase, operation: Operation, served: Mapping[str, Served], watch: Watch) -> Done:
        """Do the work of ``phase``.

        Args:
            phase: which one.
            operation: the record, read only.
            served: what the journal says is current, read only.
            watch: where progress goes and where a wish to stop comes from.

        Raises:
            StepError: the phase failed.
            InterruptedStepError: the work was stopped on request.
        """
        return self._table[phase](operation, served, watch)

    def _download(self, operation: Operation, _served: Mapping[str, Served], watch: Watch) -> Done:
        files = [source_of(operation.request), gate_of(operation).dataset]
        pieced = [file.sha256 for file in files if file is not None and self._fetch(file, watch)]
        return Done(Phase.DOWNLOADING, {"pieced": pieced} if pieced else {})

    def _fetch(self, file: Source | DatasetRef, watch: Watch) -> bool:
        """Fetch a file unless the store has it whole; return whether it came in pieces. It is judged anyway."""
        store = self._ports.store
        self._ports.sources.judge(file.url)
        if store.source(file.sha256) is not None:
            try:
                store.verify_again(file.sha256, watch)  # it may have lain there for months
            except StepError as error:
                if error.code is not ErrorCode.CHECKSUM_MISMATCH:
                    raise  # it is still there, and would be taken for what is fetched
                log.warning("source_fetched_again", error=error.detail)
            else:
                return False
        partial = store.partial(file.sha256)
        have = partial.stat().st_size if partial.exists() else 0
        store.ensure_space((file.size or 0) - have)
        return self._ports.sources.fetch(file.url, partial, file.size, watch)

    def _admit(self, file: Source | DatasetRef, operation: Operation, watch: Watch) -> None:
        """Admit what was fetched. Pieces that do not make the file are fetched in one, once: the error deletes them."""
        store = self._ports.store
        try:
            store.admit(file.sha256, file.size, watch)
        except StepError as error:
            if error.code is not ErrorCode.CHECKSUM_MISMATCH or file.sha256 not in operation.facts.get("pieced", ()):
                raise
            self._fetch(file, watch)
            store.admit(file.sha256, file.size, watch)

    def _verify(self, operation: Operation, _served: Mapping[str, Served], watch: Watch) -> Done:
        if operation.command == "self_test":
            return self._self_test()
        store = self._ports.store
        source = source_of(operation.request)
        self._admit(source, operation, watch)
        store.numels(source.sha256)  # a malformed or deceiving container is refused before anything is decided
        facts: JsonObject = {
            "sha256": source.sha256,
            "version": source.version,
            "model_type": source.model_type,
            "sequence": source.sequence,
        }
        dataset = gate_of(operation).dataset
        if dataset is not None:
            self._admit(dataset, operation, watch)
            facts["dataset"] = dataset.sha256
        return Done(Phase.VERIFYING, facts)

    def _self_test(self) -> Done:
        methods = dict(self._ports.device.test_again())
        decision = {"self_test": methods}
        if not any(found["ok"] for found in methods.values()):
            why = "; ".join(sorted({str(found.get("detail")) for found in methods.values()}))
            raise StepError(ErrorCode.UNSUPPORTED_METHOD, f"no method works: {why}", facts=decision)
        return Done(Phase.VERIFYING, {}, decision)

    def _plan(self, operation: Operation, served: Mapping[str, Served], watch: Watch) -> Done:
        watch.check()
        facts = checkpoint_facts(operation, served)
        requested = "auto" if operation.command == "replan" else operation.request.get("method", "auto")
        footprint = self._planner.footprint(facts, watch)
        if operation.command == "compare":
            return self._plan_comparison(operation, served, facts, footprint)
        chosen = self._planner.plan(str(operation.model), footprint, served, requested=requested)
        if chosen.chosen is None:
            unusable = all(candidate.is_broken for candidate in chosen.candidates)
            raise StepError(
                ErrorCode.UNSUPPORTED_METHOD if unusable else ErrorCode.INSUFFICIENT_MEMORY,
                chosen.reason,
                "see capabilities for the methods that work here" if unusable else room_hint(chosen.budget),
                retryable=not unusable,
                facts=chosen.to_json(),
            )
        facts["method"] = chosen.chosen.method
        facts["already_applied"] = is_current(facts, served.get(str(operation.model)), operation)
        decision = chosen.to_json()
        if facts["already_applied"]:
            decision["reason"] += "; it is already being served"
        return Done(Phase.PLANNING, facts, decision)

    def _plan_comparison(
        self, operation: Operation, served: Mapping[str, Served], facts: JsonObject, footprint: Footprint
    ) -> Done:
        """Plan each method by itself; what ``auto`` would do today is the record's frame."""
        model, budget = str(operation.model), self._ports.device.budget()
        methods = operation.request.get("methods") or [name for name in METHODS if name != MIXED]
        plans = {
            name: self._planner.plan(model, footprint, served, requested=name, budget=budget)
            for name in dict.fromkeys(methods)
        }
        frame = self._planner.plan(model, footprint, served, budget=budget).to_json()
        prospects = {name: comparison.prospect(plan) for name, plan in plans.items()}
        facts["chosen_by"] = "operator"
        return Done(Phase.PLANNING, facts, {**frame, "prospects": prospects})

    def _compare_methods(self, operation: Operation, watch: Watch) -> Done:
        facts, decision = dict(operation.facts), dict(operation.decision or {})
        demanded, prospects, owed = thresholds_of(operation), decision["prospects"], unverified(operation, facts)

        def measure(method: str) -> tuple[JsonObject, bool]:
            return self._artifact(facts, method, decision, demanded, watch, owed=owed)

        def on_row(number: int) -> None:
            watch.progress(number, len(prospects), "methods")

        rows, results = comparison.table(list(prospects), prospects, measure, demanded, on_row)
        decision |= {"compare": rows, "keep": operation.request.get("keep", "current")}
        if decision["keep"] == "current":
            decision |= {"method": None, "reason": f"{len(results)} of {len(rows)} methods were measured"}
            return Done(Phase.BUILDING, {"already_applied": True}, decision)
        decision = comparison.kept(decision, rows, results)
        facts["method"] = decision["method"]
        release = release_of(facts, results[facts["method"]])
        return Done(Phase.BUILDING, {"method": release.method, "release": release.to_json()}, decision)

    def _build(self, operation: Operation, served: Mapping[str, Served], watch: Watch) -> Done:
        """Build what was planned and measure it; see ``selection`` for what is kept in the end."""
        if operation.command == "compare":
            return self._compare_methods(operation, watch)
        facts, decision = dict(operation.facts), dict(operation.decision or {})
        demanded, owed = thresholds_of(operation), unverified(operation, facts)

        def measure(method: str) -> tuple[JsonObject, bool]:
            return self._artifact(facts, method, decision, demanded, watch, owed=owed)

        kept, decision = select(decision or {"method": facts["method"], "reason": "planned"}, measure, demanded)
        facts["method"] = kept.method
        release = release_of(facts, kept.result)
        found: JsonObject = {"method": kept.method, "release": release.to_json()}
        item = served.get(str(operation.model))
        is_same = item is not None and item.current.id == release.id and facts.get("dataset") == item.dataset
        if is_same and not is_unusable(facts, release.id):
            found["already_applied"] = True
            decision["reason"] += "; it is already being served"
        return Done(Phase.BUILDING, found, decision)

    def _artifact(
        self,
        facts: JsonObject,
        method: str,
        decision: JsonObject,
        demanded: Thresholds,
        watch: Watch,
        *,
        owed: set[str],
    ) -> tuple[JsonObject, bool]:
        """Return the builder's result for a method, from the store if it was built before, and whether it was.

        What of ``owed`` is left is hashed before a build, and taken out of it.
        """
        store = self._ports.store
        sha256, dataset = facts["sha256"], facts.get("dataset")
        extra = mix_job(decision, demanded) if method == MIXED else {}
        name = variant(method, extra)
        is_bad = is_unusable(facts, release_id(facts["version"], sha256, name))
        result = None if is_bad else store.built(sha256, name, dataset)
        if result is not None:
            return result, True
        source = store.source(sha256)
        if source is None:
            raise StepError(ErrorCode.INTERNAL, f"checkpoint {sha256[:12]} is no longer in the store")
        store.ensure_space(source.stat().st_size)
        job = {
            "job": "build",
            "checkpoint": str(source),
            "model_type": facts["model_type"],
            "method": method,
            "output_dir": str(store.staging(sha256, name)),
            "source_sha256": sha256,
            "gate": {"dataset": str(store.source(dataset)) if dataset else None, **extra.get("gate", {})},
            "decision": told(decision),
            **{key: value for key, value in extra.items() if key != "gate"},
        }
        log.info("building", method=name)
        watch.method = method
        try:
            while owed:
                store.verify_again(min(owed), watch)
                owed.discard(min(owed))
            built = {**self._ports.builder.build(job, watch), "dataset": dataset, "variant": name}
        finally:
            watch.method = None
        return store.publish(sha256, name, built), False

    def _load(self, operation: Operation, served: Mapping[str, Served], watch: Watch) -> Done:
        watch.check()
        facts = dict(operation.facts)
        if operation.command == "rollback":
            facts["release"] = previous_release(operation, served).to_json()
        release = Release.from_json(facts["release"])
        model = str(operation.model)
        budget = budget_for(model, self._ports.device.budget(), served)
        unload_first = unloads_first(operation.decision or {}, release.method, budget)
        planned = release if release.decision else replace(release, decision=operation.decision)
        loaded = self._ports.server.load(model, planned, unload_first=unload_first)
        decision = amended(operation, **{name: loaded.get(name) for name in _LOADED})
        if unload_first:
            decision["admission"] = "unload_first"
        if operation.command == "rollback":
            decision |= {"method": release.method, "reason": f"{release.id} was served before and is whole"}
        decision |= self._learn(decision, release.method, loaded)
        return Done(Phase.LOADING, facts, decision)

    def _learn(self, decision: JsonObject, method: str, loaded: JsonObject) -> JsonObject:
        """Remember how far the estimate was off, and return that for the record."""
        lessons = self._ports.lessons
        before = lessons.learned()
        errors, after = lesson(decision, method, loaded, before)
        if after != before:
            lessons.keep(after)
        return {} if errors is None else {"estimate_error": errors}

    def _canary(self, operation: Operation, served: Mapping[str, Served], watch: Watch) -> Done:
        watch.check()
        release = Release.from_json(operation.facts["release"])
        measured = self._ports.server.canary(str(operation.model), release)
        gate = (operation.decision or {}).get("measured", {}).get("gate", {})
        measured = {**measured, "accuracy_source": release.accuracy_source, "inputs": gate.get("inputs")}
        measured["replaces_p50_ms"] = latency_before(operation, served)
        complaints = judge(measured, thresholds_of(operation))
        decision = amended(operation, canary=measured)
        if complaints:
            raise StepError(ErrorCode.CANARY_FAILED, "; ".join(complaints), facts=decision)
        return Done(Phase.CANARY, {}, decision)

    def _activate(self, operation: Operation, _served: Mapping[str, Served], _watch: Watch) -> Done:
        if operation.command == "undeploy":
            self._ports.server.undeploy(str(operation.model))
            return Done(Phase.ACTIVATING)
        activated = self._ports.server.activate(str(operation.model), Release.from_json(operation.facts["release"]))
        return Done(Phase.ACTIVATING, {}, amended(operation, gap_ms=activated["gap_ms"]))

    def _trial(self, operation: Operation, _served: Mapping[str, Served], watch: Watch) -> Done:
        release = Release.from_json(operation.facts["release"])
        gate = gate_of(operation)
        soak_s = self._soak_s if gate.soak_s is None else gate.soak_s
        clock = self._ports.clock
        began = clock.monotonic()
        before = self._counters(operation, release)
        while (passed := clock.monotonic() - began) < soak_s:
            watch.progress(int(passed), int(soak_s), "seconds")
            watch.wait(min(TRIAL_POLL_S, soak_s - passed))
            self._compare(before, self._counters(operation, release))
        after = self._counters(operation, release)
        self._compare(before, after)
        trial = {"seconds": round(clock.monotonic() - began, 1), "requests": after["requests"] - before["requests"]}
        return Done(Phase.TRIAL, {}, amended(operation, trial=trial))

    def _counters(self, operation: Operation, release: Release) -> JsonObject:
        status = self._ports.server.status()
        counters: JsonObject | None = status["models"].get(operation.model)
        if counters is None or counters["release"] != release.id:
            serving = counters["release"] if counters else "nothing"
            raise StepError(
                ErrorCode.TRIAL_FAILED,
                f"{release.id} should answer for {operation.model}, {serving} does",
                retryable=True,
            )
        return {**counters, "pid": status["pid"]}

    def _compare(self, before: JsonObject, now: JsonObject) -> None:
        if now["pid"] != before["pid"]:
            raise StepError(ErrorCode.TRIAL_FAILED, "the server died during the trial", retryable=True)
        for name, what in (("failures", "requests failed"), ("non_finite", "answers were not finite")):
            if now[name] > before[name]:
                raise StepError(
                    ErrorCode.TRIAL_FAILED, f"{now[name] - before[name]} {what} during the trial", _MEND_MODEL
                )

    def _roll_back(self, _operation: Operation, served: Mapping[str, Served], _watch: Watch) -> Done:
        self._ports.server.restore(served)
        return Done(Phase.ROLLING_BACK)
