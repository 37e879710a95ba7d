"""Directories that a power cut does not take away, and that one process has for itself.

A name is durable once the directory that holds it was synchronised: fsync(2) of a file says nothing of the names that
lead to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import IO, TYPE_CHECKING

import structlog

from agent.failpoints import around

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger("directories")


class TakenError(Exception):
    """Another process has the directory; the text says which, as far as it is known."""


def claim(lock: Path) -> IO[str] | None:
    """Take what ``lock`` stands for until the file that is returned is closed, or the process ends, however it does.

    Return None on a file system that knows no locks: one process alone is safe there as well.

    Raises:
        TakenError: another process has it.
        OSError: the file cannot be written.
    """
    file = lock.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            holder = file.read(32).strip()
        raise TakenError(f"process {holder}" if holder.isdecimal() else "another process") from None
    except OSError as error:
        file.close()
        log.warning("directory_not_locked", path=str(lock), error=str(error))
        return None
    _write_own_number(file)
    return file


def _write_own_number(file: IO[str]) -> None:
    """Leave word for people; a disk that is full keeps it from nobody but them."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()


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
