"""What phases find out about a checkpoint, a release and a gate: pure functions of a request and its facts."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.contract.commands import Gate
from agent.contract.errors import ErrorCode
from agent.contract.manifest import Envelope
from agent.contract.wire import rfc3339
from agent.deployment.models import Release, release_id
from agent.deployment.ports import StepError
from agent.planning.explain import explain
from agent.planning.gate import Thresholds
from agent.planning.methods import FOUR_BIT, MIXED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from agent.deployment.machine import Operation
    from agent.deployment.models import Served
    from agent.planning.memory import Learned

JsonObject = dict[str, Any]
ENDED = "ended_at"
"""The fact of an operation that ended: when, for people."""
UNUSABLE = "unusable"
"""The fact of a step: ids of the model's releases whose artifacts cannot be loaded. Not kept with the operation."""


@dataclass(frozen=True)
class Source:
    """What a deploy is to fetch, from its manifest or its plain fields."""

    version: str
    url: str
    sha256: str
    size: int
    model_type: str
    sequence: int | None


def source_of(request: JsonObject) -> Source:
    """Return what the ``deploy`` in ``request`` fetches; a manifest wins over plain fields."""
    if request.get("manifest"):
        manifest = Envelope.model_validate(request["manifest"]).manifest()
        file = manifest.files[0]
        return Source(manifest.version, file.url, file.sha256, file.size, manifest.model_type, manifest.sequence)
    artifact = request["artifact"]
    version = request.get("version") or artifact["sha256"][:12]
    return Source(
        version, artifact["url"], artifact["sha256"], artifact["size"], request.get("model_type", "auto"), None
    )


def gate_of(operation: Operation) -> Gate:
    """Return what the operation has to prove; the contract's defaults where nothing was said.

    A ``replan`` that says nothing demands what was demanded of what it replaces, known from its planning on.
    """
    asked = operation.request.get("gate")
    if asked is None and operation.command == "replan":
        asked = operation.facts.get("gate")
    return Gate.model_validate(asked or {})


def chosen_by(operation: Operation) -> str:
    """Return who chooses the method: ``auto``, or the ``operator`` that named one."""
    return "auto" if operation.request.get("method", "auto") == "auto" else "operator"


def demands(operation: Operation, item: Served | None) -> JsonObject:
    """Return what the operation's release has to prove, for those that follow it; the data set is kept elsewhere."""
    asked = operation.request.get("gate")
    if asked is None and operation.command == "replan" and item is not None:
        asked = item.current.gate
    return {name: value for name, value in (asked or {}).items() if name != "dataset"}


def thresholds_of(operation: Operation) -> Thresholds:
    """Return the thresholds to judge measurements by."""
    if operation.command == "rollback":  # it proved itself when it was committed; now it only has to answer
        return Thresholds(min_agreement=0.0, max_accuracy_drop=1.0, max_slowdown=math.inf)
    gate = gate_of(operation)
    return Thresholds(
        gate.min_agreement,
        gate.max_accuracy_drop,
        gate.min_accuracy,
        gate.max_latency_ms,
        gate.max_slowdown,
        judges_synthetic="min_agreement" in gate.model_fields_set,
    )


def latency_before(operation: Operation, served: Mapping[str, Served]) -> float | None:
    """Return the p50 in milliseconds that the canary of the release now served measured, None if nobody did."""
    item = served.get(str(operation.model))
    measured = ((item.current.decision if item else None) or {}).get("measured") or {}
    p50: float | None = ((measured.get("canary") or {}).get("latency_ms") or {}).get("p50")
    return p50


def checkpoint_facts(operation: Operation, served: Mapping[str, Served]) -> JsonObject:
    """Return what is to be built from: what this deploy verified, or what the model is served from now.

    Raises:
        StepError: ``unknown_model`` when there is neither.
    """
    item = served.get(str(operation.model))
    if operation.command == "deploy":
        facts = {**operation.facts, "chosen_by": chosen_by(operation), "gate": demands(operation, item)}
        if "dataset" not in facts and item is not None:
            facts["dataset"] = item.dataset  # the evaluation data last given for this model
        return facts
    if item is None:
        raise StepError(ErrorCode.UNKNOWN_MODEL, f"no model {operation.model} is served", "deploy it first")
    current = item.current
    return {
        "sha256": current.sha256,
        "version": current.version,
        "model_type": current.model_type,
        "sequence": current.sequence,
        "dataset": item.dataset,
        "chosen_by": chosen_by(operation),
        "gate": demands(operation, item),
    }


def is_current(facts: JsonObject, item: Served | None, operation: Operation) -> bool:
    """Return whether the very release is served, judged by the same data: then there is nothing to do."""
    if item is None or (gate_of(operation).dataset is not None and facts.get("dataset") != item.dataset):
        return False
    wanted = release_id(facts["version"], facts["sha256"], facts["method"])
    return item.current.id == wanted and not is_unusable(operation.facts, wanted)


def is_unusable(facts: Mapping[str, Any], release: str) -> bool:
    """Return whether the artifact of a release is known to be one that cannot be loaded, so that it is built again."""
    return release in facts.get(UNUSABLE, ())


def unverified(operation: Operation, facts: Mapping[str, Any]) -> set[str]:
    """Return the digests of what a build reads, but for the files that this operation itself has hashed."""
    needed = {digest for digest in (facts["sha256"], facts.get("dataset")) if digest}
    if operation.command != "deploy":
        return needed
    given = gate_of(operation).dataset
    return needed - {source_of(operation.request).sha256, given.sha256 if given else ""}


def previous_release(operation: Operation, served: Mapping[str, Served]) -> Release:
    """Return where a rollback leads.

    Raises:
        StepError: ``unknown_model`` or ``nothing_to_roll_back``.
    """
    item = served.get(str(operation.model))
    if item is None:
        raise StepError(ErrorCode.UNKNOWN_MODEL, f"no model {operation.model} is served", "deploy it first")
    if item.previous is None:
        raise StepError(
            ErrorCode.NOTHING_TO_ROLL_BACK,
            f"{item.name} has no release before {item.current.id}",
            "deploy or set_method",
        )
    return item.previous


def mix_job(decision: Mapping[str, Any], demanded: Thresholds) -> JsonObject:
    """Return what the search for a mix of methods needs: where it starts, how far it may go, and what is enough."""
    mix = {"base": mix_base(decision), "budget_bytes": decision.get("mixed_budget_bytes")}
    return {"mixed": mix, "gate": {"thresholds": asdict(demanded)}}


def mix_base(decision: Mapping[str, Any]) -> str:
    """Return the 4-bit method that most weights of a mix keep: the planned one, or nf4."""
    planned = str(decision.get("planned"))
    return planned if planned in FOUR_BIT else "nf4"


def variant(method: str, extra: Mapping[str, Any]) -> str:
    """Return what an artifact is called in the store: its method, and for a mix also what was demanded of it."""
    if not extra:
        return method
    return f"{method}-{hashlib.sha256(json.dumps(extra, sort_keys=True).encode()).hexdigest()[:8]}"


_TOLD = ("scenario", "rule", "share", "rationale", "requested", "planned", "budget", "candidates", "reason")


def told(decision: Mapping[str, Any]) -> JsonObject:
    """Return the part of the decision record that goes into the artifact's sidecar: why it was built."""
    return {**{name: decision[name] for name in _TOLD if name in decision}, "explanation": explain(decision)}


def logged(operation: Operation) -> JsonObject:
    """Return where an operation stands, for a line of the log."""
    error = operation.error
    return {
        "id": operation.id,
        "state": str(operation.state),
        "phase": str(operation.phase),
        "attempt": operation.attempt,
        "error": str(error.code) if error else None,
        "detail": error.detail if error else None,
    }


def concluded(operation: Operation, served: Mapping[str, Served], now: datetime) -> Operation:
    """Say in a new error what goes on serving, and of an operation that has just ended when that was."""
    if operation.state.is_terminal and ENDED not in operation.facts:
        operation = replace(operation, facts={**operation.facts, ENDED: rfc3339(now)})
    error, item = operation.error, served.get(str(operation.model))
    if error is None or error.kept is not None or item is None:
        return operation
    return replace(operation, error=error.model_copy(update={"kept": f"{item.name} {item.current.id}"}))


def config_changes(operation: Operation) -> dict[str, JsonObject]:
    """Return what a ``set_config`` changes: ``old`` and ``new`` by ``section.key``."""
    changes: dict[str, JsonObject] = (operation.decision or {}).get("config", {})
    return changes


def release_of(facts: JsonObject, result: JsonObject) -> Release:
    """Return the release that the builder's ``result`` makes of a verified checkpoint's ``facts``."""
    gate = result["gate"]
    return Release(
        id=release_id(facts["version"], facts["sha256"], result.get("variant") or facts["method"]),
        version=facts["version"],
        sha256=facts["sha256"],
        model_type=result["model_type"],
        method=facts["method"],
        artifact=result["artifact"],
        gate_file=result["gate_file"],
        artifact_bytes=result["artifact_bytes"],
        resident_bytes=result["resident_bytes"],
        coverage=result["coverage"],
        agreement=gate["agreement"],
        accuracy=gate.get("accuracy"),
        accuracy_source=gate.get("accuracy_source"),
        sequence=facts.get("sequence"),
        chosen_by=facts.get("chosen_by", "operator"),
        gate=facts.get("gate", {}),
    )


_MEASURED = (
    "source_bytes",
    "source_tensor_bytes",
    "artifact_bytes",
    "resident_bytes",
    "working_bytes",
    "mixed",
    "coverage",
    "skipped",
    "skipped_count",
    "notes",
    "gate",
    "peak_rss_bytes",
    "seconds",
)


def measurements(result: JsonObject) -> JsonObject:
    """Return the part of the builder's result that belongs into the decision record."""
    return {name: result.get(name) for name in _MEASURED}


def lesson(
    decision: Mapping[str, Any], method: str, loaded: Mapping[str, Any], learned: Learned
) -> tuple[JsonObject | None, Learned]:
    """Return how far the estimate of a release was off, and what is known after learning from it.

    Errors are estimate over measurement, less one. The peak is that of the process that serves, or of its memory on the
    GPU where it has one; nothing is learned from a load that was not measured, nor from a mix, whose estimate is only
    its least.
    """
    estimate, taken = decision.get("estimates", {}).get(method), _taken(loaded)
    if estimate is None or method == MIXED or taken is None:
        return None, learned
    before, peak = taken
    weights, working = loaded["resident_bytes"], peak - before - loaded["resident_bytes"]
    expected = before + estimate["weights_bytes"] + estimate["working_bytes"]
    errors = {
        "weights": round(estimate["weights_bytes"] / weights - 1, 4) if weights else None,
        "process_peak": round(expected / peak - 1, 4) if peak else None,
    }
    return errors, learned.after(
        raw_working_bytes=estimate["raw_working_bytes"], measured_working_bytes=max(0, working)
    )


def _taken(loaded: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the memory before a load, and its peak during it; None where that was not measured."""
    device = loaded.get("device")
    if device is not None:
        return device["allocated_bytes"] - loaded["resident_bytes"], device["peak_allocated_bytes"]
    if not loaded.get("is_peak_exact"):
        return None
    return loaded["rss_before_bytes"], loaded["peak_rss_bytes"]


def amended(operation: Operation, **measured: Any) -> JsonObject:
    """Return the decision record with more measurements in it."""
    decision = operation.decision or {}
    return {**decision, "measured": {**decision.get("measured", {}), **measured}}
