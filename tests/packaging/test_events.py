"""The names in the log are stable: the document lists what the code writes, with its level, and nothing else."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
LEVELS["critical"] = "critical"
ROW = re.compile(r"^\| `(\w+)` \| ([\w, ]+) \| (.+) \|$", re.MULTILINE)
NAME = re.compile(r"[a-z][a-z0-9_]*")


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield every ``log.<level>(…)`` of the package with where it is."""
    for path in sorted((ROOT / "agent").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                logger = node.func.value
                if isinstance(logger, ast.Name) and logger.id in {"log", "logger"}:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def names(call: ast.Call) -> list[str]:
    """Return the literal names that a call may write; none when one of them is put together."""
    (first, *_) = call.args
    branches = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
    found = [node.value for node in branches if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return found if len(found) == len(branches) else []


def written() -> dict[str, set[str]]:
    """Return the levels of every event that the code writes, by name."""
    found: dict[str, set[str]] = defaultdict(set)
    for _, call in calls():
        assert isinstance(call.func, ast.Attribute)
        for name in names(call):
            found[name].add(LEVELS[call.func.attr])
    return dict(found)


def test_every_event_has_a_literal_name_of_small_letters() -> None:
    assert [where for where, call in calls() if not names(call)] == []
    assert [name for name in written() if not NAME.fullmatch(name)] == []


def test_the_document_lists_every_event_with_its_levels_and_no_other() -> None:
    rows = ROW.findall((ROOT / "docs" / "events.md").read_text(encoding="utf-8"))
    listed = {name: set(levels.split(", ")) for name, levels, _ in rows}
    assert len(listed) == len(rows), "a name is listed twice"
    assert listed == written()


def test_nobody_logs_without_the_chain_that_redacts() -> None:
    """The functions of the standard library's module ``logging`` go around it; ruff refuses ``print``."""
    around = re.compile(r"^\s*logging\.(?:debug|info|warning|error|exception|critical)\(", re.MULTILINE)
    sources = (ROOT / "agent").rglob("*.py")
    assert [str(path) for path in sources if around.search(path.read_text(encoding="utf-8"))] == []


def test_an_operation_is_named_by_one_key_in_every_line() -> None:
    other = {"operation", "operation_id", "op", "op_id"}
    named = [where for where, call in calls() if other & {keyword.arg for keyword in call.keywords}]
    assert named == []
