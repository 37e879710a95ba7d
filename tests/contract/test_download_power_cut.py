"""Downloads on a disk that forgets: what was fetched and noted is there after a power cut."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from agent.adapters.artifacts import ArtifactStore
from agent.adapters.download import part as partial
from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy
from agent.deployment.ports import StepError
from agent.deployment.runner import WorkWatch
from tests.fakes.files import Reply, serve
from tests.torture.volatile_disk import VolatileDisk, disk_or_skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LARGE = bytes(range(256)) * 4096
LOOPBACK = Policy(schemes=frozenset({"http", "file"}), hosts=frozenset({"127.0.0.1"}))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[VolatileDisk]:
    yield from disk_or_skip(tmp_path / "disk")


@pytest.fixture
def part(disk: VolatileDisk) -> Path:
    return ArtifactStore(disk.path).partial("a" * 64)


@pytest.fixture
def watch() -> WorkWatch:
    return WorkWatch(lambda _done, _total, _unit: None)


def test_a_download_goes_on_after_a_power_cut_from_its_last_mark(
    disk: VolatileDisk, part: Path, watch: WorkWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "MARK_EVERY", 290_000)
    with serve(LARGE) as server:
        server.replies = [Reply(cut_after=700_000), Reply(status=403)]
        with pytest.raises(StepError):
            Downloader(LOOPBACK, boot="this run").fetch(server.url, part, len(LARGE), watch)
        disk.cut()
        mark = json.loads(part.with_name(part.name + ".meta").read_text())["mark"]["length"]
        Downloader(LOOPBACK, boot="the next run").fetch(server.url, part, len(LARGE), watch)
        assert server.requests[-1]["Range"] == f"bytes={mark}-"
    assert part.read_bytes() == LARGE


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_file_that_was_fetched_is_whole_after_a_power_cut(
    disk: VolatileDisk, part: Path, tmp_path: Path, watch: WorkWatch, scheme: str
) -> None:
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    with serve(LARGE) as server:
        url = server.url if scheme == "http" else source.as_uri()
        Downloader(LOOPBACK).fetch(url, part, len(LARGE), watch)
    disk.cut()
    assert part.read_bytes() == LARGE


def test_a_part_that_a_killed_process_left_whole_is_made_durable_before_it_counts_as_fetched(
    disk: VolatileDisk, part: Path, watch: WorkWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(LARGE) as server:
        with monkeypatch.context() as patch:
            patch.setattr(partial.Part, "keep", lambda _self: None)
            Downloader(LOOPBACK, boot="this run").fetch(server.url, part, len(LARGE), watch)
        Downloader(LOOPBACK, boot="this run").fetch(server.url, part, len(LARGE), watch)
        assert len(server.requests) == 1
    disk.cut()
    assert part.read_bytes() == LARGE


def test_the_name_of_a_part_is_made_durable_also_when_its_mark_was_noted_by_a_process_that_was_killed(
    disk: VolatileDisk, part: Path, watch: WorkWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(LARGE) as server:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _unless_it_is_a_directory(os.fsync))
            Downloader(LOOPBACK, boot="this run").fetch(server.url, part, len(LARGE), watch)
        Downloader(LOOPBACK, boot="this run").fetch(server.url, part, len(LARGE), watch)
    disk.cut()
    assert part.read_bytes() == LARGE


def _unless_it_is_a_directory(sync: Callable[[int], None]) -> Callable[[int], None]:
    def chosen(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            sync(descriptor)

    return chosen
