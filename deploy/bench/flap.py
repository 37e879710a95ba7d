"""A day of noisy memory against the watch: it must not switch more often than the memory really changes.

    make flap            or: python -m deploy.bench.flap SEED ...

The watch, its policy and the plan are the real ones; only the memory is made up. Each trace says what other processes
leave to the model, first without noise. **A real change** is a change of the plan's answer along the noiseless trace,
where answers that last less than ``down_after_s`` and stretches in which nothing fits do not count. To what the watch
sees, noise is added: at every look a normal error of 2 % and 16 MiB, at one look in a hundred a wild one of up to half,
and in the trace ``spikes`` shortages that end before ``down_after_s``. An operation takes a minute and plans with the
memory of its own moment, noise included. It comes to nothing where nothing fits then, or one time in ten at the gate.

Rows are judged run by run: exit status 1 if any run has more switches than real changes, or if nothing ever switched.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from bisect import bisect_right
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.adapters import headers
from agent.planning.budget import Budget
from agent.planning.matrix import MATRIX, Row
from agent.planning.memory import Footprint, estimate
from agent.planning.methods import METHODS
from agent.planning.plan import Policy, plan
from agent.planning.watch import BudgetWatch, Held, WatchPolicy
from deploy.bench import page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MIB = 2**20
LOOK_S = 5.0
DAY_S = 24 * 3600.0
OPERATION_S = 60.0
REFUSED = 0.1
"""Share of the operations that the gate refuses."""
WATCHED = WatchPolicy()
DEMO = Path(__file__).parents[1] / "demo" / "kanji" / "checkpoint_best.pt"
TRANSFORMER = Footprint(
    matrices=((4096 * 4096,) * 2 + (4096 * 1024,) * 2 + (4096 * 14336,) * 3) * 32,
    transient_numel=4096 * 14336,
    activation_bytes=32 * MIB,
)
"""The layers of a language model with seven thousand million weights (the shapes of Llama 3 8B)."""

Trace = list[float]


class Case:
    """A model on a device under a matrix: the plan as a function of the room that the model may take.

    The plan is monotone in memory (`tests/property`), so its steps are found once by bisection.
    """

    def __init__(self, name: str, footprint: Footprint, total_bytes: int, matrix: tuple[Row, ...] = MATRIX) -> None:
        self.name = name
        self._footprint = footprint
        self._policy = Policy(matrix)
        self.budget = Budget(0, 512 * MIB, "meminfo", total_bytes, None, True, True, (8, 7))  # noqa: FBT003 - a Jetson
        self.resident = {each: estimate(footprint, method).weights_bytes for each, method in METHODS.items()}
        self.steps = list(self._find(0, total_bytes))
        self._starts = [start for start, _ in self.steps]

    def choice(self, room_bytes: float) -> str | None:
        """Return what ``auto`` would choose with that room."""
        return self.steps[max(0, bisect_right(self._starts, room_bytes) - 1)][1]

    def plan(self, room_bytes: int) -> str | None:
        """Return the same, asking the plan itself."""
        chosen = plan(self._footprint, self._budget(room_bytes), policy=self._policy).chosen
        return chosen.method if chosen else None

    def _budget(self, room_bytes: int) -> Budget:
        return replace(self.budget, available_bytes=self.budget.reserve_bytes + room_bytes)

    def _find(self, low: int, high: int) -> Iterator[tuple[int, str | None]]:
        """Yield where each answer begins; equal answers at both ends leave no other between them."""
        yield low, self.plan(low)
        while self.plan(low) != self.plan(high):
            inside, beyond = low, high
            while beyond - inside > 1:
                middle = (inside + beyond) // 2
                inside, beyond = (middle, beyond) if self.plan(middle) == self.plan(low) else (inside, middle)
            low = beyond
            yield low, self.plan(low)


def cases() -> tuple[Case, ...]:
    """Return the models: the demo's, and a large one also under a matrix in which fitting alone decides."""
    fits = (Row("own", ("nf4",), "whatever fits"),)
    return (
        Case("demo", Footprint.of_numels(headers.numels(DEMO)), 8192 * MIB),
        Case("large", TRANSFORMER, 65536 * MIB),
        Case("large, nf4 first", TRANSFORMER, 65536 * MIB, fits),
    )


class Traces:
    """Makes noiseless traces around the steps of a case.

    Args:
        case: whose.
        rng: draws them.
        looks: their length.
    """

    def __init__(self, case: Case, rng: random.Random, looks: int) -> None:
        self._rng = rng
        self._looks = looks
        self._starts = [start for start, method in case.steps if method is not None]

    def level(self) -> float:
        """Return a room near one of the plan's steps, or far from all."""
        return self._rng.choice(self._starts) * self._rng.choice((0.93, 0.97, 1.02, 1.1, 1.5, 4.0))

    def steady(self) -> Trace:
        """One level all day."""
        return [max(self.level(), 1.001 * self._starts[0])] * self._looks

    def sawtooth(self) -> Trace:
        """A job that takes more and more until it ends, again and again."""
        top, bottom = sorted((self.level(), self.level()), reverse=True)
        period = self._rng.uniform(300.0, 4 * 3600.0) / LOOK_S
        return [top - (top - bottom) * (look % period) / period for look in range(self._looks)]

    def leak(self) -> Trace:
        """Something that grows for hours until somebody restarts it."""
        top, rate = 1.3 * self._starts[-1], 1.5 * self._starts[-1] / self._rng.uniform(4 * 3600.0, 20 * 3600.0)
        span = top / rate / LOOK_S
        return [max(0.0, top - rate * LOOK_S * (look % span)) for look in range(self._looks)]

    def steps(self) -> Trace:
        """Levels that last from minutes to hours."""
        levels: Trace = []
        while len(levels) < self._looks:
            levels += [self.level()] * round(math.exp(self._rng.uniform(math.log(60.0), math.log(4 * 3600.0))) / LOOK_S)
        return levels[: self._looks]

    def walk(self) -> Trace:
        """Up and down by chance, in proportion to what is there, between nothing and plenty."""
        low, high, at = math.log(0.5 * self._starts[0]), math.log(2.0 * self._starts[-1]), math.log(self._starts[-1])
        found = []
        for _ in range(self._looks):
            at = min(high, max(low, at + self._rng.gauss(0.0, 0.02)))
            found.append(math.exp(at))
        return found


KINDS: dict[str, Callable[[Traces], Trace]] = {
    "steady": Traces.steady,
    "sawtooth": Traces.sawtooth,
    "leak": Traces.leak,
    "steps": Traces.steps,
    "walk": Traces.walk,
    "spikes": Traces.steady,
}


def noisy(trace: Trace, rng: random.Random, *, has_spikes: bool) -> Trace:
    """Return what the watch sees of a trace."""
    seen = [room + rng.gauss(0.0, 0.02 * room + 16 * MIB) for room in trace]
    for look in range(len(seen)):
        if rng.random() < 0.01:  # noqa: PLR2004 - said above
            seen[look] *= rng.uniform(0.5, 1.5)
    look = 0
    while has_spikes:
        look += rng.randrange(20, 200)
        length = rng.randrange(1, int(WATCHED.down_after_s / LOOK_S))
        if look + length >= len(seen):
            break
        depth = rng.uniform(-0.2, 0.9)
        seen[look : look + length] = [room * depth for room in seen[look : look + length]]
    return seen


def real_changes(case: Case, trace: Sequence[float]) -> int:
    """Return how often the plan's answer changes for good along a noiseless trace."""
    runs = [(answer, LOOK_S * sum(1 for _ in run)) for answer, run in itertools.groupby(map(case.choice, trace))]
    lasting = [answer for answer, length_s in runs if answer is not None and length_s >= WATCHED.down_after_s]
    return sum(1 for before, after in itertools.pairwise(lasting) if before != after)


@dataclass(frozen=True)
class Run:
    """What came of one trace."""

    real: int
    switches: int
    wishes: int

    @property
    def ratio(self) -> float:
        """Switches per real change: at most one is the goal."""
        if self.switches == 0:
            return 0.0
        return self.switches / self.real if self.real else math.inf


def play(
    case: Case, trace: Sequence[float], seen: Sequence[float], rng: random.Random, policy: WatchPolicy = WATCHED
) -> Run:
    """Let the watch look at a trace, and do what it wishes.

    Args:
        case: model, device and matrix.
        trace: the room for the model without noise, at each look; the model was deployed by its first value.
        seen: the same with noise.
        rng: decides what the gate refuses.
        policy: how patient the watch is.
    """
    watch = BudgetWatch()
    method = next((answer for answer in map(case.choice, trace) if answer is not None), case.steps[-1][1] or "nf4")
    release, wishes, switches, busy_until, next_method = 0, 0, 0, -1.0, method

    def would_choose(_model: str, budget: Budget) -> str | None:
        return case.choice(budget.available_bytes + case.resident[method] - budget.reserve_bytes)

    for look, room in enumerate(seen):
        now = look * LOOK_S
        if 0 <= busy_until <= now:
            busy_until = -1.0
            release, switches = release + (next_method != method), switches + (next_method != method)
            method = next_method
        own = case.resident[method]
        available = max(0, round(room) + case.budget.reserve_bytes - own)
        held = {"model": Held(f"r{release}", method, method, is_auto=True, resident_bytes=own)}
        budget = replace(case.budget, available_bytes=available)
        sight = watch.observe(now, budget, held, would_choose, policy, is_quiet=busy_until < 0)
        if sight.wish is not None:
            wishes += 1
            busy_until = now + OPERATION_S
            answer = case.choice(room)
            next_method = method if answer is None or rng.random() < REFUSED else answer
    return Run(real_changes(case, trace), switches, wishes)


def run(case: Case, kind: str, seed: int, *, seconds: float = DAY_S, policy: WatchPolicy = WATCHED) -> Run:
    """Make one trace and play it; the same seed makes the same trace."""
    rng = random.Random(f"{case.name} {kind} {seed}")  # noqa: S311 - a simulation
    trace = KINDS[kind](Traces(case, rng, round(seconds / LOOK_S)))
    return play(case, trace, noisy(trace, rng, has_spikes=kind == "spikes"), rng, policy)


@click.command()
@click.option(
    "--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE.with_name("decisions.md")
)
@click.argument("seeds", type=int, nargs=-1)
def main(seeds: tuple[int, ...], path: Path) -> None:
    """Play every trace with each of SEEDS (1 2 3) and write the table into the page at OUTPUT."""
    seeds = seeds or (1, 2, 3)
    rows: list[tuple[str, ...]] = []
    is_good, total = True, 0
    for case, kind in itertools.product(cases(), KINDS):
        runs = [run(case, kind, seed) for seed in seeds]
        real, switches = sum(each.real for each in runs), sum(each.switches for each in runs)
        wishes, worst = sum(each.wishes for each in runs), max(each.ratio for each in runs)
        rows.append((case.name, kind, *(str(count) for count in (len(runs), real, switches, wishes)), f"{worst:.2f}"))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
        is_good, total = is_good and worst <= 1.0, total + switches
    told = (
        "At most one switch for each real change, in every run." if is_good else "Goal missed: a worst ratio above 1."
    )
    head = ("model", "trace", "days", "real changes", "switches", "operations", "worst ratio of a run")
    page.publish("flap", f"{told} Seeds {', '.join(map(str, seeds))}.\n\n{page.markdown(head, rows)}", path)
    sys.exit(0 if is_good and total else 1)


if __name__ == "__main__":
    main()
