"""Builds as people ask for them: a path in, an artifact in a directory out, by the same builder that devices use."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters import headers
from agent.adapters.builder import BuilderProcess
from agent.deployment.runner import WorkWatch
from agent.devices.probe import DeviceProbe, SelfTest
from agent.planning.methods import METHODS
from agent.planning.plan import Plan, plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JsonObject = dict[str, Any]
RESERVE_BYTES = 512 * 2**20


class WorkbenchError(Exception):
    """What was asked for cannot be done; the text says why and what to do."""


@dataclass(frozen=True)
class Request:
    """What to build from.

    Attributes:
        path: a ``.pt``, ``.pth`` or safetensors file, or a Hugging Face directory.
        model_type: its name, or ``auto`` to recognise it by its tensors.
        dataset: evaluation data (safetensors with ``inputs`` and optional ``labels``), or None.
        blocksize: weights that share a scale.
        threads: of torch in the builder.
        device: where to pack and measure: ``auto``, ``cpu`` or ``cuda``.
    """

    path: Path
    model_type: str = "auto"
    dataset: Path | None = None
    blocksize: int = 64
    threads: int = 1
    device: str = "auto"


def method_name(method: str, *, double_quant: bool) -> str:
    """Return the method that ``--method`` and ``--double-quant`` mean together.

    Raises:
        WorkbenchError: for double quantization of a method that has none.
    """
    if not double_quant or method == "auto" or method.endswith("-dq"):
        return method
    if f"{method}-dq" not in METHODS:
        raise WorkbenchError(f"--double-quant quantizes the scales of a 4-bit method; {method} has none to quantize")
    return f"{method}-dq"


def decide(path: Path, requested: str, *, budget_bytes: int | None = None) -> Plan:
    """Return the plan for a file on this machine, by the matrix and the memory that is free now."""
    probe = DeviceProbe(reserve_bytes=RESERVE_BYTES, limit_bytes=budget_bytes, self_test=_untested)
    return plan(_numels(path), probe.budget(), requested=requested)


def build(
    request: Request, method: str, output: Path, on_progress: Callable[[int, int | None, str], None]
) -> JsonObject:
    """Quantize into ``output``; return the builder's result with the files' final paths.

    The files appear under their names only when they are whole.

    Raises:
        agent.deployment.ports.StepError: with the builder's code, sentence and hint.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".nibbled-", dir=output) as staging:
        result = run_builder(build_job(request, method, Path(staging)), on_progress, threads=request.threads)
        for name in ("artifact", "sidecar"):
            final = output / Path(result[name]).name
            Path(result[name]).replace(final)
            result[name] = str(final)
    return {name: value for name, value in result.items() if name != "gate_file"}


def build_job(request: Request, method: str, directory: Path) -> JsonObject:
    """Return the builder's job."""
    return {
        "job": "build",
        "checkpoint": str(request.path.resolve()),
        "model_type": request.model_type,
        "method": method,
        "blocksize": request.blocksize,
        "device": request.device,
        "output_dir": str(directory),
        "gate": {"dataset": str(request.dataset.resolve()) if request.dataset else None},
    }


def run_builder(
    job: JsonObject, on_progress: Callable[[int, int | None, str], None], *, threads: int = 1
) -> JsonObject:
    """Run one job in a builder child and return its result."""
    return BuilderProcess(threads).build(job, WorkWatch(on_progress))


@contextlib.contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """Yield an empty directory below ``directory`` that is gone afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=".nibbled-", dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _numels(path: Path) -> tuple[int, ...]:
    if not path.is_dir():
        return headers.numels(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise WorkbenchError(f"{path}: no .safetensors file in this directory")
    return tuple(numel for file in files for numel in headers.numels(file))


def _untested() -> SelfTest:
    return SelfTest({}, None, {})
