"""Bytes of every model type at 3036 classes, by method: of the artifact on disk, and of the loaded model in memory.

    make bench-sizes

Weights are fresh, since sizes do not depend on their values. They are weighed against the float32 tensors that the
forward pass reads: parts that are trained but never read would only flatter the ratio. Exit status 1 if a type misses
the goal under nf4-dq.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from agent import architectures
from agent.planning import model_types
from agent.planning.methods import DEFAULT_BLOCKSIZE, METHODS, file_tag
from agent.quantization import artifact, modules, quantizer, sidecar
from agent.quantization.assignment import Scheme
from agent.quantization.checkpoint import open_checkpoint
from deploy.bench import page

CLASSES = 3036
"""Of ETL9G, the data set behind these types."""

SHOWN = ("nf4-dq", "nf4", "int8", "fp16")
JUDGED, GOAL = "nf4-dq", 7.2
"""The method that has to reach the goal: at most 1/7.2 of the float32 bytes, on disk and in memory."""


@dataclass(frozen=True)
class Size:
    """Bytes of one type under one method; ``source_bytes`` is its float32 state dict."""

    model_type: str
    method: str
    source_bytes: int
    artifact_bytes: int
    resident_bytes: int

    @property
    def least_ratio(self) -> float:
        """How many times smaller it is, on disk or in memory, whichever is worse."""
        return self.source_bytes / max(self.artifact_bytes, self.resident_bytes)


def weigh(model_type: str, methods: tuple[str, ...], folder: Path, classes: int = CLASSES) -> list[Size]:
    """Quantize a fresh model of that type by each method within ``folder`` and weigh what comes out."""
    source = folder / "source.pt"
    torch.save(architectures.build(model_type, classes).state_dict(), source)
    checkpoint = open_checkpoint(source)
    found = architectures.recognise(checkpoint.shapes, hint=model_type)
    sizes = []
    for name in methods:
        scheme = Scheme.uniform(METHODS[name])
        path = folder / artifact.file_name(model_type, file_tag(name))
        outcome = quantizer.quantize(
            checkpoint, found, path, scheme, blocksize=DEFAULT_BLOCKSIZE, progress=lambda _done, _total: None
        )
        sidecar.write(path, sidecar.describe(found, scheme, DEFAULT_BLOCKSIZE))
        resident = modules.resident_bytes(artifact.load(path, "cpu"))
        sizes.append(Size(model_type, name, outcome.source_tensor_bytes, path.stat().st_size, resident))
    return sizes


def missed(sizes: list[Size]) -> list[str]:
    """Return a sentence for every type that misses the goal."""
    return [
        f"{size.model_type} under {size.method} is 1/{size.least_ratio:.3f} of float32, 1/{GOAL} is the goal"
        for size in sizes
        if size.method == JUDGED and size.least_ratio < GOAL
    ]


def table(sizes: list[Size]) -> str:
    """Return the sizes as a markdown table, a type a row."""
    rows: dict[str, list[str]] = {}
    for size in sizes:
        row = rows.setdefault(size.model_type, [size.model_type, f"{size.source_bytes:,}"])
        row += [_cell(size.artifact_bytes, size.source_bytes), _cell(size.resident_bytes, size.source_bytes)]
    methods = list(dict.fromkeys(size.method for size in sizes))
    head = ["type", "float32", *(f"{name} {what}" for name in methods for what in ("file", "resident"))]
    return page.markdown(head, rows.values())


def verdict(sizes: list[Size]) -> str:
    """Return in a sentence whether the goal is met."""
    judged = [size for size in sizes if size.method == JUDGED]
    worst = min(judged, key=lambda size: size.least_ratio)
    failures = missed(sizes)
    told = "; ".join(failures) if failures else f"met by all {len(judged)} types"
    return (
        f"Goal, 1/{GOAL} of float32 with {JUDGED} on disk and in memory: {told} "
        f"(the largest is {worst.model_type}, 1/{worst.least_ratio:.2f})."
    )


def _cell(part: int, whole: int) -> str:
    return f"{part:,} (1/{whole / part:.2f})"


@click.command()
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def main(path: Path, threads: int) -> None:
    """Weigh every model type and write the table into the page at OUTPUT."""
    torch.set_num_threads(threads)
    sizes: list[Size] = []
    for model_type in model_types.names():
        with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as folder:
            sizes += weigh(model_type, SHOWN, Path(folder))
    page.publish("bench-sizes", f"{verdict(sizes)} Bytes; weights are random.\n\n{table(sizes)}", path)
    sys.exit(1 if missed(sizes) else 0)


if __name__ == "__main__":
    main()
