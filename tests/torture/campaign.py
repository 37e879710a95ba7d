"""Whole operations with something failing in each: every fail point with every fault, or kills at random moments.

    python -m tests.torture.campaign points [--faults kill-supervisor,eio] [--every N --from K] [--only TEXT]
    python -m tests.torture.campaign random --count 1000 --seed 1 [--only N]

A case is one operation on a real device with a real broker, builder and server, several devices side by side. After it,
when all that died was started again, the five invariants are checked from outside (`tests.torture.invariants`), and
when the server died often enough to matter an operation without a fault has to succeed. With `--fork` processes come
from one that has imported everything (`tests.torture.forking`). Exit status 1 if an invariant does not hold or a fault
did not come; the case is printed with its numbers, and with `--publish` the sum goes to `docs/reliability.md`.
"""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from deploy.bench.page import publish
from tests.torture import forking, invariants
from tests.torture.cases import all_cases, scope
from tests.torture.points import BUILDER, FAULTS, ROLES, SUPERVISOR
from tests.torture.rig import Rig, TortureError
from tests.torture.surroundings import surroundings
from tests.torture.tally import CAME, CASES, Tally
from tests.torture.vehicles import DESIRED, MET, MET_BUSY, SETTINGS_BUSY, switch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.torture.cases import Case
    from tests.torture.surroundings import Surroundings

C = TypeVar("C", bound="Campaign")
_WANTING = (DESIRED, MET, MET_BUSY, SETTINGS_BUSY)
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
THROTTLED = 3 << 20
"""Bytes a second of a download, so that it takes its part of a deploy's time."""
SOAK_S = 1.0
LATE_S = 4.0
"""How long after an operation's end its fault may come: releases are unloaded, files swept."""
BUILT_SHARE = 0.5
"""Of a deploy, after which its builders have mostly ended."""
LONGEST_LOOK_S = 0.5
"""Between two looks for a builder: random, so that it is met at any moment of its life."""
TRIES = 3
DEATHS = 2
"""Deaths of the server without a success after which the next would be answered by the release before."""
SPARE = 3
"""Cases for each random kill that is asked for: in some the process is not there when its time has come."""


class Campaign:
    """Cases on one device, one after another, each from where the last one left it."""

    def __init__(self, rig: Rig, tally: Tally) -> None:
        self.rig = rig
        self.tally = tally
        self._deaths = 0
        self.whole_s = 0.0

    def begin(self) -> None:
        """Start the device and give it a model that serves."""
        self.rig.boot()
        began = time.monotonic()
        self._succeed(lambda rig: rig.deploy(THROTTLED, soak_s=SOAK_S))
        self.whole_s = time.monotonic() - began

    def strike(self, case: Case) -> None:
        """Run one operation with a fail point armed; again if its fault, which depends on the moment, did not come."""
        rig, armed = self.rig, ""

        def go() -> str:
            nonlocal armed
            case.vehicle.prepare(rig)
            armed = rig.arm(case.plan)
            return case.vehicle.go(rig)

        for left in reversed(range(TRIES)):
            if self.play(str(case), case.plan.fault, go, lambda: rig.await_strike(armed, LATE_S), is_last=not left):
                return

    def kill(self, number: int, seed: int) -> None:
        """Run a whole deploy and kill a process at a random moment of it."""
        chance = random.Random(f"{seed}/{number}")
        role = chance.choice(ROLES)
        after_s = chance.uniform(0.0, self.whole_s * (BUILT_SHARE if role == BUILDER else 1.0))
        struck = False

        def go() -> str:
            nonlocal struck
            mark = self.rig.operator.mark()
            operation = self.rig.deploy(THROTTLED, soak_s=SOAK_S)

            def waits() -> bool:
                """For a builder, which lives for a part of a deploy only."""
                time.sleep(chance.uniform(0.0, LONGEST_LOOK_S))
                return role == BUILDER and not self.rig.has_ended(operation, mark)

            time.sleep(after_s)
            struck = self.rig.kill(role, waits)
            return operation

        self.play(f"kill {number} of seed {seed}, {role} after {after_s:.2f} s", f"kill-{role}", go, lambda: struck)

    def play(
        self, what: str, fault: str, go: Callable[[], str], has_struck: Callable[[], bool], *, is_last: bool = True
    ) -> bool:
        """Play a case and return whether it counts: one whose fault did not come does in the last try only."""
        rig, before = self.rig, self.rig.restarts
        struck, end, why = False, None, None
        try:
            old, mark = self._served(), rig.operator.mark()
            operation = go()
            ended = rig.end_of(operation, mark)
            why = ended["error"] and f"{ended['error']['code']}: {ended['error']['detail']:.160}"
            struck = has_struck()
            rig.disarm()
            rig.revive()
            end = self.judge(operation, mark, old)
            self._count_deaths(died=struck and fault == "kill-server", end=end)
        except (TortureError, AssertionError) as error:
            self._break(what, error)
        except Exception as error:  # noqa: BLE001 - a case that cannot be judged counts as a broken one
            traceback.print_exc()
            self._break(what, error)
        counts = struck or is_last or end is None
        if counts:
            self.tally.add(what, fault, struck=struck, end=end, restarts=rig.restarts - before, why=why)
        return counts

    def judge(self, operation: str, mark: int, old: str | None) -> str:
        """Return the end of an operation, or raise what does not hold."""
        return invariants.check(self.rig, operation, mark, old)

    def _break(self, what: str, error: Exception) -> None:
        self.tally.break_(what, error)
        self.rig.keep_log(what)
        self.rig.disarm()
        self.rig.kill(SUPERVISOR)  # whatever it hangs in must not break the next case
        self.rig.revive()

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


DEVICES = click.option("--devices", type=click.IntRange(min=1), default=4, show_default=True, help="Side by side.")
SECONDS = click.option("--seconds", type=float, default=None, help="Begin no case after that time.")
FORK = click.option("--fork", "forks", is_flag=True, help="Fork processes from one that has imported everything.")
PUBLISH = click.option("--publish", "is_published", is_flag=True, help="Put the sum into docs/reliability.md.")


@main.command()
@click.option("--faults", default=",".join(FAULTS), show_default=True)
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Only each N-th case.")
@click.option("--from", "first", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--only", default="", help="Only cases whose name has this in it.")
@DEVICES
@SECONDS
@FORK
@PUBLISH
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
    tally = run(_plain, queues(cases, devices, Campaign.strike), seconds, forks=forks)
    for what in tally.missed:
        click.echo(f"MISSED  {what}", err=True)
    is_whole = tally.total[CASES] == len(cases) and not tally.missed
    before = f"{scope()}\n\n{how(forks=forks)}\n\n"
    finish(tally, "failpoints" if is_published else None, is_whole=is_whole, before=before)


@main.command(name="random")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="So many kills that came.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--only", type=int, default=None, help="Only the kill of that number.")
@DEVICES
@SECONDS
@FORK
@PUBLISH
def at_random(
    count: int, seed: int, only: int | None, devices: int, seconds: float | None, *, forks: bool, is_published: bool
) -> None:
    """Kill the supervisor, the builder or the server at random moments of deploys."""
    click.echo(f"seed {seed}", err=True)
    numbers = [only] if only is not None else range(SPARE * count)
    work = [functools.partial(Campaign.kill, number=number, seed=seed) for number in numbers]
    tally = run(_plain, [work] * min(devices, len(work)), seconds, forks=forks, enough=count)
    is_whole = tally.total[CAME] >= (count if only is None else 0)
    before = f"{how(forks=forks)} Seed {seed}.\n\n"
    finish(tally, "random-kills" if is_published else None, is_whole=is_whole, before=before)


def queues(cases: Sequence[Case], devices: int, strike: Callable[..., None]) -> Sequence[Sequence[Callable[[C], None]]]:
    """Return the work of each device.

    A wanted state is retained, and would go on to want something in other cases: it has a device of its own.
    """
    alone = [case for case in cases if case.vehicle in _WANTING]
    rest = [functools.partial(strike, case=case) for case in cases if case not in alone]
    apart = [functools.partial(strike, case=case) for case in alone]
    return [*([apart] if apart else []), *[rest] * devices]


def run(
    make: Callable[[Surroundings, str, type[subprocess.Popen[str]], Tally], C],
    queues: Sequence[Sequence[Callable[[C], None]]],
    seconds: float | None,
    *,
    forks: bool,
    enough: int | None = None,
) -> Tally:
    """Make devices and work the queues off, one each, until ``enough`` faults came; the same list is shared."""
    if forks:
        forking.preload()
    tally = Tally()
    shared = {id(queue): deque(queue) for queue in queues}
    with tempfile.TemporaryDirectory(prefix="torture-") as folder, surroundings(Path(folder)) as world:

        def goes_on() -> bool:
            is_late = seconds is not None and time.monotonic() - tally.began >= seconds
            return not is_late and (enough is None or tally.total[CAME] < enough)

        def work(number: int) -> None:
            campaign = make(world, f"tortured-{number}", forking.Forked if forks else subprocess.Popen, tally)
            try:
                campaign.begin()
                while goes_on():
                    try:
                        case = shared[id(queues[number])].popleft()
                    except IndexError:
                        return
                    case(campaign)
            finally:
                campaign.rig.close()

        with ThreadPoolExecutor(len(queues), thread_name_prefix="device") as pool:
            for running in [pool.submit(work, number) for number in range(len(queues))]:
                running.result()
    return tally


def _plain(world: Surroundings, name: str, popen: type[subprocess.Popen[str]], tally: Tally) -> Campaign:
    return Campaign(Rig(world, name, popen), tally)


def how(*, forks: bool) -> str:
    return f"Agent, builder and server were {'forked (`--fork`)' if forks else 'started as on a device'}."


def finish(tally: Tally, part: str | None, *, is_whole: bool, before: str = "") -> None:
    click.echo(f"{tally}")
    if part is not None:
        publish(part, f"{before}{tally.table()}", PAGE)
    sys.exit(0 if is_whole and not tally.violations else 1)


if __name__ == "__main__":
    main()
