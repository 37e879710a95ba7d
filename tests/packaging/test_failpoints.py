"""Fail points: what the table names is what the source passes, and nothing of a product arms one."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.torture.points import PLACES

ATTENDED = {"workbench", "demo", "fleet"}
"""What a person runs and looks at."""
AGENT = Path(__file__).parents[2] / "agent"
PASSED = re.compile(r"""\b(?:around|hit)\(f?["']([a-z_.{}]+)["']\)""")


def test_the_points_of_the_table_are_those_of_the_source() -> None:
    found = {name for file in AGENT.rglob("*.py") for name in PASSED.findall(file.read_text(encoding="utf-8"))}
    patterns = [re.compile(re.sub(r"\\?\{[^}]*\}", r"\\w+", name.replace(".", r"\."))) for name in found]
    assert {name for name in PLACES if not any(each.fullmatch(name) for each in patterns)} == set()
    assert {name for name in found if "{" not in name} <= set(PLACES)


def test_every_rename_and_every_fsync_of_a_device_lies_between_two_points() -> None:
    bare = []
    for file in AGENT.rglob("*.py"):
        if file.relative_to(AGENT).parts[0] in ATTENDED:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        between = {id(call) for block in ast.walk(tree) if is_around(block) for call in ast.walk(block)}
        lasting = [call for call in ast.walk(tree) if isinstance(call, ast.Call) and is_lasting(call)]
        bare += [f"{file.name}:{call.lineno}" for call in lasting if id(call) not in between]
    assert bare == []


def is_around(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and any(
        isinstance(item.context_expr, ast.Call)
        and isinstance(item.context_expr.func, ast.Name)
        and item.context_expr.func.id == "around"
        for item in node.items
    )


def is_lasting(call: ast.Call) -> bool:
    """Whether it is ``os.fsync`` or its like, or a path's method that renames it: a text's takes two arguments."""
    if not isinstance(call.func, ast.Attribute):
        return False
    return call.func.attr in {"fsync", "fdatasync"} or (call.func.attr in {"rename", "replace"} and len(call.args) == 1)


def test_no_variable_arms_a_point_in_a_product() -> None:
    told = "from agent import failpoints; failpoints.hit('journal.save.before'); print(failpoints.armed)"
    environment = {**os.environ, "TORTURE_FAILPOINT": "journal.save.before=kill-supervisor"}
    done = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "{}\n")
