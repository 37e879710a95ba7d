"""A model, a loader and a client for the server's tests, all in this process: no torch, no socket, no sleep."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from agent.planning.memory import SERVED_ROWS
from agent.serving.control import ControlPlane
from agent.serving.dataplane import DataPlane
from agent.serving.errors import LoadFailedError
from agent.serving.http import HttpApp
from agent.serving.limits import DEFAULT, Limits
from agent.serving.repository import Repository
from agent.serving.residency import decide
from agent.serving.slots import Models
from agent.serving.tensors import TensorSpec
from agent.serving.tuning import Tuning
from tests.fakes.described import Described

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from agent.serving.acceleration import Trial
    from agent.serving.access import Access
    from agent.serving.residency import Residency, Wish
    from agent.serving.tensors import Array
    from agent.serving.terms import Terms

POISON = -1.0
# Small integers: sums are exact, whatever order a BLAS takes for one row or for many.
WEIGHTS = (np.arange(12, dtype=np.float32) - 5).reshape(4, 3)


@dataclass
class FakeNetwork:
    """Rows of 4 numbers times a matrix, plus ``bias``; a row that holds ``POISON`` raises.

    ``gate`` lets a test hold the thread inside a forward pass; ``entered`` says that it is there.
    """

    bias: float = 0.0
    is_batchable: bool = True
    inputs: tuple[TensorSpec, ...] = (TensorSpec("input", "FP32", (-1, 4)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("logits", "FP32", (-1, 3)),)
    error: Exception = field(default_factory=lambda: RuntimeError("poisoned"))
    model_type: str = "fake"
    method: str = "nf4"
    resident_bytes: int = 48
    text: Any = None
    no_text: str = "it answers tensors"
    unpacked_bytes: int = 0
    joined_rows: int = SERVED_ROWS
    row_s: float = math.inf
    needs_unpacked_bytes: int = 96
    calls: list[int] = field(default_factory=list)
    warm_up_rows: int = 0
    accelerated_rows: int = 0
    terms: Terms | None = None
    is_closed: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        assert not self.is_closed, "a model computes after its weights were let go"
        self.calls.append(len(arrays[0]))
        self.entered.set()
        self.gate.wait()
        if (arrays[0] == POISON).any():
            raise self.error
        return [np.asarray(arrays[0], dtype=np.float32) @ WEIGHTS + np.float32(self.bias)]

    def warm_up(self, rows: int) -> int:
        self.warm_up_rows = rows if self.is_batchable else 1
        self.run([np.zeros((self.warm_up_rows, 4), np.float32)])
        self.calls.clear()
        self.entered.clear()
        return self.warm_up_rows

    def reside(self, wish: Wish) -> Residency:
        found = decide(wish, self.needs_unpacked_bytes, lambda: None, lambda: None, lambda: None)
        self.unpacked_bytes = found.unpacked_bytes if found.is_unpacked else 0
        return found

    def tune(self, most_rows: int) -> Tuning:
        return Tuning(is_recorded=False, reason="nothing to record", joined_rows=most_rows, row_ms={})

    def accelerate(self, terms: Terms, rows: int) -> dict[str, Trial]:
        self.terms, self.accelerated_rows = terms, rows
        return {}

    def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeLoader:
    """Knows networks by the name of their artifact; loads of those in ``failures`` raise.

    Those in ``bad`` can be told to be bad without a load. ``events`` says what was done, in order.
    ``gate`` lets a test hold a load; ``entered`` says that it is there.
    """

    networks: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    bad: dict[str, Exception] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    device: dict[str, int] | None = None
    texts_bytes: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def prepare(self) -> None:
        return None

    def check(self, artifact: Path) -> None:
        if artifact.name in self.bad:
            raise self.bad[artifact.name]

    def load(self, artifact: Path, texts_bytes: int | None = None) -> Any:
        self.texts_bytes = texts_bytes
        self.loads.append(artifact.name)
        self.events.append(f"load {artifact.name}")
        self.entered.set()
        self.gate.wait()
        if artifact.name in self.failures:
            raise self.failures[artifact.name]
        if artifact.name not in self.networks:
            raise LoadFailedError("bad_artifact", f"{artifact} does not exist")
        network = self.networks[artifact.name]
        if isinstance(network, FakeNetwork):
            network.is_closed = False
        return network

    def release_memory(self) -> None:
        closed = sorted(name for name, network in self.networks.items() if getattr(network, "is_closed", False))
        self.events.append(f"release memory of {', '.join(closed) or 'nothing'}")

    def reset_device_peak(self) -> None:
        self.events.append("reset peak")

    def device_memory(self) -> dict[str, int] | None:
        return self.device


@dataclass
class Harness:
    """A server without sockets: ``data`` and ``control`` are clients of the two applications."""

    plane: DataPlane
    loader: FakeLoader
    data: httpx.AsyncClient
    control: httpx.AsyncClient
    app: HttpApp
    responses: Counter[int] = field(default_factory=Counter)
    repository: Repository | None = None

    async def serve(self, name: str, network: Any, version: str = "1", release: str = "r1") -> None:
        """Load and activate ``network``."""
        self.loader.networks[release] = network
        parameters = {"artifact": f"/store/{release}", "version": version, "release": release, "activate": True}
        reply = await self.control.post(f"/v2/repository/models/{name}/load", json={"parameters": parameters})
        assert reply.status_code == 200, reply.text

    async def change(self, name: str, action: str, **parameters: Any) -> httpx.Response:
        """Post to one of the supervisor's routes."""
        return await self.control.post(f"/v2/repository/models/{name}/{action}", json={"parameters": parameters})


@asynccontextmanager
async def harness(
    *, limits: Limits = DEFAULT, hold_s: float = 30.0, access: Access | None = None, store: Path | None = None
) -> AsyncIterator[Harness]:
    """Yield a server with no model; its threads end with the block. With a store, the repository is on ``data`` too."""
    plane, loader = DataPlane(Models()), FakeLoader()
    responses: Counter[int] = Counter()
    control = ControlPlane(plane, loader, hold_s)
    repository = Repository(control, store) if store is not None else None
    app = HttpApp(plane, responses, repository, limits=limits, access=access, groups=("repository",))
    async with (
        _client(app, Described(app.description())) as data,
        _client(HttpApp(plane, responses, control, limits=limits)) as supervisor,
    ):
        yield Harness(plane, loader, data, supervisor, app, responses, repository)
    loader.gate.set()
    for model in plane.models:
        for slot in model.slots.values():
            if isinstance(slot.network, FakeNetwork):
                slot.network.gate.set()
        model.batcher.stop()


def _client(app: Any, described: Described | None = None) -> httpx.AsyncClient:
    hooks = {"response": [described.check]} if described else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", event_hooks=hooks)


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine in a loop of its own."""

    async def bounded() -> None:
        await asyncio.wait_for(work(), 30)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Give way to others until ``condition`` holds."""
    while not condition():  # noqa: ASYNC110 - conditions of other threads have no event
        await asyncio.sleep(0)


def json_request(rows: Any, **extra: Any) -> dict[str, Any]:
    """Return an inference request of float rows as a JSON object."""
    data = np.asarray(rows, np.float32)
    return {
        "inputs": [{"name": "input", "shape": list(data.shape), "datatype": "FP32", "data": data.ravel().tolist()}],
        **extra,
    }
