"""A finished artifact: a safetensors file and the JSON sidecar beside it.

``load`` needs nothing else: no checkpoint, no unpickling, no full-precision weight. It reads as many bytes as the
artifact has, and the module's state is the file's, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from agent.planning.methods import DEFAULT_BLOCKSIZE, MIXED
from agent.planning.methods import method as find_method
from agent.quantization import codebooks, kernels, modules
from agent.quantization.assignment import Scheme, SchemeError, nothing, spread, stored_methods
from agent.quantization.errors import BuildError, UnsupportedError
from agent.quantization.quantizer import contents
from agent.quantization.safetensors_header import Header, read_header
from agent.quantization.sidecar import SCHEMA, sha256
from agent.quantization.swap import pack_layers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from torch import nn

    from agent.planning.methods import Method


class ArtifactError(ValueError):
    """A file that is no artifact of this version, or is damaged; the text says how."""


def file_name(model_type: str, file_tag: str) -> str:
    """Return an artifact's name, in the guide's pattern: ``cnn_4bit_NF4.safetensors``, ``rnn_mixed.safetensors``.

    The colon of ``timm:NAME`` becomes a dash: in a path it separates hosts and drives for too many tools.
    """
    return f"{model_type.replace(':', '-')}_{file_tag}.safetensors"


def load_sidecar(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the sidecar of the artifact at ``path``.

    Raises:
        ArtifactError: it is missing, not JSON, or of another schema.
    """
    sidecar = Path(path).with_suffix(".json")
    try:
        content = json.loads(sidecar.read_bytes())
    except OSError as error:
        raise ArtifactError(f"the sidecar {sidecar.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"the sidecar {sidecar.name} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(f"the sidecar {sidecar.name} has schema {found!r}, this version reads {SCHEMA}")
    return content


def check_digest(path: str | PathLike[str], sidecar: Mapping[str, Any]) -> None:
    """Raise ``ArtifactError`` if the file is not what was written: storage that wears out flips bits in silence."""
    written = sidecar.get("artifact_sha256")
    if written is None:
        return  # of an older version, which kept none
    try:
        found = sha256(Path(path))
    except OSError as error:
        raise ArtifactError(f"{Path(path).name} cannot be read: {error.strerror}") from error
    if found != written:
        raise ArtifactError(f"{Path(path).name} is damaged: it was written with sha256 {written}, it has {found} now")


def load(path: str | PathLike[str], device: str = "auto") -> nn.Module:
    """Return the model in an artifact, in eval mode and ready to be called with float32 inputs.

    Args:
        path: the ``.safetensors`` file; its sidecar lies beside it.
        device: ``cpu``, ``cuda``, or ``auto`` for the GPU if there is one.

    Raises:
        ArtifactError: the file or its sidecar is missing, damaged, or does not fit the model type.
    """
    where = torch.device(resolve(device))
    sidecar = load_sidecar(path)
    try:
        header = read_header(Path(path))
        model_type, num_classes, options = sidecar["model_type"], sidecar["num_classes"], sidecar["options"]
        scheme, blocksize = read_scheme(sidecar), sidecar["blocksize"] or DEFAULT_BLOCKSIZE
    except (OSError, KeyError, ValueError, BuildError) as error:
        raise ArtifactError(f"{Path(path).name} is no artifact: {error!s}") from error
    model = modules.build_empty(model_type, num_classes, options)
    stored = _stored(header, model, scheme)
    model = pack_layers(model, spread(stored, model, nothing), blocksize)
    _check(header, model, scheme)
    check_digest(path, sidecar)
    _fill(model, path)
    modules.compute_missing(model, model_type, num_classes, options)
    for method in scheme.methods:
        if method.quant_type is not None:
            kernels.kernel(where, method.quant_type)  # tried now: the first request must not pay for it
    return model.to(where).eval()


def read_scheme(sidecar: Mapping[str, Any]) -> Scheme:
    """Return how a sidecar says that the weights are stored; for ``mixed`` its table says it of each.

    Raises:
        KeyError: a part of it is missing.
        ValueError: it names an unknown method, or has no table.
    """
    if sidecar["method"] != MIXED:
        return Scheme.uniform(find_method(sidecar["method"]))
    try:
        base, table = sidecar["mixed"]["base"], dict(sidecar["mixed"]["table"])
    except (KeyError, TypeError):
        raise ValueError("its sidecar says mixed and has no table of tensors") from None
    return Scheme.mixed(find_method(base), {name: find_method(told) for name, told in table.items()})


def resolve(device: str) -> str:
    """Return the device that ``auto`` stands for on this machine; other names are returned as they are.

    Raises:
        UnsupportedError: ``cuda`` is asked for, and no CUDA device answers.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UnsupportedError(
            f"no CUDA device answers to torch {torch.__version__}", "take cpu or auto, or see to the driver"
        )
    return device


def _stored(header: Header, model: nn.Module, scheme: Scheme) -> dict[str, Method]:
    """Return the method of every packed tensor in the file, which the sidecar must not contradict."""
    names = {name for tied in modules.slots(model).values() for name in tied}
    try:
        stored = stored_methods(header, names)
        scheme.check(stored)
    except SchemeError as error:
        raise ArtifactError(f"sidecar and artifact contradict each other: {error}") from error
    return stored


def _check(header: Header, model: nn.Module, scheme: Scheme) -> None:
    """Compare what the file holds with what the model needs, in full, before anything is read."""
    wanted = contents(model, codebooks.of_methods(scheme.methods))
    held = {name: (info.shape, info.dtype) for name, info in header.tensors.items()}
    if wanted == held:
        return
    missing = sorted(wanted.keys() - held.keys())
    unexpected = sorted(held.keys() - wanted.keys())
    unequal = sorted(name for name in wanted.keys() & held.keys() if wanted[name] != held[name])
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", unequal))
        if names
    ]
    raise ArtifactError(f"the artifact does not fit its model type: tensors {'; '.join(parts)}")


def _fill(model: nn.Module, path: str | PathLike[str]) -> None:
    """Copy every tensor from the file, so that serving never waits for a page of it."""
    shared = modules.slots(model)
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a file handle, not a dict
            tensor = file.get_tensor(name)
            if not name.startswith(codebooks.PREFIX):
                modules.assign(model, shared[name], tensor.clone())
            elif not torch.equal(tensor, _known_codebook(name)):
                raise ArtifactError(f"{name!r} differs from the format's: the artifact was made by something else")


def _known_codebook(name: str) -> torch.Tensor:
    cpu = torch.device("cpu")
    kind = name.removeprefix(codebooks.PREFIX)
    return (
        codebooks.dynamic_8bit(cpu) if kind == "scales" else codebooks.four_bit("nf4" if kind == "nf4" else "fp4", cpu)
    )
