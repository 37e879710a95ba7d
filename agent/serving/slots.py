"""Models, their loaded releases, and which of them answers.

INVARIANTS:
- A model answers with at most one release, the active one; activating is one assignment on the event loop.
- A request holds on to the slot it was given: it is answered by that release, whatever is activated meanwhile.
- A slot is freed only when no request holds it.
- Requests wait for a release only in a gap that a switch made and that somebody is ending.
- Everything here runs on the event loop. Loading, computing and HTTP are elsewhere.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agent.planning.memory import SERVED_ROWS
from agent.serving.errors import NotFoundError, UnavailableError
from agent.serving.generation.stats import Generated
from agent.serving.ledger import Ledger
from agent.serving.stats import Stats
from agent.serving.terms import Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from agent.serving.acceleration import Trial
    from agent.serving.batcher import Batcher
    from agent.serving.generation.engine import Engine
    from agent.serving.generation.model import LanguageModel
    from agent.serving.residency import Residency, Wish
    from agent.serving.tensors import Array, TensorSpec
    from agent.serving.tuning import Tuning
    from agent.serving.waiting import WaitingRoom


# A text can take minutes; whoever unloads its release has waited for its end for long enough.
DRAIN_S = 10.0
NAMED = 5
"""Models that a refusal names."""


class Network(Protocol):
    """A loaded model that computes on arrays.

    Attributes:
        model_type, method: what it is, and how its weights are stored.
        inputs, outputs: what it takes and gives, in order.
        is_batchable: whether rows of several requests may be computed together without changing an answer.
        resident_bytes: what its weights occupy as they were loaded.
        unpacked_bytes: what weights that are kept unpacked occupy besides; 0 if none are.
        joined_rows: rows of a batch of several requests at most, as far as it is up to the network.
        row_s: what a row alone was measured to take on a CPU, in seconds; infinite where that is not known.
        text: what makes texts of it, None where nothing does.
        no_text: why not, a sentence without its end.
    """

    model_type: str
    method: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_batchable: bool
    resident_bytes: int
    text: LanguageModel | None
    no_text: str
    unpacked_bytes: int
    joined_rows: int
    row_s: float

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Compute the outputs; the arrays may be read-only. Called from one thread at a time."""

    def warm_up(self, rows: int) -> int:
        """Compute on made-up inputs, so that the first request finds every kernel loaded.

        Args:
            rows: of the largest batch to expect; types whose rows are not joined compute one.

        Returns:
            The rows of the largest batch that was computed: fewer where so many take too long.
        """

    def reside(self, wish: Wish) -> Residency:
        """Keep weights packed or unpacked, see ``residency``; called after the warm-up."""

    def accelerate(self, terms: Terms, rows: int) -> Mapping[str, Trial]:
        """Try faster ways for batches of up to ``rows`` rows, see ``acceleration``; called after ``reside``."""

    def tune(self, most_rows: int) -> Tuning:
        """Choose how passes are called and how many rows are joined, see ``tuning``; called when weights reside."""

    def close(self) -> None:
        """Let go of the weights; nothing is computed any more, while what describes the model stays."""


class Loader(Protocol):
    """What turns artifacts into networks. Called from threads other than the event loop's, unless it says otherwise."""

    def prepare(self) -> None:
        """Import what is slow to import."""

    def check(self, artifact: Path) -> None:
        """Raise ``LoadFailedError`` for an artifact that can be told to be bad without loading it."""

    def load(self, artifact: Path, texts_bytes: int | None = None) -> Network:
        """Load an artifact; its texts may take so much, see ``Terms``. Raises ``LoadFailedError``."""

    def release_memory(self) -> None:
        """Give memory that nothing uses any more back to the system."""

    def reset_device_peak(self) -> None:
        """Let the device's ``peak_allocated_bytes`` begin anew."""

    def device_memory(self) -> dict[str, int] | None:
        """Return the accelerator's memory in bytes, None without one; may be called from the event loop.

        ``allocated_bytes`` by tensors, ``reserved_bytes`` by the allocator, ``peak_allocated_bytes``, and of the whole
        device ``free_bytes`` and ``total_bytes``.
        """


@dataclass(eq=False)
class Slot:
    """One loaded release of a model.

    Attributes:
        release: the supervisor's id for it.
        version: the operator's word for it; what clients see.
        artifact, terms: what it was loaded from, and on which terms.
        figures: what its load took, see ``loading``.
        stats, generated: what it has answered and what texts were made, also when it was loaded before.
        before: the tally of its earlier times.
        max_rows: rows that are computed together at most.
        judge: hears, on the event loop, what the network raises.
        in_flight: requests that hold it.
        engine: makes its texts, None before the first.
    """

    model: str
    release: str
    version: str
    network: Network
    artifact: Path = Path()
    terms: Terms = field(default_factory=Terms)
    figures: Mapping[str, Any] = field(default_factory=dict)
    stats: Stats = field(default_factory=Stats)
    generated: Generated = field(default_factory=Generated)
    max_rows: int = SERVED_ROWS
    judge: Callable[[BaseException], None] = field(default=lambda _error: None)
    in_flight: int = 0
    engine: Engine | None = None
    before: dict[str, float] = field(init=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Remember what was counted before."""
        self.before = self.stats.tally

    def acquire(self) -> None:
        """Hold the slot."""
        self.in_flight += 1
        self._idle.clear()

    def free(self) -> None:
        """Let go of the slot."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def drained(self) -> None:
        """Return when no request holds the slot; texts that take longer than ``DRAIN_S`` are cut off."""
        if not self.in_flight:
            return
        timer = asyncio.get_running_loop().call_later(DRAIN_S, self._cut_off)
        await self._idle.wait()
        timer.cancel()

    def _cut_off(self) -> None:
        if self.engine is not None:
            self.engine.end(UnavailableError(f"the release that made this text was unloaded {DRAIN_S:g} s ago"))


@dataclass(frozen=True)
class Aside:
    """What brings back a release that an administrator unloaded: the parameters of its load."""

    release: str
    version: str
    artifact: Path
    terms: Terms


@dataclass(eq=False)
class Model:
    """A name that clients use.

    Attributes:
        slots: loaded releases by id.
        active: the one that answers, or None.
        loading: release and version that is being loaded, or None.
        failure: release, version and reason of the last load when it failed, else None.
        changes: held by whoever loads, activates or unloads; one change of a model at a time.
        room: where requests wait while the active release is let go before the next one is there.
    """

    name: str
    batcher: Batcher
    room: WaitingRoom
    slots: dict[str, Slot] = field(default_factory=dict)
    active: Slot | None = None
    loading: tuple[str, str] | None = None
    failure: tuple[str, str, str] | None = None
    changes: asyncio.Lock = field(default_factory=asyncio.Lock)

    def slot(self, release: str) -> Slot:
        """Return a loaded release; raises ``NotFoundError`` with those that are."""
        if release not in self.slots:
            loaded = ", ".join(self.slots) or "none"
            raise NotFoundError(f"release {release!r} of model {self.name!r} is not loaded; loaded are: {loaded}")
        return self.slots[release]

    def activate(self, release: str) -> str | None:
        """Let a loaded release answer from now on; return the id of the one that did before."""
        previous = self.active
        self.active = self.slot(release)
        self.room.close()
        return previous.release if previous else None

    @property
    def is_switching(self) -> bool:
        """Whether nothing answers, but something is about to: requests wait."""
        is_tended = self.changes.locked() or not self.room.is_forsaken
        return self.active is None and self.room.is_open and is_tended


class Models:
    """All models by name.

    Attributes:
        ledger: what their releases have counted, unloaded ones too.
    """

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self.ledger = Ledger()

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def add(self, model: Model) -> None:
        """Make a name known."""
        self._models[model.name] = model

    def remove(self, name: str) -> None:
        """Forget a name."""
        del self._models[name]

    def find(self, name: str) -> Model | None:
        """Return the model of that name, or None."""
        return self._models.get(name)

    def get(self, name: str) -> Model:
        """Return the model of that name; raises ``NotFoundError``."""
        model = self._models.get(name)
        if model is None:
            raise NotFoundError(
                f"there is no model {name[:128]!r}; {answering(slot.model for slot in self.all_active())}"
            )
        return model

    def active(self, name: str, version: str | None = None) -> Slot:
        """Return the slot that answers for ``name``.

        Raises ``NotFoundError`` for an unknown name, and for a version that is not the one that answers;
        ``UnavailableError`` when the model has nothing active.
        """
        model = self.get(name)
        if model.active is None:
            raise UnavailableError(f"model {name!r} is not ready: no release of it is active")
        if version is not None and version != model.active.version:
            raise NotFoundError(f"model {name!r} answers with version {model.active.version!r}, not {version[:128]!r}")
        return model.active

    def answering(self, name: str, version: str | None = None) -> Slot | None:
        """Return the slot that answers for ``name``, None while requests wait for one; raises as ``active`` does."""
        return None if self.get(name).is_switching else self.active(name, version)

    def slots(self) -> Iterator[tuple[Model, Slot]]:
        """Yield every loaded release."""
        for model in self:
            for slot in list(model.slots.values()):
                yield model, slot

    def all_active(self) -> list[Slot]:
        """Return what answers, one slot for each model that does."""
        return [model.active for model in self._models.values() if model.active is not None]

    @property
    def is_ready(self) -> bool:
        """Whether any model can answer."""
        return any(model.active is not None for model in self)


def answering(models: Iterable[str]) -> str:
    """Return in words which models answer; whoever may not list them is not let in so far as to ask for another."""
    names = [repr(name) for name in models]
    if len(names) < 2:  # noqa: PLR2004 - one is no list
        return f"only {names[0]} answers" if names else "none answers"
    return f"{len(names)} answer: {', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''}"
