"""Whole operations with something failing in each: every fail point with every fault, or kills at random moments.

    python -m tests.torture.campaign points [--faults kill-supervisor,eio] [--every N --from K] [--only TEXT]
    python -m tests.torture.campaign random --count 1000 --seed 1 [--only N]

A case is one operation on a real device with a real broker, builder and server, several devices side by side. After it,
when all that died was started again, the five invariants are checked from outside (`tests.torture.invariants`), and
when the server died often enough to matter an operation without a fault has to succeed. Exit status 1 if one does not
hold; the case that broke it is printed with its numbers, and with `--publish` the sum goes to `docs/reliability.md`.
"""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.bench.page import markdown, publish
from tests.torture import forking, invariants
from tests.torture.cases import all_cases
from tests.torture.points import FAULTS, ROLES
from tests.torture.rig import Rig, TortureError
from tests.torture.surroundings import surroundings
from tests.torture.vehicles import DESIRED, MET, switch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.torture.cases import Case

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
THROTTLED = 3 << 20
"""Bytes a second of a download, so that it takes its part of a deploy's time."""
SOAK_S = 1.0
LATE_S = 4.0
"""How long after an operation's end its fault may come: releases are unloaded, files swept."""
DEATHS = 2
"""Deaths of the server without a success after which the next would be answered by the release before."""


@dataclass
class Tally:
    """What became of the cases."""

    began: float = field(default_factory=time.monotonic)
    cases: int = 0
    struck: int = 0
    restarts: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, *, struck: bool, end: str | None, restarts: int, why: str | None = None) -> None:
        """Count a case; ``end`` is None when an invariant was broken, ``why`` says why an operation did not succeed."""
        with self.lock:
            self.cases += 1
            self.struck += struck
            self.restarts += restarts
            self.ends[end or "broken"] += 1
            if not struck:
                self.missed.append(what)
            if why:
                click.echo(f"        {what}: {end}, {why}", err=True)
            if self.cases % 10 == 0:
                click.echo(f"{self}", err=True)

    def break_(self, what: str, error: BaseException) -> None:
        """Remember a case that broke an invariant."""
        with self.lock:
            self.violations.append(f"{what}: {error}")
            click.echo(f"BROKEN  {what}: {error}", err=True)

    def table(self, wanted: int) -> str:
        """Return the sum as a table of one row, and below it what was broken or did not come."""
        head = ("cases", "of", "the fault came", "agent restarted", *self.ends, "invariants broken", "minutes")
        minutes = f"{(time.monotonic() - self.began) / 60:.1f}"
        counts = (self.cases, wanted, self.struck, self.restarts, *self.ends.values(), len(self.violations))
        lines = [markdown(head, [[*map(str, counts), minutes]]), ""]
        lines += [f"* broken: {each:.200}" for each in self.violations]
        return "\n".join(lines)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in self.ends.most_common())
        return (
            f"{self.cases} cases, the fault came in {self.struck}; {self.restarts} restarts of the agent; operations "
            f"ended: {ends or 'none'}; invariants broken: {len(self.violations)}; {time.monotonic() - self.began:.0f} s"
        )


class Campaign:
    """Cases on one device, one after another, each from where the last one left it."""

    def __init__(self, rig: Rig, tally: Tally) -> None:
        self.rig = rig
        self.tally = tally
        self._deaths = 0
        self._whole_s = 0.0

    def begin(self) -> None:
        """Start the device and give it a model that serves."""
        self.rig.boot()
        began = time.monotonic()
        self._succeed(lambda rig: rig.deploy(THROTTLED, soak_s=SOAK_S))
        self._whole_s = time.monotonic() - began

    def strike(self, case: Case) -> None:
        """Run one operation with a fail point armed."""
        rig, armed = self.rig, ""

        def go() -> str:
            nonlocal armed
            case.vehicle.prepare(rig)
            armed = rig.arm(case.plan)
            return case.vehicle.go(rig)

        self._case(str(case), case.plan.fault, go, lambda: rig.await_strike(armed, LATE_S))

    def kill(self, number: int, seed: int) -> None:
        """Run a whole deploy and kill a process at a random moment of it."""
        chance = random.Random(f"{seed}/{number}")
        role, after_s = chance.choice(ROLES), chance.uniform(0.0, self._whole_s)
        struck = False

        def go() -> str:
            nonlocal struck
            operation = self.rig.deploy(THROTTLED, soak_s=SOAK_S)
            time.sleep(after_s)
            struck = self.rig.kill(role)
            return operation

        self._case(f"kill {number} of seed {seed}, {role} after {after_s:.2f} s", f"kill-{role}", go, lambda: struck)

    def _case(self, what: str, fault: str, go: Callable[[], str], has_struck: Callable[[], bool]) -> None:
        rig, before = self.rig, self.rig.restarts
        old, mark, struck, end, why = self._served(), rig.operator.mark(), False, None, None
        try:
            operation = go()
            ended = rig.end_of(operation, mark)
            why = ended["error"] and f"{ended['error']['code']}: {ended['error']['detail']:.160}"
            struck = has_struck()
            rig.disarm()
            rig.revive()
            end = invariants.check(rig, operation, mark, old)
            self._count_deaths(died=struck and fault == "kill-server", end=end)
        except (TortureError, AssertionError) as error:
            self.tally.break_(what, error)
            rig.disarm()
            rig.revive()
        self.tally.add(what, struck=struck, end=end, restarts=rig.restarts - before, why=why)

    def _count_deaths(self, *, died: bool, end: str) -> None:
        self._deaths = 0 if end == "succeeded" else self._deaths + died
        if self._deaths >= DEATHS:
            self._succeed(switch)
            self._deaths = 0

    def _succeed(self, go: Callable[[Rig], str]) -> None:
        mark = self.rig.operator.mark()
        operation = go(self.rig)
        ended = self.rig.end_of(operation, mark)
        if ended["state"] != "succeeded":
            raise TortureError(f"{operation}, without a fault, ended {ended['state']}: {ended['error']}")

    def _served(self) -> str | None:
        item, _records = invariants.journal_of(self.rig)
        return item["current"]["id"] if item else None


@click.group()
def main() -> None:
    """Let real devices fail in every way that has a name, or at random."""


_DEVICES = click.option("--devices", type=click.IntRange(min=1), default=3, show_default=True, help="Side by side.")
_SECONDS = click.option("--seconds", type=float, default=None, help="Begin no case after that time.")
_FORK = click.option("--fork", "forks", is_flag=True, help="Fork processes from one that has imported everything.")
_PUBLISH = click.option("--publish", "is_published", is_flag=True, help="Put the sum into docs/reliability.md.")


@main.command()
@click.option("--faults", default=",".join(FAULTS), show_default=True)
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Only each N-th case.")
@click.option("--from", "first", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--only", default="", help="Only cases whose name has this in it.")
@_DEVICES
@_SECONDS
@_FORK
@_PUBLISH
def points(  # noqa: PLR0917 - one argument per option
    faults: str,
    every: int,
    first: int,
    only: str,
    devices: int,
    seconds: float | None,
    *,
    forks: bool,
    is_published: bool,
) -> None:
    """Arm every fail point with every fault, an operation each."""
    named = faults.split(",")
    cases = [case for case in all_cases() if case.plan.fault in named and only in str(case)][first::every]
    # A wanted state is retained, and would go on to want something in other cases: it has a device of its own.
    alone = [case for case in cases if case.vehicle in (DESIRED, MET)]
    rest = [case for case in cases if case not in alone]
    work = [functools.partial(Campaign.strike, case=case) for case in rest]
    apart = [functools.partial(Campaign.strike, case=case) for case in alone]
    tally = _run([*([apart] if apart else []), *[work] * devices], seconds, forks=forks)
    _finish(tally, "failpoints" if is_published else None, len(cases), may_miss=False)


@main.command(name="random")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--only", type=int, default=None, help="Only the kill of that number.")
@_DEVICES
@_SECONDS
@_FORK
@_PUBLISH
def at_random(
    count: int, seed: int, only: int | None, devices: int, seconds: float | None, *, forks: bool, is_published: bool
) -> None:
    """Kill the supervisor, the builder or the server at random moments of deploys."""
    click.echo(f"seed {seed}", err=True)
    numbers = [only] if only is not None else range(count)
    work = [functools.partial(Campaign.kill, number=number, seed=seed) for number in numbers]
    tally = _run([work] * min(devices, len(work)), seconds, forks=forks)
    _finish(tally, "random-kills" if is_published else None, len(work), may_miss=True)


def _run(queues: Sequence[Sequence[Callable[[Campaign], None]]], seconds: float | None, *, forks: bool) -> Tally:
    """Work the queues off, a device each; devices with the same list share it."""
    if forks:
        forking.preload()
    tally = Tally()
    shared = {id(queue): deque(queue) for queue in queues}
    with tempfile.TemporaryDirectory(prefix="torture-") as folder, surroundings(Path(folder)) as world:

        def work(number: int) -> None:
            rig = Rig(world, f"tortured-{number}", forking.Forked if forks else subprocess.Popen)
            campaign = Campaign(rig, tally)
            try:
                campaign.begin()
                while seconds is None or time.monotonic() - tally.began < seconds:
                    try:
                        case = shared[id(queues[number])].popleft()
                    except IndexError:
                        return
                    case(campaign)
            finally:
                rig.close()

        with ThreadPoolExecutor(len(queues), thread_name_prefix="device") as pool:
            for running in [pool.submit(work, number) for number in range(len(queues))]:
                running.result()
    return tally


def _finish(tally: Tally, part: str | None, wanted: int, *, may_miss: bool) -> None:
    for what in [] if may_miss else tally.missed:
        click.echo(f"MISSED  {what}", err=True)
    click.echo(f"{tally}")
    if part is not None:
        publish(part, tally.table(wanted), PAGE)
    is_whole = tally.cases == wanted and (may_miss or not tally.missed)
    sys.exit(0 if is_whole and not tally.violations else 1)


if __name__ == "__main__":
    main()
