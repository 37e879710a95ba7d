"""The JSON beside an artifact: what a server, an operator and a later version need to know of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

import agent
from agent import architectures
from agent.failpoints import around
from agent.quantization.probe import version

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent.quantization.assignment import Scheme

SCHEMA = 1
_READ_BYTES = 1 << 20


def describe(found: architectures.Recognised, scheme: Scheme, blocksize: int) -> dict[str, Any]:
    """Return what is known of an artifact before its first weight is read; of ``mixed``, its base is described."""
    method = scheme.base
    return {
        "schema": SCHEMA,
        "model_type": found.model_type,
        "num_classes": found.num_classes,
        "options": found.options,
        "unused": list(found.unused),
        "batchable": architectures.is_batchable(found.model_type),
        "inputs": [_told(spec) for spec in architectures.input_specs(found.model_type, found.options)],
        "outputs": [_told(spec) for spec in architectures.output_specs(found.model_type, found.num_classes)],
        "method": scheme.name,
        "quant_type": method.quant_type,
        "bits": method.bits,
        "blocksize": blocksize if method.is_blockwise else None,
        "double_quant": method.double_quant,
        "compute_dtype": {"cpu": "float32", "cuda": "float32" if method.name == "fp32" else "bfloat16 or float16"},
        "versions": {
            "nibbled": agent.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "bitsandbytes": version("bitsandbytes"),
        },
    }


def _told(spec: architectures.TensorSpec) -> dict[str, Any]:
    """Return a tensor's object, with ``dimensions`` only where something is known of them."""
    return {key: value for key, value in asdict(spec).items() if key != "dimensions" or value}


def write(artifact: Path, content: Mapping[str, Any]) -> Path:
    """Write the sidecar of ``artifact``, durably; returns its path."""
    path = artifact.with_suffix(".json")
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        with around("sidecar.fsync"):
            os.fsync(file.fileno())
    return path


def sha256(path: Path) -> str:
    """Return the digest of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
