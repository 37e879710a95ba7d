"""``nibbled``: the command of the device. Parses arguments and hands over; every command's work lives elsewhere.

Imports are made inside the commands, so that ``nibbled run`` carries nothing that only another command needs. What
they end with stands in `agent.exits`.
"""
# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import agent
from agent import exits
from agent.planning.gate import Thresholds
from agent.planning.methods import BLOCKSIZES, DEFAULT_BLOCKSIZE, METHODS, MIXED, NAMES, compute_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.workbench.builds import Request


class _FailureError(click.ClickException):
    """What could not be done, as people read it: a sentence, the next step on a line of its own, exit status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"nibbled: {self.message}", file=file, err=True)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn the errors that people can act on into a sentence; what a path on the command line causes is one."""
    from agent.deployment.ports import StepError
    from agent.settings import ConfigError
    from agent.workbench.errors import WrongInputError

    try:
        yield
    except StepError as error:
        raise _FailureError(f"{error}\n  {error.hint}" if error.hint else str(error)) from None
    except OSError as error:
        if error.filename is None:
            raise
        raise _FailureError(f"{error.filename}: {error.strerror}") from None
    except (ConfigError, WrongInputError) as error:
        raise _FailureError(str(error)) from None


def _listed(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Return the methods of a comma-separated list; without one, all of the table: mixed is a search among them."""
    known = click.Choice(list(NAMES))
    return tuple(known.convert(name.strip(), option, context) for name in value.split(",")) if value else tuple(METHODS)


def _profiles(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """Return the profiles whose names begin like that, for the shell."""
    from agent.workbench import profiles

    return [name for name in ("list", *profiles.names()) if name.startswith(begun)]


_CONFIG = click.option(
    "--config", type=click.Path(path_type=Path), help="TOML file; default /etc/nibbled/nibbled.toml if it exists."
)
_METHOD = click.option(
    "--method",
    type=click.Choice(["auto", *NAMES]),
    default="auto",
    show_default=True,
    help="auto decides by model, memory and the matrix.",
)
_BLOCKSIZE = click.option(
    "--blocksize",
    type=click.Choice([str(size) for size in BLOCKSIZES]),
    default=str(DEFAULT_BLOCKSIZE),
    show_default=True,
    callback=lambda _context, _option, value: int(value),
    help="Weights that share a scale.",
)
_OUTPUT = click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Directory.")
_SHARE = click.FloatRange(0, 1)
_REQUEST = (
    click.option(
        "--model-path",
        "path",
        required=True,
        type=click.Path(exists=True, path_type=Path),
        help="Checkpoint: .pt, .pth, safetensors, or a Hugging Face model.",
    ),
    click.option("--model-type", default="auto", show_default=True, help="auto recognises it by its tensors."),
    click.option(
        "--eval",
        "dataset",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Gate data: safetensors with inputs and, if known, labels. Without it, inputs are made up.",
    ),
    click.option("--rows", type=click.IntRange(min=1), default=256, show_default=True, help="Inputs compared at most."),
    _BLOCKSIZE,
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute; auto takes a GPU that torch sees.",
    ),
    click.option(
        "--min-agreement",
        type=_SHARE,
        default=Thresholds.min_agreement,
        show_default=True,
        help="Least share of answers that stay what they were. On made-up inputs judged only if given.",
    ),
    click.option(
        "--max-accuracy-drop",
        type=_SHARE,
        default=Thresholds.max_accuracy_drop,
        show_default=True,
        help="Largest loss of accuracy, with labels.",
    ),
)


def _requesting(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what to build from and what it has to prove; they reach ``command`` as ``request``."""

    @functools.wraps(command)
    def with_request(*, min_agreement: float, max_accuracy_drop: float, **options: Any) -> None:
        from agent.workbench.builds import Request

        source = click.get_current_context().get_parameter_source("min_agreement")
        demanded = Thresholds(min_agreement, max_accuracy_drop, judges_synthetic=source is not ParameterSource.DEFAULT)
        wanted = {name: options.pop(name) for name in ("path", "model_type", "dataset", "rows", "blocksize", "device")}
        command(request=Request(**wanted, demanded=demanded), **options)

    return functools.reduce(lambda decorated, option: option(decorated), reversed(_REQUEST), with_request)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(agent.__version__, prog_name="nibbled")
def main() -> None:
    """Deploy, quantize, prove and serve PyTorch models on this device."""


@main.command()
@_CONFIG
def run(config: Path | None) -> None:
    """Run the agent until it is stopped."""
    # structlog imports rich and greenlet where it finds them, for tracebacks that a daemon never draws and threads that
    # it does not have: 4 MiB of a process that has to stay below 64.
    sys.modules["rich"] = sys.modules["greenlet"] = None  # type: ignore[assignment]
    from agent.later import postpone

    postpone("asyncio")  # which structlog has for coroutines: nobody writes one here, and it takes 1.4 MiB
    from agent import logs, settings
    from agent.adapters.journal import JournalUnusableError, JournalVersionError
    from agent.logbook import Logbook
    from agent.parts import StartError
    from agent.supervisor import Supervisor

    try:
        loaded = settings.load(config)
        book = Logbook()
        logs.set_up(loaded.logging.level, loaded.logging.format, book=book, device=loaded.device_id)
        supervisor = Supervisor(loaded, book)
    except (settings.ConfigError, StartError, JournalVersionError, JournalUnusableError) as error:
        raise _FailureError(str(error)) from None
    supervisor.run()


@main.command()
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print one object with every check.")
@_explained()
def doctor(*, config: Path | None, as_json: bool) -> None:
    """Look at everything that the agent needs here, and say what to do about what is wrong.

    Each line is ok, warning, failed or not asked, with the numbers and the next step. The kernels are tried for real,
    in a process of their own. The broker is asked through the running agent; only where none runs is a connection
    made, and a message that changes nothing sent on the device's own presence.

    Run it as the user of the service: sudo -u nibbled nibbled doctor.
    """
    from agent.console.doctor import examine

    sys.exit(0 if examine(config, as_json=as_json) else 1)


@main.command()
@_CONFIG
@click.option("--watch", is_flag=True, help="Show it anew every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print what the agent says; with --watch, a line each time.")
@_explained()
def status(*, config: Path | None, watch: bool, as_json: bool) -> None:
    """Show what the running agent serves and does, on one screen."""
    from agent.console.status import show

    sys.exit(show(config, watch=watch, as_json=as_json))


@main.command()
@click.option("--keep", is_flag=True, help="Leave broker, agent and page running until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one summary object as the last line of stdout.")
@_METHOD
@click.option("--state-dir", type=click.Path(path_type=Path), help="Keep state here instead of a temporary directory.")
@_explained()
def demo(*, keep: bool, as_json: bool, method: str, state_dir: Path | None) -> None:
    """Show the whole line here and now: sign, deploy, decide, quantize, serve, switch and roll back."""
    from agent.demo.scenario import DemoError, play

    try:
        summary = play(method=method, keep=keep, as_json=as_json, state_dir=state_dir)
    except DemoError as error:
        raise _FailureError(str(error)) from None
    sys.exit(0 if summary["ok"] else 1)


@main.command()
@_requesting
@_METHOD
@click.option("--double-quant", is_flag=True, help="Quantize the scales too; of mixed, those of its 4-bit tensors.")
@click.option("--budget-bytes", type=click.IntRange(min=1), help="Of mixed: most resident bytes of weights.")
@click.option("--strict", "is_strict", is_flag=True, help="Fail, and write nothing, if the gate refuses the method.")
@_OUTPUT
@click.option("--json", "as_json", is_flag=True, help="Print the builder's result as JSON.")
@_explained()
def quantize(
    *,
    request: Request,
    method: str,
    double_quant: bool,
    budget_bytes: int | None,
    is_strict: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Quantize a checkpoint into an artifact: {type}_4bit_{NF4,FP4}[_dq].safetensors and .json.

    Source and artifact then answer the same inputs, and the gate compares the answers. auto starts with the method
    that fits this machine and goes on to one with more bits as long as the gate refuses; only the one that passes is
    kept. A method that was named is written whatever the gate says, with a warning; with --strict it is not.

    mixed is a 4-bit method in which the tensors that the answers depend on most get int8 or fp16, as many as the gate
    demands; it is written as {type}_mixed.
    """
    from dataclasses import replace

    from agent.workbench import shell

    if double_quant and method in METHODS and METHODS[method].quant_type is None:
        raise click.UsageError(f"--double-quant quantizes the scales of a 4-bit method; {method} has none to quantize")
    if budget_bytes is not None and method != MIXED:
        raise click.UsageError(f"--budget-bytes bounds {MIXED}, which has a choice; {method} has none")
    request = replace(request, budget_bytes=budget_bytes)
    shell.quantize(request, method, output, double_quant=double_quant, is_strict=is_strict, as_json=as_json)


@main.command()
@_requesting
@click.option("--methods", callback=_listed, help="Comma-separated; default: all but mixed, which is a search.")
@_OUTPUT
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@_explained()
def compare(*, request: Request, methods: tuple[str, ...], output: Path, as_json: bool) -> None:
    """Measure every method on a checkpoint; write compare.json and compare.html, which mark what auto keeps here."""
    from agent.workbench import shell

    shell.compare(request, methods, output, as_json=as_json)


@main.command()
@click.argument("checkpoint", metavar="[CHECKPOINT_OR_URL]", required=False)
@click.option(
    "--profile",
    "profile_name",
    metavar="NAME",
    shell_complete=_profiles,
    help="A device that is not at hand; --profile list names them.",
)
@click.option("--budget", metavar="SIZE", help="What all models together may take, such as 512MiB.")
@click.option("--reserve", metavar="SIZE", default="512MiB", show_default=True, help="What stays free.")
@click.option("--model-type", default="auto", show_default=True, help="auto recognises it by its tensors.")
@_METHOD
@click.option(
    "--matrix", "matrix_file", type=click.Path(dir_okay=False, path_type=Path), help="Rows of your own (TOML)."
)
@click.option("--matrix-only", is_flag=True, help="Follow the matrix to the letter.")
@click.option(
    "--purpose",
    type=click.Choice(["serve", "research"]),
    default="serve",
    show_default=True,
    help="As planning.purpose of a device: research compares nf4 with fp4.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the decision record as JSON.")
@_explained()
def plan(checkpoint: str | None, *, as_json: bool, **asked: Any) -> None:
    """Explain what this device, or one of a profile, would do with a checkpoint, and why; nothing is built.

    CHECKPOINT_OR_URL is a file or a Hugging Face model here, or an address with http, https or file. Only
    --profile list, which names all profiles, goes without.
    """
    from agent.workbench import shell

    if checkpoint is None:
        if asked["profile_name"] != "list":
            raise click.UsageError("Missing argument 'CHECKPOINT_OR_URL'.")
        shell.list_profiles()
        return
    sys.exit(0 if shell.plan(checkpoint, as_json=as_json, **asked) else 1)


@main.command()
@_BLOCKSIZE
def methods(blocksize: int) -> None:
    """List the quantization methods: exact bits per weight, kernel and compute dtype."""
    dtypes = f"{compute_dtype('cpu')} (CPU), {compute_dtype('cuda')} or {compute_dtype('cuda', (8, 0))} (GPU)"
    click.echo(f"{'method':<8}{'bits':>7}{'of fp32':>9}  {'kernel':<13} computes in")
    for known in METHODS.values():
        bits = known.bits_per_weight(blocksize)
        click.echo(f"{known.name:<8}{bits:>7.3f}{f'1/{32 / bits:.2f}':>9}  {known.kernel:<13} {dtypes}")
    click.echo(f"{MIXED:<8}{'':>16}  a 4-bit method, and int8 or fp16 for the tensors that the gate shows to need it")


@main.command()
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--to", "target", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Format.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: beside the artifact.")
@_explained()
def export(artifact: Path, target: str, output: Path | None) -> None:
    """Export an artifact with its weights unpacked, checked against the other runtime."""
    from agent.workbench import shell

    shell.export(artifact, output or artifact.with_suffix(f".{target}"))


exits.explain(main, "nibbled")


if __name__ == "__main__":
    main()
