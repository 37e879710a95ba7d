"""Models, their loaded releases, and which of them answers.

INVARIANTS:
- A model answers with at most one release, the active one; activating is one assignment on the event loop.
- A request holds on to the slot it was given: it is answered by that release, whatever is activated meanwhile.
- A slot is freed only when no request holds it.
- Everything here runs on the event loop. Loading, computing and HTTP are elsewhere.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from agent.serving.errors import NotFoundError, UnavailableError
from agent.serving.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from agent.serving.batcher import Batcher
    from agent.serving.tensors import Array, TensorSpec


class Network(Protocol):
    """A loaded model that computes on arrays.

    Attributes:
        model_type, method: what it is, and how its weights are stored.
        inputs, outputs: what it takes and gives, in order.
        is_batchable: whether rows of several requests may be computed together without changing an answer.
        resident_bytes: what its weights occupy.
    """

    model_type: str
    method: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_batchable: bool
    resident_bytes: int

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Compute the outputs; the arrays may be read-only. Called from one thread at a time."""

    def warm_up(self) -> None:
        """Compute once on made-up inputs, so that the first request finds every kernel loaded."""


class Loader(Protocol):
    """What turns artifacts into networks. All calls come from threads other than the event loop's."""

    def prepare(self) -> None:
        """Import what is slow to import."""

    def load(self, artifact: Path) -> Network:
        """Load an artifact; raises ``LoadFailedError``."""

    def release_memory(self) -> None:
        """Give memory that nothing uses any more back to the system."""


@dataclass(eq=False)
class Slot:
    """One loaded release of a model.

    Attributes:
        release: the supervisor's id for it.
        version: the operator's word for it; what clients see.
        in_flight: requests that hold it.
    """

    model: str
    release: str
    version: str
    network: Network
    load_ms: float
    stats: Stats = field(default_factory=Stats)
    in_flight: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

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
        """Return when no request holds the slot."""
        if self.in_flight:
            await self._idle.wait()


@dataclass(eq=False)
class Model:
    """A name that clients use.

    Attributes:
        slots: loaded releases by id.
        active: the one that answers, or None.
        loading: release and version that is being loaded, or None.
        failure: release, version and reason of the last load when it failed, else None.
        changes: held by whoever loads, activates or unloads; one change of a model at a time.
    """

    name: str
    batcher: Batcher
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
        return previous.release if previous else None


class Models:
    """All models by name."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

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
            raise NotFoundError(f"there is no model {name[:128]!r}")
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

    def slots(self) -> Iterator[tuple[Model, Slot]]:
        """Yield every loaded release."""
        for model in self:
            for slot in list(model.slots.values()):
                yield model, slot

    @property
    def is_ready(self) -> bool:
        """Whether any model can answer."""
        return any(model.active is not None for model in self)
