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
from agent.contract.topics import Topics
from agent.fleet import trust_cli
from agent.fleet.client import FleetClient, NoAnswerError
from agent.fleet.trust_cli import fail
from agent.fleet.words import operation_lines

if TYPE_CHECKING:
    from collections.abc import Callable

JsonObject = dict[str, Any]
UNREACHABLE = 4
SECURE_PORT = 8883
"""IANA's secure-mqtt."""
_METHODS = click.Choice(MethodName.__args__)  # type: ignore[attr-defined]

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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "NIBBLECTL"})
@click.version_option(agent.__version__, prog_name="nibblectl")
@click.option("--host", default="127.0.0.1", show_default=True, help="Broker.")
@click.option("--port", default=1883, show_default=True)
@click.option("--username")
@click.option("--password", help="Better given as NIBBLECTL_PASSWORD.")
@click.option("--tls", is_flag=True, help="Encrypt; implied by port 8883 and by every file below.")
@click.option("--ca-file", type=_PEM, help="Authorities; default: the system's.")
@click.option("--cert-file", type=_PEM, help="Client certificate.")
@click.option("--key-file", type=_PEM)
@click.option("--prefix", default="edge/v1", show_default=True, help="Topic prefix.")
@click.option("-d", "--device", help="Device id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
@click.option("--wait", "wait_s", default=600.0, show_default=True, help="Longest silence in seconds; 0 does not wait.")
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Drive nibbled devices over MQTT. Every option can be set as NIBBLECTL_<OPTION>."""
    context.obj = Target(**options)


for _command in (trust_cli.keygen, trust_cli.sign, trust_cli.verify, trust_cli.inspect):
    main.add_command(_command)


@main.command()
@click.argument("model")
@click.argument("manifest", type=click.File("rb"))
@click.option("--method", default="auto", type=_METHODS, show_default=True)
@click.option("--gate", help="JSON object with the gate's thresholds and data set.")
@click.pass_obj
def deploy(target: Target, model: str, manifest: Any, method: str, gate: str | None) -> None:
    """Deploy MODEL from a signed MANIFEST (- for stdin)."""
    fields: JsonObject = {"manifest": _json(manifest.read()), "method": method}
    if gate is not None:
        fields["gate"] = _json(gate)
    _send(target, "deploy", model=model, **fields)


@main.command("set-method")
@click.argument("model")
@click.argument("method", type=_METHODS)
@click.pass_obj
def set_method(target: Target, model: str, method: str) -> None:
    """Serve MODEL by another METHOD."""
    _send(target, "set_method", model=model, method=method)


@main.command()
@click.argument("model")
@click.pass_obj
def rollback(target: Target, model: str) -> None:
    """Serve the previous release of MODEL again."""
    _send(target, "rollback", model=model)


@main.command()
@click.argument("model")
@click.pass_obj
def replan(target: Target, model: str) -> None:
    """Decide again how to serve MODEL, with today's memory."""
    _send(target, "replan", model=model)


@main.command()
@click.argument("model")
@click.pass_obj
def undeploy(target: Target, model: str) -> None:
    """Stop serving MODEL and free its memory."""
    _send(target, "undeploy", model=model)


@main.command("set-config")
@click.argument("config")
@click.pass_obj
def set_config(target: Target, config: str) -> None:
    """Change settings: CONFIG is a JSON object, such as {"health": {"interval_s": 5}}; null takes a change back."""
    _send(target, "set_config", config=_json(config))


@main.command()
@click.argument("operation")
@click.pass_obj
def cancel(target: Target, operation: str) -> None:
    """Stop the running OPERATION."""
    _send(target, "cancel", operation=operation)


@main.command()
@click.pass_obj
def status(target: Target) -> None:
    """Print what the device says it serves."""

    def talk(client: FleetClient, topics: Topics) -> int:
        found = {name: client.read(topic, 5.0) for name, topic in _status_topics(topics).items()}
        click.echo(json.dumps(found, indent=None if target.as_json else 2))
        return 0

    _connected(target, talk)


def _status_topics(topics: Topics) -> dict[str, str]:
    return {"presence": topics.presence, "reported": topics.reported, "capabilities": topics.capabilities}


def _send(target: Target, name: str, **fields: Any) -> None:
    def talk(client: FleetClient, _topics: Topics) -> int:
        operation = client.send(name, **fields)
        if not target.wait_s:
            click.echo(operation)
            return 0
        last: JsonObject = {}
        for last in client.follow(operation, target.wait_s):
            _show(target, last)
        return 0 if last.get("state") == "succeeded" else 1

    _connected(target, talk)


def _connected(target: Target, talk: Callable[[FleetClient, Topics], int]) -> NoReturn:
    if target.device is None:
        fail("which device? give --device or set NIBBLECTL_DEVICE", 2)
    topics = Topics(target.prefix, target.device)
    try:
        with target.messages() as messages:
            sys.exit(talk(FleetClient(messages, topics), topics))
    except (BrokerError, NoAnswerError) as error:
        fail(str(error), UNREACHABLE)


def _show(target: Target, state: JsonObject) -> None:
    click.echo(json.dumps(state) if target.as_json else "\n".join(operation_lines(state)))


def _json(text: bytes | str) -> JsonObject:
    try:
        value = json.loads(text)
    except ValueError as error:
        fail(f"not JSON: {error}", 2)
    if not isinstance(value, dict):
        fail(f"a JSON {type(value).__name__}, expected an object", 2)
    return value


if __name__ == "__main__":
    main()
