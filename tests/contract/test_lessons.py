"""What was learned about memory survives a restart, and a spoilt file costs no more than that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.adapters.lessons import LessonFile
from agent.planning.memory import Learned
from tests.fakes.device import FakeLessons

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.deployment.ports import Lessons

LESSON = Learned(1.5, 3)


@pytest.fixture(params=["file", "fake"])
def open_lessons(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Lessons]:
    fake = FakeLessons()
    return (lambda: LessonFile(tmp_path / "learned.json")) if request.param == "file" else (lambda: fake)


def test_nothing_is_known_before_the_first_lesson(open_lessons: Callable[[], Lessons]) -> None:
    assert open_lessons().learned() == Learned()


def test_a_lesson_is_there_after_a_restart(open_lessons: Callable[[], Lessons]) -> None:
    open_lessons().keep(LESSON)
    assert open_lessons().learned() == LESSON


@pytest.mark.parametrize("content", ["", "{", "[]", '{"working_factor": "x", "samples": 1}', "{}"])
def test_a_spoilt_file_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "learned.json").write_text(content)
    assert LessonFile(tmp_path / "learned.json").learned() == Learned()


def test_a_place_that_cannot_be_written_to_keeps_the_lesson_for_this_run(tmp_path: Path) -> None:
    lessons = LessonFile(tmp_path / "missing" / "learned.json")
    lessons.keep(LESSON)
    assert lessons.learned() == LESSON
