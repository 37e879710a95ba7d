"""Who may ask what on the sockets that strangers reach: bearer tokens, renewed without a restart.

Health is told to everyone: whoever watches the box needs it, and it says no more than whether the server answers.
Everything else needs a token of the inference's file or of the administrator's, the repository one of the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.serving.errors import UnauthorizedError, WeakTokenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.tokens import TokenFile

_SCHEME = b"bearer "


class Access:
    """What a request needs to be answered.

    Args:
        users: None lets everyone ask for inference.
        administrators: None keeps the repository's routes away altogether.
    """

    def __init__(self, users: TokenFile | None = None, administrators: TokenFile | None = None) -> None:
        self._users = users
        self._administrators = administrators

    @property
    def covers_inference(self) -> bool:
        """Whether inference needs a token, too."""
        return self._users is not None

    def check(self, route: list[str], headers: Mapping[bytes, bytes]) -> None:
        """Let a request over HTTP pass; raises as ``admit`` does."""
        if route[:2] != ["v2", "health"]:
            self.admit(headers.get(b"authorization", b""), is_change=route[:2] == ["v2", "repository"])

    def admit(self, authorization: bytes, *, is_change: bool = False) -> None:
        """Let whoever brings this header, or metadata, of authorization pass.

        Args:
            authorization: ``Bearer TOKEN``; empty for none.
            is_change: whether the repository is asked.

        Raises:
            UnauthorizedError: a token is needed, and there is none or a wrong one.
            WeakTokenError: the token is good for inference only.
        """
        is_change = is_change and self._administrators is not None
        if self._users is None and not is_change:
            return
        tokens = f"a token of the device's serving.{'admin_token_file' if is_change else 'token_file'}"
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            sent = "the Authorization header is none of a bearer token" if authorization else "no token was sent"
            raise UnauthorizedError(f"{sent}; send Authorization: Bearer TOKEN, with {tokens}")
        token = authorization[len(_SCHEME) :].strip()
        if self._administrators is not None and self._administrators.accepts(token):
            return
        if self._users is None or not self._users.accepts(token):
            raise UnauthorizedError(f"the token that was sent is not known here; send {tokens}", is_wrong=True)
        if is_change:
            raise WeakTokenError("this token is good for inference, the repository needs an administrator's")
