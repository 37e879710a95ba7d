"""What a board says of itself in the file system, without root rights; None for each figure that it does not tell.

Paths as NVIDIA's L4T lays them out: the device tree, ``/etc/nv_tegra_release``, the status file and the table of
``nvpmodel``. A machine with firmware tables instead of a device tree tells its model in DMI.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.devices import files, hardware
from agent.devices.figure import Figure, first
from agent.devices.system import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DEVICE_TREES = ("sys/firmware/devicetree/base", "proc/device-tree")


@dataclass(frozen=True)
class Board:
    """A board's own words.

    Attributes:
        model: e.g. ``NVIDIA Jetson Orin Nano Developer Kit``.
        module: what the tables know of it, None for a board that they do not list.
        l4t: release of the Linux for Tegra, e.g. ``36.4.7``.
        jetpack: the JetPack that came with it, e.g. ``6.2.1``; ``6`` where only the family is known.
        power_mode: id of the nvpmodel power mode as it is written, e.g. ``0001``.
        power_mode_name: its name, e.g. ``25W``.
        kernel: release of the kernel; ``-tegra`` at its end is NVIDIA's own.
        sources: who told each figure that is known: ``devicetree``, ``dmi``, ``nv_tegra_release``, ``dpkg``,
            ``nvpmodel``, ``proc`` or ``table``.
    """

    model: str | None = None
    module: hardware.Module | None = None
    l4t: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    power_mode_name: str | None = None
    kernel: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def bandwidth_gb_s(self) -> float | None:
        """Memory bandwidth of the module in its power mode, in 10^9 bytes a second."""
        if self.module is None:
            return None
        is_super = "SUPER" in (self.power_mode_name or "")
        return self.module.super_gb_s if is_super and self.module.super_gb_s else self.module.bandwidth_gb_s


def read(root: Path = ROOT) -> Board:
    """Return what the board at ``root`` says of itself. Never raises."""
    model = first(("devicetree", _devicetree(root, "model")), ("dmi", _dmi(root)))
    module = hardware.module(_devicetree(root, "compatible"), model.value)
    l4t = _l4t(root)
    jetpack = hardware.jetpack(l4t.value)
    mode = _power_mode(root)
    name = _power_mode_name(root, mode)
    kernel = files.text(root / "proc/sys/kernel/osrelease")
    told = {
        "model": model.source,
        "module": module and "table",
        "l4t": l4t.source,
        "jetpack": jetpack and "table",
        "power_mode": mode and "nvpmodel",
        "power_mode_name": name and "nvpmodel",
        "kernel": kernel and "proc",
    }
    sources = {figure: source for figure, source in told.items() if isinstance(source, str)}
    return Board(model.value, module, l4t.value, jetpack, mode, name, kernel, sources)


def _devicetree(root: Path, name: str) -> str | None:
    found = files.first_text(root / tree / name for tree in _DEVICE_TREES)
    return found.replace("\0", " ") if found else None


def _dmi(root: Path) -> str | None:
    folder = root / "sys/class/dmi/id"
    product, vendor = files.text(folder / "product_name"), files.text(folder / "sys_vendor")
    if product is None or vendor is None or product.lower().startswith(vendor.lower()):
        return product
    return f"{vendor} {product}"


def _l4t(root: Path) -> Figure[str]:
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", files.text(root / "etc/nv_tegra_release") or "")
    return first(("nv_tegra_release", f"{match[1]}.{match[2]}" if match else None), ("dpkg", _dpkg_l4t(root)))


def _dpkg_l4t(root: Path) -> str | None:
    """Return the version of the package that every L4T has; the list is long, so it is read once per change."""
    path = root / "var/lib/dpkg/status"
    try:
        return _find_l4t(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=4)
def _find_l4t(path: Path, changed_ns: int) -> str | None:
    del changed_ns  # part of the key only
    with path.open(encoding="utf-8", errors="replace") as lines:
        is_here = False
        for line in lines:
            if line.startswith("Package: "):
                is_here = line.split()[1:] == ["nvidia-l4t-core"]
            elif is_here and line.startswith("Version: "):
                return line.split()[1].partition("-")[0]
    return None


def _power_mode(root: Path) -> str | None:
    match = re.search(r"pmode:(\w+)", files.text(root / "var/lib/nvpmodel/status") or "")
    return match[1] if match else None


def _power_mode_name(root: Path, mode: str | None) -> str | None:
    """Return the name that ``< POWER_MODEL ID=1 NAME=25W >`` gives to the mode ``0001``; ids are decimal."""
    if mode is None or not mode.isdigit():
        return None
    table = files.text(root / "etc/nvpmodel.conf") or ""
    for number, name in re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)\s*>", table, re.MULTILINE):
        if int(number) == int(mode):
            return str(name)
    return None
