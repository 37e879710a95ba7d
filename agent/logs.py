"""Logging: one structlog chain for the agent and the libraries below it; JSON lines, or colours on a terminal.

Names of events are stable and listed in ``docs/events.md``. What is written for an operation has its id as ``id``.
Where stderr is the journal of systemd, each line begins with its priority (``sd-daemon(3)``), which the journal takes
off again: ``journalctl -p warning`` then shows warnings and worse.

Secrets never pass: every URL-shaped value loses user, password and query, keys lose their content, and values under
telling names are masked.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import structlog

from agent.contract.secrets import redacted
from agent.log_stream import LogStream

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from agent.logbook import Logbook

_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""``syslog(3)``."""
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
    lines: Any = LogStream(sys.stderr)
    console = style == "console" or (style == "auto" and sys.stderr.isatty())

    def bind(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # Context variables belong to one thread: they hold what it works on, not what holds for the process.
        return {**bound, **structlog.contextvars.get_contextvars(), **event}

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
    renderer: Any = structlog.dev.ConsoleRenderer() if console else _json_lines(has_priority=_is_journal())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(lines),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _json_lines(*, has_priority: bool) -> Any:
    render = structlog.processors.JSONRenderer(default=str)

    def line(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        priority = f"<{_PRIORITIES.get(str(event.get('level')), 6)}>" if has_priority else ""
        return f"{priority}{render(logger, method, event)!s}"

    return line


def _is_journal() -> bool:
    """Return whether stderr is the journal: systemd names its device and inode in ``JOURNAL_STREAM``."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # no file behind it, or closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return redact(dict(event))  # type: ignore[no-any-return]
