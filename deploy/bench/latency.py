"""Latency of every method on this machine's device, at batches of 1, 8 and 32, in one run.

    make bench-latency

Weights are fresh, since time does not depend on their values; inputs are on the device already, and a call ends when
its answer can be read there. The methods of a model take turns, round after round, so that a drift of the machine
meets them all. ``float32`` is the module as torch builds it, with no part of the product in it; TF32 is off, as torch
leaves it for matrix products.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from agent import architectures
from agent.planning.methods import DEFAULT_BLOCKSIZE, METHODS, file_tag
from agent.quantization import artifact, modules, quantizer, sidecar
from agent.quantization.assignment import Scheme
from agent.quantization.checkpoint import open_checkpoint
from deploy.bench import page, weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

CLASSES = 3036
METHODS_SHOWN = ("fp16", "int8", "nf4", "nf4-dq", "fp4", "fp4-dq")
SOURCE = "float32"
BATCHES = (1, 8, 32)
ROUNDS = 12
CALLS = 8
"""Calls a turn; the first of each is not counted."""


@dataclass(frozen=True)
class Subject:
    """A model to time; ``options`` as `agent.architectures.build` takes them."""

    name: str
    model_type: str
    options: dict[str, Any]


SUBJECTS = (
    Subject("cnn", "cnn", {}),
    Subject("rnn", "rnn", {}),
    Subject("vit", "vit", {}),
)
ON_GPU_BESIDES = (Subject("vit, 1 GiB", "vit", weights.Form().options),)
"""Large enough that reading its weights takes longer than launching its kernels; a CPU needs minutes for a round."""


@dataclass(frozen=True)
class Line:
    """Medians of one model under one method: seconds a call by batch, bytes resident on the device."""

    subject: str
    method: str
    resident_bytes: int
    seconds: dict[int, float]


def measure(subject: Subject, device: str, methods: Sequence[str]) -> list[Line]:
    """Time one model under each method on ``device``, in turns."""
    torch.manual_seed(0)
    models, options = _models(subject, device, methods)
    seconds: dict[str, dict[int, float]] = {name: {} for name in models}
    for batch in BATCHES:
        rows = architectures.synthetic_inputs(subject.model_type, options, batch, seed=0)
        inputs = [tensor.to(device) for tensor in rows.values()]
        calls: dict[str, list[float]] = {name: [] for name in models}
        for _round in range(ROUNDS):
            for name, model in models.items():
                calls[name] += timed(model, inputs)
        for name, times in calls.items():
            seconds[name][batch] = statistics.median(times)
    return [Line(subject.name, name, modules.resident_bytes(model), seconds[name]) for name, model in models.items()]


def _models(subject: Subject, device: str, methods: Sequence[str]) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """Return the model as torch builds it and packed by each method, all on ``device``, with the type's options."""
    source = architectures.build(subject.model_type, CLASSES, inference_only=True, **subject.options).eval()
    models = {SOURCE: source}
    with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as folder:
        path = Path(folder) / "source.pt"
        torch.save(source.state_dict(), path)
        checkpoint = open_checkpoint(path)
        found = architectures.recognise(checkpoint.shapes, hint=subject.model_type)
        for name in methods:
            scheme = Scheme.uniform(METHODS[name])
            target = Path(folder) / artifact.file_name(subject.model_type, file_tag(name))
            quantizer.quantize(
                checkpoint, found, target, scheme, blocksize=DEFAULT_BLOCKSIZE, progress=_silent, device=device
            )
            sidecar.write(target, sidecar.describe(found, scheme, DEFAULT_BLOCKSIZE))
            models[name] = artifact.load(target, device)
    models[SOURCE] = source.to(device)
    return models, found.options


def timed(model: nn.Module, inputs: Sequence[Tensor]) -> list[float]:
    """Return the seconds of each of `CALLS` calls but the first, from the call until the device is done."""
    times = []
    with torch.inference_mode():
        for _call in range(CALLS):
            begin = time.perf_counter()
            model(*inputs)
            if inputs[0].is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    return times[1:]


def table(lines: Sequence[Line]) -> str:
    """Return a markdown table, a model under a method a row; ratios are to float32 of the same model."""
    base = {line.subject: line for line in lines if line.method == SOURCE}
    head = ["model", "method", "resident MB", *(f"batch {batch}, ms" for batch in BATCHES)]
    return page.markdown(head, (_row(line, base[line.subject]) for line in lines))


def _row(line: Line, base: Line) -> list[str]:
    cells = [f"{1e3 * line.seconds[batch]:.3f} ({line.seconds[batch] / base.seconds[batch]:.2f}x)" for batch in BATCHES]
    return [line.subject, line.method, f"{line.resident_bytes / 1e6:.1f}", *cells]


def _silent(_done: int, _total: int) -> None:
    """Progress of a build that nobody watches."""


@click.command()
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def main(path: Path, threads: int, device: str) -> None:
    """Time every model under every method and write the table into the page at OUTPUT, by the kind of device."""
    torch.set_num_threads(threads)
    where = artifact.resolve(device)
    lines: list[Line] = []
    for subject in (*SUBJECTS, *(ON_GPU_BESIDES if where == "cuda" else ())):
        lines += measure(subject, where, METHODS_SHOWN)
        print(table(lines[-len(METHODS_SHOWN) - 1 :]), flush=True)
    note = f"On the {'GPU' if where == 'cuda' else 'CPU'}, medians of {ROUNDS * (CALLS - 1)} calls; (x) is of float32."
    page.publish(f"bench-latency-{where}", f"{note}\n\n{table(lines)}", path)


if __name__ == "__main__":
    main()
