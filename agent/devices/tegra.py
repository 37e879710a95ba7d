"""What a Jetson says of itself in the file system; None for each figure on other machines.

Paths as NVIDIA's L4T lays them out: the device tree's model, ``/etc/nv_tegra_release``, the nvpmodel status file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.devices.system import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Board:
    """A board's own words.

    Attributes:
        model: from the device tree, e.g. ``NVIDIA Jetson Orin Nano Developer Kit``.
        l4t: release of the Linux for Tegra, e.g. ``36.4.7``.
        power_mode: id of the nvpmodel power mode, e.g. ``0000``.
    """

    model: str | None
    l4t: str | None
    power_mode: str | None


def read(root: Path = ROOT) -> Board:
    """Return what can be read without root rights."""
    return Board(_model(root), _l4t(root), _power_mode(root))


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Return degrees Celsius by thermal zone; a sensor that is powered off is left out."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, value = _read(zone / "type"), _read(zone / "temp")
        if kind and value and value.lstrip("-").isdigit():
            found[kind] = int(value) / 1000
    return found


def _model(root: Path) -> str | None:
    text = _read(root / "sys/firmware/devicetree/base/model")
    return text.rstrip("\0") if text else None


def _l4t(root: Path) -> str | None:
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _read(root / "etc/nv_tegra_release") or "")
    return f"{match[1]}.{match[2]}" if match else None


def _power_mode(root: Path) -> str | None:
    match = re.search(r"pmode:(\w+)", _read(root / "var/lib/nvpmodel/status") or "")
    return match[1] if match else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
