"""A disk that forgets what was not synchronised when its power is cut, mounted by FUSE; see `volatile_tree`.

The idea is LazyFS's. Needs root, /dev/fuse, libfuse (Debian: libfuse3-3) and mfusepy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.torture.volatile_tree import Lost, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SIZE = 1 << 30
END_S = 20.0


class VolatileDisk:
    """The disk, mounted at ``path`` until it is closed.

    Args:
        path: where; made if need be.
        size: bytes.

    Raises:
        OSError: it could not be mounted.
    """

    def __init__(self, path: Path, size: int = SIZE) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.volatile_fuse", str(path), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._answer()

    def freeze(self) -> None:
        """Let no call return any more: the moment of the power cut. Who waits for one ends by SIGKILL after ``cut``."""
        self._order(do="freeze")

    def cut(self, way: Way = Way.STRICT, seed: str = "") -> Lost:
        """Cut the power and switch it on again: the same path has what is durable, and whoever had it open, errors.

        Args:
            way: what survives of the unsynchronised.
            seed: draws what.

        Returns:
            What was lost.
        """
        return Lost(**self._order(do="cut", way=str(way), seed=seed))

    def close(self) -> None:
        """Unmount it; all that was on it is gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        finally:
            self._process.kill()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _order(self, **order: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"the volatile disk at {self.path} ended with status {self._process.wait(END_S)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def require_disk() -> None:
    """Skip the test, visibly, where the system allows no such disk; fail it where CI did not install what it needs."""
    if reason := why_never():
        pytest.skip(f"there can be no disk that forgets here: {reason}")
    if reason := why_not():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def disk_or_skip(path: Path, size: int = SIZE) -> Iterator[VolatileDisk]:
    """Yield a disk, as ``require_disk`` allows."""
    require_disk()
    disk = VolatileDisk(path, size)
    try:
        yield disk
    finally:
        disk.close()


def why_never() -> str | None:
    """Return why the system allows no such disk, None where it does."""
    if os.geteuid() != 0:
        return "only root may mount"
    return None if Path("/dev/fuse").exists() else "there is no /dev/fuse"


def why_not() -> str | None:
    """Return what there is to install for such a disk, None where nothing is missing."""
    if not (find_library("fuse3") or find_library("fuse")):
        return "libfuse is not installed (Debian: libfuse3-3)"
    if find_spec("mfusepy") is None:
        return "mfusepy is not installed (pip install 'nibbled[dev]')"
    return None
