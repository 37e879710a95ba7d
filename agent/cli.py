"""``nibbled``: the command of the device. Parses arguments and hands over; every command's work lives elsewhere.

Imports are made inside the commands, so that ``nibbled run`` carries nothing that only another command needs.
"""
# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

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


@main.command()
@click.option("--model-path", required=True, type=click.Path(exists=True, path_type=Path), help="Checkpoint.")
@click.option("--model-type", default="auto", show_default=True)
@click.option("--method", default="auto", show_default=True, help="auto, nf4, fp4, int8, fp16, fp32; nf4-dq, fp4-dq.")
@click.option("--double-quant", is_flag=True, help="Quantize the scales too.")
@click.option("--blocksize", default=64, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--eval", "dataset", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Gate data.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the builder's result as JSON.")
def quantize(*, double_quant: bool, method: str, output: Path, as_json: bool, **fields: Any) -> None:
    """Quantize a checkpoint into an artifact: {type}_4bit_{NF4,FP4}[_dq].safetensors and .json."""
    from agent.workbench import shell

    sys.exit(shell.quantize(method, output, double_quant=double_quant, as_json=as_json, **fields))


@main.command()
@click.option("--model-path", required=True, type=click.Path(exists=True, path_type=Path), help="Checkpoint.")
@click.option("--model-type", default="auto", show_default=True)
@click.option("--eval", "dataset", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Gate data.")
@click.option("--methods", help="Comma-separated; default: all.")
@click.option("--blocksize", default=64, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def compare(*, methods: str | None, output: Path, as_json: bool, **fields: Any) -> None:
    """Measure every method on a checkpoint; write compare.json and compare.html."""
    from agent.workbench import shell

    sys.exit(shell.compare(methods, output, as_json=as_json, **fields))


@main.command()
@click.option("--blocksize", default=64, show_default=True)
def methods(blocksize: int) -> None:
    """List the quantization methods: exact bits per weight, kernel and compute dtype."""
    from agent.planning.methods import METHODS, compute_dtype

    dtypes = f"{compute_dtype('cpu')} (CPU), {compute_dtype('cuda')} or {compute_dtype('cuda', (8, 0))} (GPU)"
    click.echo(f"{'method':<8}{'bits':>7}{'of fp32':>9}  {'kernel':<13} computes in")
    for method in METHODS.values():
        bits = method.bits_per_weight(blocksize)
        click.echo(f"{method.name:<8}{bits:>7.3f}{f'1/{32 / bits:.2f}':>9}  {method.kernel:<13} {dtypes}")


@main.command()
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--to", "target", type=click.Choice(["onnx"]), default="onnx", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: beside the artifact.")
def export(artifact: Path, target: str, output: Path | None) -> None:
    """Export an artifact with its weights unpacked, checked against the other runtime."""
    from agent.workbench import shell

    sys.exit(shell.export(artifact, output or artifact.with_suffix(f".{target}")))


def _fail(text: str) -> NoReturn:
    click.echo(f"nibbled: {text}", err=True)
    sys.exit(1)
