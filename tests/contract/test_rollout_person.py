"""A person at a real terminal who agrees, does not, or thinks about it."""

from __future__ import annotations

import os
import pty
import select
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.fleet.rollout.events import Asked
from agent.fleet.rollout.person import Person
from agent.fleet.rollout.plan import Plan
from agent.fleet.rollout.state import Status, begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

END_S = 10.0
PLAN = Plan.model_validate(
    {
        "schema": 1,
        "id": "r",
        "command": {"name": "set_method", "model": "kanji", "method": "nf4"},
        "waves": [{"name": "first", "percent": 50, "approval": True}, {"name": "rest", "percent": 100}],
    }
)
STATE = begin((("a",), ("b",)))
QUESTION = "wave first waits for approval; begin it? [y/N] "
LATER = "it waits; begin it later with y here, or with nibblectl rollout approve p.toml --wave first\n"


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return what types a line, and comes back once the terminal has it."""
    keyboard, terminal = pty.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)

        def type_(line: str) -> None:
            os.write(keyboard, f"{line}\n".encode())
            assert select.select([stdin], [], [], END_S)[0], "the terminal has nothing"

        yield type_
    os.close(keyboard)


@pytest.fixture
def person() -> Person:
    return Person(PLAN, Path("p.toml"), ())


@pytest.mark.parametrize("answer", ["n", "", "no"])
def test_a_no_is_taken_for_one_and_says_how_to_agree_later(
    types: Callable[[str], None], person: Person, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    assert person.ask(STATE, is_asking=True) is None
    types(answer)
    assert person.ask(STATE, is_asking=True) is None
    assert person.ask(STATE, is_asking=True) is None
    assert capsys.readouterr().err == QUESTION + LATER
    types("y")
    assert person.ask(STATE, is_asking=True) == Asked("approve", 0)


def test_whoever_does_not_want_to_go_on_from_a_pause_is_told_how_to_do_it_later(
    types: Callable[[str], None], person: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    types("n")
    paused = replace(STATE, status=Status.PAUSED, reason="too many failed")
    assert person.ask(paused, is_asking=False) is None
    told = capsys.readouterr().err
    assert told.startswith("paused: too many failed; go on? [y/N] it waits; go on later with y here")
    assert "nibblectl rollout resume p.toml" in told
    assert person.ask(STATE, is_asking=False) is None
    types("y")
    assert person.ask(paused, is_asking=False) == Asked("resume")
    assert "go on? [y/N]" in capsys.readouterr().err, "another pause is another question"


def test_what_was_agreed_to_in_advance_is_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert Person(PLAN, Path("p.toml"), (0,)).ask(STATE, is_asking=True) == Asked("approve", 0)
    assert capsys.readouterr().err == ""
