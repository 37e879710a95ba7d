"""A program on a terminal: what it draws, and keys that are pressed."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess

from tests.e2e.harness.device import ROOT


class Terminal:
    """A program on a terminal of its own.

    Args:
        command: the program and its arguments.
        columns, lines: how large the terminal is.
    """

    def __init__(self, command: list[str], columns: int = 120, lines: int = 12) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": str(lines)}
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.seen = b""

    def until(self, words: bytes, since: int = 0) -> None:
        """Read until words stand there, behind what was read up to ``since``."""
        while words not in self.seen[since:]:
            ready, _, _ = select.select([self._ours], [], [], 60.0)
            assert ready, f"{words!r} did not come: {self.seen!r}"
            self.seen += os.read(self._ours, 4096)

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._ours, key)

    def end(self) -> int:
        """Return the exit status; what is still drawn is read meanwhile."""
        while self.process.poll() is None:
            if select.select([self._ours], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # EIO: the other end is closed
                    os.read(self._ours, 4096)
        return self.process.returncode

    def close(self) -> None:
        """Kill what still runs."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
