"""What a box says of itself: trees as the kernel lays them out, and an NVML that knows much, little or nothing."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from agent.devices import nvml, system, tegra
from agent.devices.probe import SHARED_MEMORY_CAPABILITIES, DeviceProbe, SelfTest, Snapshot

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30
ORIN = {
    "proc/meminfo": "MemTotal: 7800000 kB\nMemFree: 100000 kB\nMemAvailable: 4000000 kB\nSwapFree: 3000000 kB\n",
    "proc/self/cgroup": "0::/\n",
    "sys/firmware/devicetree/base/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic, EABI: aarch64\n",
    "var/lib/nvpmodel/status": "pmode:0001\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48250\n",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "\n",
    "proc/sys/kernel/random/boot_id": "5f0c\n",
}
CONTAINER = {
    "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\n",
    "proc/self/cgroup": "0::/system.slice/nibbled.service\n",
    "sys/fs/cgroup/system.slice/nibbled.service/memory.max": f"{GIB}\n",
    "sys/fs/cgroup/system.slice/nibbled.service/memory.current": f"{GIB // 4}\n",
}


def plant(root: Path, tree: dict[str, str]) -> Path:
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


class NVMLError(Exception):
    """What the library raises, by code."""


class FakeNvml:
    """The ``pynvml`` module as far as the agent uses it; ``unknown`` answers with NotSupported."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *, total: int = 8 * GIB, unknown: tuple[str, ...] = (), missing: str | None = None) -> None:
        self.shutdowns = 0
        self._total, self._unknown, self._missing = total, unknown, missing

    def nvmlInit(self) -> None:  # noqa: N802 - the library's spelling
        if self._missing:
            raise NVMLError(self._missing)

    def nvmlShutdown(self) -> None:  # noqa: N802 - the library's spelling
        self.shutdowns += 1

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=self._total, free=self._total // 2),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37),
            "nvmlDeviceGetPowerUsage": 12_345,
            "nvmlDeviceGetCudaComputeCapability": (8, 6),
            "nvmlDeviceGetName": b"NVIDIA RTX A2000",
            "nvmlDeviceGetTemperature": 51,
            "nvmlSystemGetDriverVersion": "560.35",
        }

        def answer(*_: object) -> Any:
            if name in self._unknown:
                raise NVMLError("Not Supported")
            return answers[name]

        return answer


def test_a_dedicated_gpu_tells_everything() -> None:
    library = FakeNvml()
    assert nvml.read(library) == (
        nvml.Gpu("NVIDIA RTX A2000", (8, 6), 8 * GIB, 4 * GIB, 37, 51, 12.35, "560.35"), "ok",
    )  # fmt: skip
    assert library.shutdowns == 1


@pytest.mark.parametrize("word", ["NVML Shared Library Not Found", "Driver Not Loaded"])
def test_a_box_without_the_library_has_no_gpu_and_says_why(word: str) -> None:
    assert nvml.read(FakeNvml(missing=word)) == (None, word)


def test_a_library_without_a_device_has_no_gpu_and_is_closed_again() -> None:
    library = FakeNvml(unknown=("nvmlDeviceGetHandleByIndex",))
    assert nvml.read(library) == (None, "Not Supported")
    assert library.shutdowns == 1


def test_a_jetson_s_library_knows_the_device_but_not_its_memory() -> None:
    questions = ("MemoryInfo", "UtilizationRates", "PowerUsage", "Temperature")
    gpu, word = nvml.read(FakeNvml(unknown=tuple(f"nvmlDeviceGet{name}" for name in questions)))
    assert word == "ok"
    assert gpu == nvml.Gpu("NVIDIA RTX A2000", (8, 6), None, None, None, None, None, "560.35")


def test_a_total_of_zero_bytes_is_not_known() -> None:
    gpu, _ = nvml.read(FakeNvml(total=0))
    assert gpu is not None
    assert (gpu.total_bytes, gpu.free_bytes) == (None, None)


def test_a_jetson_is_recognised_by_its_files(tmp_path: Path) -> None:
    root = plant(tmp_path, ORIN)
    assert tegra.read(root) == tegra.Board("NVIDIA Jetson Orin Nano Developer Kit", "36.4.7", "0001")
    assert tegra.temperatures(root) == {"cpu-thermal": 48.25}
    assert system.boot_id(root) == "5f0c"


def test_another_box_says_nothing_of_the_kind(tmp_path: Path) -> None:
    assert tegra.read(tmp_path) == tegra.Board(None, None, None)
    assert tegra.temperatures(tmp_path) == {}
    assert system.boot_id(tmp_path) == "unknown"


def test_available_memory_counts_no_swap(tmp_path: Path) -> None:
    assert system.memory(plant(tmp_path, ORIN)) == system.Memory(7_800_000 * 1024, 4_000_000 * 1024, "meminfo")


def test_a_control_group_that_leaves_less_decides(tmp_path: Path) -> None:
    assert system.memory(plant(tmp_path, CONTAINER)) == system.Memory(GIB, GIB - GIB // 4, "cgroup")


@pytest.mark.parametrize("limit", ["max", str(64 * GIB)])
def test_a_control_group_that_leaves_more_does_not(tmp_path: Path, limit: str) -> None:
    root = plant(tmp_path, CONTAINER)
    (root / "sys/fs/cgroup/system.slice/nibbled.service/memory.max").write_text(limit)
    assert system.memory(root).source == "meminfo"


def test_a_control_group_above_its_limit_leaves_nothing(tmp_path: Path) -> None:
    root = plant(tmp_path, CONTAINER)
    (root / "sys/fs/cgroup/system.slice/nibbled.service/memory.current").write_text(str(2 * GIB))
    assert system.memory(root).available_bytes == 0


def test_a_process_that_is_gone_has_no_memory(tmp_path: Path) -> None:
    plant(tmp_path, {"proc/7/statm": "1000 300 20 1 0 50 0\n", "proc/8/statm": ""})
    assert system.resident_bytes(7, tmp_path) == 300 * os.sysconf("SC_PAGE_SIZE")
    assert system.resident_bytes(8, tmp_path) is None
    assert system.resident_bytes(9, tmp_path) is None


def test_this_very_box_can_be_read() -> None:
    memory = system.memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
    assert (system.resident_bytes() or 0) > 2**20
    assert system.load()["cpus"] >= 1
    gpu, word = nvml.read()
    assert (gpu is None) == (word != "ok")


def probe(gpu: nvml.Gpu | None, cuda: dict[str, Any] | None = None, *, limit: int | None = None) -> DeviceProbe:
    memory = system.Memory(16 * GIB, 10 * GIB, "meminfo")
    seen = Snapshot(memory, gpu, "ok" if gpu else "NVML Shared Library Not Found", tegra.Board(None, None, None))
    found = SelfTest({"nf4": {"ok": True}}, cuda, {})
    return DeviceProbe(reserve_bytes=GIB, limit_bytes=limit, self_test=lambda: found, look=lambda: seen)


def gpu_of(capability: tuple[int, int] | None, total: int | None = 24 * GIB) -> nvml.Gpu:
    return nvml.Gpu("gpu", capability, total, None if total is None else total // 2, None, None, None, None)


def test_a_dedicated_gpu_s_memory_comes_from_nvml() -> None:
    budget = probe(gpu_of((8, 6))).budget()
    assert (budget.source, budget.available_bytes, budget.total_bytes) == ("nvml", 12 * GIB, 24 * GIB)
    assert (budget.has_gpu, budget.is_integrated, budget.bytes) == (True, False, 11 * GIB)


@pytest.mark.parametrize("capability", sorted(SHARED_MEMORY_CAPABILITIES))
def test_shared_memory_comes_from_the_operating_system(capability: tuple[int, int]) -> None:
    budget = probe(gpu_of(capability)).budget()
    assert (budget.source, budget.available_bytes, budget.is_integrated) == ("meminfo", 10 * GIB, True)


def test_a_gpu_whose_memory_nvml_does_not_know_leaves_the_operating_system() -> None:
    assert probe(gpu_of((8, 6), None)).budget().source == "meminfo"


def test_a_box_without_a_gpu_has_the_operating_system_s_memory() -> None:
    budget = probe(None, limit=2 * GIB).budget()
    assert (budget.source, budget.has_gpu, budget.capability, budget.bytes) == ("meminfo", False, None, 2 * GIB)


def test_what_cuda_said_in_the_self_test_wins_over_nvml() -> None:
    device = probe(gpu_of(None), {"capability": [8, 7], "is_integrated": True})
    assert device.budget().capability is None
    assert dict(device.usable_methods()) == {"nf4": {"ok": True}}
    budget = device.budget()
    assert (budget.capability, budget.is_integrated, budget.source) == ((8, 7), True, "meminfo")


def test_a_gpu_that_cuda_cannot_use_is_none() -> None:
    device = probe(gpu_of((8, 6)))
    device.self_test()
    budget = device.budget()
    assert (budget.has_gpu, budget.source) == (False, "meminfo")


def test_the_self_test_runs_once() -> None:
    runs: list[int] = []

    def run() -> SelfTest:
        runs.append(1)
        return SelfTest({}, None, {})

    device = DeviceProbe(reserve_bytes=0, limit_bytes=None, self_test=run)
    assert device.tested is None
    device.self_test()
    device.usable_methods()
    assert runs == [1]
    assert device.tested is not None


def test_every_figure_of_the_health_report_names_its_source() -> None:
    facts = probe(gpu_of((8, 6))).facts()
    assert facts["gpu"]["source"] == "nvml"
    assert (facts["memory"]["source"], facts["memory"]["ram_source"]) == ("nvml", "meminfo")
    assert probe(None).facts()["gpu_source"] == "NVML Shared Library Not Found"
