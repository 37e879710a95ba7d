"""A module that is postponed: nothing is executed for ``import``, everything is there once something is asked of it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent.later import postpone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "nobody_has_a_package_of_this_name"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is not imported yet."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "__init__.py").write_text("answer = 42\n")
    (tmp_path / NAME / "inner.py").write_text("answer = 43\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield NAME
    for name in (NAME, f"{NAME}.inner"):
        sys.modules.pop(name, None)


def test_the_statement_import_executes_nothing_and_the_first_question_does(package: str) -> None:
    postpone(package)
    module = importlib.import_module(package)
    assert "answer" not in vars(module)
    assert module.answer == 42
    assert sys.modules[package] is not module  # the real one has taken its place
    assert module.answer == sys.modules[package].answer
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing


def test_a_module_inside_it_can_be_imported(package: str) -> None:
    postpone(package)
    assert importlib.import_module(f"{package}.inner").answer == 43
    assert vars(sys.modules[package])["answer"] == 42


def test_what_is_imported_already_stays(package: str) -> None:
    before = importlib.import_module(package)
    postpone(package)
    assert sys.modules[package] is before


def test_the_supervisor_gets_along_without_what_is_postponed_and_without_bindings_of_an_absent_library() -> None:
    program = """
import sys
from agent.later import postpone
postpone("asyncio")
import agent.supervisor
sys.exit(bool({"asyncio.events", "pynvml"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
