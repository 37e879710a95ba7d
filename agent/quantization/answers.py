"""What artifacts answer to one input, one after another: each is loaded, asked once and let go.

The input is a request of the Open Inference Protocol in JSON, as it was sent to the model that serves.
"""

from __future__ import annotations

import gc
import json
import time
from typing import TYPE_CHECKING, Any

import torch

from agent.quantization import artifact, gate
from agent.quantization.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

JsonObject = dict[str, Any]
MOST_VALUES = 4096
"""Of an answer that is passed on: all of them travel as JSON."""


class BadInputError(ValueError):
    """A request that is none, or does not fit the model."""


def ask_all(artifacts: Sequence[Mapping[str, str]], request: str, device: str) -> list[JsonObject]:
    """Return for each of ``artifacts`` its ``method`` with ``outputs`` and ``ms``, or with an ``error`` in words.

    Args:
        artifacts: ``method`` and ``artifact``, the path of the file, of each.
        request: JSON with ``inputs``.
        device: where to compute.
    """
    return [{"method": each["method"], **_try(each["artifact"], request, device)} for each in artifacts]


def _try(path: str, request: str, device: str) -> JsonObject:
    try:
        return _ask(path, request, device)
    except (artifact.ArtifactError, BuildError, BadInputError, RuntimeError, OSError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        gc.collect()


def _ask(path: str, request: str, device: str) -> JsonObject:
    specs = artifact.load_sidecar(path)["inputs"]
    inputs = read(request, specs)
    model = artifact.load(path, device)
    gate.answer(model, inputs)  # the first answer also pays for what libraries set up
    begin = time.perf_counter()
    logits = gate.answer(model, inputs)
    took_ms = (time.perf_counter() - begin) * 1e3
    if logits.numel() > MOST_VALUES:
        raise BadInputError(f"the answer has {logits.numel()} values, at most {MOST_VALUES} are shown")
    told = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": _finite(logits)}
    return {"outputs": [told], "ms": round(took_ms, 3)}


def read(request: str, specs: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the tensors of a request by the model's names, in its order.

    Raises:
        BadInputError: it is not JSON, lacks an input, or has one of another form.
    """
    try:
        given = {each["name"]: each for each in json.loads(request)["inputs"]}
        return {spec["name"]: _tensor(given[spec["name"]], spec) for spec in specs}
    except KeyError as error:
        raise BadInputError(f"the input {error} is missing") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInputError(f"the input cannot be read: {error}") from error


def _tensor(given: Mapping[str, Any], spec: Mapping[str, Any]) -> torch.Tensor:
    return torch.tensor(given["data"], dtype=gate.DTYPES[spec["datatype"]]).reshape(given["shape"])


def _finite(logits: torch.Tensor) -> list[float | None]:
    """Return the values with six digits, None for what JSON cannot hold."""
    values = logits.flatten().tolist()
    return [float(f"{value:.6g}") if abs(value) < float("inf") else None for value in values]
