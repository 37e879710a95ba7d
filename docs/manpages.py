"""Write the man pages of both programs, one a command, from what their own parsers say.

``python -m docs.manpages DIRECTORY``
"""

from __future__ import annotations

import sys
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click_man.man import ManPage

import agent
from docs.mansections import PROGRAMS, sections

if TYPE_CHECKING:
    from collections.abc import Iterator


def pages() -> Iterator[tuple[str, str]]:
    """Yield the file's name and the text of each page."""
    for name, program in PROGRAMS.items():
        context = click.Context(program, info_name=name, **program.context_settings)
        yield from _with_those_below(context)


def _with_those_below(context: click.Context) -> Iterator[tuple[str, str]]:
    yield _page(context)
    if isinstance(context.command, click.Group):
        for name, command in context.command.commands.items():
            yield from _with_those_below(click.Context(command, info_name=name, parent=context))


def _page(context: click.Context) -> tuple[str, str]:
    command = context.command
    page = ManPage(context.command_path)
    page.version = f"nibbled {agent.__version__}"
    page.date = ""  # the same text from the same source, whenever it is made
    page.short_help = _in_a_line(command)
    page.synopsis = " ".join(command.collect_usage_pieces(context))
    page.description = cleandoc(command.help or "")  # its epilog is a section of its own
    options = (each for each in command.get_params(context) if isinstance(each, click.Option))
    page.options = [record for each in options if (record := each.get_help_record(context)) is not None]
    if isinstance(command, click.Group):
        page.commands = [(name, _in_a_line(each)) for name, each in command.commands.items()]
    # A heading begins a paragraph by itself, and both tools that lint pages say so.
    text = str(page).replace(".SH COMMANDS\n.PP\n", ".SH COMMANDS\n")
    return f"{context.command_path.replace(' ', '-')}.1", text + sections(context)


def _in_a_line(command: click.Command) -> str:
    """Return the first sentence whole; what fits beside a list of commands would be cut."""
    return command.get_short_help_str(limit=200)


def main(directory: Path) -> None:
    """Write all pages into ``directory``, and leave no other there."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.1"):
        old.unlink()
    for name, text in pages():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
