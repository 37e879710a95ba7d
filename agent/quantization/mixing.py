"""The method ``mixed``: a 4-bit base, and int8 or fp16 for the tensors that the gate shows to need it.

In which order tensors are raised is measured by `sensitivity` and follows `agent.planning.mix`; how many it takes is
found by artifacts that are built, loaded and judged like those of every method. The one that passes with the fewest
bytes is kept; if none does, the best of those tried is, and whoever asked refuses it as for every method.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.failpoints import around
from agent.planning import mix
from agent.planning.gate import Thresholds, judge
from agent.planning.methods import METHODS
from agent.quantization import gate, modules, process, quantizer, sensitivity, sidecar, trial
from agent.quantization.assignment import Scheme
from agent.quantization.errors import InsufficientMemoryError
from agent.quantization.packed import PackedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.planning.methods import Method

JsonObject = dict[str, Any]
OnRuns = Callable[[int, int], None]
"""Called with how often a model has been run over its rows, and how often it will be at most; a trial is one run."""


@dataclass(frozen=True)
class Wish:
    """What a mix may cost and has to prove.

    Attributes:
        base: the 4-bit method of every tensor that is not raised.
        budget_bytes: most bytes of resident weights, or None.
        demanded: the gate's thresholds.
    """

    base: Method
    budget_bytes: int | None = None
    demanded: Thresholds = field(default_factory=Thresholds)


@dataclass(frozen=True)
class Sizes:
    """The packed tensors of a model, and what its weights take.

    Attributes:
        numels: elements of each packed tensor, by name.
        base_bytes: resident bytes with all of them under the base.
        int8_bytes: the same under int8.
    """

    numels: dict[str, int]
    base_bytes: int
    int8_bytes: int


def weigh(subject: trial.Subject, base: Method) -> Sizes:
    """Return what the model weighs, from its shapes alone."""
    empty = quantizer.packed_empty(subject.found, Scheme.uniform(base), subject.blocksize)
    kinds = quantizer.weights(empty).items()
    numels = {name: kind.numel for name, kind in kinds if isinstance(kind, PackedTensor)}
    base_bytes = modules.planned_bytes(empty)
    added = mix.raised_bytes(numels.values(), base, mix.INT8, subject.blocksize)
    return Sizes(numels, base_bytes, base_bytes + added)


def build(subject: trial.Subject, wish: Wish, path: Path, gate_file: Path, on_runs: OnRuns) -> JsonObject:
    """Write the best artifact, its sidecar and the gate file; returns what the sidecar says.

    Raises:
        InsufficientMemoryError: the base alone does not fit the budget.
        NonFiniteWeightsError: a weight is NaN or infinite.
    """
    sizes = weigh(subject, wish.base)
    if wish.budget_bytes is not None and sizes.base_bytes > wish.budget_bytes:
        raise InsufficientMemoryError(
            f"{wish.base.name} alone takes {sizes.base_bytes} bytes, {wish.budget_bytes} are allowed for weights",
            "free memory, or start from a base with quantized scales",
        )
    process.keep_little_freed_memory()  # models and packed tensors take turns from here on
    source = subject.run_source()
    gate.write_gate_file(gate_file, subject.data, source)
    search = _Search(subject, wish, path, source, sizes, on_runs)
    search.run()
    return search.finish()


@dataclass(frozen=True)
class _Trial:
    """A mix that was built and judged."""

    raised: dict[str, Method]
    facts: JsonObject
    complaints: list[str]
    fits: bool

    @property
    def merit(self) -> tuple[float, ...]:
        """Greater is better: to pass, then with fewer bytes; or to fit, then to come close."""
        if not self.complaints:
            return (1, -self.facts["resident_bytes"])
        measured = self.facts["gate"]
        shares = (-1.0 if measured[key] is None else measured[key] for key in ("agreement", "cosine"))
        return (0, self.fits, -len(self.complaints), *shares)

    def to_json(self) -> JsonObject:
        """Return the trial for the record."""
        return {
            "upgraded": len(self.raised),
            "resident_bytes": self.facts["resident_bytes"],
            "agreement": self.facts["gate"]["agreement"],
            "passes": not self.complaints,
        }


@dataclass
class _Search:
    """One search: the artifact at ``path`` is always that of the best trial so far."""

    subject: trial.Subject
    wish: Wish
    path: Path
    source: gate.Run
    sizes: Sizes
    on_runs: OnRuns
    runs: int = 0
    rows: int = 0
    trials: list[_Trial] = field(default_factory=list)
    parts: list[mix.Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.groups = mix.groups(tuple(self.sizes.numels), mix.MAX_PARTS)
        self.runs_at_most = 2 * len(self.groups) + mix.MAX_TRIALS

    def run(self) -> None:
        """Try the base, then find how many upgrades it takes."""
        if self._passes(()):
            self.notes.append(f"{self.wish.base.name} alone passes: nothing is raised")
            return
        limit = self.sizes.int8_bytes
        if self.wish.budget_bytes is not None:
            limit = min(limit, self.wish.budget_bytes)
        chain = self._chain(limit - self.sizes.base_bytes)
        if mix.smallest(len(chain), lambda count: self._passes(chain[:count]), mix.MAX_TRIALS - 1) is None:
            self.notes.append(self._told_refusal(limit))
        elif set(self._best.raised) == set(self.sizes.numels) and set(self._best.raised.values()) == {mix.INT8}:
            self.notes.append("every tensor needs int8: uniform int8 is the same, and the simpler answer")

    def finish(self) -> JsonObject:
        """Write the sidecar of what was kept, with the record; returns its content."""
        best = self._best
        table = best.facts["mixed"]["table"]
        facts = best.facts | {"mixed": self._record(table)}
        sidecar.write(self.path, facts)
        self.on_runs(self.runs_at_most, self.runs_at_most)
        return facts

    @property
    def _best(self) -> _Trial:
        return max(self.trials, key=lambda item: item.merit)

    def _chain(self, room_bytes: int) -> list[mix.Upgrade]:
        """Return the upgrades that fit, in order; nothing is measured if none can."""
        base, blocksize = self.wish.base, self.subject.blocksize
        least = (
            mix.raised_bytes([self.sizes.numels[name] for name in names], base, mix.INT8, blocksize)
            for names in self.groups
        )
        if room_bytes < min(least, default=0):
            return []
        self._measure()
        return mix.within(mix.order(self.parts, base, blocksize), room_bytes)

    def _measure(self) -> None:
        batchable = self.subject.is_batchable
        rows = sensitivity.sample(self.subject.data, is_batchable=batchable)
        self.rows = rows.rows
        self.parts = sensitivity.measure(
            self.subject.source_model(),
            rows,
            self.groups,
            self.wish.base,
            self.subject.blocksize,
            chunk_rows=self.subject.chunk_rows,
            ran=self._count_run,
        )
        if len(self.groups) < len(self.sizes.numels):
            self.notes.append(
                f"{len(self.sizes.numels)} tensors are too many to measure one by one: they were measured and raised "
                f"in {len(self.groups)} groups, each of neighbours"
            )

    def _passes(self, chain: Sequence[mix.Upgrade]) -> bool:
        """Build and judge the base with these upgrades; keep it on disk if it is the best so far."""
        raised = mix.applied(chain)
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=self.path.parent) as folder:
            path = Path(folder) / self.path.name
            facts = trial.make(self.subject, path, Scheme.mixed(self.wish.base, raised), self._still_running)
            facts |= trial.measure(self.subject, path, self.source)
            tried = self._judged(raised, facts)
            if all(tried.merit > other.merit for other in self.trials):
                for file in (path, path.with_suffix(".json")):
                    with around("mix.rename"):
                        file.replace(self.path.with_name(file.name))
        self.trials.append(tried)
        self._count_run()
        return not tried.complaints

    def _judged(self, raised: dict[str, Method], facts: JsonObject) -> _Trial:
        """Judge by the gate, and by the budget too: a model type may hold more than its empty form tells."""
        resident, budget = facts["resident_bytes"], self.wish.budget_bytes
        complaints = judge(facts["gate"], self.wish.demanded)
        if budget is None or resident <= budget:
            return _Trial(raised, facts, complaints, fits=True)
        return _Trial(raised, facts, [*complaints, f"{resident} bytes of weights, {budget} are allowed"], fits=False)

    def _told_refusal(self, limit: int) -> str:
        refusal = "; ".join(self._best.complaints)
        if limit < self.sizes.int8_bytes:
            return f"no mix within the budget of {limit} bytes passes; the best that fits is kept: {refusal}"
        return f"no mix up to the {limit} bytes of int8 passes; int8 or fp16 is the better answer: {refusal}"

    def _record(self, table: dict[str, str]) -> JsonObject:
        sizes: Counter[str] = Counter()
        for name, method in table.items():
            sizes[method] += METHODS[method].tensor_bytes(self.sizes.numels[name], self.subject.blocksize)
        numel = sum(self.sizes.numels.values())
        return {
            "base": self.wish.base.name,
            "budget_bytes": self.wish.budget_bytes,
            "counts": dict(Counter(table.values())),
            "bytes": dict(sizes),
            "bits_per_weight": round(8 * sum(sizes.values()) / numel, 4) if numel else 0.0,
            "trials": [item.to_json() for item in self.trials],
            "rows": self.rows,
            "notes": self.notes,
            "sensitivity": [
                {"tensors": list(part.numels), "base": part.base_loss, "int8": part.int8_loss} for part in self.parts
            ],
            "table": table,
        }

    def _count_run(self) -> None:
        self.runs += 1
        self.on_runs(self.runs, self.runs_at_most)

    def _still_running(self, _done: int, _total: int) -> None:
        self.on_runs(self.runs, self.runs_at_most)


def told(record: JsonObject) -> JsonObject:
    """Return the record as a result event has it: of the table only what differs from the base."""
    raised = {name: method for name, method in record["table"].items() if method != record["base"]}
    short = {key: value for key, value in record.items() if key not in {"table", "sensitivity"}}
    return {**short, "tensors": raised}
