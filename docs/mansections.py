"""The last sections of a man page, from what the code itself goes by: exit status, environment, files, see also.

Statuses come from `agent.exits`, variables from the settings and from click's options, files from the settings'
defaults. What is written here by hand is what they mean; a key without a sentence raises ``KeyError``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent import environment, exits, settings
from agent.cli import main as nibbled
from agent.fleet import profile
from agent.fleet.cli import main as nibblectl
from agent.fleet.rollout.cli import records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic.fields import FieldInfo

Entry = tuple[str, str]

DIRECTORIES = {
    "state_dir": "What the agent keeps: journal, models, downloads, log. The setting state_dir.",
    "trust.keys_dir": "NAME.pub of everybody who may deploy. The setting trust.keys_dir.",
}
"""Of the settings that have a path by default."""
OF_SYSTEMD = {
    "NOTIFY_SOCKET": "Where systemd hears that the agent is ready, what it does and that it is alive.",
    "WATCHDOG_USEC": "How long systemd takes no sign of life, in microseconds.",
    "JOURNAL_STREAM": "Says whether stderr is the journal, which has times and levels of its own.",
}
"""Of ``nibbled run`` alone."""
FOUND_OUT = {"device_id": "the host's name"}
"""Of the settings whose default is found out at the start."""
PROGRAMS: dict[str, click.Group] = {"nibbled": nibbled, "nibblectl": nibblectl}


def sections(context: click.Context) -> str:
    """Return the sections EXIT STATUS, ENVIRONMENT, FILES and SEE ALSO of a command's page, as roff."""
    program = context.find_root()
    own, files = (_of_device, _device_files) if program.info_name == "nibbled" else (_of_operator, _operator_files)
    statuses = exits.statuses(context.command_path).items()
    ends = ((str(status), f"{meaning[0].upper()}{meaning[1:]}.") for status, meaning in statuses)
    parts = (("EXIT STATUS", ends), ("ENVIRONMENT", own(context)), ("FILES", files(context)))
    return "".join([*(_section(title, entries) for title, entries in parts), _see_also(context)])


def _section(title: str, entries: Iterable[Entry]) -> str:
    lines = [line for name, text in entries for line in (".TP", f".B {_literal(name)}", text)]
    return "\n".join([f".SH {title}", *lines, ""]) if lines else ""


def _literal(text: str) -> str:
    """Return what is typed as it stands: roff makes a hyphen of a dash that is not escaped."""
    return text.replace("-", "\\-")


def _of_device(context: click.Context) -> Iterator[Entry]:
    """Yield what ``nibbled`` and those of its commands take that read the configuration."""
    is_program = context.parent is None
    if is_program:
        for name, key, field in environment.variables(settings.Settings):
            yield name, f"{key}, {_default(key, field)}."
        yield _completion(context)
    elif _reads(context, "config"):
        yield f"{environment.PREFIX}...", "Each setting, over the file and the credentials; nibbled(1) lists them."
    if is_program or _reads(context, "config"):
        yield "CREDENTIALS_DIRECTORY", "Files named after the settings that they stand for, as systemd hands them over."
    if context.command_path == "nibbled run":
        yield from OF_SYSTEMD.items()


def _default(key: str, field: FieldInfo) -> str:
    if field.default_factory is not None:
        return f"by default {FOUND_OUT[key]}"
    if field.default is None:
        return "without a default"
    as_json = " (JSON)" if isinstance(field.default, tuple | dict) else ""
    return f"by default {json.dumps(field.default, default=str)}{as_json}"


def _device_files(context: click.Context) -> Iterator[Entry]:
    if context.parent is not None and not _reads(context, "config"):
        return
    yield str(settings.DEFAULT_FILE), "The configuration, where --config names no other."
    for _, key, field in environment.variables(settings.Settings):
        if isinstance(field.default, Path):
            yield str(field.default), DIRECTORIES[key]
    yield str(settings.SERVICE_CREDENTIALS), "What the service was handed as credentials, for whoever may look into it."


def _of_operator(context: click.Context) -> Iterator[Entry]:
    """Yield what ``nibblectl`` takes; its commands only refer to it."""
    if context.parent is None:
        yield from variables_of_options(context)
        yield "NIBBLECTL_PROFILES", "Another file of profiles than the one below."
        yield "XDG_CONFIG_HOME", "Where the file of profiles is looked for."
        yield _completion(context)
    else:
        yield "NIBBLECTL_...", "Each option that stands before the command; nibblectl(1) lists them."
    if _reads(context, "state_dir"):
        yield "XDG_STATE_HOME", "Where rollouts are recorded without --state-dir."


def variables_of_options(context: click.Context) -> Iterator[Entry]:
    """Yield the variable of each option of a program, as click looks for it."""
    for option in context.command.params:
        if not isinstance(option, click.Option) or (option.is_eager and not option.expose_value):
            continue
        name = option.envvar or f"{context.auto_envvar_prefix}_{option.name}".upper()
        yield str(name), f"As {option.opts[-1]}."


def _operator_files(context: click.Context) -> Iterator[Entry]:
    yield str(profile.default_file({"HOME": "$HOME"})), "Profiles: brokers and logins under names."
    yield str(profile.default_file({"XDG_CONFIG_HOME": "$XDG_CONFIG_HOME"})), "The same, where that is set."
    if _reads(context, "state_dir"):
        yield str(records({"HOME": "$HOME"})), "Records of rollouts, a folder each."
        yield str(records({"XDG_STATE_HOME": "$XDG_STATE_HOME"})), "The same, where that is set."


def _completion(context: click.Context) -> Entry:
    told = "bash_source, zsh_source or fish_source: prints what completes in that shell."
    return f"_{context.info_name}_COMPLETE".upper(), told


def _reads(context: click.Context, parameter: str) -> bool:
    return any(each.name == parameter for each in context.command.params)


def _see_also(context: click.Context) -> str:
    """Name the pages above, those beside that read the same configuration, and the other program's of that name."""
    pages = [each.command_path for each in _above(context)]
    (other,) = PROGRAMS.keys() - {str(context.find_root().info_name)}
    if context.parent is None:
        pages.append(other)
    elif context.parent.parent is None and context.info_name in PROGRAMS[other].commands:
        pages.append(f"{other} {context.info_name}")
    if _reads(context, "config"):
        pages += [f"nibbled {name}" for name, command in nibbled.commands.items() if _is_beside(context, command)]
    named = (f".BR {_literal(page.replace(' ', '-'))} (1)" for page in pages)
    return "\n".join([".SH SEE ALSO", ",\n".join(named), ""])


def _above(context: click.Context) -> Iterator[click.Context]:
    while context.parent is not None:
        context = context.parent
        yield context


def _is_beside(context: click.Context, command: click.Command) -> bool:
    return command is not context.command and any(each.name == "config" for each in command.params)
