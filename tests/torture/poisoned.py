"""How long a bad release keeps the last good one from serving: one deploy for each way to go wrong, on a real device.

    python -m tests.torture.poisoned [--publish]

The models are sound in the builder and poisoned in the server (`tests.e2e.poison`). The device is asked for answers all
the time, also on images that only some models cannot bear. The time runs from the command to the moment from which on
the last good release answers, and the operation has its end. Exit status 1 if one is not caught where it has to be, or
takes longer than ``LIMIT_S``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.bench.page import markdown, publish
from tests.e2e import poison
from tests.e2e.harness.inference import ask
from tests.e2e.harness.operator import MODEL
from tests.torture import invariants
from tests.torture.campaign import PAGE
from tests.torture.rig import Rig, TortureError
from tests.torture.surroundings import surroundings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIMIT_S = 60.0
BOMB_S, LONG_SOAK_S, SOAK_S, NO_SOAK_S = 30.0, 40.0, 5.0, 0.2
LOOK_S, CALM_S, ASK_S = 0.05, 10.0, 5.0
KINDS: dict[str, tuple[str, float, float, str]] = {
    # what it does: its kind, seconds to the bomb, soak in seconds, what catches it
    "crashes at its first request": ("abort", BOMB_S, SOAK_S, "canary"),
    "answers NaN": ("nan on real", BOMB_S, SOAK_S, "canary"),
    "answers a hundred times slower": ("slow", BOMB_S, SOAK_S, "canary"),
    "answers NaN on some inputs only": ("nan on marked", BOMB_S, SOAK_S, "trial"),
    "crashes after 30 s": ("time bomb", BOMB_S, LONG_SOAK_S, "trial"),
    "crashes again and again once its trial is over": ("time bomb", 1.0, NO_SOAK_S, "crash loop"),
}


@dataclass
class Watch:
    """Asks the device for answers, and remembers when the last good release did not give one."""

    rig: Rig
    good: str
    last_miss: float = 0.0
    missing_s: float = 0.0
    _done: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Look on while the block runs."""
        thread = threading.Thread(target=self._look_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _look_on(self) -> None:
        marked = self.rig.world.images.copy()
        marked[:, 0, 0, 0] = poison.MARK
        before = time.monotonic()
        while not self._done.wait(LOOK_S):
            is_good = self._is_good()
            now = time.monotonic()
            if not is_good:
                self.last_miss = now
                self.missing_s += now - before
            before = now
            with contextlib.suppress(OSError):
                ask(self.rig.agent.url, MODEL, marked)

    def _is_good(self) -> bool:
        try:
            url = f"{self.rig.agent.url}/models/{MODEL}"
            with urllib.request.urlopen(url, timeout=ASK_S) as response:  # noqa: S310 - loopback
                (version,) = json.load(response)["versions"]
            ask(self.rig.agent.url, MODEL, self.rig.world.images)
        except (OSError, KeyError, ValueError):
            return False
        return bool(version == self.good)


def deploy(rig: Rig, kind: str, bomb_s: float, soak_s: float) -> str:
    """Send a deploy of a model of that kind and return the operation's id."""
    file = rig.world.files.host(f"{kind}.pt".replace(" ", "-"), poison.checkpoint(kind, bomb_s))
    gate = {"soak_s": soak_s, "min_agreement": 0.5}
    return rig.operator.deploy(rig.operator.manifest(file), gate=gate, method="fp16")


def measure(rig: Rig, kind: tuple[str, float, float, str]) -> tuple[str, float, float]:
    """Deploy a poisoned model; return what caught it, the seconds to the last good one, and those without it."""
    name, bomb_s, soak_s, expected = kind
    item, _records = invariants.journal_of(rig)
    if item is None:
        raise TortureError("nothing serves")
    mark, began = rig.operator.mark(), time.monotonic()
    watch = Watch(rig, item["current"]["version"])
    with watch.running():
        ended = rig.end_of(deploy(rig, name, bomb_s, soak_s), mark, 2 * LIMIT_S)
        over = time.monotonic()
        while time.monotonic() - max(over, watch.last_miss) < CALM_S:
            time.sleep(LOOK_S)
            if time.monotonic() - began > 3 * LIMIT_S:
                raise TortureError(f"{name}: the last good release does not come back")
    caught = ended["error"]["phase"] if ended["state"] == "rolled_back" else _mode(rig)
    if caught != expected:
        raise TortureError(f"{name}: expected from the {expected}, it is {ended['state']}: {ended['error']}")
    told: Mapping[str, Any] = (rig.last(rig.operator.topic("reported")) or {})["models"][MODEL]
    if told["version"] != watch.good:
        raise TortureError(f"{name}: {watch.good} answers, reported is {told['version']}")
    return caught, max(over, watch.last_miss) - began, watch.missing_s


def _mode(rig: Rig) -> str:
    mode = (rig.last(rig.operator.topic("health")) or {}).get("mode")
    return "crash loop" if mode == "last_good" else f"nothing: {mode}"


@click.command()
@click.option("--publish", "is_published", is_flag=True, help="Put the table into docs/reliability.md.")
def main(*, is_published: bool) -> None:
    """Measure every kind."""
    rows, slowest = [], 0.0
    with tempfile.TemporaryDirectory(prefix="poisoned-") as folder, surroundings(Path(folder) / "world") as world:
        site = Path(folder) / "site"
        poison.install(site)
        sys.path.insert(0, str(site))
        rig = Rig(world, "poisoned")
        rig.agent.environment["PYTHONPATH"] += os.pathsep + str(site)
        rig.boot()
        try:
            _succeed(rig, "sound")
            for what, kind in KINDS.items():
                caught, back_s, missing_s = measure(rig, kind)
                slowest = max(slowest, back_s)
                rows.append((what, caught, f"{back_s:.1f}", f"{missing_s:.1f}"))
                click.echo(f"{what}: {caught}, {back_s:.1f} s, of these {missing_s:.1f} s without the last good one")
            _succeed(rig, "sound")
        finally:
            rig.close()
    head = ("a release that", "is caught by", "last good serving again after, s", "of these without it, s")
    table = markdown(head, rows)
    if is_published:
        publish("poison", table, PAGE)
    else:
        click.echo(table)
    sys.exit(0 if slowest <= LIMIT_S else 1)


def _succeed(rig: Rig, kind: str) -> None:
    mark = rig.operator.mark()
    ended = rig.end_of(deploy(rig, kind, BOMB_S, NO_SOAK_S), mark)
    if ended["state"] != "succeeded":
        raise TortureError(f"a sound model ended {ended['state']}: {ended['error']}")


if __name__ == "__main__":
    main()
