"""Commands of the page. They enter the engine as those from the broker do, and are judged there."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING

from agent.contract.errors import RefusalError
from agent.contract.wire import JsonObject, dump, parse_object
from agent.deployment.intake import CommandMessage
from agent.health.refusals import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_WAITING = 16
ORIGIN = "page"
"""``origin`` of its commands: who gives them has shown a token, and signs nothing."""
OFFERED = {"set_method": ("model", "method"), "rollback": ("model",)}
"""The commands that a person at the page may give, with the fields that are taken over."""


class Acting:
    """Hands commands over, few at a time: those that the journal does not hold yet wait in memory.

    Args:
        post: takes a command from any thread, as from the broker.
    """

    def __init__(self, post: Callable[[CommandMessage], None]) -> None:
        self._post = post
        self._waiting: set[str] = set()

    def command(self, name: str, payload: bytes) -> str:
        """Send a command and return its operation's id; what becomes of it is told by the operation.

        Raises:
            RefusedError: it is none that is offered, or no JSON object, or too many wait.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{len(self._waiting)} commands of this page wait already"
            )
        if name not in OFFERED:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"no command {name[:64]!r} here; offered: {', '.join(OFFERED)}")
        try:
            asked = parse_object(payload)
        except RefusalError as refusal:
            raise RefusedError(HTTPStatus.BAD_REQUEST, refusal.detail) from None
        operation_id = f"page-{uuid.uuid4().hex[:8]}"
        fields = {field: asked[field] for field in OFFERED[name] if field in asked}
        body: JsonObject = {"schema": 1, "id": operation_id, **fields}
        self._waiting.add(operation_id)
        self._post(
            CommandMessage(name, dump(body), acknowledge=lambda: self._waiting.discard(operation_id), origin=ORIGIN)
        )
        return operation_id
