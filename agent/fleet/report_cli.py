"""``nibblectl report``: what the methods came to on the devices of a fleet, by what every device reports."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.fleet import figures
from agent.fleet.fleet_cli import LISTEN, NOTHING_FOUND, no_devices, none_of
from agent.fleet.gather import Fleet
from agent.fleet.report import NO_LIMIT, SHOWN, lines, to_json
from agent.fleet.target import fail
from agent.fleet.view import CAPABILITIES, HEALTH, PRESENCE, REPORTED

if TYPE_CHECKING:
    from agent.fleet.target import Target
    from agent.fleet.view import Device


@click.command(short_help="Compare what devices measured.")
@click.option(
    "--plot",
    "plots",
    multiple=True,
    metavar="FIGURE",
    type=click.Choice([*SHOWN, "all"]),
    help=f"Draw {', '.join(SHOWN)}, or all; may be repeated.",
)
@click.option("--csv", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write every sample to a file.")
@click.option("--model", help="Only this model.")
@LISTEN
@click.pass_obj
def report(target: Target, plots: tuple[str, ...], file: Path | None, model: str | None, listen_s: float) -> None:
    """Compare agreement, latency, memory and estimates across the fleet.

    It reads what every device retains: by hardware, model type and method, and which rows of the decision matrix hold,
    that is, how often measurement kept what the row asked for.
    """
    with target.connection() as messages:
        fleet = Fleet(messages, target.prefix, [target.topics().device] if target.device else [])
        with fleet.heard(PRESENCE, REPORTED, CAPABILITIES, live=[HEALTH]) as inbox:
            fleet.await_health(inbox, listen_s)
    devices = list(fleet.view)
    if model is not None:
        devices = [_with_only(model, device) for device in devices if model in device.models]
    found = figures.samples(devices)
    if file is not None:
        _write(file, figures.csv_rows(found))
    if target.as_json:
        click.echo(json.dumps(to_json(devices)))
    elif found:
        chosen = [name for name in SHOWN if name in plots or "all" in plots]
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else NO_LIMIT
        click.echo("\n".join(lines(devices, chosen, width)))
    if not found:
        which = "reports a model" + ("" if model is None else f" {model}")
        many = len(fleet.view)
        fail(none_of(target, many, which) if many else no_devices(target, "no model was reported"), NOTHING_FOUND)


def _with_only(model: str, device: Device) -> Device:
    device.said[REPORTED]["models"] = {model: device.models[model]}
    return device


def _write(file: Path, rows: list[list[str]]) -> None:
    try:
        with file.open("w", encoding="utf-8", newline="") as output:
            csv.writer(output).writerows(rows)
    except OSError as error:
        fail(f"--csv {file}: {error.strerror or error}", 2)
