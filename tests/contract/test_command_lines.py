"""Every module with a command line is one when it is run with ``python -m``: none ends in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARKS = ("@click.group(", "argparse.ArgumentParser(")
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "agent").rglob("*.py"))
    if any(mark in path.read_text(encoding="utf-8") for mark in MARKS)
]


def test_the_two_programs_are_among_them() -> None:
    assert {"agent.cli", "agent.fleet.cli"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_with_a_command_line_says_how_it_is_used(module: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith("usage: ")
