"""What the transport is given: where the broker is, and what of the journal it empties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from agent.contract.reports import Report


class Outbox(Protocol):
    """What the transport needs of the journal."""

    def outbox(self, most: int = -1) -> list[tuple[int, Report]]:
        """Return what waits, oldest first."""

    def acknowledged(self, number: int) -> None:
        """Forget one."""

    def count(self, name: str) -> int:
        """Increase a persistent counter."""


@dataclass(frozen=True)
class Broker:
    """Where the broker is and how to log in."""

    host: str
    port: int
    version: str = "5"
    transport: str = "tcp"
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    use_tls: bool = False
