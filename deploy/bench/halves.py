"""What a mix is worth on data that did not choose it: chosen on one half of the drawings, judged on the other.

`mixed` is the smallest of a few artifacts that the gate accepts, so the gate's own figure flatters it. Here the builder
searches on a random half and its artifact answers the other; several halves, since each is small.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

import agent
from agent import architectures
from agent.planning.methods import MIXED
from agent.quantization import gate, jobs, metrics, quantizer
from agent.quantization.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

SPLITS = 10


@dataclass(frozen=True)
class Halves:
    """The mean agreement over the splits, on the half that chose and on the other."""

    chosen_on: float
    held_out: float


def measure(model_type: str, checkpoint: Path, drawings: Path, splits: int = SPLITS) -> Halves:
    """Search ``splits`` times, each time on another half, and judge on the rest."""
    data = load_file(drawings)
    opened = open_checkpoint(checkpoint)
    source = quantizer.source_model(opened, architectures.recognise(opened.shapes, hint=model_type))
    rows = len(data["labels"])
    shares = []
    for seed in range(splits):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        one, other = ({name: value[part].contiguous() for name, value in data.items()} for part in order.chunk(2))
        with tempfile.TemporaryDirectory() as folder:
            chosen_on, packed = _search(model_type, checkpoint, one, Path(folder))
        shares.append((chosen_on, metrics.agreement(_answers(source, other), _answers(packed, other))))
    return Halves(*map(mean, zip(*shares, strict=True)))


def _search(model_type: str, checkpoint: Path, half: dict[str, Tensor], folder: Path) -> tuple[float, nn.Module]:
    save_file(half, folder / "half.safetensors")
    job = {
        "job": "build",
        "checkpoint": str(checkpoint),
        "model_type": model_type,
        "method": MIXED,
        "device": "cpu",
        "output_dir": str(folder),
        "gate": {"dataset": str(folder / "half.safetensors"), "rows": len(half["labels"])},
    }
    result = jobs.run(job, lambda _event: None)
    return result["gate"]["agreement"], agent.load(result["artifact"], "cpu")


def _answers(model: nn.Module, half: dict[str, Tensor]) -> Tensor:
    return gate.answers(model, {"input": half["inputs"].float()}, chunk_rows=gate.CHUNK_ROWS)
