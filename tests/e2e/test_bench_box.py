"""The benchmarks of a whole device, in short: they measure a real one and put what they found into the page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from deploy.bench import boot, idle, page

if TYPE_CHECKING:
    from deploy.bench.box import Box

pytest.importorskip("torch", reason="a model is served")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(page.PAGE, tmp_path / "benchmarks.md"))


def part(path: Path, name: str) -> str:
    return path.read_text("utf-8").partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]


def test_a_start_is_timed_in_stages_that_are_parts_of_the_whole(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[boot.Start] = []
    timed = boot.timed

    def kept(device: Box) -> boot.Start:
        found.append(timed(device))
        return found[-1]

    monkeypatch.setattr(boot, "drop_caches", lambda: False)  # other tests want their files, too
    monkeypatch.setattr(boot, "timed", kept)
    done = CliRunner().invoke(boot.main, ["--starts", "1", "--output", str(copy)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (start,) = found
    stages = [start.supervisor, start.process, start.imports, start.loading, start.warm_up]
    assert all(stage > 0 for stage in stages)
    assert sum(stages) <= start.total
    assert "there is no cold start here" in part(copy, "bench-boot")
    assert f"| {boot.WARM} | 1 | {start.total:.1f} " in part(copy, "bench-boot")


def test_an_idle_device_stays_below_what_a_supervisor_may_take(copy: Path) -> None:
    done = CliRunner().invoke(idle.main, ["--minutes", "0.05", "--output", str(copy)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = part(copy, "bench-idle")
    assert "* met: the supervisor takes at most" in told
    for row in ("supervisor, nobody looks", "server, nobody looks", "supervisor, the page is open"):
        assert f"| {row} |" in told


def test_a_server_that_is_kept_busy_answers_everything(copy: Path) -> None:
    short = ["--minutes", "2", "--minute-s", "2", "--output", str(copy)]
    subprocess.run([sys.executable, "-m", "deploy.bench.soak", *short], cwd=page.PAGE.parents[1], check=False)
    told = part(copy, "soak")
    assert re.search(r"^\* met: all of [\d,]+ requests were answered with 200$", told, re.MULTILINE), told
    assert re.search(r"^\| 2 \| [1-9]", told, re.MULTILINE), told
