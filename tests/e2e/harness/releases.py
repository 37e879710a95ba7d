"""Releases of the demo's checkpoint, built by the real builder, and what each of them answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from agent.adapters.builder import BuilderProcess
from agent.deployment.facts import release_of
from agent.deployment.runner import WorkWatch

if TYPE_CHECKING:
    from pathlib import Path

    from agent.deployment.models import Release

GATE_ROWS = 16


def build_release(kanji: Path, folder: Path, version: str, method: str) -> Release:
    """Quantize the demo's checkpoint into ``folder``."""
    job = {
        "job": "build",
        "checkpoint": str(kanji / "checkpoint_best.pt"),
        "model_type": "auto",
        "method": method,
        "output_dir": str(folder),
        "source_sha256": "0" * 64,
        "gate": {"dataset": str(kanji / "evaluation.safetensors"), "rows": GATE_ROWS},
    }
    result = BuilderProcess().build(job, WorkWatch(lambda *_: None))
    return release_of({"version": version, "sha256": "0" * 64, "method": method}, result)


def with_other_answers(release: Release, folder: Path) -> Release:
    """Return the release with a gate file whose expected classes are all wrong: its canary agrees with nothing."""
    tensors = load_file(release.gate_file)
    gate = folder / "wrong_gate.safetensors"
    save_file({**tensors, "expected": np.full_like(tensors["expected"], -2)}, gate)
    return replace(release, gate_file=str(gate))
