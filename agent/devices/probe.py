"""One look at the whole box: the chain of witnesses for memory, and the facts that reports carry.

Memory of a dedicated GPU comes from NVML. Where GPU and CPU share one memory (a Jetson, GB10), and on a box without
a GPU, it comes from the operating system: NVML does not know it there, and CUDA counts the page cache as used.
What CUDA itself says is asked once, in the builder child that runs the self-test, never in this process.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.devices import nvml, system, tegra
from agent.devices.system import ROOT
from agent.planning.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SHARED_MEMORY_CAPABILITIES = frozenset({(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0), (12, 1)})
"""Compute capabilities of the chips whose GPU shares the CPU's memory: Nano/TX1, TX2, Xavier, Orin, Thor, GB10."""


@dataclass(frozen=True)
class SelfTest:
    """What the builder's ``probe`` job found: real quantize-and-multiply per method, and CUDA's own words."""

    methods: Mapping[str, dict[str, Any]]
    cuda: Mapping[str, Any] | None
    versions: Mapping[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """The box at one moment."""

    memory: system.Memory
    gpu: nvml.Gpu | None
    gpu_source: str
    board: tegra.Board


def snapshot(root: Path = ROOT) -> Snapshot:
    """Look at the box now."""
    gpu, source = nvml.read()
    return Snapshot(system.memory(root), gpu, source, tegra.read(root))


class DeviceProbe:
    """The device as planning and reports see it.

    Args:
        reserve_bytes: what a model may never take.
        limit_bytes: a fixed budget, or None.
        look: returns a snapshot.
        self_test: runs the builder's probe; slow, called at most once.
    """

    def __init__(
        self,
        *,
        reserve_bytes: int,
        limit_bytes: int | None,
        self_test: Callable[[], SelfTest],
        look: Callable[[], Snapshot] = snapshot,
    ) -> None:
        self._reserve_bytes = reserve_bytes
        self._limit_bytes = limit_bytes
        self._look = look
        self._run_self_test = self_test
        self._tested: SelfTest | None = None
        self._last: Budget | None = None
        self._lock = threading.Lock()

    def budget(self) -> Budget:
        """Return the memory that a model may take now, with its source."""
        return self._weigh(self._look())

    def _weigh(self, seen: Snapshot) -> Budget:
        gpu = seen.gpu
        cuda = self._tested.cuda if self._tested else None
        capability = _capability(gpu, cuda)
        shared = _is_shared(capability, cuda)
        base = Budget(
            available_bytes=seen.memory.available_bytes,
            reserve_bytes=self._reserve_bytes,
            source=seen.memory.source,
            total_bytes=seen.memory.total_bytes,
            limit_bytes=self._limit_bytes,
            has_gpu=cuda is not None if self._tested else gpu is not None,
            is_integrated=shared,
            capability=capability,
        )
        if gpu is None or shared or gpu.free_bytes is None or gpu.total_bytes is None or not base.has_gpu:
            self._last = base
        else:
            self._last = replace(base, available_bytes=gpu.free_bytes, source="nvml", total_bytes=gpu.total_bytes)
        return self._last

    def last_budget(self) -> Budget | None:
        """Return the budget as it was last seen, None before the first look: a driver may hang when it is asked."""
        return self._last

    def usable_methods(self) -> Mapping[str, dict[str, Any]]:
        """Return what the self-test found per method, running it first if it has not run."""
        return self.self_test().methods

    def self_test(self) -> SelfTest:
        """Return the self-test's findings, running it once."""
        with self._lock:
            if self._tested is None:
                self._tested = self._run_self_test()
            return self._tested

    @property
    def tested(self) -> SelfTest | None:
        """What the self-test found, or None while it has not run."""
        return self._tested

    def facts(self) -> dict[str, Any]:
        """Return the device for health reports, each figure with its source."""
        seen = self._look()
        budget = self._weigh(seen)
        return {
            "board": asdict(seen.board),
            "gpu": {**asdict(seen.gpu), "source": "nvml"} if seen.gpu else None,
            "gpu_source": seen.gpu_source,
            "memory": {
                **budget.to_json(),
                "ram_total_bytes": seen.memory.total_bytes,
                "ram_available_bytes": seen.memory.available_bytes,
                "ram_source": seen.memory.source,
            },
            "temperatures_c": tegra.temperatures(),
        }


def _capability(gpu: nvml.Gpu | None, cuda: Mapping[str, Any] | None) -> tuple[int, int] | None:
    if cuda is not None:
        major, minor = cuda["capability"]
        return int(major), int(minor)
    return gpu.capability if gpu is not None else None


def _is_shared(capability: tuple[int, int] | None, cuda: Mapping[str, Any] | None) -> bool:
    if cuda is not None and cuda.get("is_integrated") is not None:
        return bool(cuda["is_integrated"])
    return capability in SHARED_MEMORY_CAPABILITIES
