"""Where lines of a log go: to a stream that loses what cannot be written, instead of failing whoever writes.

A full disk, or a reader that is gone, must not end what the log tells of.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO


class LogStream:
    """A text stream for loggers.

    Args:
        stream: what is written to, line by line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text``, or lose it."""
        with contextlib.suppress(OSError, ValueError):  # the latter from a stream that is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits, or lose it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
