"""Making one artifact and measuring it: what a build by any method goes through, and ``mixed`` several times.

The artifact is made by the ordinary quantizer, loaded from disk as a server loads it, and run by the ordinary gate:
what is judged is what ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from agent import architectures
from agent.planning.memory import SERVED_ROWS
from agent.planning.methods import MIXED
from agent.quantization import artifact, footprint, gate, metrics, modules, quantizer, sidecar, working_set
from agent.quantization.errors import NonFiniteWeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from agent.quantization.assignment import Scheme
    from agent.quantization.checkpoint import Checkpoint

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is built from, and what it is measured on.

    Attributes:
        checkpoint: the opened checkpoint.
        found: what it is.
        data: the rows that source and artifact answer.
        blocksize: weights that share a scale.
        device: where weights are packed and models run: ``cpu``, ``cuda``, or ``auto``.
        origin: facts on the checkpoint's file that the sidecar repeats.
    """

    checkpoint: Checkpoint
    found: architectures.Recognised
    data: gate.Evaluation
    blocksize: int
    device: str
    origin: Mapping[str, Any]

    @property
    def is_batchable(self) -> bool:
        """Whether rows may be answered together."""
        return architectures.is_batchable(self.found.model_type)

    @cached_property
    def chunk_rows(self) -> int:
        """How many rows are answered together."""
        largest = max((prod(shape) for shape in self.checkpoint.shapes.values()), default=0)
        return footprint.chunk_rows(self.found, 4 * largest)

    def source_model(self) -> nn.Module:
        """Return the model at source precision, on the device."""
        return quantizer.source_model(self.checkpoint, self.found).to(artifact.resolve(self.device))

    def run_source(self) -> gate.Run:
        """Return what the source answers.

        Raises:
            NonFiniteWeightsError: nothing but NaN or infinity, which no method can mend.
        """
        answered = gate.run(self.source_model(), self.data.inputs, chunk_rows=self.chunk_rows)
        rows = len(answered.logits)
        if metrics.non_finite_rows(answered.logits) == rows:
            raise NonFiniteWeightsError(
                f"at its own precision the model answers all {rows} rows with NaN or infinity",
                "look at its statistics (a running variance below 0?) and at how it was exported; no method mends that",
            )
        return answered


def make(subject: Subject, path: Path, scheme: Scheme, progress: quantizer.Progress) -> JsonObject:
    """Write the artifact and a sidecar that it can be loaded by; returns what the sidecar says so far.

    Raises:
        NonFiniteWeightsError: a weight is NaN or infinite, or becomes so in its method's format.
    """
    outcome = quantizer.quantize(
        subject.checkpoint,
        subject.found,
        path,
        scheme,
        blocksize=subject.blocksize,
        progress=progress,
        device=artifact.resolve(subject.device),
    )
    facts = sidecar.describe(subject.found, scheme, subject.blocksize) | {
        **subject.origin,
        "source_bytes": subject.checkpoint.file_bytes,
        "source_tensor_bytes": outcome.source_tensor_bytes,
        "artifact_bytes": path.stat().st_size,
        "artifact_sha256": sidecar.sha256(path),
        "coverage": outcome.coverage,
        "skipped": quantizer.describe(outcome.skipped),
        "skipped_count": len(outcome.skipped),
        "notes": [*subject.checkpoint.notes, *subject.found.notes],
    }
    if scheme.name == MIXED:
        table = {name: method.name for name, method in outcome.methods.items()}
        facts["mixed"] = {"base": scheme.base.name, "table": table}
    sidecar.write(path, facts)
    return facts


def measure(subject: Subject, path: Path, source: gate.Run) -> JsonObject:
    """Load the artifact, run it on the rows that the source answered, and return what was measured."""
    packed = artifact.load(path, subject.device)
    measured = gate.run(packed, subject.data.inputs, chunk_rows=subject.chunk_rows)
    return {
        "resident_bytes": modules.resident_bytes(packed),
        "working_bytes": working_set.measure(
            packed, subject.data.inputs, SERVED_ROWS if subject.is_batchable else 1, subject.chunk_rows
        ),
        "gate": gate.compare(source, measured, subject.data),
    }
