"""The campaign of power cuts, in short: whole deploys on a disk that forgets; and that it finds what it is for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness.tools import require
from tests.torture.unsynced import KINDS
from tests.torture.volatile_disk import require_disk

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.e2e


def campaign(*arguments: str) -> tuple[int, str]:
    require("mosquitto")
    require_disk()
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.powercut", "random", "--fork", "--seed", "1", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_ten_power_cuts_break_no_invariant() -> None:
    status, told = campaign("--count", "10")
    assert status == 0, told
    assert "10 cases, the fault came in 10; 10 restarts of the agent" in told
    assert "invariants broken: 0" in told


@pytest.mark.minutes
@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_without_its_fsyncs_breaks_an_invariant_at_every_power_cut(kind: str) -> None:
    status, told = campaign("--count", "2", "--devices", "2", "--ways", "strict", "--without", kind)
    assert status == 1, told
    assert "the fault came in 2" in told
    assert "invariants broken: 2" in told
