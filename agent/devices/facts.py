"""The device as a report carries it: plain values under plain names, and beside them who told each. Under 4 KiB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.devices.cuda_child import Cuda
from agent.devices.figure import Figure, first, values
from agent.devices.nvml import Gpu

if TYPE_CHECKING:
    from agent.devices.chain import Device, Snapshot
    from agent.devices.cuda_child import Answer
    from agent.planning.budget import Budget


def describe(seen: Snapshot, device: Device, budget: Budget, cuda: Answer) -> dict[str, Any]:
    """Return the facts.

    ``gpu_source``, ``cuda_source`` and ``files_source`` say ``ok``, or why NVML, CUDA in a child and the file system
    have nothing to tell. ``gpu`` is None on a box without one.
    """
    return {
        "board": _board(seen),
        "gpu": _gpu(seen, device, cuda),
        "gpu_source": seen.gpu_source,
        "cuda_source": cuda.word,
        "files_source": seen.files_source,
        "memory": _memory(seen, device, budget),
        "temperatures_c": dict(seen.readings.temperatures_c),
        "temperatures_source": "sysfs" if seen.readings.temperatures_c else None,
        "power": _power(seen),
    }


def _board(seen: Snapshot) -> dict[str, Any]:
    board = seen.board
    return {
        "model": board.model,
        "module": board.module.chip if board.module else None,
        "l4t": board.l4t,
        "jetpack": board.jetpack,
        "power_mode": board.power_mode,
        "power_mode_name": board.power_mode_name,
        "kernel": board.kernel,
        "sources": dict(board.sources),
    }


def _gpu(seen: Snapshot, device: Device, cuda: Answer) -> dict[str, Any] | None:
    exists = first(
        ("nvml", True if seen.gpu else None),
        ("cuda", True if cuda.cuda or (device.has_gpu.source == "cuda" and device.has_gpu.value) else None),
        ("sysfs", True if seen.readings.gpu_node else None),
        ("module", True if seen.board.module else None),
    )
    if exists.source is None:
        return None
    gpu, child, readings = seen.gpu or Gpu(), cuda.cuda or Cuda(), seen.readings
    capability = device.capability
    told: dict[str, Figure[Any]] = {
        "name": first(("nvml", gpu.name), ("cuda", child.name), ("sysfs", readings.gpu_node)),
        "is_usable": device.has_gpu,
        "capability": Figure(list(capability.value) if capability.value else None, capability.source),
        "is_integrated": device.is_integrated,
        "bandwidth_gb_s": device.bandwidth_gb_s,
        "total_bytes": first(("nvml", gpu.total_bytes), ("cuda", child.total_bytes)),
        "used_bytes": first(("nvml", gpu.used_bytes), ("cuda", child.used_bytes)),
        "free_bytes": first(("nvml", gpu.free_bytes), ("cuda", child.free_bytes)),
        "utilisation_percent": first(("sysfs", readings.gpu_load_percent), ("nvml", gpu.utilisation_percent)),
        "clock_hz": first(("sysfs", readings.gpu_hz)),
        "max_clock_hz": first(("sysfs", readings.gpu_max_hz)),
        "temperature_c": first(("nvml", gpu.temperature_c), ("sysfs", readings.gpu_temperature_c)),
        "power_w": first(("nvml", gpu.power_w)),
        "driver": first(("nvml", gpu.driver)),
    }
    return {**values(told), "source": exists.source}


def _memory(seen: Snapshot, device: Device, budget: Budget) -> dict[str, Any]:
    memory, available, total = seen.memory, device.available_bytes, device.total_bytes
    used_bytes = None if available.value is None or total.value is None else total.value - available.value
    sources = {
        "used_bytes": available.source,
        "available_bytes": available.source,
        "total_bytes": total.source,
        "capability": device.capability.source,
        "is_integrated": device.is_integrated.source,
    }
    return {
        **budget.to_json(),
        "used_bytes": used_bytes,
        "ram_total_bytes": memory.total_bytes,
        "ram_available_bytes": memory.available_bytes,
        "ram_source": memory.source,
        "ram_detail": memory.detail,
        "is_integrated": device.is_integrated.value,
        "sources": {name: source for name, source in sources.items() if source},
    }


def _power(seen: Snapshot) -> dict[str, Any] | None:
    rails = dict(seen.readings.rails_w)
    if not rails:
        return None
    total = seen.readings.total_rail
    return {
        "total_w": rails[total] if total else None,
        "total_rail": total,
        "rails_w": rails,
        "source": "sysfs",
    }
