"""Copying a file of this machine, by a ``file`` URL: plain files only, with the same limits of size and disk."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING
from urllib.parse import unquote

from agent.adapters.download.pace import CHUNK
from agent.adapters.download.resume import too_large, wrong_size
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from agent.adapters.download.part import Part
    from agent.adapters.download.policy import Policy
    from agent.deployment.ports import Watch

_HERE = (None, "", "localhost")


def copy(parts: SplitResult, part: Part, size: int | None, policy: Policy, watch: Watch) -> None:
    """Copy a file into ``part``, from its beginning.

    Args:
        parts: of the URL.
        part: where to.
        size: bytes that it must have, or None.
        policy: the limits.
        watch: for progress, and for the wish to stop.

    Raises:
        StepError: ``download_failed`` or ``insufficient_disk``, with the numbers.
    """
    path = unquote(parts.path)
    if parts.hostname not in _HERE:
        raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{parts.hostname} is another machine; a file URL names none")
    try:
        with open(path, "rb", opener=_open) as source:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{path}: not a plain file")
            if size not in (None, status.st_size):
                raise wrong_size(parts.geturl(), status.st_size, size or 0)
            if status.st_size > policy.max_bytes:
                raise too_large(parts.geturl(), status.st_size, policy.max_bytes)
            part.begin(0, status.st_size, None)
            while chunk := source.read(min(CHUNK, status.st_size - part.length)):
                watch.check()
                part.write(chunk, status.st_size)
                watch.progress(part.length, status.st_size, "bytes")
    except OSError as error:
        raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{path}: {error.strerror}", retryable=True) from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer must not be waited for
