"""A real control group for memory, version 2 or 1, and a process in it that holds as much as it is told."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20
ROOT = Path("/sys/fs/cgroup")
VARIABLE = "FAULTS_CGROUP"
"""Names the folder of the group that ``tests.faults.grouped_agent`` enters."""
TOLERANCE = 2 * MIB
SETTLE_S = 60.0
LOOK_S, QUIET_LOOKS = 0.25, 12
_BALLAST = """
import pathlib, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text("0")
held = []
for line in sys.stdin:
    wanted = int(line)
    while len(held) > wanted:
        held.pop()
    while len(held) < wanted:
        held.append(bytearray(b"x") * 2**18)
    print(len(held), flush=True)
"""
PIECE = 2**18


class Group:
    """A group below this process's own, so that every limit above it still holds; empty when it is closed."""

    def __init__(self, name: str) -> None:
        self._is_v2 = (ROOT / "cgroup.controllers").exists()
        own = {line.split(":")[1]: line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
        parent = ROOT / own[""].lstrip("/") if self._is_v2 else ROOT / "memory" / own["memory"].lstrip("/")
        self.folder = parent / f"{name}-{os.getpid()}"
        self.folder.mkdir()
        names = ("memory.max", "memory.current") if self._is_v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        self._limit, self._usage = (self.folder / each for each in names)
        if not self._limit.exists():
            self.folder.rmdir()
            raise OSError(f"{self._limit} does not come with a group")

    @property
    def used_bytes(self) -> int:
        """What the group cannot give back: all but the file pages that nobody used lately."""
        rows = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        free_again = int(rows["inactive_file" if self._is_v2 else "total_inactive_file"])
        return int(self._usage.read_text()) - free_again

    @property
    def all_bytes(self) -> int:
        """What the group holds altogether."""
        return int(self._usage.read_text())

    def limit(self, limit_bytes: int | None) -> None:
        """Set the limit, or lift it."""
        none = "max" if self._is_v2 else "-1"
        self._limit.write_text(none if limit_bytes is None else str(limit_bytes))

    def close(self) -> None:
        """Remove the group once all in it have ended."""
        deadline = time.monotonic() + SETTLE_S
        while (self.folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.folder.rmdir()


class Ballast:
    """A process in a group that holds memory."""

    def __init__(self, group: Group) -> None:
        self._group = group
        command = [sys.executable, "-c", _BALLAST, str(group.folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.held_bytes = 0

    def hold(self, wanted_bytes: int) -> None:
        """Hold that much; returns when it does, or when the kernel has ended it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{max(0, wanted_bytes) // PIECE}\n")
            self._process.stdin.flush()
        self.held_bytes = int(self._process.stdout.readline() or 0) * PIECE

    def leave(self, limit_bytes: int, left_bytes: int) -> None:
        """Hold so much that the group's members are left ``left_bytes`` of ``limit_bytes``, and go on being left it.

        What was done a moment ago still frees memory: a release that is unloaded, a builder that ends.
        """
        deadline, quiet = time.monotonic() + SETTLE_S, 0
        while quiet < QUIET_LOOKS:
            apart = limit_bytes - self._group.used_bytes - left_bytes
            if abs(apart) > TOLERANCE:
                assert time.monotonic() < deadline, f"{apart} bytes apart"
                self.hold(self.held_bytes + apart)
                quiet = 0
            time.sleep(LOOK_S)
            quiet += 1

    def close(self) -> None:
        """End it."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def group_or_skip(name: str) -> Iterator[Group]:
    """Yield a group; where the system allows none the test is skipped, visibly."""
    try:
        group = Group(name)
    except (OSError, KeyError) as error:
        pytest.skip(f"no control group for memory can be made here: {error}")
    yield group
    group.close()
