"""The supervisor's routes: the repository extension of the Open Inference Protocol, with releases, and a status.

Served on the supervisor's Unix socket only. One change of a model happens at a time; loading runs in a thread of its
own, one load at a time for the whole process, and neither stops inference nor health checks. A load may let the model's
other releases go first: its requests wait from then on until a release is activated. Whether a canary is good enough is
not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from agent.failpoints import around
from agent.serving.batcher import Batcher, Batching
from agent.serving.canary import measure
from agent.serving.errors import BadRequestError, LoadFailedError, MethodNotAllowedError, NotFoundError
from agent.serving.loading import LoadingThread
from agent.serving.memory import rss_bytes
from agent.serving.repository import index, parse, parse_parameters, released, text_of
from agent.serving.slots import Aside, Model, Slot
from agent.serving.stats import percentiles_ms
from agent.serving.terms import Terms
from agent.serving.waiting import HOLD_S, WaitingRoom

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.serving.dataplane import DataPlane
    from agent.serving.slots import Loader, Models

log = structlog.get_logger("control")
JsonObject = dict[str, Any]
MAX_NAME = 256


class ControlPlane:
    """Changes what is loaded and what answers.

    Args:
        plane: the models.
        loader: how artifacts become networks.
        hold_s: how long a request waits for a release to become active during a switch, in seconds.
        batching: how requests are joined.

    Attributes:
        asides: by model, what an administrator unloaded and may bring back: until something answers for the model, or
            the supervisor unloads it.
    """

    def __init__(
        self, plane: DataPlane, loader: Loader, hold_s: float = HOLD_S, batching: Batching | None = None
    ) -> None:
        self._plane = plane
        self._hold_s = hold_s
        self._batching = batching or Batching()
        self._thread = LoadingThread(loader)
        # Nothing is let go for a load that would then have to wait for another one.
        self._turn = asyncio.Lock()
        self.asides: dict[str, Aside] = {}

    @property
    def models(self) -> Models:
        """What is loaded."""
        return self._plane.models

    def prepare(self) -> asyncio.Future[None]:
        """Begin with the slow imports."""
        return self._thread.prepare()

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
                raise NotFoundError(f"there is no route {path[:128]}")
        if method != wanted and (method, wanted) != ("HEAD", "GET"):
            raise MethodNotAllowedError(method, path[:128], wanted)
        if rest == ["status"]:
            return self.status()
        if rest == ["open"]:
            self._plane.is_open.set()
            return {"open": True}
        request = parse(body)
        return self.index(request) if rest == ["index"] else await self._change(rest[1], rest[2], request)

    def index(self, request: JsonObject) -> list[JsonObject]:
        """Return what is loaded, and what an administrator set aside; see ``repository.index``."""
        return index(self._plane.models, request, self.asides)

    async def _change(self, name: str, action: str, request: JsonObject) -> JsonObject:
        parameters = parse_parameters(request)
        match action:
            case "load":
                release, version = text_of(parameters, "release"), text_of(parameters, "version")
                artifact = Path(text_of(parameters, "artifact"))
                activate, unload_first = _flag(parameters, "activate"), _flag(parameters, "unload_first")
                terms = Terms.from_json(parameters.get("terms", {}))
                return await self.load(
                    name, release, version, artifact, terms, activate=activate, unload_first=unload_first
                )
            case "canary":
                return await self.canary(name, text_of(parameters, "release"), Path(text_of(parameters, "gate")))
            case "activate":
                return await self.activate(name, text_of(parameters, "release"))
        return await self.unload(name, released(parameters))

    async def load(
        self,
        name: str,
        release: str,
        version: str,
        artifact: Path,
        terms: Terms | None = None,
        *,
        activate: bool = False,
        unload_first: bool = False,
    ) -> JsonObject:
        """Load a release beside what answers, or in its place; one that is loaded already is left alone.

        With ``unload_first`` the other releases of the model finish their requests and are freed before. Requests that
        come wait until a release is activated, also when this load fails.
        """
        if not 0 < len(name) <= MAX_NAME:
            raise BadRequestError(f"a model's name has 1 to {MAX_NAME} characters, this one has {len(name)}")
        async with self._changing(name) as model:
            slot = model.slots.get(release)
            if slot is None:
                slot = await self._load(model, release, version, artifact, terms or Terms(), unload_first=unload_first)
            gap_ms = model.room.gap_ms
            if activate:
                self._activate(model, release)
        return {
            "release": release,
            "resident_bytes": slot.network.resident_bytes,
            "max_batch_rows": model.batcher.most_rows(slot),
            "gap_ms": gap_ms,
            "rss_bytes": rss_bytes(),
            **slot.figures,
        }

    @contextlib.asynccontextmanager
    async def _changing(self, name: str) -> AsyncIterator[Model]:
        """Hold a model for changes, made known if it was not."""
        while True:
            model = self._plane.models.find(name)
            if model is None:
                room = WaitingRoom(name, self._hold_s)
                model = Model(name, Batcher(name, asyncio.get_running_loop(), self._batching), room)
                self._plane.models.add(model)
            async with _change(model):
                # While this waited for its turn, the name may have been unloaded as a whole.
                if self._plane.models.find(name) is model:
                    yield model
                    return

    @contextlib.asynccontextmanager
    async def _known(self, name: str) -> AsyncIterator[Model]:
        """Hold a model for changes; raises ``NotFoundError`` if none of that name is left when its turn comes."""
        while True:
            model = self._plane.models.get(name)
            async with _change(model):
                if self._plane.models.find(name) is model:
                    yield model
                    return

    async def _load(
        self, model: Model, release: str, version: str, artifact: Path, terms: Terms, *, unload_first: bool
    ) -> Slot:
        model.loading, model.failure = (release, version), None
        try:
            async with self._turn:
                if unload_first:
                    # Nothing answers meanwhile: the compiler's minutes are not worth waiting for.
                    terms = replace(terms, compile="off")
                    await self._thread.check(artifact)
                    await self._make_room(model)
                with around("serving.load"):
                    network, figures = await self._thread.load(artifact, model.batcher.max_rows, terms)
        except LoadFailedError as error:
            model.failure = (release, version, str(error))
            self._plane.judge(error)
            log.warning("load_failed", model=model.name, release=release, code=error.code, detail=str(error))
            await self._thread.release_memory()
            raise
        finally:
            model.loading = None
        loaded = {each.name for each, _ in self._plane.models.slots()}
        counted = self._plane.models.ledger.open(model.name, version, release, model.slots, loaded)
        slot = model.slots[release] = Slot(
            model.name, release, version, network, artifact, terms, figures, counted.stats, counted.generated,
            max_rows=model.batcher.max_rows, judge=self._plane.judge,
        )  # fmt: skip
        log.info("loaded", model=model.name, release=release, resident_bytes=network.resident_bytes, **figures)
        return slot

    async def _make_room(self, model: Model) -> None:
        """Free every release of a model; if one of them answers, requests wait from now on."""
        doomed = list(model.slots)
        if model.active is not None:
            model.room.open()
        for release in doomed:
            await self._unload(model, release)
        if doomed:
            await self._thread.release_memory()
            log.info("made_room", model=model.name, releases=doomed, rss_bytes=rss_bytes(), gap_ms=model.room.gap_ms)

    async def canary(self, name: str, release: str, gate: Path) -> JsonObject:
        """Run a gate file through a loaded release, active or not; see ``canary.measure``."""
        async with self._known(name) as model:
            return await measure(model, model.slot(release), gate)

    async def activate(self, name: str, release: str) -> JsonObject:
        """Let a loaded release answer from now on, to the requests that waited for one as well."""
        async with self._known(name) as model:
            gap_ms = model.room.gap_ms
            with around("serving.swap"):
                previous = self._activate(model, release)
        log.info("activated", model=name, release=release, previous=previous, gap_ms=gap_ms)
        return {"previous": previous, "gap_ms": gap_ms}

    def _activate(self, model: Model, release: str) -> str | None:
        previous = model.activate(release)
        self.asides.pop(model.name, None)  # what answers from now on takes the place of what was set aside
        return previous

    async def unload(self, name: str, release: str | None, *, sets_aside: bool = False) -> JsonObject:
        """Free a release once its requests are answered, or the whole model; a model without releases is forgotten.

        Args:
            name: of the model.
            release: None for all of them.
            sets_aside: whether what answered may come back, see ``asides``; else what was set aside is forgotten too.
        """
        before = rss_bytes()
        try:
            async with self._known(name) as model:
                doomed = await self._unload_from(model, release, sets_aside=sets_aside)
        except NotFoundError:
            if sets_aside or release is not None or self.asides.pop(name, None) is None:
                raise
            doomed = []
        await self._thread.release_memory()
        log.info("unloaded", model=name, releases=doomed)
        return {"unloaded": doomed, "rss_bytes_before": before, "rss_bytes_after": rss_bytes()}

    async def _unload_from(self, model: Model, release: str | None, *, sets_aside: bool) -> list[str]:
        """Return what was unloaded: the whole of a model, or one release of it."""
        doomed = list(model.slots) if release is None else [model.slot(release).release]
        answered = model.active
        for each in doomed:
            await self._unload(model, each)
        if not model.slots:
            self._plane.models.remove(model.name)
            model.room.turn_away(f"model {model.name!r} was unloaded")
            model.batcher.stop()
            if not sets_aside:
                self.asides.pop(model.name, None)
            elif answered is not None:
                self.asides[model.name] = Aside(answered.release, answered.version, answered.artifact, answered.terms)
        return doomed

    async def _unload(self, model: Model, release: str) -> None:
        slot = model.slots[release]
        with around("serving.unload"):
            if model.active is slot:
                model.active = None
            await slot.drained()
            del model.slots[release]
            slot.stats.latencies_s.clear()
            # Replies that are still being written look at the slot, and must not keep its weights.
            slot.network.close()
            if slot.engine is not None:
                slot.engine.close()

    def loaded(self, name: str) -> JsonObject:
        """Return the release that answers: a load that names no artifact asks for what is there.

        Raises ``NotFoundError`` if none does.
        """
        slot = self._plane.models.active(name)
        return {"release": slot.release, "resident_bytes": slot.network.resident_bytes}

    def status(self) -> JsonObject:
        """Return counters of every model that answers, how every model was switched last, and the memory."""
        return {
            "pid": os.getpid(),
            "models": {model.name: _status(model, model.active) for model in self._plane.models if model.active},
            "gaps": {model.name: model.room.to_json() for model in self._plane.models},
            "memory": self._thread.memory(),
            "rss_bytes": rss_bytes(),
            "draining": self._plane.is_draining,
            "uptime_s": round(time.monotonic() - self._plane.started_at, 3),
        }


@contextlib.asynccontextmanager
async def _change(model: Model) -> AsyncIterator[None]:
    """Hold a model for changes."""
    async with model.changes:
        try:
            yield
        finally:
            model.room.touch()


def _flag(parameters: JsonObject, key: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise BadRequestError(f"parameter {key!r} must be true or false")
    return value


def _status(model: Model, slot: Slot) -> JsonObject:
    stats = slot.stats
    return {
        "release": slot.release,
        "version": slot.version,
        "method": slot.network.method,
        "resident_bytes": slot.network.resident_bytes,
        "max_batch_rows": model.batcher.most_rows(slot),
        "in_flight": slot.in_flight,
        "queue": len(model.batcher),
        "latency_ms": percentiles_ms(stats.latencies_s),
        **{key: round(value - slot.before[key], 6) for key, value in stats.tally.items()},
    }
