"""What is served under a name, what was served before, and how a finished operation changes that. Pure values.

``current`` changes at one moment only: when an operation succeeded, in the same transaction as its record.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.deployment.machine import Operation

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """One artifact that is or was served.

    Attributes:
        id: unique per artifact and version, see ``release_id``.
        version: the operator's word for the checkpoint.
        sha256: digest of the source checkpoint.
        model_type, method: what it is and how it is stored.
        artifact: path of the packed file.
        gate_file: path of the inputs and expected answers that a canary uses.
        artifact_bytes, resident_bytes: size on disk, and in memory as the builder measured it.
        coverage: share of the parameters that is stored as codes.
        agreement, accuracy, accuracy_source: what the gate measured; accuracies are None without labels.
        since: RFC 3339 time of the commit.
        sequence: sequence of the manifest that brought it, None without one.
        decision: the decision record that led to it, with its measurements; None in records of older agents.
        chosen_by: whether ``auto`` chose the method or an operator did, as in records of agents that did not know yet:
            nothing is switched that a person may have fixed.
        gate: what was demanded of it, without the data set; a later ``replan`` demands the same.
    """

    id: str
    version: str
    sha256: str
    model_type: str
    method: str
    artifact: str
    gate_file: str
    artifact_bytes: int
    resident_bytes: int
    coverage: float
    agreement: float | None
    accuracy: float | None
    accuracy_source: float | None
    since: str = ""
    sequence: int | None = None
    decision: JsonObject | None = None
    chosen_by: str = "operator"
    gate: JsonObject = field(default_factory=dict)

    @property
    def texts_bytes(self) -> int | None:
        """What its texts' keys and values may take, by the plan; None where no plan said so."""
        texts = (self.decision or {}).get("texts")
        return int(texts["bytes"]) if texts else None

    def to_json(self) -> JsonObject:
        """Return a JSON object that ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: JsonObject) -> Release:
        """Read what ``to_json`` wrote."""
        return cls(**body)


@dataclass(frozen=True)
class Served:
    """A model name and what stands behind it.

    Attributes:
        name: the name that clients use.
        current: what answers.
        previous: where a rollback leads, or None.
        dataset: digest of the evaluation data given last, or None.
    """

    name: str
    current: Release
    previous: Release | None = None
    dataset: str | None = None

    def to_json(self) -> JsonObject:
        """Return a JSON object that ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: JsonObject) -> Served:
        """Read what ``to_json`` wrote."""
        previous = body.get("previous")
        return cls(
            name=body["name"],
            current=Release.from_json(body["current"]),
            previous=Release.from_json(previous) if previous else None,
            dataset=body.get("dataset"),
        )


def release_id(version: str, sha256: str, method: str) -> str:
    """Return the id of the release of checkpoint ``sha256`` under ``version`` by ``method``."""
    return f"{version}-{sha256[:12]}-{method}"


def _kept(decision: JsonObject | None) -> JsonObject | None:
    """Return a decision record as it is kept with a release: without the long list of weights that stayed as they are.

    What is served by one device has to fit into one report, with every model's record.
    """
    if decision is None or not decision.get("measured"):
        return decision
    measured = {name: value for name, value in decision["measured"].items() if name not in ("skipped", "notes")}
    return {**decision, "measured": measured}


def _asked_again(release: Release, facts: JsonObject) -> Release:
    """Return a release that was asked for while it served: the last word on who chose it, and on its gate, counts."""
    chosen_by, gate = facts.get("chosen_by", release.chosen_by), facts.get("gate", release.gate)
    return replace(release, chosen_by=chosen_by, gate=gate)


def settle(served: Served | None, operation: Operation, since: str) -> Served | None:
    """Return what stands behind the model's name once ``operation`` has succeeded.

    A rollback forgets what it came from: rolling back twice never brings a bad model back. It is a person's choice, and
    so is a method that was asked for while ``auto`` had already chosen the same: the watch leaves both alone.

    Args:
        served: what stood there before, None for nothing.
        operation: a succeeded operation; its facts hold the ``release`` that was activated.
        since: RFC 3339 time of the commit.
    """
    if operation.command == "undeploy":
        return None
    facts = operation.facts
    if operation.command == "compare" and facts.get("already_applied"):
        return served  # it only measured
    if facts.get("already_applied"):
        return served and replace(served, current=_asked_again(served.current, facts))
    release = Release.from_json({**facts["release"], "since": since})
    if operation.command == "rollback":  # a person's choice, which goes back to a release with a decision of its own
        release = replace(release, chosen_by="operator")
    else:
        release = replace(release, decision=_kept(operation.decision))
    dataset = facts.get("dataset") or (served.dataset if served else None)
    if operation.command == "rollback" or served is None:
        return Served(str(operation.model), release, None, dataset)
    previous = served.previous if served.current.id == release.id else served.current
    return Served(served.name, release, previous, dataset)
