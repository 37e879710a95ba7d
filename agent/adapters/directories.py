"""Directories that a power cut does not take away: a name is durable once the directory that holds it was synchronised.

fsync(2) of a file says nothing of the names that lead to it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog

from agent.failpoints import around

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger("directories")


def make(path: Path, mode: int = 0o777) -> None:
    """Make a directory and what is missing above it, durably; one that is there is left as it is.

    A directory that cannot be synchronised costs a line in the log: only a power cut would show it.

    Raises:
        OSError: it cannot be made.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    for each in missing:
        _keep_names(each.parent)


def _keep_names(directory: Path) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with around("directory.fsync"):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("directory_not_synced", path=str(directory), error=str(error))
