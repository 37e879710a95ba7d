"""Callbacks from which no error may come out: it would end a library's thread, or what the engine was about to do."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger("mqtt")
Arguments = ParamSpec("Arguments")


def survived(work: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Return ``work`` with its errors logged and gone; only for what is done again anyway."""

    @functools.wraps(work)
    def guarded(*arguments: Arguments.args, **named: Arguments.kwargs) -> None:
        try:
            work(*arguments, **named)
        except Exception:
            log.exception("callback_failed", at=work.__name__)

    return guarded
