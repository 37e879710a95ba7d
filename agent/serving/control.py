"""The supervisor's routes: the repository extension of the Open Inference Protocol, with releases, and a status.

Served on the supervisor's Unix socket only. One change of a model happens at a time; loading runs in a thread of its
own, one load at a time for the whole process, and neither stops inference nor health checks. Whether a canary is good
enough is not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from agent.serving.batcher import Batcher
from agent.serving.canary import measure
from agent.serving.errors import BadRequestError, LoadFailedError, MethodNotAllowedError, NotFoundError
from agent.serving.memory import is_out_of_memory, rss_bytes
from agent.serving.slots import Model, Slot
from agent.serving.stats import percentiles_ms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.serving.dataplane import DataPlane
    from agent.serving.slots import Loader, Network

log = structlog.get_logger("control")
JsonObject = dict[str, Any]
MAX_NAME = 256


class ControlPlane:
    """Changes what is loaded and what answers.

    Args:
        plane: the models.
        loader: how artifacts become networks.
    """

    def __init__(self, plane: DataPlane, loader: Loader) -> None:
        self._plane = plane
        self._loader = loader
        # One thread: the first load waits for the imports, and two loads never need their memory at the same time.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")

    def prepare(self) -> asyncio.Future[None]:
        """Begin with the slow imports."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self._loader.prepare)

    async def answer(self, group: str, rest: list[str], method: str, body: bytes) -> Any:
        """Answer ``/v2/<group>/<rest>`` with a JSON value.

        Raises ``NotFoundError``, ``MethodNotAllowedError``, ``BadRequestError`` and, for loads, ``LoadFailedError``.
        """
        path = "/".join(("/v2", group, *rest))
        match (group, rest):
            case ("control", ["status"]):
                wanted = "GET"
            case ("control", ["open"]):
                wanted = "POST"
            case ("repository", ["index"] | ["models", _, "load" | "canary" | "activate" | "unload"]):
                wanted = "POST"
            case _:
                raise NotFoundError(f"there is no route {path}")
        if method != wanted:
            raise MethodNotAllowedError(method, path, wanted)
        if rest == ["status"]:
            return self.status()
        if rest == ["open"]:
            self._plane.is_open.set()
            return {"open": True}
        request = _parse(body)
        return self.index(request) if rest == ["index"] else await self._change(rest[1], rest[2], request)

    async def _change(self, name: str, action: str, request: JsonObject) -> JsonObject:
        parameters = request.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise BadRequestError("'parameters' must be an object")
        match action:
            case "load":
                release, version = _text(parameters, "release"), _text(parameters, "version")
                artifact = Path(_text(parameters, "artifact"))
                return await self.load(name, release, version, artifact, activate=bool(parameters.get("activate")))
            case "canary":
                return await self.canary(name, _text(parameters, "release"), Path(_text(parameters, "gate")))
            case "activate":
                return await self.activate(name, _text(parameters, "release"))
        return await self.unload(name, _text(parameters, "release") if "release" in parameters else None)

    async def load(
        self, name: str, release: str, version: str, artifact: Path, *, activate: bool = False
    ) -> JsonObject:
        """Load a release beside what answers; one that is loaded already is left alone."""
        if not 0 < len(name) <= MAX_NAME:
            raise BadRequestError(f"a model's name has 1 to {MAX_NAME} characters, this one has {len(name)}")
        async with self._changing(name) as model:
            slot = model.slots.get(release) or await self._load(model, release, version, artifact)
            if activate:
                model.activate(release)
        return {
            "release": release,
            "resident_bytes": slot.network.resident_bytes,
            "load_ms": round(slot.load_ms, 3),
            "rss_bytes": rss_bytes(),
        }

    @contextlib.asynccontextmanager
    async def _changing(self, name: str) -> AsyncIterator[Model]:
        """Hold a model for changes, made known if it was not."""
        while True:
            model = self._plane.models.find(name)
            if model is None:
                model = Model(name, Batcher(name, asyncio.get_running_loop()))
                self._plane.models.add(model)
            async with model.changes:
                # While this waited for its turn, the name may have been unloaded as a whole.
                if self._plane.models.find(name) is model:
                    yield model
                    return

    async def _load(self, model: Model, release: str, version: str, artifact: Path) -> Slot:
        model.loading, model.failure = (release, version), None
        try:
            network, load_ms = await self._in_thread(self._timed_load, artifact)
        except LoadFailedError as error:
            model.failure = (release, version, str(error))
            log.warning("load_failed", model=model.name, release=release, code=error.code, detail=str(error))
            await self._in_thread(self._loader.release_memory)
            raise
        finally:
            model.loading = None
        slot = Slot(model.name, release, version, network, load_ms)
        model.slots[release] = slot
        log.info("loaded", model=model.name, release=release, resident_bytes=network.resident_bytes, ms=round(load_ms))
        return slot

    def _timed_load(self, artifact: Path) -> tuple[Network, float]:
        began = time.perf_counter()
        network = self._loader.load(artifact)
        try:
            network.warm_up()
        except Exception as error:
            code = "insufficient_memory" if is_out_of_memory(error) else "bad_artifact"
            raise LoadFailedError(code, f"the warm-up failed: {type(error).__name__}: {error}") from error
        return network, (time.perf_counter() - began) * 1e3

    async def canary(self, name: str, release: str, gate: Path) -> JsonObject:
        """Run a gate file through a loaded release, active or not; see ``canary.measure``."""
        model = self._plane.models.get(name)
        async with model.changes:
            return await measure(model, model.slot(release), gate)

    async def activate(self, name: str, release: str) -> JsonObject:
        """Let a loaded release answer from now on."""
        model = self._plane.models.get(name)
        async with model.changes:
            previous = model.activate(release)
        log.info("activated", model=name, release=release, previous=previous)
        return {"previous": previous}

    async def unload(self, name: str, release: str | None) -> JsonObject:
        """Free a release once its requests are answered, or the whole model; a model without releases is forgotten."""
        model = self._plane.models.get(name)
        before = rss_bytes()
        async with model.changes:
            doomed = list(model.slots) if release is None else [model.slot(release).release]
            for each in doomed:
                await self._unload(model, each)
            if not model.slots:
                self._plane.models.remove(name)
                model.batcher.stop()
        await self._in_thread(self._loader.release_memory)
        log.info("unloaded", model=name, releases=doomed)
        return {"unloaded": doomed, "rss_bytes_before": before, "rss_bytes_after": rss_bytes()}

    async def _unload(self, model: Model, release: str) -> None:
        slot = model.slots[release]
        if model.active is slot:
            model.active = None
        await slot.drained()
        del model.slots[release]

    def index(self, request: JsonObject) -> list[JsonObject]:
        """Return every release that is loaded, being loaded, or failed to load last."""
        entries: list[JsonObject] = []
        for model in self._plane.models:
            for slot in model.slots.values():
                is_active = slot is model.active
                entries.append(_entry(model.name, slot.version, "READY", "", slot.release, active=is_active))
            if model.loading is not None:
                release, version = model.loading
                entries.append(_entry(model.name, version, "LOADING", "", release))
            if model.failure is not None:
                release, version, reason = model.failure
                entries.append(_entry(model.name, version, "UNAVAILABLE", reason, release))
        return [entry for entry in entries if entry["state"] == "READY" or not request.get("ready")]

    def status(self) -> JsonObject:
        """Return counters and memory of every model that answers."""
        return {
            "pid": os.getpid(),
            "models": {model.name: _status(model, model.active) for model in self._plane.models if model.active},
            "rss_bytes": rss_bytes(),
            "draining": self._plane.is_draining,
            "uptime_s": round(time.monotonic() - self._plane.started_at, 3),
        }

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _parse(body: bytes) -> JsonObject:
    try:
        request = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not valid JSON: {error}") from None
    if not isinstance(request, dict):
        raise BadRequestError("the request must be a JSON object")
    return request


def _text(parameters: JsonObject, key: str) -> str:
    value = parameters.get(key)
    if not isinstance(value, str) or not value:
        raise BadRequestError(f"parameter {key!r} must be a string that is not empty")
    return value


def _entry(name: str, version: str, state: str, reason: str, release: str, *, active: bool = False) -> JsonObject:
    parameters = {"release": release, "active": active}
    return {"name": name, "version": version, "state": state, "reason": reason, "parameters": parameters}


def _status(model: Model, slot: Slot) -> JsonObject:
    stats = slot.stats
    return {
        "release": slot.release,
        "version": slot.version,
        "method": slot.network.method,
        "resident_bytes": slot.network.resident_bytes,
        "requests": sum(stats.outcomes.values()),
        "failures": stats.outcomes["failed"],
        "non_finite": stats.non_finite,
        "in_flight": slot.in_flight,
        "queue": len(model.batcher),
        "latency_ms": percentiles_ms(stats.latencies_s),
    }
