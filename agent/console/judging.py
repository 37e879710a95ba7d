"""What the doctor thinks of the box: interpreter, memory, disk, clock, GPU. Pure: from values to checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.console.check import Check, failed, not_asked, ok, warning
from agent.console.failures import recognise
from agent.devices.bounded import HUNG, OK
from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from agent.devices.cgroup import Limit
    from agent.devices.chain import Snapshot
    from agent.devices.nodes import Node
    from agent.devices.swap import Swap
    from agent.planning.budget import Budget

PYTHONS = ((3, 10), (3, 14))
"""From the first up to, and without, the second: ``requires-python``."""
LITTLE_BYTES = 256 * 2**20
"""Left for models; a kanji network takes a tenth of it, a small language model all."""
ROOM_BYTES = 2 * 2**30
"""Free disk above the reserve; a checkpoint, its artifact and the ones before have to fit."""


def has_gpu(seen: Snapshot, nodes: Sequence[Node]) -> bool:
    """Return whether anybody tells of an NVIDIA GPU, usable or not."""
    told = seen.gpu or seen.board.module or seen.readings.gpu_node
    return bool(told) or any("/nv" in node.path for node in nodes)


def python(version: tuple[int, int, int], machine: str) -> Check:
    """Judge the interpreter."""
    spelt = ".".join(map(str, version))
    if PYTHONS[0] <= version[:2] < PYTHONS[1]:
        return ok("python", f"{spelt} on {machine}")
    first, last = PYTHONS[0], (PYTHONS[1][0], PYTHONS[1][1] - 1)
    return failed(
        "python",
        f"{spelt}; nibbled runs on {first[0]}.{first[1]} to {last[0]}.{last[1]}",
        f"make the environment anew with python{first[0]}.{first[1]} or later",
    )


def memory(budget: Budget) -> Check:
    """Judge what models may have."""
    what = f"{size(budget.available_bytes)} of {size(budget.total_bytes)} available according to {budget.source}"
    detail = f"{what}; {size(max(0, budget.bytes))} for models, {size(budget.reserve_bytes)} stay free"
    if budget.bytes <= 0:
        return failed("memory", detail, "end other programs, or lower memory.reserve")
    if budget.bytes < LITTLE_BYTES:
        return warning("memory", detail, "end other programs (a desktop takes about 800 MiB), or lower memory.reserve")
    return ok("memory", detail)


def cgroup(limits: Sequence[Limit]) -> Check:
    """Judge the limits of the control groups that this command runs in; the service has its own."""
    least = min(limits, key=lambda limit: limit.available_bytes, default=None)
    if least is None:
        return ok("cgroup", "no limit on memory here")
    detail = f"{least.path} allows {size(least.limit_bytes)} and leaves {size(least.available_bytes)}"
    if least.available_bytes < LITTLE_BYTES:
        return warning("cgroup", detail, "raise MemoryMax of the unit, or the container's limit")
    return ok("cgroup", detail)


def swap(disk: Swap, zram: Swap, *, is_integrated: bool) -> Check:
    """Judge swap; none is ever counted as memory for models."""
    told = [
        f"{size(each.used_bytes)} of {size(each.total_bytes)} {kind} used"
        for kind, each in (("zram", zram), ("swap on disk", disk))
        if each.total_bytes
    ]
    if zram.total_bytes and is_integrated:
        return warning(
            "swap",
            f"{', '.join(told)}; zram lives in the memory that GPU and CPU share",
            "sudo systemctl disable nvzramconfig, and a swap file on NVMe instead; then reboot",
        )
    if disk.total_bytes and 2 * disk.used_bytes > disk.total_bytes:
        return warning("swap", f"{', '.join(told)}: the box is short of memory", "end other programs")
    return ok("swap", ", ".join(told) or "none")


def disk(
    place: Path, free_bytes: int, total_bytes: int, reserve_bytes: int, *, is_writable: bool, is_read_only: bool = False
) -> Check:
    """Judge the file system of the state directory, ``place`` being that directory or the nearest that exists."""
    detail = f"{size(free_bytes)} of {size(total_bytes)} free at {place}, {size(reserve_bytes)} are kept free"
    if is_read_only:
        return failed(
            "disk",
            f"{place} is on a file system that is mounted read-only: the agent cannot start",
            f"dmesg says whether the disk failed; then: mount -o remount,rw $(findmnt -n -o TARGET -T {place})",
        )
    if not is_writable:
        return warning("disk", f"{place} cannot be written by this user", "sudo -u nibbled nibbled doctor")
    if free_bytes <= reserve_bytes:
        return failed("disk", f"{detail}: nothing can be fetched", "free space, or move state_dir to a larger disk")
    if free_bytes < reserve_bytes + ROOM_BYTES:
        return warning("disk", detail, "free space, or move state_dir to a larger disk")
    return ok("disk", detail)


def no_disk(state_dir: Path, place: Path) -> Check:
    """Return the check of a state directory that cannot be made, ``place`` being the nearest to it that exists."""
    why = "holds no files" if place.is_dir() else "is no directory"
    return failed("disk", f"state_dir {state_dir} cannot exist: {place} {why}", "choose another state_dir")


def clock(now: datetime, *, is_synchronised: bool) -> Check:
    """Judge the clock: dates of signatures and commands are compared with it."""
    spelt = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if is_synchronised:
        return ok("clock", f"{spelt}, synchronised")
    return warning(
        "clock", f"{spelt}, not synchronised: what has a date waits until it is", "sudo timedatectl set-ntp true"
    )


def gpu_nodes(nodes: Sequence[Node], seen: Snapshot) -> Check:
    """Judge the device files of the GPU."""
    closed = [node for node in nodes if not node.is_open]
    if closed:
        groups = ",".join(sorted({node.group for node in closed}))
        listed = ", ".join(f"{node.path} (group {node.group})" for node in closed)
        return failed(
            "gpu nodes",
            f"this user may not open {listed}",
            f"sudo usermod -aG {groups} nibbled (or your user), then log in again; "
            "the unit has SupplementaryGroups=video render",
        )
    if nodes:
        return ok("gpu nodes", ", ".join(node.path for node in nodes))
    if has_gpu(seen, nodes):
        return failed(
            "gpu nodes",
            "the box has a GPU, and /dev has none of its files",
            "in a container: start it with --runtime nvidia; else: is the driver loaded?",
        )
    return ok("gpu nodes", "none, as on a box without an NVIDIA GPU")


def nvml(seen: Snapshot) -> Check:
    """Judge NVML, which a Jetson can do without."""
    if seen.gpu_source == HUNG:
        return failed(
            "nvml", "no answer in two seconds: the driver hangs", "sudo dmesg | grep -iE 'xid|nvrm|nvgpu'; then reboot"
        )
    is_jetson = seen.board.module is not None or seen.readings.gpu_node is not None
    if seen.gpu is None:
        if is_jetson:
            return ok("nvml", f"{seen.gpu_source}, as on many Jetsons: figures come from sysfs and the kernel")
        known = recognise(seen.gpu_source)
        if known is not None:
            return warning("nvml", f"{seen.gpu_source}: {known.meaning}", known.next_step)
        return ok("nvml", f"{seen.gpu_source}, as on a box without an NVIDIA GPU")
    name = seen.gpu.name or "a GPU"
    if seen.gpu.total_bytes is None:
        return ok("nvml", f"{name}; it knows no memory, as where GPU and CPU share one: the kernel is asked")
    free = f"{size(seen.gpu.free_bytes or 0)} of {size(seen.gpu.total_bytes)} free"
    return ok("nvml", f"{name}, driver {seen.gpu.driver or 'unknown'}, {free}")


def files(word: str) -> Check:
    """Judge the reading of sensors: ``ok``, ``hung``, or what was raised."""
    if word == OK:
        return ok("sensors", "board, temperatures and power rails answer")
    return warning("sensors", f"reading /sys: {word}", "a sensor's driver hangs: reboot")


def absent(name: str, why: str) -> Check:
    """Return the check that needs what is not there."""
    return not_asked(name, why)
