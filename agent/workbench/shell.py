"""``nibbled quantize``, ``compare`` and ``export`` on a terminal: progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent.contract.errors import ErrorCode
from agent.contract.matrix import MatrixError, parse_toml
from agent.deployment.facts import mix_base
from agent.deployment.ports import StepError
from agent.deployment.selection import select
from agent.planning.budget import size
from agent.planning.gate import judge
from agent.planning.matrix import MATRIX
from agent.planning.plan import Policy
from agent.workbench import builds, planning, profiles
from agent.workbench import compare as comparison
from agent.workbench.errors import WrongInputError
from agent.workbench.report import agreement, percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.planning.matrix import Purpose, Row

JsonObject = dict[str, Any]


def quantize(
    request: builds.Request, method: str, output: Path, *, double_quant: bool, is_strict: bool, as_json: bool
) -> None:
    """Quantize one checkpoint; the artifact appears in ``output`` once it is whole and the gate has spoken.

    Raises:
        StepError: with the builder's code, ``insufficient_memory`` or ``gate_failed``.
    """
    with builds.scratch(output) as directory:
        if double_quant:
            request = replace(request, base=builds.double_quantized(request.base))
        if method == "auto":
            decision = _double_quantized(_decision(request)) if double_quant else _decision(request)
            mix = replace(request, base=mix_base(decision), budget_bytes=decision["mixed_budget_bytes"])
            kept, record = select(decision, _Building(mix, directory), request.demanded)
            for sentence in record.get("overruled", ()):
                click.echo(f"auto: {sentence}", err=True)
            _keep(kept.result, output, complaints=(), overruled=record.get("overruled", ()), as_json=as_json)
            return
        result, _ = _Building(request, directory)(builds.double_quantized(method) if double_quant else method)
        complaints = judge(result["gate"], request.demanded)
        if complaints and is_strict:
            raise StepError(
                ErrorCode.GATE_FAILED,
                f"{result['method']}: {'; '.join(complaints)}",
                "nothing was written; name a method with more bits, or give --min-agreement and --max-accuracy-drop",
            )
        _keep(result, output, complaints=complaints, overruled=(), as_json=as_json)


@dataclass(frozen=True)
class _Building:
    """Builds methods of one checkpoint, each into a directory of its own."""

    request: builds.Request
    directory: Path

    def __call__(self, method: str) -> tuple[JsonObject, bool]:
        """Build one method; return the builder's result, and that it was not there before."""
        with _bar(f"{self.request.path.name} → {method}") as progress:
            job = builds.build_job(self.request, method, self.directory / method)
            return builds.run_builder(job, progress, threads=self.request.threads), False


def plan(
    checkpoint: str,
    *,
    profile_name: str | None,
    budget: str | None,
    reserve: str,
    matrix_file: Path | None,
    matrix_only: bool,
    purpose: Purpose,
    as_json: bool,
    **asked: str,
) -> bool:
    """Print what would be decided for ``checkpoint``, and return whether anything fits.

    Raises:
        WrongInputError: a size, a profile or a matrix cannot be used.
        StepError: the checkpoint cannot.
    """
    question = planning.Question(
        checkpoint,
        profile=profiles.load(profile_name) if profile_name else None,
        limit_bytes=None if budget is None else _size("--budget", budget),
        reserve_bytes=_size("--reserve", reserve),
        policy=Policy(_matrix(matrix_file) if matrix_file else MATRIX, matrix_only, purpose),
        **asked,
    )
    with _bar(checkpoint) as progress:
        record = planning.answer(question, progress)
    click.echo(json.dumps(record) if as_json else "\n".join(planning.lines(record)))
    return record["decision"]["method"] is not None


def list_profiles() -> None:
    """Print the name and the title of every profile."""
    for name in profiles.names():
        click.echo(f"{name:<18} {profiles.load(name).title}")


def _size(option: str, text: str) -> int:
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise WrongInputError(f"{option} {text!r} is no size; write it as 512MiB or 2GiB") from None


def _matrix(path: Path) -> tuple[Row, ...]:
    try:
        return parse_toml(path.read_text(encoding="utf-8"), str(path))
    except (MatrixError, UnicodeDecodeError) as error:
        raise WrongInputError(str(error)) from None


def compare(request: builds.Request, methods: Sequence[str], output: Path, *, as_json: bool) -> None:
    """Compare methods on one checkpoint.

    Raises:
        StepError: when the checkpoint itself cannot be used.
    """
    with _bar(request.path.name) as progress:
        table = comparison.compare(request, methods, output, progress)
    click.echo(json.dumps(table) if as_json else "\n".join(comparison.lines(table)))
    click.echo(f"{output / 'compare.html'}  {output / 'compare.json'}", err=True)


def export(artifact: Path, output: Path) -> None:
    """Export one artifact; the file, and the one that holds weights over 2 GiB, appear once they are whole.

    Raises:
        StepError: with the builder's code.
    """
    with builds.scratch(output.parent) as directory:
        job = {"job": "export", "artifact": str(artifact.resolve()), "output": str(directory.resolve() / output.name)}
        with _bar(artifact.name) as progress:
            result = builds.run_builder(job, progress)
        for file in directory.iterdir():
            file.replace(output.with_name(file.name))
    difference = result["max_difference"]
    click.echo(f"{output}  {size(result['bytes'])}, differs from the artifact by at most {difference:.1e}")


def _decision(request: builds.Request) -> JsonObject:
    made = builds.decide(request, builds.this_device())
    click.echo(f"auto: {made.reason}", err=True)
    if made.chosen is None:
        raise StepError(ErrorCode.INSUFFICIENT_MEMORY, "no method fits", "free memory, or name a method with --method")
    return made.to_json()


def _double_quantized(decision: JsonObject) -> JsonObject:
    """Return a decision whose methods have their scales quantized, where there are any."""
    names = {name: [*map(builds.double_quantized, decision[name])] for name in ("alternatives", "fallbacks")}
    return {**decision, **names, "method": (first := builds.double_quantized(decision["method"])), "planned": first}


def _keep(
    result: JsonObject, output: Path, *, complaints: Sequence[str], overruled: Sequence[str], as_json: bool
) -> None:
    """Move what was built into ``output`` and print the result."""
    for name in [name for name in ("artifact", "sidecar", "tokenizer") if name in result]:
        final = output / Path(result[name]).name
        Path(result[name]).replace(final)
        result[name] = str(final)
    del result["gate_file"]
    result |= {"complaints": list(complaints), "overruled": list(overruled)}
    click.echo(json.dumps(result) if as_json else _described(result))
    if complaints:
        refusal = f"the gate refuses {result['method']}: {'; '.join(complaints)}"
        click.echo(f"nibbled: warning: {refusal}; written because it was asked for by name", err=True)


def _described(result: JsonObject) -> str:
    gate = result["gate"]
    width = "classes" if gate.get("answer", "classes") == "classes" else "numbers an answer"
    latency, source = gate["latency_ms"]["p50"], gate["source_latency_ms"]["p50"]
    rows = [
        ("artifact", result["artifact"]),
        ("model", f"{result['model_type']}, {result['num_classes']} {width}"),
        ("file", f"{size(result['artifact_bytes'])} from {size(result['source_tensor_bytes'])} of weights"),
        ("resident", f"{size(result['resident_bytes'])}, {100 * result['coverage']:.1f} % of the parameters as codes"),
        ("agreement", f"{agreement(gate)} on {gate['rows']} {gate['inputs']} inputs"),
        ("cosine", "not finite" if gate["cosine"] is None else f"{gate['cosine']:.5f} between the answers"),
        ("latency", f"{latency:.2f} ms, source {source:.2f} ms (p50, one row)"),
    ]
    if gate["accuracy"] is not None:
        rows.append(("accuracy", f"{percent(gate['accuracy'])}, source {percent(gate['accuracy_source'])}"))
    if "mixed" in result:
        rows += _mix(result["mixed"])
    if gate["inputs"] == "synthetic":
        rows.append(("note", "made-up inputs say little about agreement; give --eval with real ones"))
    rows += [("note", note) for note in result["notes"]]
    return "\n".join(f"{name:<10} {text}" for name, text in rows)


def _mix(mixed: JsonObject) -> list[tuple[str, str]]:
    counts = ", ".join(f"{count} by {method}" for method, count in sorted(mixed["counts"].items()))
    trials = ", ".join(
        f"{size(trial['resident_bytes'])} {'passes' if trial['passes'] else 'refused'}" for trial in mixed["trials"]
    )
    return [
        ("tensors", f"{counts}; {mixed['bits_per_weight']:.3f} bits a weight"),
        *(("raised", f"{name} to {method}") for name, method in mixed["tensors"].items()),
        ("trials", trials),
        *(("note", note) for note in mixed["notes"]),
    ]


@contextlib.contextmanager
def _bar(title: str) -> Iterator[builds.OnProgress]:
    """Show one progress bar on stderr; yield what moves it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def move(done: int, total: int | None, _unit: str) -> None:
            progress.update(task, completed=done, total=total)

        yield move
