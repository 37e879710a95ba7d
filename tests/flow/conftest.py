from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.fleet import keys
from tests.fakes.box import Box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.journal.close()


@pytest.fixture
def serving_box(box: Box) -> Box:
    """A device that serves ``kanji`` by nf4 and could roll back to fp4."""
    box.deploy("first", method="fp4")
    box.settle()
    box.send("set_method", {"id": "second", "model": "kanji", "method": "nf4"})
    box.settle()
    assert (box.serving() or "").endswith("-nf4")
    return box


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    """A directory of trusted keys."""
    directory = tmp_path / "trust.d"
    directory.mkdir()
    return directory


@pytest.fixture
def private(trust: Path) -> Path:
    """The private half of a key that is trusted."""
    return keys.generate(trust, "fleet")[0]
