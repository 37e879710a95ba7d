"""What the store and the journal promise holds on a disk that forgets; a missing fsync would be found."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent import parts
from agent.adapters.artifacts import ArtifactStore
from agent.adapters.journal import SqliteJournal
from agent.deployment.machine import Operation
from agent.deployment.models import Release, Served
from agent.deployment.phases import Phase, State
from agent.deployment.runner import WorkWatch
from tests.fakes.device import checkpoint, sha256
from tests.torture import unsynced
from tests.torture.volatile_disk import VolatileDisk, disk_or_skip
from tests.torture.volatile_tree import Way

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = checkpoint(5000, 64)
DIGEST = sha256(CONTENT)
OPERATION = Operation("op-1", "deploy", "kanji", "f" * 64, {}, State.RUNNING, Phase.TRIAL, 1, 7)
RELEASE = Release("v1-nf4", "v1", DIGEST, "cnn", "nf4", "/a", "/g", 10, 12, 0.98, 0.99, None, None, "now", 3)
SERVED = Served("kanji", RELEASE, None, None)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[VolatileDisk]:
    yield from disk_or_skip(tmp_path / "disk")


@pytest.fixture
def watch() -> WorkWatch:
    return WorkWatch(lambda _done, _total, _unit: None)


@pytest.fixture
def state_dir(disk: VolatileDisk) -> Path:
    return disk.path / "lib" / "nibbled"


def deployed(state_dir: Path, watch: WorkWatch) -> SqliteJournal:
    """Bring a release into service as a device does; the journal is left as it is when the power is cut."""
    parts.prepare(state_dir)
    journal = SqliteJournal(state_dir / "journal.db")
    store = ArtifactStore(state_dir)
    store.partial(DIGEST).write_bytes(CONTENT)
    journal.save(replace(OPERATION, phase=Phase.VERIFYING), ())
    store.admit(DIGEST, len(CONTENT), watch)
    journal.save(replace(OPERATION, phase=Phase.BUILDING), ())
    built = store.staging(DIGEST, "nf4") / "model.safetensors"
    built.write_bytes(CONTENT)
    store.publish(DIGEST, "nf4", {"artifact": str(built), "dataset": None})
    journal.save(OPERATION, (), served=SERVED, sequence=3)
    return journal


def broken(state_dir: Path) -> set[str]:
    """Return which of what was promised does not hold."""
    found: dict[str, Any] = {}
    parts.prepare(state_dir)
    with contextlib.closing(SqliteJournal(state_dir / "journal.db")) as journal:
        found |= {
            "the operation": journal.operation(OPERATION.id) == OPERATION,
            "what is served": journal.served() == {"kanji": SERVED},
            "the sequence": journal.highest_sequence("kanji") == 3,
            "the journal": "recovered" not in journal.notes(),
        }
    store = ArtifactStore(state_dir)
    source, built = store.source(DIGEST), store.built(DIGEST, "nf4", None)
    found["the checkpoint"] = source is not None and source.read_bytes() == CONTENT
    found["the artifact"] = built is not None and _read(built["artifact"]) == CONTENT
    return {name for name, holds in found.items() if not holds}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("way", Way)
def test_what_is_said_to_be_served_is_there_after_a_power_cut(
    disk: VolatileDisk, state_dir: Path, watch: WorkWatch, way: Way
) -> None:
    journal = deployed(state_dir, watch)
    disk.cut(way, "1")
    assert broken(state_dir) == set()
    _abandon(journal)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("journal", {"the operation", "the journal"}),
        ("files", {"the checkpoint", "the artifact"}),
        ("folders", {"the operation", "what is served", "the sequence", "the checkpoint", "the artifact"}),
    ],
)
def test_each_kind_of_fsync_that_is_left_out_is_found(
    disk: VolatileDisk, watch: WorkWatch, monkeypatch: pytest.MonkeyPatch, kind: str, lost: set[str]
) -> None:
    state_dir = disk.path / "lib"
    with monkeypatch.context() as patch:
        for module, name in ((os, "fsync"), (os, "fdatasync"), (sqlite3, "connect")):
            patch.setattr(module, name, getattr(module, name))
        unsynced.leave_out(kind)
        journal = deployed(state_dir, watch)
    disk.cut()
    assert broken(state_dir) == lost
    _abandon(journal)


def _abandon(journal: SqliteJournal) -> None:
    with contextlib.suppress(sqlite3.Error):
        journal.close()


def test_a_state_directory_is_there_from_the_first_start_on(disk: VolatileDisk, state_dir: Path) -> None:
    parts.prepare(state_dir)
    ArtifactStore(state_dir)
    disk.cut()
    assert {path.name for path in state_dir.iterdir()} == {"artifacts", "downloads", "run"}
