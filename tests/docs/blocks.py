"""The fenced blocks of the documents: which commands are run by the tests, and which cannot be and why.

A block is marked in its info string, behind the language, where readers do not see it::

    ```sh needs=docker
    ```sh needs=root-systemd by=tests/boot/test_boot.py

Unmarked blocks of a language in ``RUN`` are run. A block in ``SHOWN`` that directly follows one is what it prints.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    sorted(
        (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("deploy/*/README.md"))
    )
)
RUN = ("sh", "python")
SHOWN = ("output", "json")
NEEDS = {
    "aws": "an account at AWS",
    "docker": "a container runtime",
    "jetson": "a Jetson",
    "language-model": "a language model, which is trained first",
    "minutes": "minutes",
    "network": "packages from a package index",
    "root-systemd": "root on a machine that runs systemd",
    "second-machine": "a second machine to log in from",
    "token": "an administrator's token, which the first steps do not set",
    "two-machines": "a broker with certificates on another machine, and a password that is typed",
}
"""Everything that may keep a block from being run by the tests, as words after "it needs"."""
ANYTHING = "…"
_FENCE = re.compile(r"^```(\w*)(.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page, line: where it begins.
        language: the first word of its info string.
        options: the others, ``name=value``.
        text: what is between the fences.
    """

    page: Path
    line: int
    language: str
    options: dict[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_command(self) -> bool:
        """Whether a reader is to run it."""
        return self.language in RUN

    @property
    def is_run(self) -> bool:
        """Whether the tests run it."""
        return self.is_command and "needs" not in self.options


@dataclass(frozen=True)
class Command:
    """A block that is run, and what the page says that it prints."""

    block: Block
    shown: Block | None


def blocks(page: Path) -> list[Block]:
    """Return every fenced block of a page, in order.

    Raises:
        ValueError: an info string is no ``language name=value …``, or a fence is not closed.
    """
    found: list[Block] = []
    opened: tuple[int, str, dict[str, str]] | None = None
    text: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence is None:
            text.append(line)
        elif opened is None:
            opened, text = (number, fence[1], _options(fence[2], f"{page}:{number}")), []
        else:
            found.append(Block(page, *opened, "\n".join(text) + "\n"))
            opened, text = None, []
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: the block is not closed")
    return found


def commands(page: Path) -> Iterator[Command]:
    """Yield the blocks of a page that are run."""
    every = blocks(page)
    for block, following in zip_longest(every, every[1:]):
        if block is not None and block.is_run:
            yield Command(block, following if following is not None and _is_shown(block, following) else None)


def differs(shown: Block, printed: str) -> str | None:
    """Return how ``printed`` differs from what is shown, or None; ``…`` is anything, alone in a line any lines."""
    if shown.language == "json":
        return _json_differs(json.loads(shown.text), json.loads(printed), "")
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == ANYTHING else _line_pattern(line) for line in shown.text.splitlines()
    )
    return None if re.fullmatch(pattern, _tidy(printed)) else f"{shown} shows\n{shown.text}\nit printed\n{printed}"


def _options(words: str, where: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in words.split()]
    wrong = [name for name, equals, value in pairs if name not in ("needs", "by") or not equals or not value]
    if wrong:
        raise ValueError(f"{where}: {wrong} in the info string, expected needs=… and by=…")
    return {name: value for name, _, value in pairs}


def _is_shown(block: Block, following: Block) -> bool:
    lines = block.page.read_text(encoding="utf-8").splitlines()
    end = block.line + block.text.count("\n") + 1
    return following.language in SHOWN and not any(line.strip() for line in lines[end : following.line - 1])


def _line_pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in " ".join(line.split()).split(ANYTHING)) + r"\n"


def _tidy(text: str) -> str:
    """Return the text with one blank between words, since columns are as wide as what is in them."""
    return "".join(" ".join(line.split()) + "\n" for line in text.splitlines())


def _json_differs(shown: Any, printed: Any, where: str) -> str | None:
    """Compare what is shown: every key of it, and every value that is not ``…``."""
    if shown == ANYTHING:
        return None
    if isinstance(shown, dict) and isinstance(printed, dict):
        missing = [f"{where}/{key} is not printed" for key in shown if key not in printed]
        found = (_json_differs(shown[key], printed[key], f"{where}/{key}") for key in shown if key in printed)
        return next(iter(missing), None) or next(filter(None, found), None)
    if isinstance(shown, list) and isinstance(printed, list) and len(shown) == len(printed):
        pairs = enumerate(zip(shown, printed, strict=True))
        return next(filter(None, (_json_differs(a, b, f"{where}/{index}") for index, (a, b) in pairs)), None)
    return None if shown == printed else f"{where} is {printed!r}, the page shows {shown!r}"
