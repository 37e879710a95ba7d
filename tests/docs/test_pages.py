"""Every page is followed as it is written, block after block, and what it shows is what is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.docs.blocks import PAGES, ROOT, commands, differs
from tests.docs.conftest import HOSTED
from tests.docs.sandbox import Shell, Surroundings, clone, ports

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docs.blocks import Block, Command
    from tests.docs.device import Place

pytest.importorskip("torch", reason="the pages quantize and serve")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

BLOCK_S = 150.0
ALONE = "getting-started.md"
"""The page that starts everything by itself; the others are followed on one device."""
DEMO = ("checkpoint_best.pt", "evaluation.safetensors")


def text(block: Block) -> str:
    """Return a block as bash reads it."""
    return block.text if block.language == "sh" else f"python3 - <<'END OF BLOCK'\n{block.text}END OF BLOCK\n"


def follow(shell: Shell, command: Command) -> None:
    block, shown = command.block, command.shown
    printed = shell.run(f"{block.page.stem}-{block.line}", text(block), within_s=BLOCK_S)
    assert shown is None or differs(shown, printed) is None, differs(shown, printed)


FOLLOWED = [page for page in PAGES if page.name != ALONE and next(commands(page), None)]


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_followed_on_the_device(page: Path, place: Place, kanji: Path, tmp_path: Path) -> None:
    clone(tmp_path, page.parent if page.is_relative_to(ROOT / "deploy") else ROOT)
    for name, file in (*HOSTED.items(), *((name, name) for name in DEMO)):
        (tmp_path / name).symlink_to(kanji / file)
    shell = Shell(tmp_path, place.surroundings())
    ends: dict[str, str] = {}
    try:
        for command in commands(page):
            mark = place.subscriber.mark()
            follow(shell, command)
            ends |= place.settle(mark)
    finally:
        shell.close()
    assert {id_: end for id_, end in ends.items() if end != "succeeded"} == {}


def test_the_first_steps_can_be_followed_from_nothing(tmp_path: Path) -> None:
    shell = Shell(clone(tmp_path), Surroundings(tmp_path, {}, ports()))
    try:
        for command in commands(ROOT / "docs" / ALONE):
            follow(shell, command)
    finally:
        shell.close()
