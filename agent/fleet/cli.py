"""``nibblectl``: the operator's command. Makes keys, signs manifests, sends commands, shows what becomes of them.

Exit status: 0 the operation succeeded or what was checked is to be trusted, 1 it did not or is not, 2 wrong usage or
nothing that can be read, 4 broker or device did not answer.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

import agent
from agent.adapters.mqtt_operator import BrokerError, Messages
from agent.adapters.tls import TlsFiles
from agent.contract.commands import MethodName
from agent.contract.errors import RefusalError
from agent.contract.topics import ID_PATTERN, Topics, is_id
from agent.fleet import trust_cli
from agent.fleet.client import FleetClient, NoAnswerError
from agent.fleet.examination import read_envelope
from agent.fleet.trust_cli import fail, fail_refused, read_manifest
from agent.fleet.words import operation_lines, presence_line, status_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JsonObject = dict[str, Any]
UNREACHABLE = 4
INTERRUPTED = 130
"""As shells tell the end by SIGINT."""
ANSWER_S = 5.0
"""How long the broker may take to hand over what it keeps."""
SECURE_PORT = 8883
"""IANA's secure-mqtt."""
_METHODS = click.Choice(MethodName.__args__)  # type: ignore[attr-defined]
_MODEL = click.argument("model")
_PEM = click.Path(exists=True, dir_okay=False)


@dataclass(frozen=True)
class Target:
    """Which device, on which broker, and how to talk to people."""

    host: str
    port: int
    username: str | None
    password: str | None
    tls: bool
    ca_file: str | None
    cert_file: str | None
    key_file: str | None
    prefix: str
    device: str | None
    as_json: bool
    wait_s: float

    def messages(self) -> Messages:
        """Return the way to the broker, encrypted where a port or a certificate says so, as on a device."""
        files = TlsFiles(self.ca_file, self.cert_file, self.key_file)
        uses_tls = self.tls or self.port == SECURE_PORT or files != TlsFiles()
        tls = files if uses_tls else None
        return Messages(self.host, self.port, username=self.username, password=self.password, tls=tls)


class _Program(click.Group):
    """Says where an option belongs that stands behind its command."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            if error.option_name not in {name for option in self.params for name in option.opts}:
                raise
            where = f"nibblectl {error.option_name} … {ctx.invoked_subcommand}"
            raise click.UsageError(f"{error.option_name} goes before the command: {where} …", error.ctx) from None


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "NIBBLECTL"},
    epilog="Exit status: 0 it succeeded or is to be trusted, 1 it did not or is not, 2 wrong usage or nothing that can "
    "be read, 4 broker or device did not answer.",
)
@click.version_option(agent.__version__, prog_name="nibblectl")
@click.option("--host", default="127.0.0.1", show_default=True, help="Broker.")
@click.option("--port", default=1883, type=click.IntRange(1, 65535), show_default=True, help="Its port.")
@click.option("--username", help="At the broker.")
@click.option("--password", help="Better given as NIBBLECTL_PASSWORD.")
@click.option("--tls", is_flag=True, help="Encrypt; implied by port 8883 and by every file below.")
@click.option("--ca-file", type=_PEM, help="Authorities; default: the system's.")
@click.option("--cert-file", type=_PEM, help="Client certificate.")
@click.option("--key-file", type=_PEM, help="Its private key.")
@click.option("--prefix", default="edge/v1", show_default=True, help="Topic prefix.")
@click.option("-d", "--device", help="Device id, the device_id of its configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    default=600.0,
    type=click.FloatRange(min=0),
    show_default=True,
    help="Give up when the device is silent for so long; 0 prints the operation's id and does not wait.",
)
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Drive nibbled devices over MQTT.

    These options stand before the command, and each can be set as NIBBLECTL_<OPTION>, such as NIBBLECTL_DEVICE.
    keygen, sign, verify and inspect need no broker.
    """
    context.obj = Target(**options)


for _command in (trust_cli.keygen, trust_cli.sign, trust_cli.verify, trust_cli.inspect):
    main.add_command(_command)


@main.command(short_help="Deploy MODEL from a signed MANIFEST.")
@_MODEL
@click.argument("manifest", type=trust_cli.MANIFEST)
@click.option("--method", default="auto", type=_METHODS, show_default=True, help="auto: what the device decides.")
@click.option(
    "--gate",
    metavar="JSON",
    help='What the release has to prove, such as {"min_agreement": 0.9, "dataset": {"url": "…", "sha256": "…"}}.',
)
@click.pass_obj
def deploy(target: Target, model: str, manifest: Path, method: str, gate: str | None) -> None:
    """Deploy MODEL from MANIFEST (- for stdin), as sign prints it, and wait for the end."""
    fields: JsonObject = {"manifest": _envelope(manifest, model), "method": method}
    if gate is not None:
        fields["gate"] = _json(gate, "--gate")
    _send(target, "deploy", model=model, **fields)


@main.command(
    "set-method",
    short_help="Serve MODEL by another METHOD.",
    help=f"Serve MODEL by another METHOD: {', '.join(_METHODS.choices)}.",
)
@_MODEL
@click.argument("method", type=_METHODS, metavar="METHOD")
@click.pass_obj
def set_method(target: Target, model: str, method: str) -> None:
    """Serve MODEL by another METHOD."""
    _send(target, "set_method", model=model, method=method)


@main.command()
@_MODEL
@click.pass_obj
def rollback(target: Target, model: str) -> None:
    """Serve the previous release of MODEL again."""
    _send(target, "rollback", model=model)


@main.command()
@_MODEL
@click.pass_obj
def replan(target: Target, model: str) -> None:
    """Decide again how to serve MODEL, with today's memory."""
    _send(target, "replan", model=model)


@main.command()
@_MODEL
@click.pass_obj
def undeploy(target: Target, model: str) -> None:
    """Stop serving MODEL and free its memory."""
    _send(target, "undeploy", model=model)


@main.command("set-config", short_help="Change settings.")
@click.argument("config")
@click.pass_obj
def set_config(target: Target, config: str) -> None:
    """Change settings: CONFIG is a JSON object, such as {"health": {"interval_s": 5}}; null takes a change back."""
    _send(target, "set_config", config=_json(config, "CONFIG"))


@main.command()
@click.argument("operation")
@click.pass_obj
def cancel(target: Target, operation: str) -> None:
    """Stop OPERATION.

    OPERATION is the id that its command printed. Exit status 0 if it was stopped.
    """
    _send(target, "cancel", operation=operation)


@main.command()
@click.argument("operation")
@click.pass_obj
def follow(target: Target, operation: str) -> None:
    """Show OPERATION until its end.

    OPERATION is the id that its command printed.
    """
    if not is_id(operation):
        fail(f"operation {operation!r} must match {ID_PATTERN}", 2)

    def talk(client: FleetClient, topics: Topics) -> int:
        if _is_there(target, client, topics) and not client.keeps(topics.operation(operation), ANSWER_S):
            raise NoAnswerError(f"{topics.device} says nothing of an operation {operation}: is the id right?")
        return _follow(target, client, operation)

    _connected(target, talk)


@main.command()
@click.pass_obj
def status(target: Target) -> None:
    """Show what the device last said that it serves.

    With --json all of it: presence, reported and capabilities.
    """

    def talk(client: FleetClient, topics: Topics) -> int:
        told = {
            "presence": _presence(target, client, topics),
            "reported": client.read(topics.reported, ANSWER_S),
            "capabilities": client.read(topics.capabilities, ANSWER_S),
        }
        if target.as_json:
            click.echo(json.dumps(told))
        else:
            click.echo("\n".join(status_lines(topics.device, told)))
        return 0

    _connected(target, talk)


def _send(target: Target, name: str, **fields: Any) -> None:
    def talk(client: FleetClient, topics: Topics) -> int:
        _is_there(target, client, topics)
        operation = client.send(name, **fields)
        if target.wait_s:
            return _follow(target, client, operation)
        click.echo(operation)
        return 0

    _connected(target, talk)


def _is_there(target: Target, client: FleetClient, topics: Topics) -> bool:
    """Return whether the device is online, and say so if it is not."""
    presence = _presence(target, client, topics)
    if presence["state"] == "online":
        return True
    line = presence_line(topics.device, presence)
    click.echo(f"nibblectl: {line}; the broker keeps commands until it is back", err=True)
    return False


def _presence(target: Target, client: FleetClient, topics: Topics) -> JsonObject:
    """Return what the broker keeps of a device: nothing, not even commands, of one that was never there."""
    try:
        return client.read(topics.presence, ANSWER_S)
    except NoAnswerError:
        raise NoAnswerError(
            f"the broker {target.host}:{target.port} knows no device {topics.device!r} under {topics.prefix}: "
            "are --device, --host and --prefix right, and did it ever connect?"
        ) from None


def _follow(target: Target, client: FleetClient, operation: str) -> int:
    state: JsonObject = {}
    told = ""
    try:
        for state in client.follow(operation, target.wait_s or ANSWER_S):
            before, told = told, json.dumps(state) if target.as_json else "\n".join(operation_lines(state))
            if told != before:
                click.echo(told)
    except NoAnswerError as error:
        fail(f"{error}\n  {_later(operation)}", UNREACHABLE)
    except KeyboardInterrupt:
        fail(f"{operation} goes on without being watched\n  {_later(operation)}", INTERRUPTED)
    return 0 if state.get("state") == "succeeded" else 1


def _later(operation: str) -> str:
    return f"see what becomes of it: nibblectl follow {operation}; stop it: nibblectl cancel {operation}"


def _connected(target: Target, talk: Callable[[FleetClient, Topics], int]) -> NoReturn:
    if target.device is None:
        fail("which device? give --device before the command, or set NIBBLECTL_DEVICE", 2)
    try:
        topics = Topics(target.prefix, target.device)
    except ValueError as error:
        fail(str(error), 2)
    try:
        with target.messages() as messages:
            sys.exit(talk(FleetClient(messages, topics), topics))
    except BrokerError as error:
        fail(
            f"{error}\n  check --host and --port, --username and NIBBLECTL_PASSWORD, and the certificates", UNREACHABLE
        )
    except NoAnswerError as error:
        fail(str(error), UNREACHABLE)


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
        fail(f"{what} is a JSON {type(value).__name__}, expected an object", 2)
    return value


if __name__ == "__main__":
    main()
