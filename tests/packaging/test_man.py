"""The man pages: every command has one, it says what its --help says, and the tools that render pages take it.

What their last sections say is held against the code: it ends with these statuses, reads these variables and files.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from agent import environment, exits, settings
from agent.cli import main as nibbled
from agent.fleet import profile
from agent.fleet.cli import main as nibblectl
from agent.fleet.rollout.cli import records

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE = Path(__file__).parents[2]
MAN = TREE / "docs" / "man"
PROGRAMS = {"nibbled": nibbled, "nibblectl": nibblectl}


def below(typed: str, command: click.Command) -> dict[str, click.Command]:
    """Return a command and all that are below it, by what is typed for them."""
    found = {typed: command}
    if isinstance(command, click.Group):
        for each, inner in command.commands.items():
            found |= below(f"{typed} {each}", inner)
    return found


TYPED = {typed: command for program, group in PROGRAMS.items() for typed, command in below(program, group).items()}
COMMANDS = {typed.replace(" ", "-"): command for typed, command in TYPED.items()}
OPTIONS = [each for each in nibblectl.params if isinstance(each, click.Option) and each.name != "version"]


def entries(typed: str, title: str) -> dict[str, str]:
    """Return what a section of a page names, and what it says of each; empty without the section."""
    page = (MAN / f"{typed.replace(' ', '-')}.1").read_text(encoding="utf-8")
    section = page.partition(f".SH {title}\n")[2].partition(".SH ")[0].replace("\\", "")
    return dict(re.findall(r"^\.TP\n\.B (.+)\n(.+)$", section, re.MULTILINE))


def test_the_pages_are_what_make_man_writes() -> None:
    pytest.importorskip("click_man", reason="click-man needs Python 3.11")
    from docs.manpages import pages  # noqa: PLC0415 - where it is installed

    assert {file.name: file.read_text(encoding="utf-8") for file in MAN.iterdir()} == dict(pages()), "run make man"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_with_all_its_options_and_each_of_them_says_what_it_does(name: str) -> None:
    page = (MAN / f"{name}.1").read_text(encoding="utf-8")
    options = [each for each in COMMANDS[name].params if isinstance(each, click.Option)]
    for option in options:
        assert option.help, option.name
        assert option.opts[0].replace("-", r"\-") in page
    assert re.search(rf"\.SH NAME\n{name.replace('-', '.*', 1)} .*\w\.\n", page.replace("\\", ""))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_page_of_a_program_lists_its_commands(program: str) -> None:
    page = (MAN / f"{program}.1").read_text(encoding="utf-8")
    assert re.findall(r"^\\fB([\w-]+)\\fP$", page.partition(".SH COMMANDS")[2], re.MULTILINE) == list(
        PROGRAMS[program].commands
    )


@pytest.mark.skipif(shutil.which("groff") is None and "CI" not in os.environ, reason="groff is not installed")
@pytest.mark.parametrize("name", COMMANDS)
def test_groff_has_nothing_to_say_against_a_page(name: str) -> None:
    command = ["groff", "-man", "-ww", "-Tutf8", "-Kutf8", "-P-cbou", str(MAN / f"{name}.1")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SYNOPSIS" in done.stdout


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_misses_nothing_but_the_date() -> None:
    command = ["mandoc", "-Tlint", "-Wwarning", *map(str, sorted(MAN.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


@pytest.mark.parametrize("typed", TYPED)
def test_a_page_says_what_its_command_ends_with_and_wrong_usage_is_among_it(typed: str) -> None:
    told = {int(status): meaning for status, meaning in entries(typed, "EXIT STATUS").items()}
    assert {status: meaning.lower() for status, meaning in told.items()} == {
        status: f"{meaning}.".lower() for status, meaning in exits.statuses(typed).items()
    }
    program, *names = typed.split()
    done = CliRunner().invoke(PROGRAMS[program], [*names, "--no-such-option"])
    assert done.exit_code == exits.USAGE, done.output
    assert exits.USAGE in told


@pytest.mark.parametrize("typed", exits.STATUSES)
def test_the_help_of_a_command_that_ends_in_its_own_way_says_so(typed: str) -> None:
    program, *names = typed.split()
    told = CliRunner().invoke(PROGRAMS[program], [*names, "--help"], terminal_width=10_000).output
    for status, meaning in exits.STATUSES[typed].items():
        assert f"{status} {meaning}" in told


def test_operators_programs_end_with_what_their_tables_have_and_with_all_of_it() -> None:
    modules = [file for file in (TREE / "agent" / "fleet").rglob("*.py") if file.name != "__init__.py"]
    found = {status for file in modules for status in ends(file)}
    assert found == {status for typed, row in exits.STATUSES.items() if typed.startswith("nibblectl") for status in row}


def ends(file: Path) -> Iterator[int]:
    """Yield the numbers that a module ends the program with, by ``fail`` or ``sys.exit``."""
    module = import_module(".".join(file.relative_to(TREE).with_suffix("").parts))
    for call in (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) not in ("fail", "sys.exit"):
            continue
        for node in ast.walk(call.args[-1]):
            value = getattr(module, node.id, None) if isinstance(node, ast.Name) else getattr(node, "value", None)
            if type(value) is int:
                yield value


def test_the_operators_page_in_docs_has_the_same_statuses() -> None:
    text = (TREE / "docs" / "nibblectl.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)
    assert {int(status): meaning for status, meaning in rows} == exits.statuses("nibblectl")


def test_the_page_of_the_agent_names_every_setting_as_a_variable_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [name for name in entries("nibbled", "ENVIRONMENT") if name.startswith("NIBBLED_")]
    keys = set()
    for key, field in settings.Settings.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        keys |= {key} if inner is None else {f"{key}__{each}" for each in inner}
    assert {name.removeprefix("NIBBLED_").lower() for name in named} == keys
    for name in named:
        monkeypatch.setenv(name, "{}")
    assert environment.unknown(settings.Settings) == []
    told = entries("nibbled", "ENVIRONMENT")["NIBBLED_MQTT__PORT"]
    assert told == f"mqtt.port, by default {settings.Mqtt().port}."


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_variable_that_the_operators_page_names_sets_its_option(
    option: click.Option, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("[profiles.x]\n")
    monkeypatch.setenv("NIBBLECTL_PROFILES", str(file))
    long = option.opts[-1]
    (variable,) = [name for name, text in entries("nibblectl", "ENVIRONMENT").items() if text == f"As {long}."]
    assert variable == f"NIBBLECTL_{long.lstrip('-').replace('-', '_').upper()}", "as the help of the program says"
    values = {click.Path: str(file), click.Choice: "websockets", click.IntRange: "7", click.FloatRange: "7"}
    monkeypatch.setenv(variable, values.get(type(option.type), "1" if option.is_flag else "x"))
    context = nibblectl.make_context("nibblectl", ["devices"])
    assert context.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT


def test_every_variable_that_the_code_reads_stands_on_a_page() -> None:
    read = r"environ(?:ment)?\.get\(\s*\"(\w+)\""
    found = {name for file in (TREE / "agent").rglob("*.py") for name in re.findall(read, file.read_text("utf-8"))}
    assert {"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "XDG_STATE_HOME"} <= found, "the code reads them in another way"
    assert found - {"HOME", "PATH"} <= {name for typed in TYPED for name in entries(typed, "ENVIRONMENT")}


@pytest.mark.parametrize("typed", ["nibbled", "nibbled run", "nibbled doctor", "nibbled status"])
def test_pages_of_what_reads_the_configuration_name_the_files_that_it_looks_for(typed: str) -> None:
    fields = (field for _, _, field in environment.variables(settings.Settings))
    paths = {field.default for field in fields if isinstance(field.default, Path)}
    assert {Path(name) for name in entries(typed, "FILES")} == paths | {
        settings.DEFAULT_FILE,
        settings.SERVICE_CREDENTIALS,
    }


@pytest.mark.parametrize("home", ["HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"])
def test_pages_of_the_operator_name_the_files_that_are_looked_for(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(home, "/home/operator")
    found = {os.path.expandvars(name) for name in entries("nibblectl rollout run", "FILES") if f"${home}/" in name}
    looked = {profile.default_file({home: "/home/operator"}), records({home: "/home/operator"})}
    assert found == {str(path) for path in looked if path.is_relative_to("/home/operator")}


@pytest.mark.parametrize("typed", TYPED)
def test_a_page_leads_to_others_and_they_exist(typed: str) -> None:
    page = (MAN / f"{typed.replace(' ', '-')}.1").read_text(encoding="utf-8").replace("\\", "")
    pages = re.findall(r"^\.BR (\S+) \(1\),?$", page.partition(".SH SEE ALSO\n")[2], re.MULTILINE)
    assert pages
    assert [name for name in pages if not (MAN / f"{name}.1").is_file()] == []
    program, *names = typed.split()
    assert not names or program in pages
