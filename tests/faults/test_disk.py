"""A disk that is full, that refuses writes, and that comes back: a real ext4 in a loop device."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.operator import RUNNING
from tests.faults.box import GATE, Box, eventually
from tests.faults.volume import MIB, Volume, volume_or_skip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.files import HostedFile
    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

RESERVE = 64 * MIB
"""What the agent leaves free for journal and logs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def volume(folder: Path) -> Iterator[Volume]:
    yield from volume_or_skip(folder)


@pytest.fixture(scope="module")
def box(world: World, volume: Volume, folder: Path) -> Iterator[Box]:
    assert volume.path == folder / "state"
    box = Box("disk", folder, world)
    box.start()
    box.serve()
    yield box
    box.agent.close()


@pytest.fixture(autouse=True)
def free(volume: Volume) -> Iterator[None]:
    yield
    volume.free()


class Before:
    """What a device served and held before a fault, and what has to hold again after it."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.version, self.served = box.answers(), box.operator.served()
        self.stored, self.pid = box.stored_bytes(), box.agent.pid

    def still_answers(self) -> bool:
        """Whether the model that was served before answers."""
        return self._box.answers() == self.version

    def holds_again(self) -> None:
        """Check that nothing is left of the fault."""
        assert (self._box.agent.is_running, self._box.agent.pid) == (True, self.pid)
        assert self.still_answers()
        assert self._box.operator.served() == self.served
        self._box.keeps_nothing_half_made()
        eventually(lambda: self._box.stored_bytes() <= self.stored, "the store is back at its size")


def host(world: World, name: str) -> HostedFile:
    """Return the demo's checkpoint under another digest: bytes after a zip's end are nobody's."""
    return world.files.host(name, world.checkpoint.content + name.encode())


def test_what_would_not_fit_beside_the_reserve_is_refused_with_the_numbers(
    box: Box, volume: Volume, world: World
) -> None:
    before, file = Before(box), host(world, "preflight.pt")
    size = len(file.content)
    volume.fill(RESERVE + size - MIB)
    report = box.operator.result(box.deploy(file=file))
    assert (report["state"], report["error"]["code"]) == ("failed", "insufficient_disk")
    assert f"needs {size} bytes" in report["error"]["detail"]
    assert f"{RESERVE} of them reserved" in report["error"]["detail"]
    assert file.requests == []
    before.holds_again()


def test_a_disk_that_fills_during_a_download_ends_it_and_the_next_one_works(
    box: Box, volume: Volume, world: World
) -> None:
    before, file = Before(box), host(world, "download.pt")
    file.hold_at = len(file.content) // 4
    operation = box.deploy(file=file)
    box.operator.reaches(operation, "downloading", with_progress=True)
    since = box.agent.mark()
    volume.fill()
    file.released.set()
    eventually(lambda: has_failed_to_write(box, since), "the agent says that the disk is full")
    assert before.still_answers()
    volume.free()
    report = box.operator.result(operation)
    assert report["state"] == "failed", report
    assert report["error"]["code"] == "insufficient_disk"
    before.holds_again()
    box.serve(file=host(world, "download.pt"))


def has_failed_to_write(box: Box, since: int) -> bool:
    """Whether the log tells of a disk that is full or refuses."""
    words = (
        "insufficient_disk",
        "disk is full",
        "No space left",
        "Read-only file system",
        "readonly database",
        "disk I/O error",
    )
    return any(word in str(entry) for entry in box.agent.log(since=since) for word in words)


@pytest.mark.minutes
def test_a_disk_that_fills_during_a_build_ends_it_and_the_next_one_works(box: Box, volume: Volume) -> None:
    before = Before(box)
    method = "fp4" if before.served["method"] != "fp4" else "nf4"
    operation = box.switch(method)
    box.operator.reaches(operation, "building")
    builder = box.builder()
    builder.send(signal.SIGSTOP)
    volume.fill()
    builder.send(signal.SIGCONT)
    assert builder.has_ended(60.0)
    builder.close()
    assert before.still_answers()
    volume.free()
    report = box.operator.result(operation)
    assert (report["state"], report["error"]["code"]) == ("failed", "insufficient_disk")
    before.holds_again()
    assert box.operator.result(box.switch(method))["state"] == "succeeded"


def test_a_command_that_finds_no_room_in_the_journal_is_answered_when_there_is_some(box: Box, volume: Volume) -> None:
    before, mark = Before(box), box.operator.mark()
    method = "nf4" if before.served["method"] != "nf4" else "fp4"
    volume.fill()
    operation = box.switch(method)
    since = box.agent.mark()
    eventually(lambda: any("full" in str(entry) for entry in box.agent.log(since=since)), "the journal finds no room")
    assert before.still_answers()
    volume.free()
    report = box.operator.result(operation)
    assert report["state"] == "succeeded", report["error"]
    ends = {body["state"] for body in box.operator.history(operation, since=mark)} - RUNNING
    assert ends == {"succeeded"}
    assert box.answers() == before.version
    box.keeps_nothing_half_made()


@pytest.mark.minutes
def test_a_store_that_refuses_writes_for_a_while_fails_its_operation_and_comes_back(
    box: Box, volume: Volume, world: World
) -> None:
    before, file = Before(box), host(world, "refused.pt")
    with volume.read_only("downloads", "artifacts"):
        report = box.operator.result(box.deploy(file=file))
        assert report["state"] == "failed", report
        assert "Read-only file system" in report["error"]["detail"]
        assert before.still_answers()
    before.holds_again()
    box.serve(file=file)


def test_a_disk_that_refuses_every_write_leaves_the_model_answering_and_the_agent_reachable(
    box: Box, volume: Volume, world: World
) -> None:
    before, mark = Before(box), box.operator.mark()
    file = host(world, "emergency.pt")
    file.hold_at = len(file.content) // 2
    operation = box.deploy(file=file)
    box.operator.reaches(operation, "downloading", with_progress=True)
    since = box.agent.mark()
    volume.fail()
    file.released.set()
    eventually(lambda: has_failed_to_write(box, since), "the agent says that the disk refuses")
    assert before.still_answers()
    assert (box.agent.is_running, box.agent.pid) == (True, before.pid)
    health = box.world.subscriber.wait(box.operator.topic("health"), since=box.operator.mark(), timeout_s=20.0)
    assert health["models"], "health still comes, and names the model"
    entries = len(box.agent.log(since=since))
    assert entries < 500, f"{entries} lines of log in a few seconds: it spins"
    box.agent.kill()
    volume.repair()  # what a boot does
    box.start(until="presence")
    report = box.operator.result(operation)
    assert report["state"] in ("succeeded", "failed"), report
    ends = {body["state"] for body in box.operator.history(operation, since=mark)} - RUNNING
    assert ends == {report["state"]}
    eventually(lambda: bool(box.answers()), "the model answers")
    box.keeps_nothing_half_made()
    box.serve(file=host(world, "after.pt"), gate=GATE)
