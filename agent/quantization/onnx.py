"""An artifact as an ONNX file: its weights unpacked, the batch axis free, and the answers compared before it counts.

Rules:
* The file is checked by ONNX Runtime on the CPU against the artifact itself, on other inputs and another number of
  rows than it was traced with. A file that answers differently is removed.
* What is free in a type's input (an axis of -1) is free in the graph, under the names ``batch`` and ``time``.
* Nothing here shrinks: the file has float32 weights and about the size of the original checkpoint.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agent import architectures
from agent.architectures.optional import require
from agent.quantization import artifact, modules
from agent.quantization.errors import BuildError, UnsupportedError
from agent.quantization.onnx_forms import graph_form
from agent.quantization.packed import PackedTensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OPSETS = range(18, 23)
"""Versions of the standard operators that every type can be written in: below, torch's exporter would have to convert
down, which fails on padding; from 23 on, it writes ``Attention`` with a mask that ONNX Runtime 1.32 refuses."""
DEFAULT_OPSET = 20
MAX_DIFFERENCE = 1e-3
"""Largest difference of an output relative to the largest output: float32 sums in another order stay far below."""

_TRACED_ROWS, _CHECKED_ROWS = 2, (1, 5)
_TRACED_SEED, _CHECKED_SEED = 0, 1
_AXES = ("batch", "time")
_EXPORTER = ("onnx", "onnxscript")


def export(path: Path, output: Path, opset: int = DEFAULT_OPSET, *, is_checked: bool = True) -> dict[str, Any]:
    """Write the model of an artifact as ONNX and return the content of the result event.

    Args:
        path: the artifact; its sidecar lies beside it.
        output: the file to write; weights over 2 GiB go to ``{output}.data``.
        opset: version of the operators.
        is_checked: compare with the artifact; without, ``max_difference`` is None.

    Raises:
        UnsupportedError: the opset or the model has no form in ONNX.
        MissingPackageError: the extra ``onnx`` is not installed.
        BuildError: the file answers differently than the artifact.
        ArtifactError: the artifact cannot be loaded.
    """
    for package in (*_EXPORTER, *(["onnxruntime"] if is_checked else [])):
        require(package, "onnx", "ONNX export")
    if opset not in OPSETS:
        raise UnsupportedError(f"opset {opset}", f"use one of {OPSETS.start} to {OPSETS.stop - 1}")
    sidecar = artifact.load_sidecar(path)
    packed = artifact.load(path, "cpu")
    output.parent.mkdir(parents=True, exist_ok=True)
    _write(_Graph(graph_form(_unpacked(packed, sidecar)), sidecar), sidecar, output, opset)
    try:
        difference = _difference(output, packed, sidecar) if is_checked else None
    except BaseException:
        for file in _files(output):
            file.unlink()
        raise
    return {
        "onnx": str(output),
        "bytes": sum(file.stat().st_size for file in _files(output)),
        "max_difference": difference,
        "opset": opset,
        "inputs": sidecar["inputs"],
        "outputs": sidecar["outputs"],
    }


class _Graph(nn.Module):
    """What is traced: the declared outputs alone, in their order."""

    def __init__(self, model: nn.Module, sidecar: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._names = _names(sidecar["outputs"])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs."""
        answer = self.model(*inputs)
        return (answer,) if isinstance(answer, Tensor) else tuple(answer[name] for name in self._names)


def _names(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [spec["name"] for spec in specs]


def _unpacked(packed: nn.Module, sidecar: Mapping[str, Any]) -> nn.Module:
    """Return the model with every weight as float32, unpacked from ``packed``, which it shares the others with."""
    what = (sidecar["model_type"], sidecar["num_classes"], sidecar["options"])
    model = modules.build_empty(*what)
    held: dict[str, Any] = {**packed.state_dict(), **dict(packed.named_modules())}
    for name, names in modules.slots(model).items():
        weight = held[name]
        modules.assign(model, names, weight.unpack() if isinstance(weight, PackedTensor) else weight)
    modules.compute_missing(model, *what)
    return model


def _inputs(sidecar: Mapping[str, Any], rows: int, seed: int) -> dict[str, Tensor]:
    return architectures.synthetic_inputs(sidecar["model_type"], sidecar["options"], rows, seed)


def _write(graph: _Graph, sidecar: Mapping[str, Any], output: Path, opset: int) -> None:
    inputs = _inputs(sidecar, _TRACED_ROWS, _TRACED_SEED)
    free = tuple(
        {
            axis: _AXES[axis] if axis < len(_AXES) else f"axis{axis}"
            for axis, size in enumerate(spec["shape"])
            if size < 0
        }
        for spec in sidecar["inputs"]
    )
    with warnings.catch_warnings():
        # torch's exporter warns of its own deprecated calls, which nobody here can change.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                graph.eval(), tuple(inputs.values()), dynamo=True, opset_version=opset, verbose=False,
                input_names=list(inputs), output_names=_names(sidecar["outputs"]), dynamic_shapes=(free,),
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UnsupportedError(f"{sidecar['model_type']} has no ONNX form: {reason}") from error
    assert program is not None, "torch gives a program when it is asked for one"  # noqa: S101 - for the type checker
    found = program.model.opset_imports.get("")
    if found != opset:
        raise UnsupportedError(f"opset {opset}: torch's exporter gave {found}", f"use opset {found}")
    program.save(output)


def _files(output: Path) -> list[Path]:
    return [file for file in (output, output.with_name(f"{output.name}.data")) if file.exists()]


def _difference(output: Path, packed: nn.Module, sidecar: Mapping[str, Any]) -> float:
    """Return the largest difference between file and artifact over the largest value of the artifact's outputs."""
    session = require("onnxruntime", "onnx", "ONNX export").InferenceSession(
        str(output), providers=["CPUExecutionProvider"]
    )
    reference, worst = _Graph(packed, sidecar), 0.0
    for rows in _CHECKED_ROWS:
        inputs = _inputs(sidecar, rows, _CHECKED_SEED)
        with torch.inference_mode():
            wanted = reference(*inputs.values())
        answers = session.run(_names(sidecar["outputs"]), {name: tensor.numpy() for name, tensor in inputs.items()})
        for want, answer in zip(wanted, map(torch.from_numpy, answers), strict=True):
            if answer.shape != want.shape:
                raise BuildError(f"the exported file answers {list(answer.shape)}, the artifact {list(want.shape)}")
            gap = float((answer - want).abs().max() / want.abs().max().clamp(min=torch.finfo(want.dtype).tiny))
            worst = max(worst, gap)
    # Written so that NaN, which compares false with everything, never passes.
    if not worst <= MAX_DIFFERENCE:
        raise BuildError(
            f"the exported file differs from the artifact by {worst:.2e} of its largest output, "
            f"at most {MAX_DIFFERENCE} is allowed",
            "report the model type; the artifact itself is unharmed",
        )
    return worst
