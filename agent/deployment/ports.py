"""What the deployment needs from the world, as protocols. Adapters implement them, fakes obey the same tests.

Every method that can fail for a reason outside this process raises ``StepError`` with a code from the contract; a
port never lets a library's own exception through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from agent.contract.errors import ErrorCode, ErrorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from agent.contract.manifest import Envelope, Signer
    from agent.contract.oms import Bundle
    from agent.contract.reports import Report
    from agent.deployment.convergence import Goal
    from agent.deployment.machine import Operation
    from agent.deployment.models import Release, Served
    from agent.planning.budget import Budget
    from agent.planning.memory import Learned

JsonObject = dict[str, Any]


class StepError(Exception):
    """The work of a phase failed.

    Attributes:
        code, detail, hint: as in the contract's error object.
        retryable: whether the operator may send the same again.
        is_transient: whether the agent itself should try again at once.
        facts: what was found out before it failed, for the decision record.
    """

    def __init__(
        self,
        code: ErrorCode,
        detail: str,
        hint: str | None = None,
        *,
        retryable: bool = False,
        is_transient: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.hint = hint
        self.retryable = retryable
        self.is_transient = is_transient
        self.facts = dict(facts or {})

    def info(self, phase: str) -> ErrorInfo:
        """Return the error object, saying where it happened."""
        return ErrorInfo(code=self.code, detail=self.detail, hint=self.hint, phase=phase, retryable=self.retryable)


class RestoreError(StepError):
    """Some models could not be restored; the others were.

    Attributes:
        failures: by model, why.
    """

    def __init__(self, failures: Mapping[str, StepError]) -> None:
        first = next(iter(failures.values()))
        detail = "; ".join(failure.detail for failure in failures.values())
        super().__init__(first.code, detail, first.hint, retryable=any(each.retryable for each in failures.values()))
        self.failures = dict(failures)


class InterruptedStepError(Exception):
    """The work was stopped on request; nobody waits for its outcome."""


class Clock(Protocol):
    """Time, as an argument."""

    def monotonic(self) -> float:
        """Return seconds that only ever grow."""

    def now(self) -> datetime:
        """Return wall time in UTC; compared with expiries, never used to order anything."""

    def is_synchronised(self) -> bool:
        """Return whether wall time can be trusted."""


class Watch(Protocol):
    """How a long piece of work reports progress and learns that it should stop.

    Attributes:
        method: what is being built, None for other work; told with the progress.
    """

    method: str | None

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """Tell how far the work is. Cheap: may be called for every chunk."""

    def check(self) -> None:
        """Raise ``InterruptedStepError`` when the work should stop."""

    def wait(self, seconds: float) -> None:
        """Sleep, or raise ``InterruptedStepError`` as soon as the work should stop."""


class Journal(Protocol):
    """The truth about operations and models; survives power cuts."""

    def operation(self, operation_id: str) -> Operation | None:
        """Return the record of an id ever used, as far as it is retained."""

    def open_operations(self) -> Sequence[Operation]:
        """Return the operations without an end, in the order in which they were accepted."""

    def served(self) -> Mapping[str, Served]:
        """Return what stands behind every model name."""

    def highest_sequence(self, model: str) -> int | None:
        """Return the highest manifest sequence accepted for ``model``."""

    def save(
        self,
        operation: Operation,
        reports: Sequence[Report],
        *,
        served: Served | None = None,
        remove: bool = False,
        sequence: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit a record, its reports and what it changes, in one durable transaction.

        Args:
            operation: the record.
            reports: what the world must be told; kept until acknowledged.
            served: what now stands behind the operation's model, None for no change.
            remove: whether the model's name is removed instead.
            sequence: the manifest sequence to remember for the model.
            config: settings to remember by ``section.key``; None forgets one.
        """

    def queue(self, reports: Sequence[Report]) -> None:
        """Keep reports that belong to no operation until they are acknowledged."""

    def documents(self) -> Mapping[str, JsonObject]:
        """Return the wanted documents in force, by source."""

    def waiting(self) -> Mapping[str, JsonObject]:
        """Return the documents that are not in force yet, by group."""

    def halts(self) -> Mapping[str, JsonObject]:
        """Return what halts the groups, by group."""

    def goals(self) -> Sequence[Goal]:
        """Return the goals of the wanted state; ``save`` of an ended operation decides the one that waits for it."""

    def notes(self) -> JsonObject:
        """Return what ``note`` and ``adopt`` remembered; ``recovered`` says what an opening of the journal lost."""

    def adopt(
        self,
        documents: Mapping[str, JsonObject],
        goals: Sequence[Goal],
        notes: Mapping[str, Any],
        reports: Sequence[Report],
    ) -> None:
        """Commit changed documents, the goals that replace all before, notes and reports, in one transaction.

        A document that waited for its source waits no more.
        """

    def defer(self, group: str, document: JsonObject, reports: Sequence[Report]) -> None:
        """Commit a group's document that is not in force yet, in place of one that waited, with reports."""

    def halt(self, group: str, halts: JsonObject | None, reports: Sequence[Report]) -> None:
        """Commit what halts a group, None for nothing, with reports."""

    def settle(self, outcomes: Mapping[str, str]) -> None:
        """Commit the outcomes of goals that are still open, by operation id."""

    def note(self, notes: Mapping[str, Any], reports: Sequence[Report]) -> None:
        """Remember JSON values by name, in one transaction with reports."""


class Configuration(Protocol):
    """The settings that an operator may change while the agent runs."""

    def judge(self, config: JsonObject) -> dict[str, JsonObject]:
        """Return ``old`` and ``new`` by ``section.key``; raises ``RefusalError`` for what may not be changed so."""

    def apply(self, changes: Mapping[str, JsonObject]) -> None:
        """Let what ``judge`` returned be in force from now on."""

    def overrides(self) -> JsonObject:
        """Return what was changed, nested as in the file."""


class Transport(Protocol):
    """The way out to the fleet."""

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there now."""

    @property
    def connection(self) -> int | None:
        """Number of the connection that stands, None without one; numbers only grow."""

    def publish(self, report: Report) -> None:
        """Send a report that may be lost (QoS 0)."""

    def flush(self) -> None:
        """Send what the outbox holds; it stays there until acknowledged."""

    def overhear_no_more(self) -> None:
        """Have the broker no longer tell this device's own operations, which is done after a loss."""


class Sources(Protocol):
    """Fetching files."""

    def judge(self, url: str) -> None:
        """Raise ``forbidden_source`` if ``url`` may not be asked for; asks nobody."""

    def fetch(self, url: str, destination: Path, size: int | None, watch: Watch) -> bool:
        """Fetch ``url`` into ``destination``, resuming what is there already; never more than ``size`` bytes.

        Returns whether the file came in pieces: if its digest is wrong, it may be right when fetched in one.
        """


class Store(Protocol):
    """Content-addressed files on the device."""

    def partial(self, sha256: str) -> Path:
        """Return where a download of that digest is collected."""

    def source(self, sha256: str) -> Path | None:
        """Return the file of that digest as it was once verified, or None."""

    def verify_again(self, sha256: str, watch: Watch) -> None:
        """Hash a file that lay in the store; one that has changed is deleted, and ``checksum_mismatch`` raised.

        Any other error leaves it.
        """

    def admit(self, sha256: str, size: int | None, watch: Watch) -> Path:
        """Hash the partial file and move it into the store, durably; a mismatch deletes it and raises."""

    def ensure_space(self, needed_bytes: int) -> None:
        """Raise ``insufficient_disk`` unless ``needed_bytes`` fit beside the reserve."""

    def built(self, sha256: str, method: str, dataset: str | None) -> JsonObject | None:
        """Return the builder's result for a finished artifact, or None."""

    def staging(self, sha256: str, method: str) -> Path:
        """Return an empty directory to build in."""

    def publish(self, sha256: str, method: str, result: JsonObject) -> JsonObject:
        """Move the staging directory into place, durably; return the result with its final paths."""

    def numels(self, sha256: str) -> Sequence[int]:
        """Return the number of weights of each tensor, from the file's directory alone; nothing is unpickled.

        Raises ``StepError`` for a container that is malformed or made to deceive.
        """

    def footprint(self, sha256: str) -> JsonObject | None:
        """Return what was found out about a checkpoint's needs, or None."""

    def keep_footprint(self, sha256: str, footprint: JsonObject) -> None:
        """Remember a checkpoint's needs for as long as the checkpoint is there."""

    def sweep(self, keep: set[str], in_use: set[str]) -> None:
        """Delete digests that are not in ``keep``, mixes whose path is not ``in_use``, and what was cut short."""


class Builder(Protocol):
    """The short-lived child that opens checkpoints."""

    def build(self, job: JsonObject, watch: Watch) -> JsonObject:
        """Quantize a checkpoint; return the result event."""


class Device(Protocol):
    """What this box has."""

    def budget(self) -> Budget:
        """Return the memory that a model may take now, with its source."""

    def usable_methods(self) -> Mapping[str, JsonObject]:
        """Return the methods whose self-test passed, with what it found."""

    def test_again(self) -> Mapping[str, JsonObject]:
        """Run the self-test now, for real, and return what it found per method."""


class Logs(Protocol):
    """The log of this agent, as far as it is kept."""

    def recent(self, since: datetime | None, max_bytes: int) -> tuple[Sequence[JsonObject], bool]:
        """Return the newest entries in order, none before ``since``, and whether older ones were left out."""


class Server(Protocol):
    """The long-lived child that answers inference."""

    def restore(self, served: Mapping[str, Served]) -> None:
        """Make the server hold and answer with exactly what ``served`` says, starting it if need be.

        Raises ``RestoreError`` after all were tried, if some models could not be restored.
        """

    def load(self, model: str, release: Release, *, unload_first: bool = False) -> JsonObject:
        """Load a release beside what is active; return what was measured.

        With ``unload_first`` the model's other releases are let go before: requests wait until ``activate``, or until
        ``restore`` has brought back what answered.
        """

    def canary(self, model: str, release: Release) -> JsonObject:
        """Run the gate's inputs through a loaded release; return what was measured."""

    def activate(self, model: str, release: Release) -> JsonObject:
        """Let a loaded release answer from now on; one that answered until now stays loaded.

        Returns ``gap_ms``, the time in which nothing answered.
        """

    def undeploy(self, model: str) -> None:
        """Stop answering for ``model`` and free its memory."""

    def status(self) -> JsonObject:
        """Return counters and memory; raises when the server does not answer."""


class Lessons(Protocol):
    """What this device has learned about its own estimates; survives restarts."""

    def learned(self) -> Learned:
        """Return what is known; the neutral value before the first deploy."""

    def keep(self, learned: Learned) -> None:
        """Remember it."""


class Signatures(Protocol):
    """Who may deploy what."""

    def verify(self, envelope: Envelope, model: str, now: datetime | None) -> Signer:
        """Return the trusted key that signed a manifest or a message; raises ``RefusalError`` otherwise.

        ``model`` is the one that it is for, empty if it is for the device.
        """

    def verify_bundle(self, bundle: Bundle, model: str, now: datetime | None) -> Signer:
        """Return the trusted key that signed a bundle of OpenSSF Model Signing; raises ``RefusalError`` otherwise."""


@dataclass(frozen=True)
class Ports:
    """Everything a step may touch."""

    clock: Clock
    sources: Sources
    store: Store
    builder: Builder
    device: Device
    server: Server
    lessons: Lessons
