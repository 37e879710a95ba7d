"""``nibbled quantize``, ``compare`` and ``export`` on a terminal: progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.planning.gate import judge
from agent.planning.plan import size
from agent.workbench import builds
from agent.workbench import compare as comparison
from agent.workbench.report import agreement, percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

JsonObject = dict[str, Any]


def quantize(
    request: builds.Request, method: str, output: Path, *, double_quant: bool, is_strict: bool, as_json: bool
) -> None:
    """Quantize one checkpoint; the artifact appears in ``output`` once it is whole and the gate has spoken.

    Raises:
        StepError: with the builder's code, ``insufficient_memory`` or ``gate_failed``.
    """
    is_auto = method == "auto"
    methods = _order(request.path) if is_auto else (method,)
    if double_quant:
        methods = tuple(map(builds.double_quantized, methods))
        request = replace(request, base=builds.double_quantized(request.base))
    overruled: list[str] = []
    for name in methods:
        if overruled:
            click.echo(f"auto: the gate refuses {overruled[-1]}; {name} is next", err=True)
        with builds.scratch(output) as directory:
            with _bar(f"{request.path.name} → {name}") as progress:
                job = builds.build_job(request, name, directory)
                result = builds.run_builder(job, progress, threads=request.threads)
            complaints = judge(result["gate"], request.demanded)
            if not complaints or not (is_auto or is_strict):
                _keep(result, output, complaints=complaints, overruled=overruled, as_json=as_json)
                return
        overruled.append(f"{name}: {'; '.join(complaints)}")
    raise StepError(
        ErrorCode.GATE_FAILED,
        " | ".join(overruled),
        "nothing was written; name a method with more bits, or give --min-agreement and --max-accuracy-drop",
    )


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


def _order(path: Path) -> tuple[str, ...]:
    decision = builds.decide(path, "auto")
    click.echo(f"auto: {decision.reason}", err=True)
    if decision.chosen is None:
        raise StepError(ErrorCode.INSUFFICIENT_MEMORY, "no method fits", "free memory, or name a method with --method")
    return builds.order(decision)


def _keep(
    result: JsonObject, output: Path, *, complaints: Sequence[str], overruled: Sequence[str], as_json: bool
) -> None:
    """Move what was built into ``output`` and print the result."""
    for name in ("artifact", "sidecar"):
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
