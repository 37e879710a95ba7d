"""Completion in a shell by click's own mechanism, tried in a real bash; and what ``--help`` has to say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from agent.cli import main as nibbled
from agent.fleet.cli import main as nibblectl

ROOT = Path(__file__).parents[2]
PROGRAMS = {"nibbled": "agent.cli", "nibblectl": "agent.fleet.cli"}
COMMANDS = {"nibbled": nibbled, "nibblectl": nibblectl}
EACH = [(program, name) for program, group in COMMANDS.items() for name in sorted(group.commands)]


def complete(directory: Path, program: str, *words: str) -> list[str]:
    """Return what bash offers after ``words``, the last of which is being typed."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    script = directory / program
    script.write_text(f"#!{sys.executable}\nfrom {PROGRAMS[program]} import main\nmain()\n")  # as an installer does
    script.chmod(0o755)
    typed = " ".join(f"'{word}'" for word in (program, *words))
    commands = (
        f'eval "$(_{program.upper()}_COMPLETE=bash_source {program})"\n'
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}\n"
        f'_{program}_completion {program}\nprintf "%s\\n" "${{COMPREPLY[@]}}"\n'
    )
    environment = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [bash, "--norc", "-c", commands], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.split()


def test_a_command_that_is_begun_is_completed(tmp_path: Path) -> None:
    assert complete(tmp_path, "nibbled", "do") == ["doctor"]


def test_a_choice_is_completed(tmp_path: Path) -> None:
    assert complete(tmp_path, "nibbled", "quantize", "--method", "nf") == ["nf4", "nf4-dq"]


def test_the_names_of_profiles_are_completed(tmp_path: Path) -> None:
    found = complete(tmp_path, "nibbled", "plan", "--profile", "orin-nano-")
    assert found
    assert all(name.startswith("orin-nano-") for name in found)


def test_the_operator_s_command_is_completed(tmp_path: Path) -> None:
    assert "set-method" in complete(tmp_path, "nibblectl", "set-")


def test_the_names_of_an_operator_s_profiles_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "nibblectl.toml"
    file.write_text("[profiles.site]\n[profiles.shop]\n[profiles.cloud]\n")
    monkeypatch.setenv("NIBBLECTL_PROFILES", str(file))
    assert complete(tmp_path, "nibblectl", "--profile", "s") == ["shop", "site"]


@pytest.mark.parametrize(("program", "name"), EACH)
def test_every_command_says_what_it_does_in_a_sentence_that_fits_a_terminal(program: str, name: str) -> None:
    done = CliRunner().invoke(COMMANDS[program], [name, "--help"], terminal_width=80)
    first = (COMMANDS[program].commands[name].help or "").strip().splitlines()[0]
    assert done.exit_code == 0
    assert first.endswith(".")
    assert max(map(len, done.output.splitlines())) <= 80


def test_every_option_of_the_device_s_command_has_a_help_or_tells_its_choices() -> None:
    silent = [
        f"{name} {option.opts[0]}"
        for name, command in nibbled.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help and not isinstance(option.type, click.Choice)
    ]
    assert silent == []
