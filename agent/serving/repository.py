"""The repository extension of the protocol as the TCP socket offers it: to look for everyone, to change with a token.

What is loaded is decided by signed deploys and done by the supervisor over its own socket. A client that loads a model
before it uses it is answered all the same, as long as there is nothing to do. Administrators load and unload what lies
in the device's own store, and a plain load brings back what they unloaded; that is not the supervisor's doing: what it
last deployed is served again after the server's next start. What it takes away cannot be brought back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from agent.serving.errors import BadRequestError, ForbiddenError, MethodNotAllowedError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.serving.control import ControlPlane
    from agent.serving.dataplane import DataPlane
    from agent.serving.slots import Aside, Models

JsonObject = dict[str, Any]
OFFERED = ("load", "unload")
UNLOADED = "an administrator unloaded it; a load without parameters brings it back"


class ReadOnlyRepository:
    """The repository as the data plane's socket shows it.

    Args:
        plane: the models.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._models = plane.models

    async def answer(self, group: str, rest: list[str], method: str, body: bytes) -> Any:
        """Answer ``/v2/<group>/<rest>`` with a JSON value.

        Raises ``NotFoundError``, ``MethodNotAllowedError``, ``BadRequestError`` and ``ForbiddenError``.
        """
        path = "/".join(("/v2", group, *rest))
        match (group, rest):
            case ("repository", ["index"] | ["models", _, "load" | "unload"]):
                if method != "POST":
                    raise MethodNotAllowedError(method, path[:128], "POST")
            case _:
                raise NotFoundError(f"there is no route {path[:128]}")
        request = parse(body)
        if rest == ["index"]:
            return self.index(request)
        if rest[2] == "unload":
            self.unload(rest[1])
        return self.load(rest[1], is_plain=not request.get("parameters"))

    def index(self, request: JsonObject) -> list[JsonObject]:
        """Return the index without the words that failed loads left: they may name paths of this machine."""
        entries = index(self._models, request, {})
        return [{**entry, "reason": "the load failed" if entry["reason"] else ""} for entry in entries]

    def load(self, name: str, *, is_plain: bool) -> JsonObject:
        """Return the release of a model that is loaded; raises ``ForbiddenError`` for any other wish."""
        model = self._models.find(name)
        if model is None or model.active is None or not is_plain:
            raise ForbiddenError(f"model {name[:128]!r} is not loaded from here: models come with deploys, over MQTT")
        return {"release": model.active.release, "resident_bytes": model.active.network.resident_bytes}

    def unload(self, name: str) -> None:
        """Raise ``ForbiddenError``."""
        raise ForbiddenError(f"model {name[:128]!r} is not unloaded from here: models go by undeploy, over MQTT")


class Repository:
    """Answers ``/v2/repository`` with less than the supervisor may.

    Args:
        control: what changes models.
        store: the directory that artifacts are loaded from; None loads none.
    """

    def __init__(self, control: ControlPlane, store: Path | None) -> None:
        self._control = control
        self._store = store.resolve() if store is not None else None

    async def answer(self, group: str, rest: list[str], method: str, body: bytes) -> Any:
        """Answer ``/v2/<group>/<rest>``; raises what the supervisor's socket raises."""
        if rest != ["index"] and (len(rest) != 3 or rest[2] not in OFFERED):  # noqa: PLR2004 - models, name, verb
            raise NotFoundError(f"there is no route {'/'.join(('/v2', group, *rest))[:128]}")
        if method != "POST":
            return await self._control.answer(group, rest, method, body)
        if rest == ["index"]:
            return self._control.index(parse(body))
        name, parameters = rest[1], parse_parameters(parse(body))
        if rest[2] == "unload":
            return await self._control.unload(name, released(parameters), sets_aside=True)
        if "artifact" not in parameters:
            return await self._bring_back(name)
        self._confine(parameters["artifact"])
        return await self._control.answer(group, rest, method, body)

    async def _bring_back(self, name: str) -> JsonObject:
        """Load what an administrator unloaded; return what answers where nothing was."""
        aside, model = self._control.asides.get(name), self._control.models.find(name)
        if aside is None or (model is not None and model.active is not None):
            return self._loaded(name)
        return await self._control.load(name, aside.release, aside.version, aside.artifact, aside.terms, activate=True)

    def _loaded(self, name: str) -> JsonObject:
        try:
            return self._control.loaded(name)
        except NotFoundError as error:
            raise NotFoundError(f"{error}; deploy it, or name an artifact of the store in 'parameters'") from None

    def _confine(self, artifact: Any) -> None:
        if self._store is None or not isinstance(artifact, str) or "\0" in artifact:
            raise BadRequestError("parameter 'artifact' must be the path of an artifact in this device's store")
        if not Path(artifact).resolve().is_relative_to(self._store):
            raise BadRequestError("parameter 'artifact' is outside of this device's store")


def index(models: Models, request: JsonObject, asides: Mapping[str, Aside]) -> list[JsonObject]:
    """Return every release that is loaded, being loaded, failed to load last, or set aside; ``ready`` the first alone.

    Raises ``BadRequestError``.
    """
    is_ready_only = request.get("ready", False)
    if not isinstance(is_ready_only, bool):
        raise BadRequestError("'ready' must be true or false")
    entries: list[JsonObject] = []
    for model in models:
        for slot in model.slots.values():
            is_active = slot is model.active
            entries.append(_entry(model.name, slot.version, "READY", "", slot.release, active=is_active))
        if model.loading is not None:
            release, version = model.loading
            entries.append(_entry(model.name, version, "LOADING", "", release))
        if model.failure is not None:
            release, version, reason = model.failure
            entries.append(_entry(model.name, version, "UNAVAILABLE", reason, release))
    gone = {name: aside for name, aside in asides.items() if models.find(name) is None}
    entries += [_entry(name, it.version, "UNAVAILABLE", UNLOADED, it.release) for name, it in gone.items()]
    return [entry for entry in entries if entry["state"] == "READY" or not is_ready_only]


def parse(body: bytes) -> JsonObject:
    """Read a request's object, which may be left out; raises ``BadRequestError``."""
    try:
        request = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not valid JSON: {error}") from None
    if not isinstance(request, dict):
        raise BadRequestError("the request must be a JSON object")
    return request


def parse_parameters(request: JsonObject) -> JsonObject:
    """Return the request's parameters; raises ``BadRequestError``."""
    parameters = request.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadRequestError("'parameters' must be an object")
    return parameters


def released(parameters: JsonObject) -> str | None:
    """Return which release an unload names, None for all; raises ``BadRequestError``."""
    return text_of(parameters, "release") if "release" in parameters else None


def text_of(parameters: JsonObject, key: str) -> str:
    """Return a parameter that is a text; raises ``BadRequestError``."""
    value = parameters.get(key)
    if not isinstance(value, str) or not value:
        raise BadRequestError(f"parameter {key!r} must be a string that is not empty")
    return value


def _entry(name: str, version: str, state: str, reason: str, release: str, *, active: bool = False) -> JsonObject:
    parameters = {"release": release, "active": active}
    return {"name": name, "version": version, "state": state, "reason": reason, "parameters": parameters}
