"""Who may do more than look: asking a model needs what inference needs, a command needs a token of the page's own."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from agent.health.refusals import RefusedError

if TYPE_CHECKING:
    from agent.tokens import TokenFile

_SCHEME = "bearer "
_NO_TOKEN = "no token was sent: unlock the page with one, or send Authorization: Bearer TOKEN; good are those of"  # noqa: S105 - a sentence


@dataclass(frozen=True)
class Rights:
    """What a request may do besides looking: ask models, give commands."""

    ask: bool
    command: bool


class PageAccess:
    """Judges the ``Authorization`` header of a request.

    Args:
        own: tokens for everything; None keeps commands away altogether.
        inference: tokens that are good for asking a model.
        is_open: whether a model may be asked without a token, as on the inference port.
    """

    def __init__(
        self, own: TokenFile | None = None, inference: TokenFile | None = None, *, is_open: bool = False
    ) -> None:
        self._own = own
        self._inference = inference
        self._is_open = is_open

    def to_json(self) -> dict[str, str]:
        """Return what needs a token: ``open``, ``token`` or ``off`` for ``ask`` and ``command``."""
        has_tokens = self._own is not None or self._inference is not None
        ask = "open" if self._is_open else "token" if has_tokens else "off"
        return {"ask": ask, "command": "off" if self._own is None else "token"}

    def rights(self, authorization: str | None) -> Rights:
        """Return what a request with that header may do; raises ``RefusedError`` for a token that is not known."""
        if authorization is None:
            return Rights(self._is_open, command=False)
        token = authorization[len(_SCHEME) :].strip().encode("latin-1", "replace")
        is_bearer = authorization[: len(_SCHEME)].lower() == _SCHEME
        # Both files are asked, so that the time of an answer does not tell which one knows a token.
        known = [is_bearer and file is not None and file.accepts(token) for file in (self._own, self._inference)]
        if not any(known):
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "the token that was sent is not known here")
        return Rights(ask=True, command=known[0])

    def may_ask(self, authorization: str | None) -> None:
        """Let a question to a model pass; raises ``RefusedError``."""
        if not self._is_open and self._own is None and self._inference is None:
            raise RefusedError(
                HTTPStatus.FORBIDDEN, "models are not asked from here: set status.token_file, or serving.token_file"
            )
        if not self.rights(authorization).ask:
            files = "status.token_file or serving.token_file"
            raise RefusedError(HTTPStatus.UNAUTHORIZED, f"{_NO_TOKEN} {files}")

    def may_command(self, authorization: str | None) -> None:
        """Let a command pass; raises ``RefusedError``."""
        if self._own is None:
            raise RefusedError(HTTPStatus.FORBIDDEN, "this page only shows: set status.token_file to change something")
        if authorization is None:
            raise RefusedError(HTTPStatus.UNAUTHORIZED, f"{_NO_TOKEN} status.token_file")
        if not self.rights(authorization).command:
            raise RefusedError(HTTPStatus.FORBIDDEN, "this token is good for asking models, not for commands")
