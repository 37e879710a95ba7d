"""Watches a child process's anonymous memory: what no file backs and only swap could take away.

Protocol: the child prints the line ``ready`` when its libraries are loaded, waits for a line on stdin, works, prints
one line of JSON and ends. What it held at ``ready`` is its base; the peak is the highest reading after that.

Readings are of ``RssAnon`` in ``/proc/<pid>/status`` (Linux 4.5), taken every five milliseconds from outside, so that
the child's own locks hide nothing. Pages of mapped files are left out: the kernel drops them when memory is short.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INTERVAL_S = 0.005
READY = "ready"


class ChildError(RuntimeError):
    """A child that ended without its result; carries its exit status and the end of what it wrote to stderr."""


@dataclass(frozen=True)
class Watched:
    """What a child reported, and the memory it took.

    Attributes:
        result: the JSON object that it printed.
        base_bytes: its anonymous memory before the work.
        peak_bytes: the most that it took over that.
    """

    result: dict[str, Any]
    base_bytes: int
    peak_bytes: int


def watch(command: Sequence[str], environment: Mapping[str, str]) -> Watched:
    """Run ``command``, which keeps to the protocol, and watch it.

    Raises:
        ChildError: it ended before its result.
    """
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,  # a pipe would have to be drained meanwhile
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        ) as child,
    ):
        watched = _follow(child)
        if watched is None:
            raise ChildError(_last_words(child, errors))
        return watched


def _follow(child: subprocess.Popen[str]) -> Watched | None:
    """Go through the protocol; None if the child ended before its result."""
    assert child.stdin and child.stdout  # noqa: S101, PT018 - both pipes were asked for
    if child.stdout.readline().strip() != READY:
        return None
    sampler = _Sampler(child.pid)
    with sampler, contextlib.suppress(BrokenPipeError):  # a child that is gone sends no result, which is told below
        child.stdin.write("go\n")
        child.stdin.flush()
        line = child.stdout.readline()
    return Watched(json.loads(line), sampler.base, sampler.highest - sampler.base) if line else None


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process, 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class _Sampler:
    """Reads in a thread for as long as it is entered; ``highest`` is the highest reading, ``base`` the first."""

    def __init__(self, pid: int) -> None:
        self.base = self.highest = anonymous_bytes(pid)
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _read(self) -> None:
        is_over = False
        while not is_over:  # one reading more than asked for: a child waits with its result until it is read
            is_over = self._is_over.wait(INTERVAL_S)
            self.highest = max(self.highest, anonymous_bytes(self._pid))


def _last_words(child: subprocess.Popen[str], errors: TextIO) -> str:
    """Wait for the child's end and return a sentence on it."""
    assert child.stdin  # noqa: S101 - a pipe was asked for
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    child.wait()
    errors.seek(0)
    told = "".join(errors.readlines()[-5:]).strip() or "nothing on stderr"
    return f"the child ended with status {child.returncode} and no result: {told}"
