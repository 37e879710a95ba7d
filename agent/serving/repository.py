"""The repository extension for administrators: what of the supervisor's routes is offered on the TCP socket.

Index, load and unload, as the protocol has them. An artifact comes from the device's own store, whatever path is asked
for. A change made here is not the supervisor's: what it last deployed is served again after the server's next start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.serving.control import parse_body, parse_parameters
from agent.serving.errors import BadRequestError, NotFoundError

if TYPE_CHECKING:
    from agent.serving.control import ControlPlane

OFFERED = ("load", "unload")


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
        if method == "POST" and rest[2:] == ["load"]:
            parameters = parse_parameters(parse_body(body))
            if "artifact" not in parameters:
                return self._control.loaded(rest[1])
            self._confine(parameters["artifact"])
        return await self._control.answer(group, rest, method, body)

    def _confine(self, artifact: Any) -> None:
        if self._store is None or not isinstance(artifact, str) or "\0" in artifact:
            raise BadRequestError("parameter 'artifact' must be the path of an artifact in this device's store")
        if not Path(artifact).resolve().is_relative_to(self._store):
            raise BadRequestError("parameter 'artifact' is outside of this device's store")
