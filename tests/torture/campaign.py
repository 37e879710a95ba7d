"""Whole deploys with something failing in each: every fail point with every fault, or kills at random moments.

    python -m tests.torture.campaign points [--faults kill-supervisor,eio] [--every N --from K]
    python -m tests.torture.campaign random --count 1000 --seed 1

A case is one operation on a real device with a real broker, builder and server: a deploy of a new checkpoint, or
a switch of methods. After it, when all that died was started again, the five invariants are checked from outside
(`tests.torture.invariants`). Exit status 1 if one does not hold; the case that broke it is printed with its numbers.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.torture import invariants
from tests.torture.arming import Plan
from tests.torture.points import FAULTS, POINTS, ROLES
from tests.torture.rig import Rig, TortureError
from tests.torture.surroundings import surroundings

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = ("nf4", "fp4")
LONGEST_S = 6.0
"""A random kill comes within this time after the command: a deploy takes about as long here."""
THROTTLED = 2 << 20
"""Bytes a second of a download, so that it takes part of that time too."""


@dataclass
class Tally:
    """What became of the cases."""

    cases: int = 0
    struck: int = 0
    restarts: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in self.ends.most_common())
        return (
            f"{self.cases} cases, the fault came in {self.struck}, {self.restarts} restarts of the agent; "
            f"operations ended: {ends or 'none'}; invariants broken: {len(self.violations)}"
        )


class Campaign:
    """Cases on one device, one after another, each from where the last one left it."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.tally = Tally()
        self._cases = 0

    def begin(self) -> None:
        """Start the device and give it a model that serves."""
        self.rig.boot()
        mark = self.rig.operator.mark()
        operation = self.rig.deploy()
        ended = self.rig.end_of(operation, mark)
        if ended["state"] != "succeeded":
            raise TortureError(f"the first deploy ended {ended['state']}: {ended['error']}")

    def strike(self, plan: Plan) -> None:
        """Run one operation with a fail point armed."""
        name = self.rig.arm(plan)
        self._case(str(plan), throttled=False, kill=None)
        self.rig.disarm()
        self.tally.struck += self.rig.has_struck(name)

    def kill(self, role: str, after_s: float) -> None:
        """Run one operation and kill a process at a moment of it."""
        self._case(f"{role} after {after_s:.2f} s", throttled=True, kill=(role, after_s))

    def _case(self, what: str, *, throttled: bool, kill: tuple[str, float] | None) -> None:
        rig, before = self.rig, self.rig.restarts
        self._cases += 1
        old = self._served()
        mark = rig.operator.mark()
        try:
            operation = (
                rig.deploy(THROTTLED if throttled else None)
                if self._cases % 2
                else rig.set_method(METHODS[(self._cases // 2) % 2])
            )
            if kill is not None:
                time.sleep(kill[1])
                self.tally.struck += rig.kill(kill[0])
            rig.end_of(operation, mark)
            rig.disarm()
            rig.revive()
            self.tally.ends[invariants.check(rig, operation, mark, old)] += 1
        except (TortureError, AssertionError) as error:
            self.tally.violations.append(f"{what}: {error}")
            click.echo(f"BROKEN  {what}: {error}", err=True)
            rig.disarm()
            rig.revive()
        self.tally.cases += 1
        self.tally.restarts += rig.restarts - before

    def _served(self) -> str | None:
        item, _records = invariants.journal_of(self.rig)
        return item["current"]["id"] if item else None


@click.group()
def main() -> None:
    """Let real devices fail in every way that has a name, or at random."""


@main.command()
@click.option("--faults", default=",".join(FAULTS), show_default=True)
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Only each N-th case.")
@click.option("--from", "first", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--seconds", type=float, default=None, help="Begin no case after that time.")
def points(faults: str, every: int, first: int, seconds: float | None) -> None:
    """Arm every fail point with every fault, an operation each."""
    plans = [Plan(point, fault) for fault in faults.split(",") for point in POINTS][first::every]
    _run(len(plans), seconds, lambda campaign, index: campaign.strike(plans[index]))


@main.command(name="random")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--seconds", type=float, default=None, help="Begin no case after that time.")
def at_random(count: int, seed: int, seconds: float | None) -> None:
    """Kill the supervisor, the builder or the server at random moments of operations."""
    chance = random.Random(seed)
    cases = [(chance.choice(ROLES), chance.uniform(0.0, LONGEST_S)) for _ in range(count)]
    click.echo(f"seed {seed}", err=True)
    _run(count, seconds, lambda campaign, index: campaign.kill(*cases[index]))


def _run(count: int, seconds: float | None, case: Callable[[Campaign, int], None]) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder, surroundings(Path(folder)) as world:
        rig = Rig(world, "tortured")
        campaign = Campaign(rig)
        try:
            campaign.begin()
            for index in range(count):
                if seconds is not None and time.monotonic() - began > seconds:
                    break
                case(campaign, index)
                if (index + 1) % 10 == 0:
                    click.echo(f"{index + 1}/{count}  {time.monotonic() - began:.0f} s  {campaign.tally}", err=True)
        finally:
            rig.close()
    click.echo(f"{campaign.tally}; {time.monotonic() - began:.0f} s")
    sys.exit(1 if campaign.tally.violations or not campaign.tally.cases else 0)


if __name__ == "__main__":
    main()
