"""Who is believed: for each figure the witnesses in order, the first that knows decides. Pure.

What torch's CUDA said in the self-test and what the driver said in a child are both called ``cuda``. ``module`` is
the table of known boards, ``capability`` the list of those that only chips with shared memory have.

Memory is the chain that matters. Where GPU and CPU share one memory, and without a GPU, the operating system is
asked: NVML does not know that memory, and CUDA counts the page cache as used. A dedicated GPU's memory is known to
NVML; then to CUDA now; then to CUDA as it was at the self-test. When nobody tells it, nothing but the operating
system's is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.devices import hardware
from agent.devices.cuda_child import Answer, Cuda
from agent.devices.figure import Figure, first
from agent.devices.hardware import SHARED_MEMORY_CAPABILITIES
from agent.devices.nvml import Gpu
from agent.devices.sensors import Readings
from agent.devices.tegra import Board

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.devices.memory import Memory

NOT_ASKED = Answer(None, "not asked")


@dataclass(frozen=True)
class SelfTest:
    """What the builder's ``probe`` job found: real quantize-and-multiply per method, and CUDA's own words."""

    methods: Mapping[str, dict[str, Any]]
    cuda: Mapping[str, Any] | None
    versions: Mapping[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """The box at one moment.

    Attributes:
        gpu_source: ``ok``, or why NVML tells of no GPU.
        files_source: ``ok``, or why board and readings are empty: ``hung``.
    """

    memory: Memory
    gpu: Gpu | None = None
    gpu_source: str = "not asked"
    board: Board = field(default_factory=Board)
    readings: Readings = field(default_factory=Readings)
    files_source: str = "ok"


@dataclass(frozen=True)
class Device:
    """The device as planning judges it, each figure with who told it.

    Attributes:
        has_gpu: whether CUDA can be used; before the self-test, whether anybody tells of a GPU.
        capability: CUDA compute capability of the GPU, usable or not.
        is_integrated: whether GPU and CPU share one memory.
        total_bytes, available_bytes: of the memory that a model is loaded into.
        bandwidth_gb_s: of the GPU's memory, in 10^9 bytes a second.
    """

    has_gpu: Figure[bool]
    capability: Figure[tuple[int, int]]
    is_integrated: Figure[bool]
    total_bytes: Figure[int]
    available_bytes: Figure[int]
    bandwidth_gb_s: Figure[float]


def judge(seen: Snapshot, tested: SelfTest | None, asked: Answer = NOT_ASKED) -> Device:
    """Return the device, from what was seen, what the self-test found and what the driver said in a child."""
    gpu, torch, child = seen.gpu or Gpu(), _torch(tested), asked.cuda or Cuda()
    has_gpu = _has_gpu(seen, tested, asked)
    capability = _capability(seen, torch, child)
    integrated = _is_integrated(seen, torch, child, capability)
    memory: Figure[tuple[int, int]] = Figure(None, None)
    if has_gpu.value and not integrated.value:
        memory = first(("nvml", _pair(gpu)), ("cuda", _pair(child)), ("cuda", _pair(torch)))
    available, total = memory.value or (seen.memory.available_bytes, seen.memory.total_bytes)
    return Device(
        has_gpu=has_gpu,
        capability=capability,
        is_integrated=integrated,
        total_bytes=Figure(total, memory.source or seen.memory.total_source),
        available_bytes=Figure(available, memory.source or seen.memory.source),
        bandwidth_gb_s=_bandwidth(seen, child, integrated),
    )


def wants_cuda(seen: Snapshot, tested: SelfTest | None, asked: Answer = NOT_ASKED) -> bool:
    """Return whether a figure is missing that only the driver in a child can tell.

    Torch's word in the self-test settles whether there is a GPU and which, and so does an earlier answer; only free
    memory changes.
    """
    if asked.is_absent or (tested is not None and tested.cuda is None):
        return False
    device = judge(seen, tested, asked)
    if device.has_gpu.value and not device.is_integrated.value:
        return _pair(seen.gpu or Gpu()) is None
    unsettled = (device.has_gpu, device.capability, device.is_integrated)
    return any(figure.value is None for figure in unsettled)


def _torch(tested: SelfTest | None) -> Cuda:
    said = tested.cuda if tested else None
    if said is None:
        return Cuda()
    major, minor = said["capability"]
    return Cuda(
        name=said.get("name"),
        capability=(int(major), int(minor)),
        is_integrated=said.get("is_integrated"),
        total_bytes=said.get("total_bytes"),
        free_bytes=said.get("free_bytes"),
    )


def _has_gpu(seen: Snapshot, tested: SelfTest | None, asked: Answer) -> Figure[bool]:
    if tested is not None:
        return Figure(tested.cuda is not None, "cuda")
    return first(
        ("cuda", _known(asked.cuda, otherwise=False if asked.is_absent else None)),
        ("nvml", _known(seen.gpu)),
        ("sysfs", _known(seen.readings.gpu_node)),
        ("module", _known(seen.board.module)),
    )


def _capability(seen: Snapshot, torch: Cuda, child: Cuda) -> Figure[tuple[int, int]]:
    module = _module(seen)
    return first(
        ("cuda", torch.capability),
        ("nvml", seen.gpu.capability if seen.gpu else None),
        ("cuda", child.capability),
        ("module", module.capability if module else None),
    )


def _is_integrated(seen: Snapshot, torch: Cuda, child: Cuda, capability: Figure[tuple[int, int]]) -> Figure[bool]:
    """The capability goes first: a torch that does not know the question yet answers it with False."""
    return first(
        ("capability", True if capability.value in SHARED_MEMORY_CAPABILITIES else None),
        ("cuda", torch.is_integrated),
        ("cuda", child.is_integrated),
        ("nvml", _known(_pair(seen.gpu or Gpu()), so=False)),
        ("sysfs", _known(seen.readings.gpu_node)),
    )


def _bandwidth(seen: Snapshot, child: Cuda, integrated: Figure[bool]) -> Figure[float]:
    """A module's own figure where it is known; else two transfers a clock over the width of the bus.

    The formula is that of CUDA's ``deviceQuery`` sample, 2 x clock x (bits / 8).
    """
    gpu, module = seen.gpu or Gpu(), _module(seen)
    table = seen.board.bandwidth_gb_s or (module.bandwidth_gb_s if module else None)
    nvml_khz = None if gpu.memory_clock_mhz is None else gpu.memory_clock_mhz * 1000
    return first(
        ("module", table if integrated.value else None),
        ("nvml", _gb_s(nvml_khz, gpu.memory_bus_bits)),
        ("cuda", _gb_s(child.memory_clock_khz, child.memory_bus_bits)),
    )


def _module(seen: Snapshot) -> hardware.Module | None:
    return seen.board.module or hardware.module(seen.gpu.name if seen.gpu else None)


def _known(testimony: object, *, so: bool = True, otherwise: bool | None = None) -> bool | None:
    """Return ``so`` when there is a testimony."""
    return otherwise if testimony is None else so


def _gb_s(clock_khz: int | None, bus_bits: int | None) -> float | None:
    if not clock_khz or not bus_bits:
        return None
    return round(2 * clock_khz * (bus_bits / 8) / 1e6, 1)


def _pair(witness: Gpu | Cuda) -> tuple[int, int] | None:
    """Return free and total bytes where both are known."""
    if witness.free_bytes is None or not witness.total_bytes:
        return None
    return witness.free_bytes, witness.total_bytes
