"""Requests a second and latency of nibbled beside the servers that people would install instead, in one run.

    make bench-serving

All servers are started first; whoever's turn it is not is held by SIGSTOP, so that nothing but the load and the server
it loads runs. Rounds go through all servers, concurrencies and forms, and a cell is the median of its rounds: a drift
of the machine meets them all. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.bench import page
from deploy.bench.beside import ours
from deploy.bench.beside.peers import ROOT, Peer, commands, started

if TYPE_CHECKING:
    from collections.abc import Callable

CONCURRENCIES = (1, 8, 16)
OURS = "nibbled"
ASGI, LIT, MLSERVER, TRITON = "bare ASGI, no batching", "LitServe", "MLServer, 1 worker (default)", "Triton with Python"
LABELS = {"lit": "json", "noise": "binary, random numbers"}
Key = tuple[str, str, int]
"""Server, form, concurrency."""


@dataclass
class Figures:
    """What was measured, round by round."""

    floor: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cells: dict[Key, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    def median(self, key: Key, name: str) -> float:
        """Return the median over the rounds."""
        return float(statistics.median(cell[name] for cell in self.cells[key]))

    def failures(self, key: Key) -> int:
        """Return how many requests had another answer than 200."""
        return sum(count for cell in self.cells[key] for status, count in cell["statuses"].items() if status != "200")


@dataclass(frozen=True)
class Contestant:
    """A server that can be held."""

    peer: Peer
    hold: Callable[[], None]
    go_on: Callable[[], None]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Of load, a cell and round.")
@click.option("--only", default="", help="Servers whose name contains this, and nibbled.")
def main(rounds: int, seconds: float, only: str) -> None:
    """Measure and publish."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        contestants = [_ours(folder, stack)]
        for peer, command in commands(folder).items():
            if only not in peer.name:
                continue
            click.echo(f"starting {peer.name}", err=True)
            running = stack.enter_context(started(peer, command, folder))
            stack.callback(running.go_on)
            contestants.append(Contestant(peer, running.hold, running.go_on))
        for each in contestants:
            each.hold()
        for number in range(rounds):
            click.echo(f"round {number + 1} of {rounds}", err=True)
            for rows, milliseconds in _run([sys.executable, "-m", "deploy.bench.beside.floor"]).items():
                figures.floor[rows].append(milliseconds)
            for each in contestants:
                each.go_on()
                _load(each.peer, seconds, figures)
                each.hold()
        for each in contestants:
            each.go_on()
    goals = _goals(figures) if not only else []
    part = _part(figures, goals, f"{rounds} rounds of {seconds:g} s a cell")
    if only:
        click.echo(part)
    else:
        page.publish("bench-serving", part, page.PAGE)
    sys.exit(not all(is_met for _, is_met in goals))


def _ours(folder: Path, stack: contextlib.ExitStack) -> Contestant:
    ours.announce(folder)
    wanted = ours.release("1", ours.artifact(folder, "fp32"), "fp32")
    running = stack.enter_context(ours.serving(folder, wanted))
    pid = running.server.pid or 0
    hold, go_on = functools.partial(os.kill, pid, signal.SIGSTOP), functools.partial(os.kill, pid, signal.SIGCONT)
    return Contestant(Peer(OURS, running.port, ("binary", "json", "noise")), hold, go_on)


def _load(peer: Peer, seconds: float, figures: Figures) -> None:
    for connections in CONCURRENCIES:
        for form in peer.forms:
            arguments = [form, str(peer.port), str(connections), str(seconds), peer.path]
            cell = _run([sys.executable, "-m", "deploy.bench.beside.load", *arguments])
            if not cell["statuses"].get("200"):
                raise click.ClickException(f"{peer.name} answers nothing with 200: {cell['statuses']}")
            figures.cells[peer.name, LABELS.get(form, form), connections].append(cell)


def _run(command: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _goals(figures: Figures) -> list[tuple[str, bool]]:
    def rate(name: str, form: str, connections: int) -> float:
        return figures.median((name, form, connections), "per_second")

    added = figures.median((OURS, "binary", 1), "p50_ms") - statistics.median(figures.floor["1"])
    against_lit = min(rate(OURS, "json", c) / rate(LIT, "json", c) for c in CONCURRENCIES)
    against_mlserver = min(rate(OURS, "json", c) / rate(MLSERVER, "json", c) for c in CONCURRENCIES)
    against_triton = min(
        rate(OURS, form, c) / rate(TRITON, form, c) for c in CONCURRENCIES for form in ("binary", "json")
    )
    against_asgi = rate(OURS, "binary", 16) / rate(ASGI, "binary", 16)
    most_added_ms, least = 0.4, {"lit": 4.0, "mlserver": 3.0, "triton": 1.0, "asgi": 1.2}
    return [
        (
            f"p50 added to the bare call, binary, one connection: {added:.2f} ms of {most_added_ms}",
            added <= most_added_ms,
        ),
        (f"at least {against_lit:.1f} times LitServe, of {least['lit']:g}", against_lit >= least["lit"]),
        (
            f"at least {against_mlserver:.1f} times MLServer's default, of {least['mlserver']:g}",
            against_mlserver >= least["mlserver"],
        ),
        (f"at least {against_triton:.1f} times Triton, of {least['triton']:g}", against_triton > least["triton"]),
        (
            f"{against_asgi:.2f} times the bare ASGI server at 16 connections, binary, of {least['asgi']}",
            against_asgi >= least["asgi"],
        ),
    ]


def _part(figures: Figures, goals: list[tuple[str, bool]], how: str) -> str:
    floor = {rows: statistics.median(values) for rows, values in figures.floor.items()}
    calls = ", ".join(
        f"{value:.3f} ms with {rows.replace(' ', ' rows ', 1) if ' ' in rows else f'{rows} rows'}"
        f" ({int(rows.split()[0]) / value * 1e3:,.0f} rows/s)"
        for rows, value in floor.items()
    )
    head = (
        "server",
        "form",
        *(f"{c}: requests/s" for c in CONCURRENCIES),
        *(f"{c}: p50 / p99 ms" for c in CONCURRENCIES),
        "not 200",
    )
    rows = []
    for name, form in dict.fromkeys((name, form) for name, form, _ in figures.cells):
        keys = [(name, form, c) for c in CONCURRENCIES]
        rates = [f"{figures.median(key, 'per_second'):,.0f}" for key in keys]
        times = [f"{figures.median(key, 'p50_ms'):.2f} / {figures.median(key, 'p99_ms'):.1f}" for key in keys]
        rows.append([name, form, *rates, *times, str(sum(map(figures.failures, keys)))])
    met = [f"* {'met' if is_met else 'MISSED'}: {text}" for text, is_met in goals]
    return "\n".join(
        [
            f"The bare call takes {calls}. {how}; medians of the rounds.",
            "",
            *met,
            "",
            page.markdown(head, rows),
        ]
    )


if __name__ == "__main__":
    main()
