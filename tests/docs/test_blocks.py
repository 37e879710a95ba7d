"""What the tests do not run says why, in words from a closed list, and names what runs it where something does."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING

import pytest

from agent import settings
from agent.cli import main as nibbled
from agent.contract import toml
from agent.fleet import profile
from agent.fleet.cli import main as nibblectl
from tests.docs.blocks import NEEDS, PAGES, ROOT, RUN, SHOWN, Block, blocks, commands, differs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from click import Command, Group

BLOCKS = [block for page in PAGES for block in blocks(page)]
LEFT_OUT = [block for block in BLOCKS if block.is_command and not block.is_run]
OTHERS = ("", "mermaid", "toml")
"""Languages that nobody runs: drawings and settings."""
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][\w-]*):(?!=)", MAKEFILE, re.MULTILINE))
EXTRAS = set(toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


def test_every_language_is_one_that_is_run_shown_or_known_to_be_neither() -> None:
    assert {block.language for block in BLOCKS} <= {*RUN, *SHOWN, *OTHERS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_is_fenced_in_a_way_that_is_not_looked_for(page: Path) -> None:
    assert re.findall(r"^(?:[ >]+```|[ >]*~~~).*$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("block", LEFT_OUT, ids=str)
def test_a_block_that_is_not_run_names_a_reason_and_what_runs_it_exists(block: Block) -> None:
    assert block.options["needs"] in NEEDS, f"{block}: the reasons are {', '.join(NEEDS)}"
    by = block.options.get("by", "")
    if by.startswith("make:"):
        assert by.removeprefix("make:") in TARGETS, f"{block}: no target {by}"
    elif by:
        file, _, name = by.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") if name else (ROOT / file).is_file(), by


@pytest.mark.parametrize("block", [block for block in LEFT_OUT if block.options["needs"] == "minutes"], ids=str)
def test_what_takes_minutes_is_run_by_something_else_or_is_a_target_of_make(block: Block) -> None:
    words = [line.partition("#")[0].split() for line in block.text.splitlines()]
    are_targets = all(word[0] == "make" and word[1] in TARGETS for word in words if word)
    assert "by" in block.options or are_targets, block


def test_only_command_blocks_are_marked_and_what_is_shown_follows_one_that_is_run() -> None:
    assert [str(block) for block in BLOCKS if block.options and not block.is_command] == []
    followed = [command.shown for page in PAGES for command in commands(page)]
    assert [str(block) for block in BLOCKS if block.language == "output" and block not in followed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_indented_command_is_a_target_of_make_or_an_existing_test(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^\n {4}(\S.*)$", text, re.MULTILINE)
    for command in chain.from_iterable(line.split(" && ") for line in indented):
        program, what, *_ = command.split()
        assert (program == "make" and what in TARGETS) or (program == "pytest" and (ROOT / what).exists()), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_extra_and_command_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([a-z][\w-]*)", text)) <= TARGETS
    assert set(chain(*(names.split(",") for names in re.findall(r"'(?:nibbled|\.)\[([\w,]+)\]'", text)))) <= EXTRAS
    for program, group in (("nibbled", nibbled), ("nibblectl", nibblectl)):
        for name, rest in re.findall(rf"`{program} ([a-z][a-z-]+)([^`\n]*)`", text):
            assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= options(group, name), f"{program} {name}{rest}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "toml"], ids=str)
def test_settings_that_a_page_shows_are_accepted(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "nibbled.toml"
    if "[profiles." in block.text:  # the operator's
        file.write_text(block.text, encoding="utf-8")
        known = {str(option.name): False for option in nibblectl.params}
        assert all(profile.settings(file, name, known) for name in profile.names(file))
    else:
        head = "" if "device_id" in block.text else 'device_id = "box-17"\n'
        file.write_text(f"{head}{block.text}", encoding="utf-8")
        assert settings.load(file).device_id == "box-17"


@pytest.mark.parametrize(
    ("shown", "printed", "is_same"),
    [
        ("a … c\n", "a  b c\n", True),
        ("a c\n", "a b c\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\n", "b\na\n", False),
        ("a\n", "a\nb\n", False),
    ],
)
def test_what_is_shown_is_what_is_printed_but_for_the_dots(shown: str, printed: str, is_same: bool) -> None:  # noqa: FBT001 - a row of the table
    assert (differs(Block(ROOT / "x.md", 1, "output", {}, shown), printed) is None) is is_same


@pytest.mark.parametrize(
    ("shown", "is_same"),
    [
        ('{"a": 1}', True),
        ('{"a": 2}', False),
        ('{"c": "…"}', False),
        ('{"b": [{"d": "…"}]}', True),
        ('{"b": []}', False),
    ],
)
def test_json_that_is_shown_has_the_keys_that_are_printed(shown: str, is_same: bool) -> None:  # noqa: FBT001 - a row of the table
    printed = '{"a": 1, "b": [{"d": 3}]}'
    assert (differs(Block(ROOT / "x.md", 1, "json", {}, shown), printed) is None) is is_same


@pytest.mark.parametrize("info", ["sh skip", "sh neds=docker", "sh needs="])
def test_an_info_string_that_says_nothing_known_is_an_error(info: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{info}\nfalse\n```\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected needs=… and by=…"):
        blocks(page)


def options(group: Group, name: str) -> set[str]:
    """Return the options of a command and those below it, and of the program, which may stand before it."""
    command: Command = group.commands[name]
    below: Iterable[Command] = getattr(command, "commands", {}).values()
    return {option for each in (command, group, *below) for parameter in each.params for option in parameter.opts} | {
        "--help"
    }
