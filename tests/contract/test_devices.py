"""Who is believed: the chain of witnesses for each figure, and when CUDA is asked in a child."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.devices import hardware
from agent.devices.cuda_child import Answer, Cuda
from agent.devices.hardware import SHARED_MEMORY_CAPABILITIES
from agent.devices.memory import Memory, MemoryUnknownError
from agent.devices.nvml import Gpu
from agent.devices.probe import DeviceProbe, SelfTest, Snapshot
from agent.devices.sensors import Readings
from agent.devices.tegra import Board

GIB = 2**30
RAM = Memory(16 * GIB, 10 * GIB, "meminfo")
ABSENT = Answer(None, "libcuda.so.1: cannot open shared object file", is_absent=True)
BROKEN = Answer(None, "cuInit: CUDA_ERROR_UNKNOWN (999)")
CARD = Cuda(
    name="NVIDIA RTX A2000",
    capability=(8, 6),
    is_integrated=False,
    total_bytes=12 * GIB,
    free_bytes=9 * GIB,
    memory_clock_khz=6_001_000,
    memory_bus_bits=192,
)
TORCH = {"capability": [8, 6], "is_integrated": False, "total_bytes": 12 * GIB, "free_bytes": 7 * GIB}


class Child:
    """CUDA in a child, which answers in turn; the last answer stays."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers) or [ABSENT]
        self.asked = 0

    def __call__(self) -> Answer:
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        return answer


def seen(gpu: Gpu | None = None, **parts: Any) -> Snapshot:
    return Snapshot(RAM, gpu, "ok" if gpu else "NVML Shared Library Not Found", **parts)


def probe(
    look: Snapshot, child: Child | None = None, cuda: dict[str, Any] | None = None, *, limit: int | None = None
) -> DeviceProbe:
    found = SelfTest({"nf4": {"ok": True}}, cuda, {})
    return DeviceProbe(
        reserve_bytes=GIB,
        limit_bytes=limit,
        self_test=lambda: found,
        look=lambda: look,
        ask_cuda=child or Child(),
    )


def gpu_of(capability: tuple[int, int] | None, total: int | None = 24 * GIB) -> Gpu:
    return Gpu("gpu", capability, total, None if total is None else total // 2)


def sources(device: DeviceProbe) -> dict[str, str]:
    found: dict[str, str] = device.facts()["memory"]["sources"]
    return found


def test_a_dedicated_gpu_s_memory_comes_from_nvml() -> None:
    device = probe(seen(gpu_of((8, 6))), child := Child())
    budget = device.budget()
    assert (budget.source, budget.available_bytes, budget.total_bytes) == ("nvml", 12 * GIB, 24 * GIB)
    assert (budget.has_gpu, budget.is_integrated, budget.bytes) == (True, False, 11 * GIB)
    assert child.asked == 0


@pytest.mark.parametrize("capability", sorted(SHARED_MEMORY_CAPABILITIES))
def test_shared_memory_comes_from_the_operating_system_whatever_nvml_says(capability: tuple[int, int]) -> None:
    budget = probe(seen(gpu_of(capability))).budget()
    assert (budget.source, budget.available_bytes, budget.is_integrated) == ("meminfo", 10 * GIB, True)


def test_a_dedicated_gpu_whose_memory_nvml_does_not_know_is_asked_by_cuda_each_time() -> None:
    now, later = Answer(CARD, "ok"), Answer(replace(CARD, free_bytes=2 * GIB), "ok")
    device = probe(seen(gpu_of((8, 6), None)), child := Child(now, later))
    budget = device.budget()
    assert (budget.source, budget.available_bytes, budget.total_bytes) == ("cuda", 9 * GIB, 12 * GIB)
    assert sources(device) == {
        "available_bytes": "cuda", "used_bytes": "cuda", "total_bytes": "cuda", "capability": "nvml",
        "is_integrated": "cuda",
    }  # fmt: skip
    assert device.budget().available_bytes == 2 * GIB
    assert child.asked == 2


def test_a_container_without_nvml_has_the_gpu_that_cuda_tells_of() -> None:
    device = probe(seen(), Child(Answer(CARD, "ok")))
    budget = device.budget()
    assert (budget.has_gpu, budget.capability, budget.source) == (True, (8, 6), "cuda")
    gpu = device.facts()["gpu"]
    assert (gpu["name"], gpu["source"], gpu["bandwidth_gb_s"]) == ("NVIDIA RTX A2000", "cuda", 288.0)


def test_a_shared_gpu_that_nobody_else_knows_is_told_by_cuda_and_not_asked_again() -> None:
    unheard_of = Cuda("a chip to come", (13, 1), is_integrated=True, total_bytes=64 * GIB)
    device = probe(seen(), child := Child(Answer(unheard_of, "ok")))
    budgets = [device.budget(), device.budget()]
    assert {(each.source, each.is_integrated, each.capability) for each in budgets} == {("meminfo", True, (13, 1))}
    assert child.asked == 1
    assert sources(device)["is_integrated"] == "cuda"


def test_a_box_without_a_gpu_has_the_operating_system_s_memory_and_is_asked_once() -> None:
    device = probe(seen(), child := Child(), limit=2 * GIB)
    budgets = [device.budget(), device.budget()]
    assert {(each.source, each.has_gpu, each.capability, each.bytes) for each in budgets} == {
        ("meminfo", False, None, 2 * GIB)
    }
    assert child.asked == 1
    assert (device.facts()["gpu"], device.facts()["cuda_source"]) == (None, ABSENT.word)


def test_a_gpu_that_nvml_shows_and_no_driver_can_use_is_none() -> None:
    device = probe(seen(gpu_of(None, None)), Child(ABSENT))
    budget = device.budget()
    assert (budget.has_gpu, budget.source) == (False, "meminfo")
    gpu = device.facts()["gpu"]
    assert (gpu["is_usable"], gpu["sources"]["is_usable"], gpu["source"]) == (False, "cuda", "nvml")


def test_a_driver_that_fails_is_asked_again_and_leaves_standing_what_never_changes() -> None:
    answers = Child(BROKEN, Answer(CARD, "ok"), Answer(None, "hung"))
    device = probe(seen(), answers)
    assert device.budget().has_gpu is False
    assert device.budget().source == "cuda"
    budget = device.budget()
    assert (budget.has_gpu, budget.capability, budget.source) == (True, (8, 6), "meminfo")
    assert device.facts()["cuda_source"] == "hung"


def test_the_last_word_on_a_dedicated_gpu_s_memory_is_that_of_the_self_test() -> None:
    device = probe(seen(gpu_of((8, 6), None)), Child(BROKEN), TORCH)
    device.self_test()
    budget = device.budget()
    assert (budget.source, budget.available_bytes, budget.total_bytes) == ("cuda", 7 * GIB, 12 * GIB)


def test_a_dedicated_gpu_of_which_nobody_knows_the_memory_leaves_the_operating_system() -> None:
    budget = probe(seen(gpu_of((8, 6), None)), Child(BROKEN)).budget()
    assert (budget.source, budget.available_bytes) == ("meminfo", 10 * GIB)


def test_what_cuda_said_in_the_self_test_wins_over_nvml() -> None:
    device = probe(seen(gpu_of((8, 9), None)), cuda={"capability": [8, 7], "is_integrated": True})
    assert device.budget().capability is None
    assert dict(device.usable_methods()) == {"nf4": {"ok": True}}
    budget = device.budget()
    assert (budget.capability, budget.is_integrated, budget.source) == ((8, 7), True, "meminfo")
    assert sources(device)["capability"] == "cuda"


def test_a_torch_that_does_not_know_shared_memory_yet_is_not_believed_on_a_chip_that_shares_it() -> None:
    device = probe(seen(), child := Child(), {"capability": [8, 7], "is_integrated": False})
    device.self_test()
    assert device.budget().is_integrated is True
    assert child.asked == 0


def test_a_torch_that_leaves_shared_memory_open_leaves_it_to_cuda_in_a_child() -> None:
    device = probe(seen(), child := Child(Answer(CARD, "ok")), {"capability": [8, 6], "is_integrated": None})
    device.self_test()
    assert device.budget().source == "cuda"
    assert (sources(device)["is_integrated"], child.asked) == ("cuda", 1)


def test_a_gpu_that_torch_cannot_use_is_none_and_nobody_else_is_asked() -> None:
    device = probe(seen(gpu_of((8, 6), None)), child := Child(Answer(CARD, "ok")))
    device.self_test()
    budget = device.budget()
    assert (budget.has_gpu, budget.capability, budget.source, child.asked) == (False, None, "meminfo", 0)
    assert device.facts()["gpu"]["capability"] == [8, 6]


def test_a_card_in_a_board_with_a_gpu_of_its_own_is_judged_by_itself() -> None:
    module = hardware.module("nvidia,p3740-0002+p3701-0008 nvidia,tegra234")
    igx = seen(
        replace(gpu_of((8, 6)), memory_clock_mhz=8001, memory_bus_bits=384),
        board=Board("NVIDIA IGX Orin Developer Kit", module),
        readings=Readings(gpu_node="ga10b"),
    )
    device = probe(igx)
    budget = device.budget()
    assert (budget.source, budget.is_integrated, budget.capability) == ("nvml", False, (8, 6))
    assert device.facts()["gpu"]["bandwidth_gb_s"] == 768.1


def test_an_unlisted_board_with_a_gpu_in_its_device_tree_shares_its_memory() -> None:
    device = probe(seen(readings=Readings(gpu_node="gb10b")), Child(BROKEN))
    budget = device.budget()
    assert (budget.has_gpu, budget.is_integrated, budget.source) == (True, True, "meminfo")
    assert (sources(device)["is_integrated"], device.facts()["gpu"]["source"]) == ("sysfs", "sysfs")


def test_a_report_starts_no_child_and_repeats_what_cuda_said() -> None:
    device = probe(seen(), child := Child(Answer(CARD, "ok")))
    assert (device.facts()["cuda_source"], child.asked) == ("not asked", 0)
    device.budget()
    memory = device.facts()["memory"]
    assert (memory["available_bytes"], memory["source"], child.asked) == (9 * GIB, "cuda", 1)


def test_the_group_that_limits_a_box_is_named() -> None:
    memory = Memory(4 * GIB, GIB, "cgroup", "cgroup", "/sys/fs/cgroup/a.slice/memory.max")
    device = probe(Snapshot(memory))
    facts = device.facts()["memory"]
    assert (facts["source"], facts["sources"]["total_bytes"], facts["ram_detail"]) == (
        "cgroup", "cgroup", "/sys/fs/cgroup/a.slice/memory.max",
    )  # fmt: skip
    assert (facts["ram_total_bytes"], facts["ram_available_bytes"], facts["ram_source"]) == (4 * GIB, GIB, "cgroup")


def memory_told(device: DeviceProbe, part: str) -> tuple[int | None, str | None]:
    device.budget()
    told = device.facts()[part]
    return told["used_bytes"], told["sources"].get("used_bytes")


def test_the_used_memory_of_a_dedicated_gpu_is_told_by_nvml_or_by_cuda_and_by_nobody_made_up() -> None:
    card = replace(gpu_of((8, 6)), used_bytes=13 * GIB)  # more than the rest, as the driver keeps some for itself
    device = probe(seen(card))
    assert (memory_told(device, "gpu"), memory_told(device, "memory")) == ((13 * GIB, "nvml"), (12 * GIB, "nvml"))
    device = probe(seen(gpu_of((8, 6), None)), Child(Answer(CARD, "ok")))
    assert (memory_told(device, "gpu"), memory_told(device, "memory")) == ((3 * GIB, "cuda"), (3 * GIB, "cuda"))
    device = probe(seen(gpu_of((8, 6), None)), Child(Answer(replace(CARD, free_bytes=None), "out of memory")))
    assert memory_told(device, "gpu") == (None, None)


def test_the_used_memory_of_a_gpu_that_shares_it_is_that_of_the_operating_system() -> None:
    orin = Answer(Cuda(capability=(8, 7), is_integrated=True, total_bytes=16 * GIB), "ok")
    device = probe(seen(), Child(orin))
    assert (memory_told(device, "gpu"), memory_told(device, "memory")) == ((None, None), (6 * GIB, "meminfo"))


def test_the_last_budget_is_known_without_a_look() -> None:
    device = probe(seen(gpu_of((8, 6))))
    assert device.last_budget() is None
    budget = device.budget()
    assert device.last_budget() == budget


def test_memory_that_cannot_be_read_is_an_error_and_not_a_guess() -> None:
    def look() -> Snapshot:
        raise MemoryUnknownError("/proc/meminfo has no line MemTotal in kB")

    device = DeviceProbe(reserve_bytes=0, limit_bytes=None, self_test=lambda: SelfTest({}, None, {}), look=look)
    for ask in (device.budget, device.facts):
        with pytest.raises(MemoryUnknownError, match="/proc/meminfo"):
            ask()


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


def test_this_very_box_has_a_budget_and_facts() -> None:
    device = DeviceProbe(reserve_bytes=0, limit_bytes=None, self_test=lambda: SelfTest({}, None, {}))
    budget = device.budget()
    assert 0 < budget.bytes <= budget.total_bytes
    facts = device.facts()
    assert facts["memory"]["source"] in {"nvml", "cuda", "meminfo", "cgroup"}
    assert (facts["gpu"] is None) == (facts["gpu_source"] != "ok" and facts["cuda_source"] != "ok")
