"""Logging: one structlog chain for the agent and the libraries below it; JSON lines, or colours on a terminal.

Secrets never pass: every URL-shaped value loses user, password and query, keys lose their content, and values under
telling names are masked.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any

import structlog

from agent.contract.secrets import redacted

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from agent.logbook import Logbook

_SECRET_NAME = re.compile(r"password|secret|token|authorization|api_?key|private", re.IGNORECASE)


def redact(value: Any) -> Any:
    """Return ``value`` with the secret parts of every URL in it removed, however deep."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, BaseException):
        return redact(str(value))  # the renderer would print it whole
    if isinstance(value, dict):
        return {key: "***" if _SECRET_NAME.search(str(key)) else redact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value


def set_up(level: str = "info", style: str = "auto", *, book: Logbook | None = None, **bound: Any) -> None:
    """Configure logging for this process.

    Args:
        level: lowest level that is written.
        style: ``json``, ``console`` or ``auto``: colours on a terminal, else JSON.
        book: keeps what was written, too.
        bound: fields that every line carries.
    """
    console = style == "console" or (style == "auto" and sys.stderr.isatty())

    def bind(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**bound, **event}  # not context variables: those belong to one thread

    def keep(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if book is not None:
            book.write({name: value for name, value in event.items() if not name.startswith("_")})
        return event

    shared: list[Any] = [
        bind,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
        structlog.processors.format_exc_info,
        _redact_event,
        keep,
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(default=str)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return redact(dict(event))  # type: ignore[no-any-return]
