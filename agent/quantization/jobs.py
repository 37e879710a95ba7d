"""The builder's jobs, from a JSON object to the content of its result event.

A job is validated here and nowhere else. Files are written into the directory that the job names; moving them into
place is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agent import architectures
from agent.architectures.optional import MissingPackageError
from agent.archives import is_archive
from agent.planning.gate import Thresholds
from agent.planning.memory import SERVED_ROWS
from agent.planning.methods import (
    BLOCKSIZES,
    DEFAULT_BLOCKSIZE,
    FOUR_BIT,
    METHODS,
    MIXED,
    NAMES,
    Method,
    UnknownMethodError,
    file_tag,
    known,
)
from agent.quantization import (
    answers,
    artifact,
    companions,
    footprint,
    gate,
    huggingface_files,
    huggingface_text,
    mixing,
    onnx,
    process,
    quantizer,
    sidecar,
    trial,
)
from agent.quantization.assignment import Scheme
from agent.quantization.checkpoint import Checkpoint, open_checkpoint
from agent.quantization.errors import UnsupportedError, UnsupportedMethodError
from agent.quantization.probe import probe

JsonObject = dict[str, Any]
Emit = Callable[[JsonObject], None]

SKIPPED_REPORTED = 20
"""Skipped weights in the result, which travels in messages of bounded size; the sidecar has all."""
GATE_FILE = "gate.safetensors"
AUTO = "auto"


class BadJobError(ValueError):
    """A job object that the caller built wrongly."""


@dataclass(frozen=True)
class BuildJob:
    """A ``build`` job after validation.

    Attributes:
        checkpoint: a file, or a Hugging Face model in a directory, a tar or a zip.
        told: the JSON file that came with the checkpoint, for what no tensor shape tells.
        decision: why it is built, for the sidecar; not read here.
        device: where weights are packed, and source and result compared: ``cpu``, ``cuda``, or ``auto`` for what the
            server will use.
        wish: what a mix may cost and has to prove; None for the other methods.
    """

    checkpoint: Path
    model_type: str | None
    method: str
    blocksize: int
    output_dir: Path
    told: Mapping[str, Any]
    source_sha256: str | None
    dataset: Path | None
    rows: int
    seed: int
    device: str
    decision: Mapping[str, Any] | None
    wish: mixing.Wish | None = None


def run(job: Mapping[str, Any], emit: Emit) -> JsonObject:
    """Do a job; progress goes through ``emit``, the result's content is returned.

    Raises:
        BadJobError: the job is not one.
        BuildError: what the checkpoint or the machine does not allow.
    """
    torch.set_num_threads(int(job.get("threads", 1)))
    try:
        return _run(job, emit)
    except MissingPackageError as error:
        raise UnsupportedError(str(error), error.hint) from error


def _run(job: Mapping[str, Any], emit: Emit) -> JsonObject:
    kind = job.get("job")
    if kind == "build":
        return build(_parse_build(job), emit)
    if kind == "inspect":
        return inspect(Path(_text(job, "checkpoint")), job.get("sidecar") or {}, _model_type(job))
    if kind == "export":
        return _export(job)
    if kind == "answer":
        return {"answers": answers.ask_all(job["artifacts"], _text(job, "request"), job.get("device") or AUTO)}
    if kind == "probe":
        return probe(job.get("methods", list(METHODS)))
    raise BadJobError(f"unknown job {kind!r}; known: answer, build, export, inspect, probe")


def build(job: BuildJob, emit: Emit) -> JsonObject:
    """Quantize a checkpoint, measure the result against the source, and write artifact, sidecar and gate file."""
    begin = time.monotonic()
    checkpoint = _open(job.checkpoint)
    found = _recognise(job.checkpoint, checkpoint, job.told, job.model_type)
    data = gate.evaluation(found, job.dataset, job.rows, job.seed)
    job.output_dir.mkdir(parents=True, exist_ok=True)
    path = job.output_dir / artifact.file_name(found.model_type, file_tag(job.method))
    origin: JsonObject = {"source_sha256": job.source_sha256 or _digest(job.checkpoint), "decision": job.decision}
    origin["labels"] = [*checkpoint.labels] if len(checkpoint.labels) == found.num_classes else None
    if huggingface_text.is_language_model(found):
        generation, notes = huggingface_text.carry(job.checkpoint, found, path)
        origin["generation"] = generation
        found = replace(found, notes=(*found.notes, *notes))
    subject = trial.Subject(checkpoint, found, data, job.blocksize, job.device, origin)
    gate_file = path.with_name(GATE_FILE)
    if job.wish is not None:
        facts = mixing.build(subject, job.wish, path, gate_file, _progress(emit, "runs"))
    else:
        facts = _build_uniform(subject, METHODS[job.method], path, gate_file, _progress(emit, "tensors"))
    return {
        "artifact": str(path),
        "sidecar": str(path.with_suffix(".json")),
        "gate_file": str(gate_file),
        **({"tokenizer": str(path.with_name(told["tokenizer"]["file"]))} if (told := origin.get("generation")) else {}),
        **{key: facts[key] for key in _RESULT_KEYS},
        "skipped": facts["skipped"][:SKIPPED_REPORTED],
        **({"mixed": mixing.told(facts["mixed"])} if "mixed" in facts else {}),
        "peak_rss_bytes": process.peak_rss_bytes(),
        "seconds": round(time.monotonic() - begin, 3),
    }


_RESULT_KEYS = (
    "model_type", "num_classes", "options", "method", "source_bytes", "source_tensor_bytes", "artifact_bytes",
    "artifact_sha256", "resident_bytes", "working_bytes", "coverage", "skipped", "skipped_count", "notes", "gate",
)  # fmt: skip


def _build_uniform(
    subject: trial.Subject, method: Method, path: Path, gate_file: Path, progress: quantizer.Progress
) -> JsonObject:
    """Write the artifact, run source and result, one after the other, and write the gate file in between."""
    facts = trial.make(subject, path, Scheme.uniform(method), progress)
    process.keep_little_freed_memory()  # the peak is here, where the artifact is held beside what a layer unpacks to
    source = subject.run_source()
    gate.write_gate_file(gate_file, subject.data, source)
    facts |= trial.measure(subject, path, source)
    sidecar.write(path, facts)
    return facts


def inspect(path: Path, told: Mapping[str, Any], model_type: str | None = None) -> JsonObject:
    """Say what a checkpoint is and what it will need, from its directory: no weight is read."""
    checkpoint = _open(path)
    found = _recognise(path, checkpoint, told, model_type)
    needs, guesses = footprint.measure(found, SERVED_ROWS)
    tensors = [
        {"name": name, "shape": list(entry.shape), "dtype": str(entry.dtype).removeprefix("torch.")}
        for name, entry in checkpoint.entries.items()
    ]
    return {
        "model_type": found.model_type,
        "num_classes": found.num_classes,
        "options": found.options,
        "notes": [*checkpoint.notes, *found.notes, *guesses],
        "tensors": tensors,
        "bytes": checkpoint.file_bytes,
        "footprint": needs.to_json(),
    }


def _export(job: Mapping[str, Any]) -> JsonObject:
    opset, check = job.get("opset", onnx.DEFAULT_OPSET), job.get("check", True)
    if type(opset) is not int or type(check) is not bool:
        raise BadJobError(
            f"the job's 'opset' is {opset!r} and 'check' {check!r}, a number and true or false are needed"
        )
    return onnx.export(Path(_text(job, "artifact")), Path(_text(job, "output")), opset, is_checked=check)


def _parse_build(job: Mapping[str, Any]) -> BuildJob:
    wanted = job.get("gate") or {}
    method = _method(_text(job, "method"))
    return BuildJob(
        checkpoint=Path(_text(job, "checkpoint")),
        model_type=_model_type(job),
        method=method,
        blocksize=_blocksize(job.get("blocksize") or DEFAULT_BLOCKSIZE),
        output_dir=Path(_text(job, "output_dir")),
        told=job.get("sidecar") or {},
        source_sha256=job.get("source_sha256"),
        dataset=Path(wanted["dataset"]) if wanted.get("dataset") else None,
        rows=int(wanted.get("rows", 256)),
        seed=int(wanted.get("seed", 0)),
        device=job.get("device") or AUTO,
        decision=job.get("decision"),
        wish=_wish(job.get("mixed") or {}, wanted.get("thresholds") or {}) if method == MIXED else None,
    )


def _model_type(job: Mapping[str, Any]) -> str | None:
    model_type = job.get("model_type") or AUTO
    return None if model_type == AUTO else str(model_type)


def _wish(mixed: Mapping[str, Any], thresholds: Mapping[str, Any]) -> mixing.Wish:
    base, budget = mixed.get("base", FOUR_BIT[0]), mixed.get("budget_bytes")
    if base not in FOUR_BIT:
        raise UnsupportedMethodError(f"base {base!r} of a mix", f"use one of {', '.join(FOUR_BIT)}")
    if budget is not None and (type(budget) is not int or budget < 0):
        raise BadJobError(f"the job's 'mixed.budget_bytes' is {budget!r}, a number or null is needed")
    try:
        return mixing.Wish(METHODS[base], budget, Thresholds(**thresholds))
    except TypeError as error:
        raise BadJobError(f"the job's 'gate.thresholds': {error}") from error


def _text(job: Mapping[str, Any], key: str) -> str:
    value = job.get(key)
    if not isinstance(value, str) or not value:
        raise BadJobError(f"the job's {key!r} is {value!r}, a text is needed")
    return value


def _method(name: str) -> str:
    try:
        return known(name)
    except UnknownMethodError as error:
        raise UnsupportedMethodError(f"unknown method {name!r}", f"use one of {', '.join(NAMES)}") from error


def _blocksize(value: Any) -> int:
    if value not in BLOCKSIZES:
        raise UnsupportedMethodError(f"blocksize {value!r}", f"use one of {', '.join(map(str, BLOCKSIZES))}")
    return int(value)


def _open(path: Path) -> Checkpoint:
    return huggingface_files.open_files(path) if _has_files(path) else open_checkpoint(path)


def _digest(path: Path) -> str:
    return huggingface_files.digest(path) if _has_files(path) else sidecar.sha256(path)


def _has_files(path: Path) -> bool:
    try:
        return path.is_dir() or is_archive(path)
    except OSError:
        return False  # opening it says why it cannot be read


def _recognise(
    path: Path, checkpoint: Checkpoint, told: Mapping[str, Any], model_type: str | None
) -> architectures.Recognised:
    """Find the model type; what the caller says must fit, and what the file says too if it is a known name.

    What no shape tells is taken from the caller, else from the file, else from what its training left beside it.
    """
    hint = checkpoint.hint
    hint = hint if hint is not None and architectures.is_known(hint) else None
    beside, notes = ({}, ()) if _has_files(path) else companions.beside(path)
    known = {**beside, **checkpoint.told, **told}
    if model_type is not None and hint is not None:
        architectures.recognise(checkpoint.shapes, known, hint)
    found = architectures.recognise(checkpoint.shapes, known, model_type or hint)
    used = beside and all(name in found.options and known[name] == beside[name] for name in beside)
    return replace(found, notes=(*found.notes, *notes)) if used else found


def _progress(emit: Emit, unit: str) -> quantizer.Progress:
    return lambda done, total: emit({"event": "progress", "done": done, "total": total, "unit": unit})
