"""Builds as people ask for them: a path in, an artifact in a directory out, by the same builder that devices use."""

from __future__ import annotations

import contextlib
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters.builder import BuilderProcess
from agent.deployment.runner import WorkWatch
from agent.devices.probe import DeviceProbe, SelfTest
from agent.planning.gate import Thresholds
from agent.planning.memory import CUDA_CONTEXT_BYTES, Footprint
from agent.planning.methods import FOUR_BIT, METHODS, MIXED
from agent.planning.plan import Plan, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.planning.budget import Budget

JsonObject = dict[str, Any]
OnProgress = Callable[[int, int | None, str], None]
RESERVE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Request:
    """What to build from, and what the result has to prove.

    Attributes:
        path: a ``.pt``, ``.pth`` or safetensors file, or a Hugging Face model.
        model_type: its name, or ``auto`` to recognise it by its tensors.
        dataset: evaluation data (safetensors with ``inputs`` and optional ``labels``), or None.
        blocksize: weights that share a scale.
        threads: of torch in the builder.
        device: where to pack and measure: ``auto``, ``cpu`` or ``cuda``.
        rows: inputs to compare on, at most.
        demanded: the gate's thresholds.
        base: the 4-bit method that a mix starts from.
        budget_bytes: most resident bytes of weights that a mix may take, or None.
    """

    path: Path
    model_type: str = "auto"
    dataset: Path | None = None
    blocksize: int = 64
    threads: int = 1
    device: str = "auto"
    rows: int = 256
    demanded: Thresholds = field(default_factory=Thresholds)
    base: str = FOUR_BIT[0]
    budget_bytes: int | None = None


def double_quantized(method: str) -> str:
    """Return ``method`` with quantized scales, or as it is where there are none to quantize."""
    return f"{method}-dq" if f"{method}-dq" in METHODS else method


@dataclass(frozen=True)
class Device:
    """A device as planning sees it.

    Attributes:
        name: what to call it.
        budget: its memory.
        usable: the methods that work there.
        kernel: what 4-bit weights are computed with there.
        overhead_bytes: what its first model takes besides.
    """

    name: str
    budget: Budget
    usable: tuple[str, ...]
    kernel: str
    overhead_bytes: int = 0


def this_device(reserve_bytes: int = RESERVE_BYTES, limit_bytes: int | None = None) -> Device:
    """Return this machine as it is now; the self-test runs in a builder child, with real products.

    Raises:
        StepError: when the builder cannot be started, for want of torch above all.
    """
    probe = DeviceProbe(reserve_bytes=reserve_bytes, limit_bytes=limit_bytes, self_test=_self_test)
    methods = probe.self_test().methods
    usable = tuple(name for name, result in methods.items() if result["ok"])
    budget = probe.budget()
    overhead_bytes = CUDA_CONTEXT_BYTES if budget.has_gpu else 0
    return Device(platform.node() or "this device", budget, usable, str(methods["nf4"]["kernel"]), overhead_bytes)


def inspect(path: Path, model_type: str, on_progress: OnProgress) -> JsonObject:
    """Return what the builder reads of a checkpoint without its weights: type, sizes, what it will need in memory.

    Raises:
        StepError: with the builder's code, sentence and hint.
    """
    return run_builder({"job": "inspect", "checkpoint": str(path.resolve()), "model_type": model_type}, on_progress)


def decide(request: Request, device: Device, requested: str = "auto") -> Plan:
    """Return the plan for a checkpoint on ``device``.

    Raises:
        StepError: the checkpoint cannot be used.
    """
    found = inspect(request.path, request.model_type, lambda _done, _total, _unit: None)
    footprint = Footprint.from_json(found["footprint"])
    return plan(
        footprint,
        device.budget,
        requested=requested,
        usable=device.usable,
        kernel=device.kernel,
        overhead_bytes=device.overhead_bytes,
    )


def build_job(request: Request, method: str, directory: Path) -> JsonObject:
    """Return the builder's job; that of ``mixed`` says what the result has to prove, since the builder looks for it."""
    gate: JsonObject = {"dataset": str(request.dataset.resolve()) if request.dataset else None, "rows": request.rows}
    mixed: JsonObject = {}
    if method == MIXED:
        gate["thresholds"] = asdict(request.demanded)
        mixed = {"mixed": {"base": request.base, "budget_bytes": request.budget_bytes}}
    return {
        "job": "build",
        "checkpoint": str(request.path.resolve()),
        "model_type": request.model_type,
        "method": method,
        "blocksize": request.blocksize,
        "device": request.device,
        "output_dir": str(directory),
        "gate": gate,
        **mixed,
    }


def run_builder(job: JsonObject, on_progress: OnProgress, *, threads: int = 1) -> JsonObject:
    """Run one job in a builder child and return its result.

    Raises:
        StepError: with the builder's code, sentence and hint.
    """
    return BuilderProcess(threads).build(job, WorkWatch(on_progress))


@contextlib.contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """Yield an empty directory below ``directory`` that is gone afterwards; what is whole is moved out of it.

    Raises:
        OSError: ``directory``, which it names, cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path = tempfile.TemporaryDirectory(prefix=".nibbled-", dir=directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from None
    with path as name:
        yield Path(name)


def _self_test() -> SelfTest:
    found = run_builder({"job": "probe", "methods": list(METHODS)}, lambda _done, _total, _unit: None)
    return SelfTest(found["methods"], found["cuda"], {name: found.get(name) for name in ("torch", "bitsandbytes")})
