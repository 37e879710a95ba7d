"""``nibbled``: the command of the device. Parses arguments and hands over; every command's work lives elsewhere.

Imports are made inside the commands, so that ``nibbled run`` carries nothing that only another command needs.
"""
# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

import agent

_CONFIG = click.option(
    "--config", type=click.Path(path_type=Path), help="TOML file; default /etc/nibbled/nibbled.toml if it exists."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(agent.__version__, prog_name="nibbled")
def main() -> None:
    """Deploy, quantize, prove and serve PyTorch models on this device."""


@main.command()
@_CONFIG
def run(config: Path | None) -> None:
    """Run the agent until it is stopped."""
    # structlog imports rich where it finds it, for tracebacks that a daemon never draws: 3 MiB of a process that
    # has to stay below 64.
    sys.modules["rich"] = None  # type: ignore[assignment]
    from agent import logs, settings
    from agent.adapters.journal import JournalVersionError
    from agent.supervisor import StartError, Supervisor

    try:
        loaded = settings.load(config)
        logs.set_up(loaded.logging.level, loaded.logging.format, device=loaded.device_id)
        supervisor = Supervisor(loaded)
    except (settings.ConfigError, StartError, JournalVersionError) as error:
        _fail(str(error))
    supervisor.run()


@main.command()
@click.option("--keep", is_flag=True, help="Leave broker, agent and page running until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one summary object as the last line of stdout.")
@click.option("--method", default="auto", show_default=True, help="Method of the first deploy.")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Keep state here instead of a temporary directory.")
def demo(*, keep: bool, as_json: bool, method: str, state_dir: Path | None) -> None:
    """Show the whole line here and now: sign, deploy, decide, quantize, serve, switch and roll back."""
    from agent.demo.scenario import DemoError, play

    try:
        summary = play(method=method, keep=keep, as_json=as_json, state_dir=state_dir)
    except DemoError as error:
        _fail(str(error))
    sys.exit(0 if summary["ok"] else 1)


def _fail(text: str) -> NoReturn:
    click.echo(f"nibbled: {text}", err=True)
    sys.exit(1)
