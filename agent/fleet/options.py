"""What stands before every command of ``nibblectl``: its options, and where their values come from.

A few of them may stand behind the command as well, where people type them. A command that is added to the program gets
these by itself, and reads every option from the ``Target`` that click passes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.fleet import profile
from agent.fleet.target import Target, fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

_PEM = click.Path(exists=True, dir_okay=False)
_OF_ONE_CALL = ("profile", "help", "version", "password", "json", "no_wait")
"""Options that no profile sets."""
_URL_HELP = "Where devices answer infer, such as http://{device}:8000."
_DEVICE = ("-d", "--device")
_WAIT: dict[str, Any] = {"metavar": "SECONDS", "type": click.FloatRange(min=0)}


class Program(click.Group):
    """The program: a group whose commands know the options that may stand on both sides of their name."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, and to it and those below it what may also stand behind its name."""
        _know_options(cmd)
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        """Say where an option belongs that stands behind its command and may not."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            if error.option_name not in {name for option in self.params for name in option.opts}:
                raise
            where = f"nibblectl {error.option_name} … {ctx.invoked_subcommand}"
            raise click.UsageError(f"{error.option_name} goes before the command: {where} …", error.ctx) from None


def before_the_command(function: Callable[..., None]) -> Callable[..., None]:
    """Give the program its options, in the order in which its help lists them."""
    for option in reversed(_options()):
        function = option(function)
    return function


def target_of(options: dict[str, Any]) -> Target:
    """Return the target that the options before the command make."""
    no_wait = options.pop("no_wait")
    options.pop("profile")
    return Target(**{**options, **({"wait_s": 0.0} if no_wait else {})})


def target_of_profile(name: str) -> Target:
    """Return the target that a profile alone makes, whatever stands before the command or in the environment.

    Ends the program with status 2 where there is no such profile, or it says something unknown.
    """
    context = click.get_current_context().find_root()
    usable = _usable(context)
    found = _settings(name, usable)
    return Target(**{str(usable[key].name): usable[key].type_cast_value(context, each) for key, each in found.items()})


def profiles_file() -> Path:
    """Return where the profiles lie: ``NIBBLECTL_PROFILES``, or the user's own."""
    named = os.environ.get("NIBBLECTL_PROFILES")
    return Path(named) if named else profile.default_file(os.environ)


def _options() -> list[Callable[..., Any]]:
    return [
        click.option(
            "--profile",
            metavar="NAME",
            is_eager=True,
            callback=_take_profile,
            shell_complete=_profile_names,
            help="Broker and login under a name: [profiles.NAME] of ~/.config/nibbled/nibblectl.toml.",
        ),
        click.option("--host", default=Target.host, show_default=True, help="Broker."),
        click.option("--port", default=Target.port, type=click.IntRange(1, 65535), show_default=True, help="Its port."),
        click.option(
            "--transport",
            default=Target.transport,
            type=click.Choice(["tcp", "websockets"]),
            show_default=True,
            help="What MQTT travels on.",
        ),
        click.option("--ws-path", default=Target.ws_path, show_default=True, help="Path of a broker on WebSocket."),
        click.option("--username", help="At the broker."),
        click.option("--password", help="Better in a file, or given as NIBBLECTL_PASSWORD."),
        click.option("--password-file", type=_PEM, help="Has the password; only you may read it."),
        click.option("--tls", is_flag=True, help="Encrypt; implied by port 8883 and by every file below."),
        click.option("--ca-file", type=_PEM, help="Authorities; default: the system's."),
        click.option("--cert-file", type=_PEM, help="Client certificate."),
        click.option("--key-file", type=_PEM, help="Its private key."),
        click.option("--prefix", default=Target.prefix, show_default=True, help="Topic prefix."),
        click.option(*_DEVICE, help="Device id, the device_id of its configuration."),
        click.option("--url", help=_URL_HELP),
        click.option("--token-file", type=_PEM, help="Bearer token for infer; only you may read it."),
        click.option(
            "--sign-key",
            "sign_keys",
            envvar="NIBBLECTL_SIGN_KEY",
            multiple=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="NAME.key that signs each command; twice while keys rotate.",
        ),
        click.option(
            "--expires-in",
            "expires_in_s",
            envvar="NIBBLECTL_EXPIRES_IN",
            metavar="SECONDS",
            default=Target.expires_in_s,
            type=click.FloatRange(min=0),
            show_default=True,
            help="How long a signed command may be begun; 0: for ever.",
        ),
        click.option(
            "--json", "as_json", envvar="NIBBLECTL_JSON", is_flag=True, help="Print JSON, one object per line."
        ),
        click.option(
            "--wait",
            "wait_s",
            envvar="NIBBLECTL_WAIT",
            default=Target.wait_s,
            show_default=True,
            help="Give up when the device is silent for so long; 0 prints the operation's id and does not wait.",
            **_WAIT,
        ),
        click.option("--no-wait", is_flag=True, help="As --wait 0."),
    ]


def asks_models(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``--url`` stand behind a command that asks models: it says nothing to others."""
    return click.option("--url", help=_URL_HELP, **_behind())(command)


def _behind() -> dict[str, Any]:
    return {"expose_value": False, "callback": _change_target, "allow_from_autoenv": False}


def _behind_the_command() -> list[click.Option]:
    common = _behind()
    return [
        click.Option([*_DEVICE], help="Device id.", **common),
        click.Option(["--json", "as_json"], is_flag=True, default=None, help="Print JSON.", **common),
        click.Option(["--wait", "wait_s"], help="Give up when the device is silent for so long.", **_WAIT, **common),
        click.Option(
            ["--no-wait", "wait_s"],
            flag_value=0.0,
            is_flag=True,
            default=None,
            help="Print the operation's id and do not wait.",
            **common,
        ),
    ]


def _know_options(command: click.Command) -> None:
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _know_options(each)
        return
    taken = {name for parameter in command.params for name in parameter.opts}
    command.params += [option for option in _behind_the_command() if not taken & set(option.opts)]


def _change_target(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and isinstance(context.obj, Target):
        context.obj = replace(context.obj, **{str(parameter.name): value})


def _take_profile(context: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    """Let the profile stand where nothing was given, neither on the command line nor in the environment."""
    if context.resilient_parsing:
        return name
    usable = _usable(context)
    context.default_map = {str(usable[key].name): value for key, value in _settings(name, usable).items()}
    return name


def _usable(context: click.Context) -> dict[str, click.Option]:
    """Return the options that a profile may set, by its keys."""
    options = {_key(option): option for option in context.command.params if isinstance(option, click.Option)}
    return {key: option for key, option in options.items() if key not in _OF_ONE_CALL}


def _settings(name: str | None, usable: dict[str, click.Option]) -> dict[str, Any]:
    names_file = {key: isinstance(option.type, click.Path) for key, option in usable.items()}
    try:
        return profile.settings(profiles_file(), name, names_file)
    except profile.ProfileError as error:
        fail(str(error), 2)


def _key(option: click.Option) -> str:
    return option.opts[-1].lstrip("-").replace("-", "_")


def _profile_names(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem | str]:
    try:
        return [name for name in profile.names(profiles_file()) if name.startswith(begun)]
    except profile.ProfileError:
        return []
