"""The status site, put together from the configuration and the parts of the supervisor that it speaks to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent import parts
from agent.health.access import PageAccess
from agent.health.acting import Acting
from agent.health.handler import Offer
from agent.health.trying import Trying
from agent.health.web import StatusSite
from agent.tokens import TokenFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.contract.reports import Report
    from agent.deployment.intake import CommandMessage
    from agent.deployment.ports import Transport
    from agent.health.board import Board
    from agent.health.trying import World
    from agent.settings import Settings


class OverheardTransport:
    """A transport whose reports somebody else hears as well, before they may be lost on their way out.

    Args:
        transport: sends them.
        hear: takes each; must neither block nor raise.
    """

    def __init__(self, transport: Transport, hear: Callable[[Report], None]) -> None:
        self._transport = transport
        self._hear = hear

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there now."""
        return self._transport.is_connected

    @property
    def connection(self) -> int | None:
        """Number of the connection that stands, None without one."""
        return self._transport.connection

    def publish(self, report: Report) -> None:
        """Send a report that may be lost."""
        self._hear(report)
        self._transport.publish(report)

    def flush(self) -> None:
        """Send what the outbox holds; of that the journal has told."""
        self._transport.flush()

    def overhear_no_more(self) -> None:
        """Have the broker no longer tell this device's own operations."""
        self._transport.overhear_no_more()


def access(settings: Settings) -> PageAccess:
    """Return who may do more than look.

    A model is asked without a token where it is on the inference port too, from as far away as the page is reached.

    Raises:
        StartError: the file of the page's tokens cannot be used.
    """
    status, serving = settings.status, settings.serving
    parts.check_tokens("status.token_file", status.token_file)
    is_open = serving.token_file is None and (status.is_local or serving.allow_anonymous)
    return PageAccess(_tokens(status.token_file), _tokens(serving.token_file), is_open=is_open)


def make(
    settings: Settings,
    status: Callable[[], dict[str, Any]],
    *,
    access: PageAccess,
    board: Board,
    world: World,
    post: Callable[[CommandMessage], None],
) -> StatusSite | None:
    """Return the site, None where it is off.

    Raises:
        StartError: its port is taken.
    """
    own = settings.status
    if not own.enabled:
        return None
    offer = Offer(
        access=access,
        board=board,
        trying=Trying(world),
        acting=Acting(post),
        names=frozenset(name.lower() for name in own.allowed_hosts),
    )
    try:
        return StatusSite(own.host, own.port, status, offer)
    except OSError as error:
        raise parts.StartError(
            f"status.port {own.port} on {own.host}: {error.strerror}; choose another status.port"
        ) from None


def _tokens(path: Path | None) -> TokenFile | None:
    return None if path is None else TokenFile(path)
