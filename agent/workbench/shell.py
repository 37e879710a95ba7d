"""``nibbled quantize``, ``compare`` and ``export`` on a terminal: progress on stderr, results on stdout, a status."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent.deployment.ports import StepError
from agent.planning.methods import METHODS, UnknownMethodError, method
from agent.planning.plan import size
from agent.workbench import builds
from agent.workbench import compare as comparison

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

JsonObject = dict[str, Any]


def quantize(
    requested: str,
    output: Path,
    *,
    double_quant: bool,
    as_json: bool,
    model_path: Path,
    model_type: str,
    blocksize: int,
    dataset: Path | None,
    device: str,
) -> int:
    """Quantize one checkpoint; return the exit status."""
    with _explained() as status:
        chosen = builds.method_name(requested, double_quant=double_quant)
        if chosen == "auto":
            chosen = _decide(model_path, double_quant=double_quant)
        request = builds.Request(model_path, model_type, dataset, blocksize, device=device)
        with _bar(f"{model_path.name} → {method(chosen).name}") as progress:
            result = builds.build(request, chosen, output, progress)
        click.echo(json.dumps(result) if as_json else _described(result))
    return status[0]


def compare(
    methods: str | None,
    output: Path,
    *,
    as_json: bool,
    model_path: Path,
    model_type: str,
    blocksize: int,
    dataset: Path | None,
    device: str,
) -> int:
    """Compare methods on one checkpoint; return the exit status."""
    with _explained() as status:
        names = [method(name.strip()).name for name in methods.split(",")] if methods else list(METHODS)
        request = builds.Request(model_path, model_type, dataset, blocksize, device=device)
        with _bar(model_path.name) as progress:
            table = comparison.compare(
                request, names, output, lambda _name, position: progress(position, len(names), "methods")
            )
        click.echo(json.dumps(table) if as_json else "\n".join(comparison.lines(table)))
        click.echo(f"{output / 'compare.html'}  {output / 'compare.json'}", err=True)
    return status[0]


def export(artifact: Path, output: Path) -> int:
    """Export one artifact; return the exit status."""
    with _explained() as status:
        job = {"job": "export", "artifact": str(artifact.resolve()), "output": str(output.resolve())}
        with _bar(artifact.name) as progress:
            result = builds.run_builder(job, progress)
        difference = result["max_difference"]
        click.echo(f"{output}  {size(result['bytes'])}, differs from the artifact by at most {difference:.1e}")
    return status[0]


def _decide(path: Path, *, double_quant: bool) -> str:
    plan = builds.decide(path, "auto")
    click.echo(f"auto: {plan.reason}", err=True)
    if plan.chosen is None:
        raise builds.WorkbenchError("no method fits; free memory, or name one with --method")
    return builds.method_name(plan.chosen.method, double_quant=double_quant)


def _described(result: JsonObject) -> str:
    gate = result["gate"]
    accuracy = gate["accuracy"]
    rows = [
        ("artifact", result["artifact"]),
        ("model", f"{result['model_type']}, {result['num_classes']} classes"),
        ("file", f"{size(result['artifact_bytes'])} from {size(result['source_tensor_bytes'])} of weights"),
        ("resident", f"{size(result['resident_bytes'])}, {100 * result['coverage']:.1f} % of the parameters as codes"),
        ("agreement", f"{100 * gate['agreement']:.2f} % on {gate['rows']} {gate['inputs']} inputs"),
        ("cosine", "not finite" if gate["cosine"] is None else f"{gate['cosine']:.5f} between the answers"),
        (
            "latency",
            f"{gate['latency_ms']['p50']:.2f} ms, source {gate['source_latency_ms']['p50']:.2f} ms (p50, one row)",
        ),
    ]
    if accuracy is not None:
        rows.append(("accuracy", f"{100 * accuracy:.2f} %, source {100 * gate['accuracy_source']:.2f} %"))
    if gate["inputs"] == "synthetic":
        rows.append(("note", "made-up inputs say little about agreement; give --eval with real ones"))
    rows += [("note", note) for note in result["notes"]]
    return "\n".join(f"{name:<10} {text}" for name, text in rows)


@contextlib.contextmanager
def _explained() -> Iterator[list[int]]:
    """Turn the errors that people can act on into a sentence on stderr and an exit status."""
    status = [0]
    try:
        yield status
    except StepError as error:
        status[0] = 1
        click.echo(f"nibbled: {error.code}: {error.detail}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
    except builds.WorkbenchError as error:
        status[0] = 1
        click.echo(f"nibbled: {error}", err=True)
    except UnknownMethodError as error:
        status[0] = 2
        click.echo(f"nibbled: {error}", err=True)


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """Show one progress bar on stderr; yield what moves it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def move(done: int, total: int | None, _unit: str) -> None:
            progress.update(task, completed=done, total=total)

        yield move
