"""What a request to the page can be refused for. Values only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from http import HTTPStatus


class RefusedError(Exception):
    """A request that gets an error instead of what it asks for.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
