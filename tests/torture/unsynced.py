"""What shows that a campaign of power cuts can fail: fsyncs of the agent that are left out, in its own processes."""

from __future__ import annotations

import functools
import os
import sqlite3
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("journal", "files", "folders")


class _Careless(sqlite3.Connection):
    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), *arguments)


def leave_out(kinds: str) -> None:
    """Leave fsyncs out in this process from now on.

    Args:
        kinds: which, with commas between them: the ``journal``'s own, those of other ``files``, those of ``folders``.
    """
    left_out = set(kinds.split(",")) - {""}
    if unknown := left_out - set(KINDS):
        raise ValueError(f"{', '.join(unknown)}: only {', '.join(KINDS)} can be left out")
    if "journal" in left_out:
        sqlite3.connect = functools.partial(sqlite3.connect, factory=_Careless)  # type: ignore[assignment]
    if left_out - {"journal"}:
        for name in ("fsync", "fdatasync"):
            setattr(os, name, _unless(left_out, getattr(os, name)))


def _unless(left_out: set[str], sync: Callable[[Any], None]) -> Callable[[Any], None]:
    def chosen(file: Any) -> None:
        kind = "folders" if stat.S_ISDIR(os.fstat(file).st_mode) else "files"
        if kind not in left_out:
            sync(file)

    return chosen
