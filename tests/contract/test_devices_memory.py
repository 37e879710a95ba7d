"""Main memory: the kernel's account, and what the control groups leave of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.devices import cgroup, memory
from agent.devices.memory import Memory, MemoryUnknownError
from tests.fakes.boxes import meminfo, plant

if TYPE_CHECKING:
    from pathlib import Path

GIB, MIB, KIB = 2**30, 2**20, 2**10
V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"
SERVICE = "system.slice/nibbled.service"
UNLIMITED_V1 = "9223372036854771712"


def v2(group: str, limit: str, used: int, *, high: str = "max", cache: int = 0) -> dict[str, str]:
    folder = f"{V2}/{group}".rstrip("/")
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon {used - cache}\nfile {cache}\ninactive_file {cache}\nactive_file 0\n",
    }


def v1(group: str, limit: str, used: int, *, cache: int = 0, nesting: str = "1") -> dict[str, str]:
    folder = f"{V1}/{group}".rstrip("/")
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.use_hierarchy": f"{nesting}\n",
        f"{folder}/memory.stat": f"inactive_file 5\ntotal_inactive_file {cache}\n",
    }


def box(root: Path, *parts: dict[str, str], group: str = f"0::/{SERVICE}\n", total_gib: int = 16) -> Path:
    files = {"proc/meminfo": meminfo(total_gib * MIB, 12 * MIB), "proc/self/cgroup": group}
    for part in parts:
        files.update(part)
    return plant(root, files)


def test_available_memory_counts_neither_swap_nor_huge_pages(tmp_path: Path) -> None:
    root = box(tmp_path)
    text = (root / "proc/meminfo").read_text()
    assert "SwapFree: 3901204 kB" in text
    assert "HugePages_Free: 64" in text
    assert memory.read(root) == Memory(16 * GIB, 12 * GIB, "meminfo")


def test_a_kernel_without_mem_available_is_estimated_from_below(tmp_path: Path) -> None:
    lines = "MemTotal: 4000 kB\nMemFree: 1000 kB\nBuffers: 9 kB\nActive(file): 300 kB\nInactive(file): 500 kB\n"
    found = memory.read(plant(tmp_path, {"proc/meminfo": f"{lines}SReclaimable: 200 kB\nSwapFree: 800 kB\n"}))
    assert (found.available_bytes, found.source) == (1500 * KIB, "meminfo")
    assert "without MemAvailable" in found.detail


def test_available_memory_is_never_more_than_there_is(tmp_path: Path) -> None:
    found = memory.read(plant(tmp_path, {"proc/meminfo": "MemTotal: 10 kB\nMemAvailable: 20 kB\n"}))
    assert found.available_bytes == found.total_bytes == 10 * KIB


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", "MemTotal"),
        ("MemAvailable: 5 kB\n", "MemTotal"),
        ("MemTotal: many kB\nMemAvailable: 5 kB\n", "MemTotal"),
        ("MemTotal: 5\nMemAvailable: 5 kB\n", "MemTotal"),
        ("MemTotal: 5 kB\n", "MemFree"),
        ("\x00\xff:::\n\n kB", "MemTotal"),
    ],
)
def test_a_malformed_account_is_an_error_that_names_the_file(tmp_path: Path, text: str, missing: str) -> None:
    root = plant(tmp_path, {"proc/meminfo": text})
    with pytest.raises(MemoryUnknownError, match=rf"{root}/proc/meminfo has no line {missing} in kB"):
        memory.read(root)


def test_a_missing_account_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(MemoryUnknownError, match=f"{tmp_path}/proc/meminfo: No such file"):
        memory.read(tmp_path)


def test_a_group_that_leaves_less_decides(tmp_path: Path) -> None:
    root = box(tmp_path, v2(SERVICE, str(GIB), GIB // 4))
    file = f"/{V2}/{SERVICE}/memory.max"
    assert memory.read(root) == Memory(GIB, GIB - GIB // 4, "cgroup", "cgroup", file)


def test_a_group_that_leaves_more_caps_the_total_alone(tmp_path: Path) -> None:
    found = memory.read(box(tmp_path, v2(SERVICE, str(14 * GIB), GIB)))
    assert (found.available_bytes, found.source) == (12 * GIB, "meminfo")
    assert (found.total_bytes, found.total_source) == (14 * GIB, "cgroup")


@pytest.mark.parametrize("limit", ["max", str(64 * GIB), "many", ""])
def test_a_limit_that_is_none_or_not_reached_does_not_decide(tmp_path: Path, limit: str) -> None:
    assert memory.read(box(tmp_path, v2(SERVICE, limit, GIB))) == Memory(16 * GIB, 12 * GIB, "meminfo")


def test_a_group_above_its_limit_leaves_nothing(tmp_path: Path) -> None:
    assert memory.read(box(tmp_path, v2(SERVICE, str(GIB), 2 * GIB))).available_bytes == 0


def test_a_limit_on_the_slice_above_counts_with_all_that_the_slice_uses(tmp_path: Path) -> None:
    root = box(tmp_path, v2(SERVICE, str(6 * GIB), GIB), v2("system.slice", str(4 * GIB), 3 * GIB))
    found = memory.read(root)
    assert (found.available_bytes, found.total_bytes) == (GIB, 4 * GIB)
    assert found.detail == f"/{V2}/system.slice/memory.max"


def test_the_tightest_of_all_groups_decides_wherever_it_is(tmp_path: Path) -> None:
    root = box(tmp_path, v2(SERVICE, str(2 * GIB), GIB * 3 // 2), v2("system.slice", str(4 * GIB), 2 * GIB))
    found = memory.read(root)
    assert (found.available_bytes, found.detail) == (GIB // 2, f"/{V2}/{SERVICE}/memory.max")


def test_the_limit_from_which_a_group_is_slowed_down_is_a_limit(tmp_path: Path) -> None:
    found = memory.read(box(tmp_path, v2(SERVICE, str(4 * GIB), GIB, high=str(2 * GIB))))
    assert (found.available_bytes, found.detail) == (GIB, f"/{V2}/{SERVICE}/memory.high")


def test_file_pages_that_the_kernel_would_drop_are_not_used_up(tmp_path: Path) -> None:
    root = box(tmp_path, v2(SERVICE, str(2 * GIB), 2 * GIB, cache=GIB))
    assert memory.read(root).available_bytes == GIB


def test_a_container_has_its_group_at_the_top_of_the_mount(tmp_path: Path) -> None:
    root = box(tmp_path, v2("", str(GIB), GIB // 2), group="0::/\n")
    assert memory.read(root) == Memory(GIB, GIB // 2, "cgroup", "cgroup", f"/{V2}/memory.max")


def test_a_process_above_the_top_of_its_mount_has_what_the_top_leaves(tmp_path: Path) -> None:
    root = box(tmp_path, v2("", str(GIB), GIB // 2), group="0::/../../other\n")
    assert memory.read(root).available_bytes == GIB // 2


@pytest.mark.parametrize("group", ["", "nonsense", "0::", "::::", "7:cpu:/a\n"])
def test_memberships_that_say_nothing_are_no_limit(tmp_path: Path, group: str) -> None:
    assert memory.read(box(tmp_path, group=group)).source == "meminfo"


def test_a_version_1_group_and_those_above_it_count(tmp_path: Path) -> None:
    root = box(
        tmp_path,
        v1("", UNLIMITED_V1, 9 * GIB),
        v1("system.slice", str(3 * GIB), 2 * GIB, cache=GIB // 2),
        v1(SERVICE, str(8 * GIB), GIB),
        group=f"12:pids:/x\n4:cpu,memory:/{SERVICE}\n1:name=systemd:/y\n0::/y\n",
    )
    found = memory.read(root)
    assert (found.available_bytes, found.total_bytes) == (GIB * 3 // 2, 3 * GIB)
    assert found.detail == f"/{V1}/system.slice/memory.limit_in_bytes"
    assert [each.limit_bytes for each in cgroup.limits(root)] == [8 * GIB, 3 * GIB]


def test_a_version_1_group_that_does_not_count_its_children_does_not_limit_them(tmp_path: Path) -> None:
    root = box(
        tmp_path,
        v1("system.slice", str(GIB), GIB, nesting="0"),
        v1(SERVICE, str(8 * GIB), GIB, nesting="0"),
        group=f"4:memory:/{SERVICE}\n",
    )
    assert [each.path for each in cgroup.limits(root)] == [f"/{V1}/{SERVICE}/memory.limit_in_bytes"]


def test_the_mount_says_where_a_container_s_group_is(tmp_path: Path) -> None:
    mounts = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "34 31 0:32 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n"
        "35 31 0:32 /docker/f00d /cgroups/mem rw shared:9 - cgroup cgroup rw,memory\n"
    )
    files = {
        "proc/self/mountinfo": mounts,
        "cgroups/mem/memory.limit_in_bytes": f"{2 * GIB}\n",
        "cgroups/mem/memory.usage_in_bytes": f"{GIB}\n",
        "cgroups/mem/inner/memory.limit_in_bytes": f"{GIB}\n",
        "cgroups/mem/inner/memory.usage_in_bytes": f"{GIB // 4}\n",
    }
    root = box(tmp_path, files, group="4:memory:/docker/f00d/inner\n")
    assert [each.available_bytes for each in cgroup.limits(root)] == [GIB * 3 // 4, GIB]


def test_this_very_box_can_be_read() -> None:
    found = memory.read()
    assert 0 < found.available_bytes <= found.total_bytes
