"""Peak memory and time of quantizing a checkpoint of more than a gibibyte, beside other ways to the same weights.

    make bench-memory

Goals, judged on the builder's rows: anonymous memory over its own base at most the packed size plus 4.5 times the
largest tensor, and time at most 1.25 times that of bitsandbytes' bare calls on the same tensors. Exit status 1 if one
is missed.

Rules: every way runs alone in a process of its own, with the same number of threads, from a warm page cache. All take
turns, round after round, because a shared machine drifts. The highest peak of a way is judged, for an allocator has its
bad days, and the median of its times. Time is judged by the processor's seconds, which neighbours disturb least; the
wall's are shown.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click

from deploy.bench import page, weights
from deploy.bench.anonymous import ChildError, Watched, watch

MEMORY_GOAL, TIME_GOAL = 4.5, 1.25
"""Largest tensors over the packed size; and times the bare calls."""

ROUNDS = 5
BUILDER = ("builder-pt", "builder-safetensors", "builder-alone")
TITLES = {
    "builder-pt": "builder, `.pt`, gate included",
    "builder-safetensors": "builder, safetensors, gate included",
    "builder-alone": "builder, safetensors, quantizing and writing alone",
    "bare": "bare `quantize_4bit` calls, results dropped",
    "naive": "float model, then `Linear4bit` for every Linear",
    "transformers": "transformers, `BitsAndBytesConfig`",
}


@dataclass(frozen=True)
class Trial:
    """One way's measurements; ``quantize_s`` is its processor time without the gate, where it has one."""

    way: str
    watched: Watched

    @property
    def quantize_s(self) -> float:
        """Seconds of the processor until the last tensor was written."""
        result = self.watched.result
        return float(result.get("quantize_processor_s", result["processor_s"]))

    @property
    def quantize_wall_s(self) -> float:
        """The same by the wall."""
        result = self.watched.result
        return float(result.get("quantize_wall_s", result["wall_s"]))


@dataclass(frozen=True)
class Report:
    """All trials on one checkpoint."""

    form: weights.Form
    trials: tuple[Trial, ...]
    absent: dict[str, str]

    @property
    def bare_s(self) -> float:
        """Median processor seconds of the bare calls."""
        return self.quantize_s("bare")

    def of(self, way: str) -> list[Trial]:
        """Return the trials of one way."""
        return [trial for trial in self.trials if trial.way == way]

    def quantize_s(self, way: str) -> float:
        """Return the median processor seconds of one way."""
        return median(trial.quantize_s for trial in self.of(way))

    def allowed_bytes(self, trial: Trial) -> float:
        """Return the memory goal of a builder's trial."""
        return int(trial.watched.result["packed_bytes"]) + MEMORY_GOAL * self.form.largest_bytes

    def missed(self) -> list[str]:
        """Return a sentence for every goal that a builder's way misses."""
        complaints = []
        for way in (way for way in BUILDER if self.of(way)):
            highest = max(self.of(way), key=lambda trial: trial.watched.peak_bytes)
            peak, allowed = highest.watched.peak_bytes, self.allowed_bytes(highest)
            if peak > allowed:
                complaints.append(f"{way} took {_mib(peak)} MiB, {_mib(allowed)} are allowed")
            ratio = self.quantize_s(way) / self.bare_s
            if ratio > TIME_GOAL:
                complaints.append(f"{way} took {ratio:.2f} times the bare calls, {TIME_GOAL} are allowed")
        return complaints


def run(form: weights.Form, folder: Path, threads: int) -> Report:
    """Write the checkpoint into ``folder`` and let every way have its turn."""
    paths = {name: str(path) for name, path in weights.write(form, folder).items()}
    trials: list[Trial] = []
    absent: dict[str, str] = {}
    for way in ROUNDS * tuple(TITLES):
        job = json.dumps({**paths, "output": str(folder / way), "form": asdict(form), "threads": threads})
        command = [sys.executable, "-m", "deploy.bench.contenders", way, job]
        try:
            trials.append(Trial(way, watch(command, {"OMP_NUM_THREADS": str(threads)})))
        except ChildError as error:
            if way in BUILDER or way == "bare":
                raise
            absent[way] = str(error).splitlines()[-1]
    return Report(form, tuple(trials), absent)


def part(report: Report) -> str:
    """Return what the page says: the checkpoint, whether the goals are met, and the table."""
    form, missed = report.form, report.missed()
    told = f"Goal missed: {'; '.join(missed)}." if missed else "Both goals are met."
    peers = "".join(f"\n\nNot measured: {TITLES[way]} ({why})." for way, why in report.absent.items())
    return (
        f"A transformer of {form.blocks} blocks, {form.total_bytes / 2**30:.2f} GiB of float32, the largest tensor "
        f"{_mib(form.largest_bytes)} MiB, to NF4 with double quantization. {told} Memory is anonymous, over each "
        f"process's own base; `allowed` is packed size + {MEMORY_GOAL} x largest tensor. Time is until the last tensor "
        f"is packed, by the processor and by the wall, and in bare calls; of {ROUNDS} runs the median, of peaks the "
        "extremes.\n\n"
        f"{_table(report)}{peers}"
    )


def _table(report: Report) -> str:
    head = ("way", "packed MiB", "peak MiB", "allowed MiB", "base MiB", "processor s", "wall s", "of bare")
    ways = [way for way in TITLES if report.of(way)]
    return page.markdown(head, (_row(report, way) for way in ways))


def _row(report: Report, way: str) -> tuple[str, ...]:
    trials = report.of(way)
    packed = trials[0].watched.result.get("packed_bytes")
    return (
        TITLES[way],
        _mib(packed) if packed else "-",
        _range([_mib(trial.watched.peak_bytes) for trial in trials]),
        _mib(report.allowed_bytes(trials[0])) if way in BUILDER else "-",
        _mib(trials[0].watched.base_bytes),
        f"{report.quantize_s(way):.1f}",
        f"{median(trial.quantize_wall_s for trial in trials):.1f}",
        f"{report.quantize_s(way) / report.bare_s:.2f}",
    )


def _range(figures: list[str]) -> str:
    """Return the figures' extremes, one figure where they are the same."""
    ordered = sorted(set(figures), key=int)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _mib(count: float) -> str:
    return f"{count / 2**20:.0f}"


@click.command()
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--blocks", type=click.IntRange(min=1), default=weights.Form().blocks, show_default=True)
@click.option("--patch", type=click.IntRange(min=8), default=weights.Form().patch, show_default=True)
def main(path: Path, threads: int, blocks: int, patch: int) -> None:
    """Quantize one large checkpoint in every way and write the table into the page at OUTPUT."""
    with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as folder:
        report = run(weights.Form(blocks=blocks, patch=patch), Path(folder), threads)
    page.publish("bench-memory", part(report), path)
    sys.exit(1 if report.missed() else 0)


if __name__ == "__main__":
    main()
