"""What the kernel measures of a board: GPU load and clock, temperatures, power rails. None where a sensor is silent.

Paths: ``/sys/class/devfreq`` (the GPU by its name in the device tree; ``gpu-gpc-0`` on Thor, which tells no load),
``/sys/class/thermal``, and the INA3221 power monitors below ``/sys/bus/i2c`` (``hwmon`` from JetPack 5, ``iio`` on
JetPack 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.devices import files
from agent.devices.system import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_GPU_NODES = frozenset({"gv11b", "gp10b", "ga10b", "gb10b", "gpu"})
_GPU_DEVFREQ = "gpu-gpc-0"
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails through which everything flows. A board without one has no total here: its other rails overlap or leave out."""
_SHUNT_SUM = 7
"""Channel of an INA3221 that adds up the shunts and measures no rail."""
_MAX_ZONES = 32
"""Servers have hundreds of thermal zones; a report has to stay small."""


@dataclass(frozen=True)
class Readings:
    """One reading of everything.

    Attributes:
        gpu_node: name of the integrated GPU's node, e.g. ``ga10b``.
        gpu_load_percent: 0 to 100.
        gpu_hz, gpu_max_hz: its clock now, and the highest one that the power mode allows.
        temperatures_c: degrees Celsius by thermal zone, None for a sensor that is switched off.
        rails_w: watts by power rail, None for a rail that cannot be read.
    """

    gpu_node: str | None = None
    gpu_load_percent: float | None = None
    gpu_hz: int | None = None
    gpu_max_hz: int | None = None
    temperatures_c: Mapping[str, float | None] = field(default_factory=dict)
    rails_w: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def total_rail(self) -> str | None:
        """Name of the rail that feeds the whole board."""
        return next((name for name in _TOTAL_RAILS if name in self.rails_w), None)

    @property
    def gpu_temperature_c(self) -> float | None:
        """Temperature of the GPU's own zone (``gpu-thermal``, on JetPack 4 ``GPU-therm``)."""
        zones = (value for name, value in self.temperatures_c.items() if name.lower().startswith("gpu"))
        return next(zones, None)


def read(root: Path = ROOT) -> Readings:
    """Return what the sensors below ``root`` say. Never raises; a driver may take its time."""
    node, folder = _gpu(root)
    load = files.integer(folder / "device" / "load") if folder else None
    return Readings(
        gpu_node=node,
        gpu_load_percent=None if load is None else load / 10,
        gpu_hz=files.integer(folder / "cur_freq") if folder else None,
        gpu_max_hz=files.integer(folder / "max_freq") if folder else None,
        temperatures_c=_temperatures(root),
        rails_w=_rails(root),
    )


def _gpu(root: Path) -> tuple[str | None, Path | None]:
    for folder in files.entries(root / "sys/class/devfreq"):
        node = files.text(folder / "device/of_node/name")
        if node in _GPU_NODES:
            return node, folder
        if folder.name == _GPU_DEVFREQ:
            return _GPU_DEVFREQ, folder
    return None, None


def _temperatures(root: Path) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for zone in files.entries(root / "sys/class/thermal", "thermal_zone*")[:_MAX_ZONES]:
        kind, value = files.text(zone / "type"), files.integer(zone / "temp")
        if kind:
            found[_fresh(kind, found)] = None if value is None else value / 1000
    return found


def _rails(root: Path) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for device in files.entries(root / "sys/bus/i2c/devices"):
        if "ina3221" in (files.text(device / "name") or ""):
            for name, watts in (*_hwmon(device), *_iio(device)):
                found[_fresh(name, found)] = watts
    return found


def _hwmon(device: Path) -> Iterator[tuple[str, float | None]]:
    for label in files.entries(device, "hwmon/hwmon*/in*_label"):
        channel, name = label.name[2 : -len("_label")], files.text(label)
        if name is None or name == "NC" or not channel.isdigit() or int(channel) == _SHUNT_SUM:
            continue
        yield name, _watts(label.parent / f"in{channel}_input", label.parent / f"curr{channel}_input")


def _iio(device: Path) -> Iterator[tuple[str, float | None]]:
    for label in files.entries(device, "iio:device*/rail_name_*"):
        channel, name = label.name[len("rail_name_") :], files.text(label)
        if name is not None and name != "NC":
            folder = label.parent
            yield name, _watts(folder / f"in_voltage{channel}_input", folder / f"in_current{channel}_input")


def _watts(voltage: Path, current: Path) -> float | None:
    """Return millivolts times milliamperes, in watts."""
    millivolts, milliamperes = files.integer(voltage), files.integer(current)
    if millivolts is None or milliamperes is None:
        return None
    return round(millivolts * milliamperes / 1e6, 3)


def _fresh(name: str, taken: Mapping[str, object]) -> str:
    """Return ``name``, numbered where another sensor has it already."""
    number, fresh = 2, name
    while fresh in taken:
        fresh, number = f"{name} {number}", number + 1
    return fresh
