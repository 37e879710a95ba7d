"""The repository extension of the protocol: what is loaded, and what clients may ask of it, which is to look.

What is loaded is decided by signed deploys and done by the supervisor over its own socket. A client that loads a model
before it uses it is answered all the same, as long as there is nothing to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from agent.serving.errors import BadRequestError, ForbiddenError, MethodNotAllowedError, NotFoundError

if TYPE_CHECKING:
    from agent.serving.dataplane import DataPlane
    from agent.serving.slots import Models

JsonObject = dict[str, Any]


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
            return self.index(only_ready=bool(request.get("ready")))
        if rest[2] == "unload":
            self.unload(rest[1])
        self.load(rest[1], is_plain=not request.get("parameters"))
        return {}

    def index(self, *, only_ready: bool = False) -> list[JsonObject]:
        """Return the index without the words that failed loads left: they may name paths of this machine."""
        entries = index(self._models, {"ready": only_ready})
        return [{**entry, "reason": "the load failed" if entry["reason"] else ""} for entry in entries]

    def load(self, name: str, *, is_plain: bool) -> None:
        """Agree that a model is loaded; raises ``ForbiddenError`` when it is not, or shall be with parameters."""
        model = self._models.find(name)
        if model is None or model.active is None or not is_plain:
            raise ForbiddenError(f"model {name[:128]!r} is not loaded from here: models come with deploys, over MQTT")

    def unload(self, name: str) -> None:
        """Raise ``ForbiddenError``."""
        raise ForbiddenError(f"model {name[:128]!r} is not unloaded from here: models go by undeploy, over MQTT")


def index(models: Models, request: JsonObject) -> list[JsonObject]:
    """Return every release that is loaded, being loaded, or failed to load last; with ``ready`` the first alone."""
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
    return [entry for entry in entries if entry["state"] == "READY" or not request.get("ready")]


def parse(body: bytes) -> JsonObject:
    """Read a request's object, which may be left out; raises ``BadRequestError``."""
    try:
        request = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not valid JSON: {error}") from None
    if not isinstance(request, dict):
        raise BadRequestError("the request must be a JSON object")
    return request


def _entry(name: str, version: str, state: str, reason: str, release: str, *, active: bool = False) -> JsonObject:
    parameters = {"release": release, "active": active}
    return {"name": name, "version": version, "state": state, "reason": reason, "parameters": parameters}
