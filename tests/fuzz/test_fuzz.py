"""A short run of ``make fuzz``: what comes from outside ends in success or a clear error, never in an exception."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz import campaign
from tests.fuzz.neighbours import try_neighbours

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.fuzz.targets import Target

EXAMPLES = {"commands": 400, "manifest": 300, "journal": 60}
ONCE_FOUND = {
    "half a character in the reply's address of a refused command": (
        "commands",
        b'\x07{"schema": 2, "id": "x", "response_topic": "\\ud800/b"}',
    ),
    "half a character in the correlation of a refused command": (
        "commands",
        b'\x07{"schema": 1, "id": "/", "response_topic": "a", "correlation_id": "\\ud800"}',
    ),
    "logs since a date that UTC has no name for": (
        "commands",
        b'\x01{"schema": 1, "id": "x", "since": "0001-01-01T00:00:00+23:59"}',
    ),
    "an error of SQLite's that quotes bytes which are no text": (
        "journal",
        b"\x00\xf8\xf9\xbe\x00\x01\x93\x00\x08\xd3\x91\x00\x01\xe3",
    ),
}


@pytest.fixture(scope="module", params=sorted(EXAMPLES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def target(name: str, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return campaign.make(name, tmp_path_factory.mktemp(name))


def test_whatever_comes_ends_well_and_soon(name: str, target: Target) -> None:
    try_neighbours(target, EXAMPLES[name])


@pytest.mark.parametrize(("name", "data"), ONCE_FOUND.values(), ids=ONCE_FOUND)
def test_what_was_once_found_stays_mended(name: str, data: bytes, tmp_path: Path) -> None:
    campaign.make(name, tmp_path)(data)


def test_a_finding_is_named_by_its_place_and_kept(tmp_path: Path) -> None:
    class Broken:
        def seeds(self) -> list[bytes]:
            return [b"a"]

        def mutate(self, data: bytes, draw: random.Random, most: int) -> bytes:
            return data + draw.randbytes(most and 1)

        def __call__(self, data: bytes) -> None:
            if len(data) > 1:
                raise ValueError

    run = campaign.Run("commands", Broken(), tmp_path / "findings")
    told = campaign.drawn(run, 0.05, seed=1)
    assert "1 findings: ValueError at " in told
    assert len((tmp_path / "findings" / "commands-0").read_bytes()) > 1
