"""Fail points: what the table names is what the source passes, and nothing of a product arms one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.torture.points import PLACES

AGENT = Path(__file__).parents[2] / "agent"
PASSED = re.compile(r"""\b(?:around|hit)\(f?["']([a-z_.{}]+)["']\)""")


def test_the_points_of_the_table_are_those_of_the_source() -> None:
    found = {name for file in AGENT.rglob("*.py") for name in PASSED.findall(file.read_text(encoding="utf-8"))}
    patterns = [re.compile(re.sub(r"\\?\{[^}]*\}", r"\\w+", name.replace(".", r"\."))) for name in found]
    assert {name for name in PLACES if not any(each.fullmatch(name) for each in patterns)} == set()
    assert {name for name in found if "{" not in name} <= set(PLACES)


def test_no_variable_arms_a_point_in_a_product() -> None:
    told = "from agent import failpoints; failpoints.hit('journal.save.before'); print(failpoints.armed)"
    environment = {**os.environ, "TORTURE_FAILPOINT": "journal.save.before=kill-supervisor"}
    done = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "{}\n")
