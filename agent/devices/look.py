"""One look at the whole box. Nothing here raises but for main memory, and nobody waits for a driver that hangs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from agent.devices import memory, sensors, tegra
from agent.devices.bounded import DEADLINE_S, Bounded
from agent.devices.chain import Snapshot
from agent.devices.nvml import Nvml
from agent.devices.sensors import Readings
from agent.devices.system import ROOT
from agent.devices.tegra import Board

if TYPE_CHECKING:
    from pathlib import Path


class Look:
    """Looks at a box, again and again.

    Args:
        root: of its file system.
        nvml: its NVML.
        deadline_s: seconds to wait for the files at most; a sensor's driver may hang as well.
    """

    def __init__(self, root: Path = ROOT, nvml: Nvml | None = None, *, deadline_s: float = DEADLINE_S) -> None:
        self._root = root
        self._nvml = nvml or Nvml()
        self._files = Bounded(self._read_files, name="sysfs", deadline_s=deadline_s)

    def __call__(self) -> Snapshot:
        """Return the box as it is now.

        Raises:
            MemoryUnknownError: ``/proc/meminfo`` is missing or malformed.
        """
        files, word = self._files.ask()
        board, readings = files or (Board(), Readings())
        gpu, gpu_source = self._nvml.read()
        return Snapshot(memory.read(self._root), gpu, gpu_source, board, readings, word)

    def _read_files(self) -> tuple[Board, Readings]:
        return tegra.read(self._root), sensors.read(self._root)


def snapshot(root: Path = ROOT) -> Snapshot:
    """Look at the box now."""
    return _looks(root)()


@functools.lru_cache(maxsize=8)
def _looks(root: Path) -> Look:
    """Return the one who looks at ``root``: it remembers what hangs."""
    return Look(root)
