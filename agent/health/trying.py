"""Asking a model from the page: the one that is served, and the same checkpoint by every other method in the store.

What is served answers through the server, as on the inference port. The others are never loaded there: a child that is
the kernel's first choice when memory runs out loads one after another, answers, and ends, as a build does. It starts
only where its memory fits beside everything that is loaded, takes its turn on the thread of the operations' steps, and
ends at once when an operation begins: comparing harms nothing that serves and delays nothing that was asked for.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agent.deployment.planner import budget_for
from agent.deployment.ports import InterruptedStepError, StepError
from agent.health.refusals import RefusedError
from agent.planning.budget import size
from agent.planning.memory import CUDA_CONTEXT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agent.deployment.models import Served
    from agent.deployment.ports import Builder, Device

JsonObject = dict[str, Any]
PLACES = 2
"""Questions at a time, each with an input in memory."""
COMPARE_S, WAIT_S = 90.0, 10.0
"""What a comparison may take, and beyond that the wait for its end."""
LARGEST_SIDECAR_BYTES = 8 * 2**20


class Answers(Protocol):
    """The server."""

    def infer(self, model: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and the body of what it answers to an inference request."""

    def status(self) -> JsonObject:
        """Return counters and memory."""


class Artifacts(Protocol):
    """The store."""

    def artifacts(self, sha256: str) -> Mapping[str, JsonObject]:
        """Return the builder's results of a checkpoint's finished artifacts, by name."""


@dataclass(frozen=True)
class World:
    """What a question reaches.

    Attributes:
        served: returns what is made to answer.
        server, store, device, builder: see the protocols.
        submit: runs work on the thread of the steps, behind what runs there.
        is_busy: whether an operation is at work, or about to be.
        target: where the server computes: ``auto``, ``cpu`` or ``cuda``.
    """

    served: Callable[[], Mapping[str, Served]]
    server: Answers
    store: Artifacts
    device: Device
    builder: Builder
    submit: Callable[[Callable[[], None]], None]
    is_busy: Callable[[], bool]
    target: str = "auto"


class Trying:
    """Answers the page's questions; any thread may ask.

    Args:
        world: see there.
        compare_s: what a comparison may take, in seconds.
    """

    def __init__(self, world: World, *, compare_s: float = COMPARE_S) -> None:
        self._world = world
        self._compare_s = compare_s
        self._places = threading.BoundedSemaphore(PLACES)
        self._comparing = threading.Lock()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the few places for questions; raises ``RefusedError`` when none is free."""
        if not self._places.acquire(blocking=False):
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"{PLACES} questions are being answered already")
        try:
            yield
        finally:
            self._places.release()

    def describe(self, model: str) -> JsonObject:
        """Return what a model takes and gives, what its classes are called, and by which other methods it is cached.

        Raises:
            RefusedError: it is not served, or its artifact cannot be read.
        """
        item = self._item(model)
        sidecar = _sidecar(item.current.artifact)
        return {
            "model": model,
            "version": item.current.version,
            "method": item.current.method,
            **{name: sidecar.get(name) for name in ("model_type", "inputs", "outputs", "labels")},
            "answer": (sidecar.get("gate") or {}).get("answer"),
            "others": list(self._others(item)),
        }

    def infer(self, model: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and the body of what the served model answers; raises ``RefusedError``."""
        self._item(model)
        try:
            return self._world.server.infer(model, body)
        except StepError as error:
            raise RefusedError(HTTPStatus.BAD_GATEWAY, error.detail) from None

    def compare(self, model: str, body: bytes) -> JsonObject:
        """Return what each cached method but the served one answers: its ``outputs``, or an ``error`` in words.

        Raises:
            RefusedError: nothing is cached, an operation is at work, another comparison is, or there is no room.
        """
        item = self._item(model)
        if not self._others(item):
            raise RefusedError(
                HTTPStatus.CONFLICT, f"of {item.current.version} no method but {item.current.method} is cached here"
            )
        if not self._comparing.acquire(blocking=False):
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "another comparison is under way")
        try:
            return self._wait(item, body)
        finally:
            self._comparing.release()

    def _wait(self, item: Served, body: bytes) -> JsonObject:
        watch = _Watch(self._world.is_busy, time.monotonic() + self._compare_s)
        answer: Future[JsonObject] = Future()

        def work() -> None:
            try:
                answer.set_result(self._ask(item, request, watch))
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                answer.set_exception(error)

        try:
            request = body.decode()
        except UnicodeDecodeError:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the input is not UTF-8") from None
        if self._world.is_busy():
            raise RefusedError(HTTPStatus.CONFLICT, "an operation is at work; ask again when it has ended")
        self._world.submit(work)
        try:
            return answer.result(self._compare_s + WAIT_S)
        except FutureTimeoutError:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the agent is at work on something else") from None
        except InterruptedStepError:
            why = "an operation began" if self._world.is_busy() else f"it took more than {self._compare_s:g} s"
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"the comparison was ended: {why}") from None
        except StepError as error:
            raise RefusedError(HTTPStatus.BAD_GATEWAY, error.detail) from None

    def _ask(self, item: Served, request: str, watch: _Watch) -> JsonObject:
        """Have a child answer with every method that there is room for. On the thread of the steps."""
        watch.check()
        room, base = self._room(item)
        answers, wanted = [], []
        for name, result in self._others(item).items():
            needed = base + result["resident_bytes"] + (result.get("working_bytes") or 0)
            if needed > room:
                why = f"no room: it needs {size(needed)} beside what is loaded, {size(room)} are to be had"
                answers.append({"method": name, "error": why})
            else:
                wanted.append({"method": name, "artifact": result["artifact"]})
        if wanted:
            job = {"job": "answer", "artifacts": wanted, "request": request, "device": self._world.target}
            answers += self._world.builder.build(job, watch)["answers"]
        return {"model": item.name, "served": item.current.method, "answers": answers}

    def _room(self, item: Served) -> tuple[int, int]:
        """Return the memory that is to be had beside everything, and what a process with torch takes of it."""
        budget = budget_for(item.name, self._world.device.budget(), self._world.served())
        memory = self._world.server.status()["memory"]
        base = memory["base_rss_bytes"] or memory["rss_bytes"]
        return budget.bytes, base + (CUDA_CONTEXT_BYTES if budget.has_gpu else 0)

    def _others(self, item: Served) -> dict[str, JsonObject]:
        """Return the finished artifacts of the served checkpoint but the served one, smallest first."""
        found = self._world.store.artifacts(item.current.sha256)
        others = {name: told for name, told in found.items() if told["artifact"] != item.current.artifact}
        return dict(sorted(others.items(), key=lambda each: each[1]["resident_bytes"]))

    def _item(self, model: str) -> Served:
        served = self._world.served()
        if model not in served:
            known = ", ".join(served) or "none"
            raise RefusedError(HTTPStatus.NOT_FOUND, f"no model {model[:64]!r} is served here; served: {known}")
        return served[model]


class _Watch:
    """Ends a comparison when its time is over or an operation begins."""

    method: str | None = None

    def __init__(self, is_busy: Callable[[], bool], until: float) -> None:
        self._is_busy = is_busy
        self._until = until

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """Nobody is told."""

    def check(self) -> None:
        """Raise ``InterruptedStepError`` when the child has to go."""
        if self._is_busy() or time.monotonic() >= self._until:
            raise InterruptedStepError

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)
        self.check()


def _sidecar(artifact: str) -> JsonObject:
    path = Path(artifact).with_suffix(".json")
    try:
        if path.stat().st_size > LARGEST_SIDECAR_BYTES:
            raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, f"{path.name} is larger than any sidecar is")
        sidecar: JsonObject = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, f"{path.name} cannot be read: {error}") from None
    return sidecar
