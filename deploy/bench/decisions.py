"""What is decided where, and how good the estimates behind it are.

    make decisions

Two parts of `docs/decisions.md`: every profile x every model type x three budgets, as `nibbled plan` answers; and for
every type what the plan expected beside what the builder and a real server process on this machine took. Exit status 1
if an estimate is off by more than its goal: 5 % for weights, 15 % for the peak of the process.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from agent import architectures
from agent.planning import model_types
from agent.planning.budget import size
from agent.planning.memory import SERVED_ROWS, Footprint, Learned, estimate
from agent.planning.methods import METHODS
from agent.planning.plan import plan
from agent.quantization import footprint, jobs
from agent.workbench import profiles
from deploy.bench import page, serving

if TYPE_CHECKING:
    from agent.workbench.profiles import Profile

PAGE = page.PAGE.with_name("decisions.md")
CLASSES = 3036
RESERVE_BYTES = 512 * 2**20
BUDGETS = (None, 64 * 2**20, 24 * 2**20)
"""What the device has; and two limits that an operator may set: the types need some 5 to 50 MiB with a full batch."""
METHOD = "nf4-dq"
WEIGHTS_GOAL, PEAK_GOAL = 0.05, 0.15


@dataclass(frozen=True)
class Subject:
    """A model type at 3036 classes: its checkpoint, and what its definition says it needs."""

    model_type: str
    checkpoint: Path
    needs: Footprint


@dataclass(frozen=True)
class Comparison:
    """Expected and measured bytes of one type under ``METHOD``, served alone on this machine.

    Attributes:
        weights: estimated and measured.
        working: estimated and measured, what a full batch takes for a moment.
        base_bytes: the serving process before its first model.
        peak_bytes: the serving process at most.
    """

    model_type: str
    weights: tuple[int, int]
    working: tuple[int, int]
    base_bytes: int
    peak_bytes: int

    @property
    def weights_error(self) -> float:
        """How far the weights are off, as a share of what was measured."""
        return self.weights[0] / self.weights[1] - 1

    def expected_peak(self, factor: float = 1.0) -> int:
        """Return the peak that was expected, working memory corrected by ``factor``."""
        return self.base_bytes + self.weights[0] + round(factor * self.working[0])

    def peak_error(self, factor: float = 1.0) -> float:
        """How far that is off, as a share of what was measured."""
        return self.expected_peak(factor) / self.peak_bytes - 1


def taught_by(others: list[Comparison]) -> Learned:
    """Return what a device has learned that deployed ``others`` one after another."""
    learned = Learned()
    for each in others:
        learned = learned.after(raw_working_bytes=each.working[0], measured_working_bytes=each.working[1])
    return learned


def subjects(folder: Path) -> list[Subject]:
    """Write a fresh checkpoint of every type into ``folder``."""
    found = []
    for name in model_types.names():
        path = folder / f"{name}.pt"
        state = architectures.build(name, CLASSES).state_dict()
        torch.save(state, path)
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        needs, _notes = footprint.measure(architectures.recognise(shapes, hint=name), SERVED_ROWS)
        found.append(Subject(name, path, needs))
    return found


def decisions(models: list[Subject]) -> str:
    """Return the table of what every profile decides for every type, at every budget."""
    head = ("device", "type", "budget", "scenario", "method", "estimated", "admission or reason")
    shown = [profiles.load(name) for name in profiles.names()]
    return page.markdown(head, (_decision(p, m, limit) for p in shown for m in models for limit in BUDGETS))


def _decision(profile: Profile, model: Subject, limit: int | None) -> tuple[str, ...]:
    made = plan(model.needs, profile.budget(RESERVE_BYTES, limit), kernel=profile.kernel)
    chosen = made.chosen
    return (
        profile.name,
        model.model_type,
        "auto" if limit is None else size(limit),
        made.row.scenario,
        chosen.method if chosen else "none",
        size(chosen.estimated_bytes if chosen else made.candidates[-1].estimated_bytes),
        f"{made.share:.1%} of {size(made.budget.room_bytes)}" if chosen else "refused: more than there is",
    )


def compare(model: Subject, folder: Path) -> Comparison:
    """Build one type, serve it by a process of its own, and return what was expected beside what it took."""
    job = {"job": "build", "checkpoint": str(model.checkpoint), "model_type": model.model_type, "method": METHOD}
    result = jobs.run({**job, "output_dir": str(folder / model.model_type), "gate": {"rows": 8}}, lambda _event: None)
    first = estimate(model.needs, METHODS[METHOD])
    served = serving.peak(Path(result["artifact"]), model.model_type, result["options"], model.needs.rows)
    working = served.peak_bytes - served.base_bytes - result["resident_bytes"]
    return Comparison(
        model.model_type,
        (first.weights_bytes, result["resident_bytes"]),
        (first.raw_working_bytes, working),
        served.base_bytes,
        served.peak_bytes,
    )


def missed(comparisons: list[Comparison]) -> list[str]:
    """Return a sentence for every estimate that misses its goal."""
    told = []
    for each in comparisons:
        told += (
            [f"weights of {each.model_type} {each.weights_error:+.1%}"]
            if abs(each.weights_error) > WEIGHTS_GOAL
            else []
        )
        told += [f"peak of {each.model_type} {each.peak_error():+.1%}"] if abs(each.peak_error()) > PEAK_GOAL else []
    return told


def errors(comparisons: list[Comparison]) -> str:
    """Return the table of estimates and measurements."""
    head = (
        "type", "weights, estimated", "measured", "off", "working, estimated", "measured",
        "process peak, estimated", "measured", "off", "off, learned",
    )  # fmt: skip
    rows = []
    for each in comparisons:
        learned = taught_by([other for other in comparisons if other is not each])
        rows.append(
            (
                each.model_type,
                *(f"{count:,}" for count in each.weights),
                f"{each.weights_error:+.2%}",
                *(size(count) for count in each.working),
                size(each.expected_peak()),
                size(each.peak_bytes),
                f"{each.peak_error():+.1%}",
                f"{each.peak_error(learned.working_factor):+.1%}",
            )
        )
    return page.markdown(head, rows)


@click.command()
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=PAGE)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(path: Path, threads: int) -> None:
    """Write both tables into the page at OUTPUT."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as folder:
        models = subjects(Path(folder))
        page.publish("decisions", decisions(models), path)
        comparisons = [compare(model, Path(folder)) for model in models]
    complaints = missed(comparisons)
    told = f"Goals missed: {'; '.join(complaints)}." if complaints else "Both goals are met for every type."
    page.publish("estimates", f"{told}\n\n{errors(comparisons)}", path)
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
