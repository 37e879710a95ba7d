"""The commands of ``nibblectl`` that ask a device for something: deploy, switch, compare, go back, change settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from agent.contract import wanted
from agent.contract.commands import MethodName
from agent.contract.errors import RefusalError
from agent.contract.topics import ID_PATTERN, is_id
from agent.contract.wire import kind_of
from agent.fleet import measuring, shapes, trust_cli
from agent.fleet.client import NoAnswerError
from agent.fleet.examination import read_envelope
from agent.fleet.measuring import measured
from agent.fleet.rows import printable
from agent.fleet.sending import ANSWER_S, connected, follow_operation, is_there, send
from agent.fleet.target import fail
from agent.fleet.trust_cli import fail_refused, read_manifest
from agent.fleet.words import comparison_lines, config_lines

if TYPE_CHECKING:
    from pathlib import Path

    from agent.contract.topics import Topics
    from agent.fleet.client import FleetClient
    from agent.fleet.target import Target

JsonObject = dict[str, Any]
_METHODS = click.Choice(MethodName.__args__)  # type: ignore[attr-defined]
_MODEL = click.argument("model")
_GATE = click.option(
    "--gate",
    metavar="JSON",
    help='What the release has to prove, such as {"min_agreement": 0.9, "dataset": {"url": "…", "sha256": "…"}}.',
)


@click.command(short_help="Deploy MODEL from a signed MANIFEST.")
@_MODEL
@click.argument("manifest", type=trust_cli.MANIFEST)
@click.option("--method", default="auto", type=_METHODS, show_default=True, help="auto: what the device decides.")
@_GATE
@measuring.OPTION
@click.pass_obj
def deploy(target: Target, /, model: str, manifest: Path, method: str, **asked: Any) -> None:
    """Deploy MODEL from MANIFEST (- for stdin), as sign prints it, and wait for the end."""
    send(target, "deploy", model=model, manifest=_envelope(manifest, model), method=method, **_gate(**asked))


@click.command(
    "set-method",
    short_help="Serve MODEL by another METHOD.",
    help=f"Serve MODEL by another METHOD: {', '.join(_METHODS.choices)}.",
)
@_MODEL
@click.argument("method", type=_METHODS, metavar="METHOD")
@click.pass_obj
def set_method(target: Target, model: str, method: str) -> None:
    """Serve MODEL by another METHOD."""
    send(target, "set_method", model=model, method=method)


@click.command()
@_MODEL
@click.pass_obj
def rollback(target: Target, model: str) -> None:
    """Serve the previous release of MODEL again."""
    send(target, "rollback", model=model)


@click.command()
@_MODEL
@click.pass_obj
def replan(target: Target, model: str) -> None:
    """Decide again how to serve MODEL, with today's memory."""
    send(target, "replan", model=model)


@click.command()
@_MODEL
@click.pass_obj
def undeploy(target: Target, model: str) -> None:
    """Stop serving MODEL and free its memory."""
    send(target, "undeploy", model=model)


@click.command(short_help="Measure methods for MODEL on the device.")
@_MODEL
@click.argument("methods", nargs=-1, type=click.Choice([name for name in _METHODS.choices if name != "auto"]))
@click.option(
    "--keep", type=click.Choice(["current", "best"]), default="current", show_default=True, help="Serve then."
)
@_GATE
@measuring.OPTION
@click.pass_obj
def compare(target: Target, /, model: str, methods: tuple[str, ...], keep: str, **asked: Any) -> None:
    """Build and measure METHODS for MODEL on the device, all but mixed when none is named, and show the table."""
    send(target, "compare", _compared, model=model, methods=list(methods), keep=keep, **_gate(**asked))


@click.command("self-test")
@click.pass_obj
def self_test(target: Target) -> None:
    """Let the device quantize and multiply for real with every method."""
    send(target, "self_test")


@click.command(short_help="Show or change settings.")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@click.pass_obj
def config(target: Target, changes: tuple[str, ...]) -> None:
    """Change settings, such as health.interval_s=5 or memory.reserve=256MiB; KEY= goes back to the file's value.

    Without any, show what was changed. Values are JSON, or text where they are none.
    """
    if changes:
        send(target, "set_config", config=_nested(changes))

    def talk(client: FleetClient, topics: Topics) -> int:
        is_there(target, client, topics)
        changed = client.read(topics.reported, ANSWER_S, shapes.Config)["config"]
        click.echo(json.dumps(changed) if target.as_json else "\n".join(map(printable, config_lines(changed))))
        return 0

    connected(target, talk)


@click.command("set-config", short_help="Change settings.")
@click.argument("config")
@click.pass_obj
def set_config(target: Target, config: str) -> None:
    """Change settings: CONFIG is a JSON object, such as {"health": {"interval_s": 5}}; null takes a change back."""
    send(target, "set_config", config=_json(config, "CONFIG"))


@click.command()
@click.argument("operation")
@click.pass_obj
def cancel(target: Target, operation: str) -> None:
    """Stop OPERATION.

    OPERATION is the id that its command printed.
    """
    send(target, "cancel", operation=operation)


@click.command()
@click.argument("operation")
@click.pass_obj
def follow(target: Target, operation: str) -> None:
    """Show OPERATION until its end.

    OPERATION is the id that its command printed.
    """
    if not is_id(operation):
        fail(f"operation {operation!r} must match {ID_PATTERN}", 2)

    def talk(client: FleetClient, topics: Topics) -> int:
        if is_there(target, client, topics) and not client.keeps(topics.operation(operation), ANSWER_S):
            raise NoAnswerError(f"{topics.device} says nothing of an operation {operation}: is the id right?")
        return follow_operation(target, client, operation)

    connected(target, talk)


def _envelope(path: Path, model: str) -> JsonObject:
    """Return the signed envelope in a file, which has to be for ``model``: a device would say no more."""
    content = read_manifest(path)
    try:
        manifest = read_envelope(content)[1]
    except RefusalError as refusal:
        fail_refused(path, refusal)
    if manifest.model != model:
        fail(f"{path}: the manifest is for {manifest.model}, not for {model}", 2)
    body = json.loads(content)
    envelope: JsonObject = body.get("manifest", body)
    return envelope


def _json(text: str, what: str) -> JsonObject:
    try:
        value = json.loads(text)
    except ValueError as error:
        fail(f"{what} is not JSON: {error}", 2)
    if not isinstance(value, dict):
        fail(f"{what} is {kind_of(value)}, expected an object", 2)
    return value


def _gate(*, gate: str | None, measure: bool) -> JsonObject:
    asked = {} if gate is None else {"gate": _json(gate, "--gate")}
    try:
        wanted.judge_gate(asked.get("gate", {}))
    except RefusalError as refusal:
        fail(f"--gate: {refusal.detail}\n  {refusal.hint}", 2)
    return measured(asked) if measure else asked


def _compared(state: JsonObject) -> list[str]:
    return comparison_lines((state.get("decision") or {}).get("compare") or [])


def _nested(changes: tuple[str, ...]) -> JsonObject:
    """Return ``a.b=1`` as ``{"a": {"b": 1}}``; nothing behind the sign is null."""
    found: JsonObject = {}
    for change in changes:
        key, equals, text = change.partition("=")
        *sections, last = key.split(".")
        if not equals or not all((*sections, last)):
            fail(f"{change!r}: expected KEY=VALUE, such as health.interval_s=5", 2)
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                fail(f"{change!r}: {section} was given a value of its own", 2)
        inner[last] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text
