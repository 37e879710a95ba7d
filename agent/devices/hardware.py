"""What is printed in data sheets and release notes and cannot be asked of the device: tables, nothing else.

Capabilities are those of NVIDIA's list of CUDA GPUs. Bandwidths are of the memory as the module is sold, in 10^9
bytes a second: AGX Orin, Orin Nano, AGX Xavier, Nano and GB10 as NVIDIA's pages give them, the others from data
sheets. A chip without a known module has no bandwidth here.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARED_MEMORY_CAPABILITIES = frozenset({(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0), (12, 1)})
"""Compute capabilities of the chips whose GPU shares the CPU's memory: Nano/TX1, TX2, Xavier, Orin, Thor, GB10.

Thor is 10.1 to CUDA 12.8 and 12.9, and 11.0 from CUDA 13."""


@dataclass(frozen=True)
class Module:
    """A computer whose GPU shares the CPU's memory.

    Attributes:
        marks: parts of the device tree's ``compatible`` or of the model's name that no other module has.
        chip: name for reports.
        capability: CUDA compute capability.
        bandwidth_gb_s: memory bandwidth.
        super_gb_s: the same in a power mode named ``MAXN_SUPER``, where that is another one.
    """

    marks: tuple[str, ...]
    chip: str
    capability: tuple[int, int]
    bandwidth_gb_s: float | None = None
    super_gb_s: float | None = None


MODULES = (
    Module(("p3767-0004",), "orin-nano-4gb", (8, 7), 34.0),
    Module(("p3767-0003", "p3767-0005"), "orin-nano", (8, 7), 68.0, 102.0),
    Module(("p3767-0000", "p3767-0001", "orin nx"), "orin-nx", (8, 7), 102.4),
    Module(("p3701", "agx orin"), "agx-orin", (8, 7), 204.8),
    Module(("p3834", "tegra264", "agx thor"), "thor", (11, 0), 273.0),
    Module(("p3668", "xavier nx"), "xavier-nx", (7, 2), 59.7),
    Module(("p2888", "p2972", "jetson-agx", "agx xavier"), "agx-xavier", (7, 2), 136.5),
    Module(("p3310", "p2771", "tegra186", "jetson tx2"), "tx2", (6, 2), 59.7),
    Module(("p3448", "tegra210", "jetson nano", "jetson tx1"), "nano", (5, 3), 25.6),
    Module(("dgx_spark", "dgx spark", "gb10"), "gb10", (12, 1), 273.0),
    Module(("tegra234", "nvidia orin", "jetson orin"), "orin", (8, 7)),
    Module(("tegra194",), "xavier", (7, 2)),
)
"""From the module to the family: the first that has a mark in what the board says of itself."""

JETPACKS = {
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "35.1": "5.0.2",
    "35.2": "5.1",
    "35.3": "5.1.1",
    "35.4": "5.1.2",
    "35.5": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "36.3": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
    # A release that is not listed still has a family.
    "32": "4",
    "35": "5",
    "36": "6",
    "38": "7",
    "39": "7",
}
"""JetPack by release of the Linux for Tegra, from NVIDIA's release pages; the longest entry that a release begins with
holds."""


def module(*words: str | None) -> Module | None:
    """Return the module that the board's own words describe."""
    told = " ".join(word for word in words if word).lower()
    return next((each for each in MODULES if any(mark in told for mark in each.marks)), None)


def jetpack(l4t: str | None) -> str | None:
    """Return the JetPack of a release such as ``36.4.7``; its first digit alone for a release that is not listed."""
    parts = (l4t or "").split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((JETPACKS[prefix] for prefix in prefixes if prefix in JETPACKS), None)
