"""The last lines of the log, for whoever asks from afar: bounded in memory, and on disk for the time after a crash.

What comes here has passed the redaction of `agent.logs`. The file is flushed and not synced: it survives the process,
and after a power cut whatever the disk had. A disk that is full or gone costs the file, never a line in memory.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

JsonObject = dict[str, Any]
MEMORY_BYTES = 512 * 1024
FILE_BYTES = 512 * 1024
MAX_LINE_BYTES = 8 * 1024
"""A longer line keeps its beginning: one traceback must not push out all else, nor break the bound of a report."""


class Logbook:
    """Keeps log entries.

    Threads: any.

    Args:
        memory_bytes: how much is kept here; the oldest lines go first.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._lines: deque[tuple[str, str]] = deque()
        self._bytes = 0
        self._file: _QuietFile | None = None
        self._lock = threading.Lock()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Keep one entry; ``timestamp`` is its time as RFC 3339 in UTC."""
        line = json.dumps(entry, default=str)
        if len(line) > MAX_LINE_BYTES:
            told = {name: str(entry[name])[:200] for name in ("timestamp", "level", "event") if name in entry}
            line = json.dumps({**told, "cut": line[: MAX_LINE_BYTES // 2]})
        with self._lock:
            self._add(str(entry.get("timestamp", "")), line)
            if self._file is not None:
                self._file.write(line)

    def keep_in(self, path: Path, file_bytes: int = FILE_BYTES) -> None:
        """Also write to ``path`` from now on, and take up what earlier runs left there.

        Two files of at most ``file_bytes`` each: the current one and the one before it.
        """
        survived = [line for file in (path.with_name(path.name + ".1"), path) for line in _read(file)]
        with self._lock:
            own = list(self._lines)
            self._lines.clear()
            self._bytes = 0
            for line in survived:
                self._add(_timestamp(line), line)
            for timestamp, line in own:
                self._add(timestamp, line)
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
                self._file = _QuietFile(path, file_bytes)
            except OSError:
                self._file = None
            else:
                for _, line in own:
                    self._file.write(line)

    def recent(self, since: datetime | None, max_bytes: int) -> tuple[list[JsonObject], bool]:
        """Return the newest entries in order, and whether older ones had to be left out.

        Args:
            since: none before this time; None for all.
            max_bytes: of all lines together.
        """
        with self._lock:
            lines = list(self._lines)
        earliest = "" if since is None else _utc(since)
        wanted = [line for timestamp, line in lines if timestamp >= earliest]
        left, first = max_bytes, len(wanted)
        while first > 0 and len(wanted[first - 1]) <= left:
            first -= 1
            left -= len(wanted[first])
        return [json.loads(line) for line in wanted[first:]], first > 0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _add(self, timestamp: str, line: str) -> None:
        self._lines.append((timestamp, line))
        self._bytes += len(line)
        while self._bytes > self._memory_bytes:
            self._bytes -= len(self._lines.popleft()[1])


class _QuietFile(RotatingFileHandler):
    """A rotating file whose failures are nobody's business: the same lines are in memory and on stderr."""

    def __init__(self, path: Path, file_bytes: int) -> None:
        super().__init__(path, maxBytes=file_bytes, backupCount=1, encoding="utf-8")

    def write(self, line: str) -> None:
        self.emit(logging.LogRecord("", logging.INFO, "", 0, line, None, None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's spelling
        del record


def _read(path: Path) -> list[str]:
    """Return the whole JSON lines of a file; a power cut may have spoilt some."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if _timestamp(line)]


def _timestamp(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return ""
    return str(entry.get("timestamp", "")) if isinstance(entry, dict) else ""


def _utc(moment: datetime) -> str:
    """Return a time as structlog writes it, so that texts compare as times do."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
