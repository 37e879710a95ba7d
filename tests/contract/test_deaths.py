"""How a child died: what the kernel knows of it, and what a bounded self-test makes of one that hangs."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from agent import self_test
from agent.adapters.deaths import Coroner, reap
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.devices import oom
from agent.planning.methods import METHODS
from tests.fakes.boxes import meminfo, plant

if TYPE_CHECKING:
    from pathlib import Path

    from agent.deployment.ports import Watch

MIB = 2**20
KILLED = -signal.SIGKILL


def box(root: Path, kills: str) -> Path:
    return plant(root, {"proc/vmstat": f"pgfault 12\n{kills}", "proc/meminfo": meminfo(8 * MIB, 3 * MIB)})


def test_the_kills_of_the_kernel_are_counted_where_it_counts_them(tmp_path: Path) -> None:
    assert oom.kills(box(tmp_path / "new", "oom_kill 7\n")) == 7
    assert oom.kills(box(tmp_path / "old", "")) is None
    assert oom.kills(tmp_path / "none") is None


def test_a_kill_for_memory_is_told_with_its_numbers(tmp_path: Path) -> None:
    root = box(tmp_path, "oom_kill 7\n")
    coroner = Coroner(root)
    box(tmp_path, "oom_kill 8\n")
    assert coroner.was_memory(KILLED) is True
    assert coroner.words(KILLED, 300 * MIB) == (
        "was killed by SIGKILL: the kernel ran out of memory; it held 300 MiB at its peak; "
        "3.0 GiB of 8.0 GiB are available according to /proc/meminfo"
    )


def test_a_kill_by_somebody_else_is_not_put_down_to_memory(tmp_path: Path) -> None:
    coroner = Coroner(box(tmp_path, "oom_kill 7\n"))
    assert coroner.was_memory(KILLED) is False
    assert coroner.words(KILLED).startswith("was killed by SIGKILL, and not by the kernel for lack of memory; ")


def test_where_the_kernel_does_not_count_nobody_is_named(tmp_path: Path) -> None:
    coroner = Coroner(box(tmp_path, ""))
    assert coroner.was_memory(KILLED) is None
    assert coroner.words(KILLED).startswith("was killed by SIGKILL; 3.0 GiB of")


def test_any_other_end_is_told_as_it_is(tmp_path: Path) -> None:
    coroner = Coroner(box(tmp_path, "oom_kill 7\n"))
    box(tmp_path, "oom_kill 8\n")
    assert (coroner.was_memory(3), coroner.words(3, MIB)) == (False, "exited with status 3")
    assert coroner.words(-signal.SIGSEGV) == "was killed by SIGSEGV"


def test_memory_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    assert "proc/meminfo" in oom.account(tmp_path)


def test_a_child_is_waited_for_and_its_peak_is_what_it_held() -> None:
    child = subprocess.Popen([sys.executable, "-c", "held = b'x' * (64 << 20); raise SystemExit(3)"])
    status, peak_bytes = reap(child, 30.0)
    assert status == child.returncode == 3
    assert peak_bytes is not None
    own_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # which it had before it became another
    assert 64 * MIB < peak_bytes < own_bytes + 256 * MIB


def test_a_child_that_does_not_end_is_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert reap(child, 0.0)[0] == KILLED
    child.communicate()


def test_a_child_whose_end_is_known_is_not_waited_for_again() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert reap(child, 0.0) == (0, None)


class Hanging:
    """A builder that never has a result."""

    def build(self, _job: dict[str, Any], watch: Watch) -> dict[str, Any]:
        watch.wait(60.0)
        raise AssertionError("nobody interrupted it")


class Failing:
    """A builder that ends in the same way each time."""

    def __init__(self, *, retryable: bool) -> None:
        self._retryable = retryable
        self.tries = 0

    def build(self, _job: dict[str, Any], _watch: Watch) -> dict[str, Any]:
        self.tries += 1
        raise StepError(ErrorCode.BUILD_KILLED, "it was killed", retryable=self._retryable)


def test_a_self_test_that_hangs_is_given_up_and_no_method_works() -> None:
    found = self_test.run(Hanging(), limit_s=0.05)
    assert set(found.methods) == set(METHODS)
    assert {row["detail"] for row in found.methods.values()} == {"the self-test had no result after 0.05 s"}
    assert not any(row["ok"] for row in found.methods.values())


@pytest.mark.parametrize(("retryable", "tries"), [(True, 3), (False, 1)])
def test_a_self_test_is_tried_again_for_a_reason_that_may_pass(*, retryable: bool, tries: int) -> None:
    builder = Failing(retryable=retryable)
    found = self_test.run(builder)
    assert builder.tries == tries
    assert found.methods["nf4"] == {"ok": False, "detail": "it was killed"}
