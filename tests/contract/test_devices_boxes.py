"""Each kind of box, from its files and its NVML to the figures and who told them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from agent.devices.cuda_child import Answer
from agent.devices.look import Look
from agent.devices.nvml import Nvml
from agent.devices.probe import DeviceProbe, SelfTest
from tests.fakes.boxes import BOXES, GIB, plant

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1024


@dataclass(frozen=True)
class Expected:
    """What must come out: value and source, or None where nobody can know.

    Attributes:
        memory: available and total bytes, and who told each.
        power: total in watts and its rail, and the number of rails.
        child: whether CUDA in a child has to be asked.
    """

    memory: tuple[int, int, str, str]
    has_gpu: tuple[bool, str] | None = None
    capability: tuple[tuple[int, int], str] | None = None
    integrated: tuple[bool, str] | None = None
    bandwidth: tuple[float, str] | None = None
    load: tuple[float, str] | None = None
    clock: tuple[int, int] | None = None
    gpu_c: tuple[float, str] | None = None
    model: tuple[str, str] | None = None
    module: str | None = None
    l4t: tuple[str, str] | None = None
    jetpack: str | None = None
    mode: tuple[str, str] | None = None
    kernel: str = ""
    power: tuple[float | None, str | None, int] | None = None
    zones: int = 0
    nvml: str = "ok"
    child: bool = False


ABSENT = "NVML Shared Library Not Found"
TABLE = {
    "orin": Expected(
        memory=(4_000_000 * KIB, 7_801_856 * KIB, "meminfo", "meminfo"),
        has_gpu=(True, "nvml"),
        capability=((8, 7), "module"),
        integrated=(True, "capability"),
        bandwidth=(102.0, "module"),
        load=(37.5, "sysfs"),
        clock=(612_000_000, 1_020_000_000),
        gpu_c=(47.5, "sysfs"),
        model=("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "devicetree"),
        module="orin-nano",
        l4t=("36.4.7", "nv_tegra_release"),
        jetpack="6.2.1",
        mode=("0002", "MAXN_SUPER"),
        kernel="5.15.148-tegra",
        power=(5.048, "VDD_IN", 3),
        zones=9,
    ),
    "thor": Expected(
        memory=(110_000_000 * KIB, 128_825_804 * KIB, "meminfo", "meminfo"),
        has_gpu=(True, "nvml"),
        capability=((11, 0), "nvml"),
        integrated=(True, "capability"),
        bandwidth=(273.0, "module"),
        load=(37, "nvml"),
        clock=(1_575_000_000, 1_575_000_000),
        gpu_c=(39.5, "sysfs"),
        model=("NVIDIA Jetson AGX Thor Developer Kit", "devicetree"),
        module="thor",
        l4t=("38.4.0", "nv_tegra_release"),
        jetpack="7.1",
        mode=("0001", "120W"),
        kernel="6.8.12-1021-tegra",
        power=(None, None, 2),
        zones=2,
    ),
    "xavier": Expected(
        memory=(28_000_000 * KIB, 32_000_000 * KIB, "meminfo", "meminfo"),
        has_gpu=(True, "sysfs"),
        capability=((7, 2), "module"),
        integrated=(True, "capability"),
        bandwidth=(136.5, "module"),
        load=(0.0, "sysfs"),
        clock=(114_750_000, 1_377_000_000),
        model=("Jetson-AGX", "devicetree"),
        module="agx-xavier",
        l4t=("35.4.1", "dpkg"),
        jetpack="5.1.2",
        mode=("0000", "MAXN"),
        kernel="5.10.120-tegra",
        power=(None, None, 6),
        zones=3,
        nvml=ABSENT,
    ),
    "nano": Expected(
        memory=(2 * GIB - GIB // 2, 2 * GIB, "cgroup", "cgroup"),
        has_gpu=(True, "sysfs"),
        capability=((5, 3), "module"),
        integrated=(True, "capability"),
        bandwidth=(25.6, "module"),
        load=(99.8, "sysfs"),
        clock=(921_600_000, 921_600_000),
        gpu_c=(34.5, "sysfs"),
        model=("NVIDIA Jetson Nano Developer Kit", "devicetree"),
        module="nano",
        l4t=("32.7.4", "nv_tegra_release"),
        jetpack="4.6.4",
        mode=("0001", "5W"),
        kernel="4.9.337-tegra",
        power=(2.552, "POM_5V_IN", 3),
        zones=4,
        nvml=ABSENT,
    ),
    "gb10": Expected(
        memory=(118_000_000 * KIB, 125_513_728 * KIB, "meminfo", "meminfo"),
        has_gpu=(True, "nvml"),
        capability=((12, 1), "nvml"),
        integrated=(True, "capability"),
        bandwidth=(273.0, "module"),
        load=(37, "nvml"),
        gpu_c=(44, "nvml"),
        model=("NVIDIA_DGX_Spark", "dmi"),
        module="gb10",
        kernel="6.14.0-1015-nvidia",
        zones=2,
    ),
    "desktop": Expected(
        memory=(22 * GIB, 24 * GIB, "nvml", "nvml"),
        has_gpu=(True, "nvml"),
        capability=((8, 6), "nvml"),
        integrated=(False, "nvml"),
        bandwidth=(936.1, "nvml"),
        load=(37, "nvml"),
        gpu_c=(51, "nvml"),
        model=("Micro-Star International Co., Ltd. MS-7C56", "dmi"),
        kernel="6.8.0-45-generic",
        zones=2,
    ),
    "cloud": Expected(
        memory=(20 * GIB, 23 * GIB, "nvml", "nvml"),
        has_gpu=(True, "nvml"),
        capability=((8, 9), "nvml"),
        integrated=(False, "nvml"),
        bandwidth=(300.0, "nvml"),
        load=(37, "nvml"),
        gpu_c=(51, "nvml"),
        model=("Amazon EC2 g6.xlarge", "dmi"),
        kernel="6.8.0-1016-aws",
    ),
    "cpu_only": Expected(
        memory=(GIB, 4 * GIB, "cgroup", "cgroup"),
        model=("QEMU Standard PC (Q35 + ICH9, 2009)", "dmi"),
        kernel="6.1.0-25-amd64",
        nvml=ABSENT,
        child=True,
    ),
}


class Child:
    """CUDA in a child, on a box without the driver."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> Answer:
        self.asked += 1
        return Answer(None, "libcuda.so.1: cannot open shared object file", is_absent=True)


def untested() -> SelfTest:
    raise AssertionError("no budget needs the self-test")


@pytest.fixture(name="box", params=list(BOXES))
def box_fixture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="child")
def child_fixture() -> Child:
    return Child()


@pytest.fixture(name="probe")
def probe_fixture(box: str, child: Child, tmp_path: Path) -> DeviceProbe:
    tree = BOXES[box]()
    look = Look(plant(tmp_path, tree.files, tree.links), Nvml(tree.nvml()))
    return DeviceProbe(reserve_bytes=GIB // 2, limit_bytes=None, self_test=untested, look=look, ask_cuda=child)


def told(figures: dict[str, Any], name: str) -> tuple[Any, Any] | None:
    value = figures[name]
    return None if value is None else (tuple(value) if isinstance(value, list) else value, figures["sources"][name])


def test_the_budget_of_each_box_comes_from_who_knows(box: str, probe: DeviceProbe) -> None:
    expected = TABLE[box]
    budget = probe.budget()
    available, total, source, _ = expected.memory
    assert (budget.available_bytes, budget.total_bytes, budget.source) == (available, total, source)
    assert budget.bytes == available - GIB // 2
    assert budget.has_gpu == bool(expected.has_gpu)
    assert budget.is_integrated == bool(expected.integrated and expected.integrated[0])
    assert budget.capability == (expected.capability[0] if expected.capability else None)


def test_the_memory_of_each_box_says_who_told_each_figure(box: str, probe: DeviceProbe) -> None:
    expected = TABLE[box]
    memory = probe.facts()["memory"]
    assert memory["sources"]["available_bytes"] == memory["source"] == expected.memory[2]
    assert memory["sources"]["total_bytes"] == expected.memory[3]
    assert memory["sources"].get("capability") == (expected.capability and expected.capability[1])
    assert memory["sources"].get("is_integrated") == (expected.integrated and expected.integrated[1])


def test_the_gpu_of_each_box_is_described_by_who_knows(box: str, probe: DeviceProbe) -> None:
    expected = TABLE[box]
    facts = probe.facts()
    gpu = facts["gpu"]
    assert facts["gpu_source"] == expected.nvml
    assert (gpu is not None) == bool(expected.has_gpu)
    if gpu is None:
        return
    assert told(gpu, "is_usable") == expected.has_gpu
    assert told(gpu, "capability") == expected.capability
    assert told(gpu, "is_integrated") == expected.integrated
    assert told(gpu, "bandwidth_gb_s") == expected.bandwidth
    assert told(gpu, "utilisation_percent") == expected.load
    assert told(gpu, "temperature_c") == expected.gpu_c
    clock = None if gpu["clock_hz"] is None else (gpu["clock_hz"], gpu["max_clock_hz"])
    assert clock == expected.clock


def test_each_board_is_recognised(box: str, probe: DeviceProbe) -> None:
    expected = TABLE[box]
    board = probe.facts()["board"]
    mode = None if board["power_mode"] is None else (board["power_mode"], board["power_mode_name"])
    assert told(board, "model") == expected.model
    assert board["module"] == expected.module
    assert told(board, "l4t") == expected.l4t
    assert board["jetpack"] == expected.jetpack
    assert mode == expected.mode
    assert told(board, "kernel") == (expected.kernel, "proc")


def test_each_board_s_power_and_temperatures_are_read(box: str, probe: DeviceProbe) -> None:
    expected = TABLE[box]
    facts = probe.facts()
    power = facts["power"]
    found = None if power is None else (power["total_w"], power["total_rail"], len(power["rails_w"]))
    assert found == expected.power
    assert len(facts["temperatures_c"]) == expected.zones
    assert facts["temperatures_source"] == ("sysfs" if expected.zones else None)


def test_cuda_is_asked_in_a_child_only_where_nobody_else_knows(box: str, probe: DeviceProbe, child: Child) -> None:
    probe.facts()
    assert child.asked == 0
    probe.budget()
    probe.budget()
    assert child.asked == int(TABLE[box].child)


def test_a_report_stays_small(probe: DeviceProbe) -> None:
    probe.budget()
    assert len(json.dumps(probe.facts()).encode()) < 4096


def test_every_known_figure_names_its_source(probe: DeviceProbe) -> None:
    facts = probe.facts()
    for part in (facts["board"], facts["gpu"] or {"sources": {}}):
        figures = {name for name, value in part.items() if value is not None and name not in {"sources", "source"}}
        assert figures == set(part["sources"])


def test_a_box_of_each_kind_is_expected() -> None:
    assert set(TABLE) == set(BOXES)


@pytest.mark.parametrize("name", list(BOXES))
def test_a_tree_has_no_link_into_the_void(name: str, tmp_path: Path) -> None:
    tree = BOXES[name]()
    root = plant(tmp_path, tree.files, tree.links)
    assert all((root / link).is_dir() for link in tree.links)
