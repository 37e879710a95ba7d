"""The device files by which a process reaches the GPU, and whether this one may open them.

On a Jetson they belong to the groups ``video`` and ``render``; a file that exists proves nothing.
"""

from __future__ import annotations

import grp
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.devices import files
from agent.devices.system import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PATTERNS = ("nvidia[0-9]*", "nvidiactl", "nvmap", "nvhost-ctrl-gpu", "nvgpu/igpu0/ctrl", "dri/renderD*")


@dataclass(frozen=True)
class Node:
    """One device file: its path, the group it belongs to, and whether this process may open it."""

    path: str
    group: str
    is_open: bool


def read(root: Path = ROOT, may: Callable[[Path, int], bool] = os.access) -> list[Node]:
    """Return the GPU's device files. Never raises.

    Args:
        root: of the file system.
        may: returns whether this process may open a path in a mode of ``access(2)``.
    """
    paths = [path for pattern in _PATTERNS for path in files.entries(root / "dev", pattern)]
    return [Node(f"/{path.relative_to(root)}", _group(path), may(path, os.R_OK)) for path in paths]


def _group(path: Path) -> str:
    try:
        number = path.stat().st_gid
    except OSError:
        return "unknown"
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
