"""Accuracy, agreement and latency of every method on models trained to read kanji, in fonts that they never saw.

    make bench-accuracy

The `cnn` is the demo's; `rnn` and `vit` are trained by `deploy.bench.train_kanji` first, if they are not there yet.
Every method is built and measured by the product's own builder, in a process of its own and with one thread: its gate
runs source and artifact on the same drawings. What `auto` would keep of them on this machine is decided as on a device
(`agent.deployment.selection`): the plan first, then what was measured. `mixed` starts from nf4. Exit status 1 if
nothing is kept, or if the gate refuses nf4 and `mixed` does not pass with bytes between nf4 and int8.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.planning.gate import Thresholds, judge
from agent.planning.methods import METHODS, MIXED, NAMES
from agent.workbench import builds
from agent.workbench.compare import keeps
from deploy.bench import halves, page
from deploy.bench.train_kanji import OUTPUT, PLANS

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOWN = tuple(name for name in NAMES if name != "fp32")
KANJI = Path(__file__).parents[1] / "demo" / "kanji"
MORE_ROWS_THAN_ANY = 1 << 16
"""Asked of the gate, so that it takes every drawing instead of a sample."""


class MissingModelError(FileNotFoundError):
    """A checkpoint that has to be trained first; the text says how."""


@dataclass(frozen=True)
class Subject:
    """A trained model, and drawings with labels to judge it by."""

    model_type: str
    checkpoint: Path
    drawings: Path

    def require(self) -> None:
        """Refuse to go on without the files.

        Raises:
            MissingModelError: one is absent.
        """
        for path in (self.checkpoint, self.drawings):
            if not path.is_file():
                raise MissingModelError(f"{path} is missing: python -m deploy.bench.train_kanji {self.model_type}")


@dataclass(frozen=True)
class Line:
    """One model under one method, as the builder's gate measured it; ``is_kept`` by ``auto``."""

    model_type: str
    method: str
    is_kept: bool
    gate: dict[str, Any]
    artifact_bytes: int
    resident_bytes: int
    bits_per_weight: float

    @property
    def complaints(self) -> list[str]:
        """Why the gate's default thresholds refuse it; empty if they do not."""
        return judge(self.gate, Thresholds())


def subjects() -> list[Subject]:
    """Return the demo's model and those that are trained for this table."""
    trained = [Subject(name, OUTPUT / f"{name}.pt", OUTPUT / f"{name}.safetensors") for name in PLANS]
    return [Subject("cnn", KANJI / "checkpoint_best.pt", KANJI / "evaluation.safetensors"), *trained]


def measure(subject: Subject, method: str, folder: Path, threads: int) -> dict[str, Any]:
    """Build ``subject`` by ``method`` below ``folder``; return the builder's result, its gate run on every drawing.

    Raises:
        agent.deployment.ports.StepError: the builder refused or failed.
    """
    request = builds.Request(subject.checkpoint, subject.model_type, subject.drawings, threads=threads)
    with builds.scratch(folder) as directory:
        job = builds.build_job(request, method, directory)
        job["gate"]["rows"] = MORE_ROWS_THAN_ANY
        return builds.run_builder(job, lambda _done, _total, _unit: None, threads=threads)


def compare(subject: Subject, folder: Path, threads: int) -> list[Line]:
    """Measure every method on one model."""
    plan = builds.decide(builds.Request(subject.checkpoint, subject.model_type), builds.this_device())
    results = {method: measure(subject, method, folder, threads) for method in SHOWN}
    kept, _overruled = keeps(plan.to_json(), results.get, Thresholds())
    return [
        Line(
            subject.model_type,
            name,
            name == kept,
            result["gate"],
            result["artifact_bytes"],
            result["resident_bytes"],
            bits(name, result),
        )
        for name, result in results.items()
    ]


def bits(method: str, result: dict[str, Any]) -> float:
    """Return the bits that a packed weight takes on average."""
    if method in METHODS:
        return METHODS[method].bits_per_weight()
    return float(result["mixed"]["bits_per_weight"])


def part(lines: list[Line], threads: int, held_out: Mapping[str, halves.Halves] | None = None) -> str:
    """Return what the page says: what `auto` chooses and whether it holds, and the table.

    Args:
        lines: what was measured.
        threads: of the builder.
        held_out: of each model whose nf4 is refused, what its mix is worth on drawings that did not choose it.
    """
    rows = {line.model_type: line.gate["rows"] for line in lines}
    measured = ", ".join(f"{count} with `{name}`" for name, count in rows.items())
    return (
        f"{_verdict(lines)} {_mixed_verdict(lines)} Drawings in fonts never trained on: {measured}. Latency is the "
        f"median of single rows with {threads} thread, beside the float32 source in the same process."
        f"{_held_out(held_out or {})}\n\n{_table(lines)}"
    )


def _verdict(lines: list[Line]) -> str:
    kept = {line.model_type: f"{line.method}, {line.gate['agreement']:.2%}" for line in lines if line.is_kept}
    told = "; ".join(
        f"`{name}` {kept.get(name, 'none, missed')}" for name in dict.fromkeys(x.model_type for x in lines)
    )
    least = Thresholds().min_agreement
    return f"Goal, agreement of at least {least:.0%} for the method that `auto` keeps here: {told}."


def missed_by_mixed(lines: list[Line]) -> list[str]:
    """Return the models for which nf4 is refused and `mixed` does not pass at a size between nf4 and int8."""
    return [
        name
        for name, (nf4, mixed, int8) in _mixes(lines).items()
        if mixed.complaints or not nf4.resident_bytes < mixed.resident_bytes < int8.resident_bytes
    ]


def _mixes(lines: list[Line]) -> dict[str, tuple[Line, Line, Line]]:
    """Return nf4, `mixed` and int8 of every model whose nf4 the gate refuses."""
    found = {(line.model_type, line.method): line for line in lines}
    models = [line.model_type for line in lines if line.method == "nf4" and line.complaints]
    return {name: (found[name, "nf4"], found[name, MIXED], found[name, "int8"]) for name in models}


def _mixed_verdict(lines: list[Line]) -> str:
    missed = missed_by_mixed(lines)
    told = "; ".join(
        f"`{name}` {nf4.resident_bytes:,} < {mixed.resident_bytes:,} < {int8.resident_bytes:,} resident bytes, "
        f"{mixed.gate['agreement']:.2%}{', missed' if name in missed else ''}"
        for name, (nf4, mixed, int8) in _mixes(lines).items()
    )
    return f"Goal, `mixed` passes between nf4 and int8 where nf4 is refused: {told or 'nf4 is refused nowhere'}."


def _held_out(measured: Mapping[str, halves.Halves]) -> str:
    told = "; ".join(f"`{name}` {both.chosen_on:.2%}, then {both.held_out:.2%}" for name, both in measured.items())
    what = f"`mixed` chosen on a random half of the drawings and judged on the other, means of {halves.SPLITS} halves"
    return f"\n\n{what}: {told}." if told else ""


def _table(lines: list[Line]) -> str:
    head = (
        "model",
        "method",
        "bits",
        "artifact",
        "resident",
        "accuracy",
        "source",
        "agreement",
        "cosine",
        "p50 ms",
        "source p50 ms",
        "gate",
    )
    return page.markdown(head, (_row(line) for line in lines))


def _row(line: Line) -> tuple[str, ...]:
    gate = line.gate
    return (
        line.model_type,
        f"{line.method} (kept)" if line.is_kept else line.method,
        f"{line.bits_per_weight:.2f}",
        f"{line.artifact_bytes:,}",
        f"{line.resident_bytes:,}",
        f"{gate['accuracy']:.2%}",
        f"{gate['accuracy_source']:.2%}",
        f"{gate['agreement']:.2%}",
        f"{gate['cosine']:.5f}",
        f"{gate['latency_ms']['p50']:.2f}",
        f"{gate['source_latency_ms']['p50']:.2f}",
        "refuses" if line.complaints else "passes",
    )


@click.command()
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(path: Path, threads: int) -> None:
    """Measure every method on every trained model and write the table into the page at OUTPUT."""
    chosen = subjects()
    try:
        for subject in chosen:
            subject.require()
    except MissingModelError as error:
        raise click.ClickException(str(error)) from error
    lines = [line for subject in chosen for line in compare(subject, OUTPUT, threads)]
    mixes = _mixes(lines)
    held_out = {
        subject.model_type: halves.measure(subject.model_type, subject.checkpoint, subject.drawings)
        for subject in chosen
        if subject.model_type in mixes
    }
    page.publish("bench-accuracy", part(lines, threads, held_out), path)
    unkept = {line.model_type for line in lines} - {line.model_type for line in lines if line.is_kept}
    sys.exit(1 if unkept or missed_by_mixed(lines) else 0)


if __name__ == "__main__":
    main()
