"""Whole operations in which the power of the box is cut: its disk forgets what was not synchronised.

    python -m tests.torture.powercut random --count 200 --seed 1 [--only N] [--ways strict,torn]
    python -m tests.torture.powercut points [--only TEXT]

The device's state lies on a disk that forgets (`volatile_disk`). At a random moment of a deploy, or at a fail point, no
call to that disk returns any more, every process of the agent gets SIGKILL, the disk forgets, and the agent starts
again, in what it takes for another run of the operating system. Then the invariants of the other campaigns are
checked, and that the journal was whole. The broker and the server of files keep their power.

``--without journal,files,folders`` leaves fsyncs of the agent out, to see that this is found.
"""

from __future__ import annotations

import functools
import random
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import click

from tests.e2e.harness.processes import Process
from tests.torture.arming import BOOT_ID, WITHOUT
from tests.torture.campaign import (
    DEVICES,
    FORK,
    LATE_S,
    PUBLISH,
    SECONDS,
    SOAK_S,
    THROTTLED,
    TRIES,
    Campaign,
    finish,
    how,
    queues,
    run,
)
from tests.torture.cases import all_cases
from tests.torture.invariants import Violation
from tests.torture.points import POWER_CUT
from tests.torture.rig import Rig, TortureError
from tests.torture.tally import CAME, CASES
from tests.torture.vehicles import DAMAGED
from tests.torture.volatile_disk import VolatileDisk, why_never, why_not
from tests.torture.volatile_tree import Lost, Way

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.torture.cases import Case
    from tests.torture.surroundings import Surroundings
    from tests.torture.tally import Tally

LOOK_S, DEATH_S = 0.01, 30.0
AFTER = 1.15
"""Parts of a deploy in which the power is cut; what is more than one is after its end."""


class Powered(Rig):
    """A device whose power can be cut. Its state lies below the root of its disk, not at it: that, too, is made.

    Args:
        world: what it lives in.
        name: of the device.
        popen: starts its processes.
        without: fsyncs that are left out.
    """

    def __init__(
        self,
        world: Surroundings,
        name: str,
        popen: type[subprocess.Popen[str]] = subprocess.Popen,
        without: str = "",
    ) -> None:
        directory = world.root / name
        self._boots, self._boot_id = 0, directory / "boot"
        environment = {
            "NIBBLED_STATE_DIR": str(directory / "disk" / "state"),
            BOOT_ID: str(self._boot_id),
            WITHOUT: without,
        }
        super().__init__(world, name, popen, environment)
        self.disk = VolatileDisk(directory / "disk")
        self._has_power = threading.Event()
        self._switch_on()

    @property
    def state_dir(self) -> Path:
        """Where the agent keeps its state."""
        return self.disk.path / "state"

    def cut(self, way: Way, seed: str) -> Lost:
        """Cut the power, and switch it on; the agent is not started again yet. Return what was lost."""
        self._has_power.clear()
        try:
            self.disk.freeze()
            victims = self._stop_all()
            lost = self.disk.cut(way, seed)
            if self.agent.is_running:
                self.agent.kill()
            for process in victims:
                if not process.has_ended(DEATH_S):
                    raise TortureError(f"process {process.pid} survived the power cut")
                process.close()
        finally:
            self._switch_on()
        return lost

    def close(self) -> None:
        """End the agent, and its disk."""
        super().close()
        self.disk.close()

    def _stop_all(self) -> list[Process]:
        """Send SIGKILL to all processes of the agent; the first is held meanwhile, so that it starts no more."""
        if not self.agent.is_running:
            return []
        supervisor = Process(self.agent.pid)
        supervisor.send(signal.SIGSTOP)
        found = [*self.agent.children(), supervisor]
        for process in found:
            process.send(signal.SIGKILL)
        return found

    def _switch_on(self) -> None:
        self._boots += 1
        self._boot_id.write_text(f"boot-{self._boots}", encoding="ascii")
        self._has_power.set()

    def _start(self) -> None:
        self._has_power.wait()
        super()._start()


class Watchman(threading.Thread):
    """Cuts the power as soon as a thread of the device stands at the fail point that was armed."""

    def __init__(self, rig: Powered, name: str, way: Way, seed: str) -> None:
        super().__init__(name=f"watchman-{name}", daemon=True)
        self._rig, self._name, self._way, self._seed = rig, name, way, seed
        self._is_over = threading.Event()
        self._lost: Lost | None = None

    def run(self) -> None:
        """Wait for it."""
        while not self._is_over.wait(LOOK_S):
            if self._rig.has_struck(self._name):
                self._lost = self._rig.cut(self._way, self._seed)
                return

    def dismiss(self, patience_s: float) -> Lost | None:
        """End it when it had nothing to do for so long; return what the cut took, if there was one."""
        self.join(patience_s)
        self._is_over.set()
        self.join()
        return self._lost


class PowerCuts(Campaign):
    """Power cuts on one device, one after another, each from where the last one left it."""

    rig: Powered

    def __init__(self, rig: Powered, tally: Tally, losses: list[Lost]) -> None:
        super().__init__(rig, tally)
        self._losses = losses
        self._may_repair = False

    def cut(self, number: int, seed: int, ways: tuple[Way, ...]) -> None:
        """Run a whole deploy and cut the power at a random moment of it, or a little after it."""
        chance = random.Random(f"{seed}/{number}")
        way, after_s = chance.choice(ways), chance.uniform(0.0, AFTER * self.whole_s)

        def go() -> str:
            operation = self.rig.deploy(THROTTLED, soak_s=SOAK_S)
            time.sleep(after_s)
            self._losses.append(self.rig.cut(way, f"{seed}/{number}"))
            return operation

        self.play(f"cut {number} of seed {seed}, {way} after {after_s:.2f} s", str(way), go, lambda: True)

    def strike_at(self, case: Case, way: Way, seed: int) -> None:
        """Run one operation and cut the power at a fail point of it; again if it is not passed."""
        rig, self._may_repair = self.rig, case.vehicle is DAMAGED
        watchmen: list[Watchman] = []

        def go() -> str:
            case.vehicle.prepare(rig)
            watchmen.append(Watchman(rig, rig.arm(case.plan), way, f"{seed}/{case}"))
            watchmen[-1].start()
            return case.vehicle.go(rig)

        def has_struck() -> bool:
            lost = watchmen[-1].dismiss(LATE_S)
            self._losses += [lost] if lost else []
            return lost is not None

        for left in reversed(range(TRIES)):
            if self.play(f"{case}, {way}", str(way), go, has_struck, is_last=not left):
                return

    def judge(self, operation: str, mark: int, old: str | None) -> str:
        """Return the end of an operation, or raise what does not hold."""
        end = super().judge(operation, mark, old)
        repaired = [entry for entry in self.rig.agent.log() if entry.get("event") == "journal_recovered"]
        if repaired and not self._may_repair:
            raise Violation(f"the journal was not whole: {repaired[0].get('reason')}")
        return end


def _ways(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[Way, ...]:
    return tuple(Way(each) for each in value.split(","))


_WAYS = click.option("--ways", default=",".join(Way), callback=_ways, show_default=True, help="What may survive.")
_WITHOUT = click.option("--without", default="", help="Leave out fsyncs of: journal, files, folders.")
_SEED = click.option("--seed", type=int, default=1, show_default=True)


@click.group()
def main() -> None:
    """Cut the power of whole devices whose disks forget what was not synchronised."""
    reason = why_never() or why_not()
    if reason:
        raise click.ClickException(f"there can be no disk that forgets here: {reason}")


@main.command(name="random")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True)
@_SEED
@click.option("--only", type=int, default=None, help="Only the cut of that number.")
@_WAYS
@_WITHOUT
@DEVICES
@SECONDS
@FORK
@PUBLISH
def at_random(  # noqa: PLR0917 - one argument per option
    count: int,
    seed: int,
    only: int | None,
    ways: tuple[Way, ...],
    without: str,
    devices: int,
    seconds: float | None,
    *,
    forks: bool,
    is_published: bool,
) -> None:
    """Cut the power at random moments of deploys."""
    click.echo(f"seed {seed}", err=True)
    numbers = [only] if only is not None else range(count)
    work = [functools.partial(PowerCuts.cut, number=number, seed=seed, ways=ways) for number in numbers]
    losses: list[Lost] = []
    tally = run(_powered(without, losses), [work] * min(devices, len(work)), seconds, forks=forks)
    is_whole = tally.total[CAME] == len(work)
    text = f"{how(forks=forks)} Seed {seed}. {_told(losses)}\n\n"
    finish(tally, "power-cuts" if is_published else None, is_whole=is_whole, before=text)


@main.command()
@click.option("--only", default="", help="Only cases whose name has this in it.")
@_SEED
@_WAYS
@_WITHOUT
@DEVICES
@SECONDS
@FORK
@PUBLISH
def points(  # noqa: PLR0917 - one argument per option
    only: str,
    seed: int,
    ways: tuple[Way, ...],
    without: str,
    devices: int,
    seconds: float | None,
    *,
    forks: bool,
    is_published: bool,
) -> None:
    """Cut the power at every fail point, in one of the ways each, drawn by the seed."""
    cases = [case for case in all_cases((POWER_CUT,)) if only in str(case)]
    losses: list[Lost] = []

    def strike(campaign: PowerCuts, case: Case) -> None:
        campaign.strike_at(case, random.Random(f"{seed}/{case}").choice(ways), seed)

    tally = run(_powered(without, losses), queues(cases, devices, strike), seconds, forks=forks)
    for what in tally.missed:
        click.echo(f"MISSED  {what}", err=True)
    is_whole = tally.total[CASES] == len(cases) and not tally.missed
    text = f"{how(forks=forks)} Seed {seed}. {_told(losses)}\n\n"
    finish(tally, "power-cut-points" if is_published else None, is_whole=is_whole, before=text)


def _powered(
    without: str, losses: list[Lost]
) -> Callable[[Surroundings, str, type[subprocess.Popen[str]], Tally], PowerCuts]:
    def make(world: Surroundings, name: str, popen: type[subprocess.Popen[str]], tally: Tally) -> PowerCuts:
        return PowerCuts(Powered(world, name, popen, without), tally, losses)

    return make


def _told(losses: list[Lost]) -> str:
    names, writes = sum(lost.names for lost in losses), sum(lost.writes for lost in losses)
    return f"The cuts took {names} changes of names and {writes} writes to files that kept a name."


if __name__ == "__main__":
    main()
