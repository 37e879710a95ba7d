"""The disk that forgets, mounted: what programs do to it is what they would do to any other, until its power is cut."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.torture.volatile_disk import VolatileDisk, disk_or_skip
from tests.torture.volatile_tree import Lost, Way

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
SIZE = 64 * MIB
COUNT = "SELECT count(*) FROM line"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[VolatileDisk]:
    yield from disk_or_skip(tmp_path / "disk", SIZE)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_a_cut_takes_what_was_not_synced(disk: VolatileDisk) -> None:
    kept, lost = disk.path / "kept", disk.path / "lost"
    kept.write_text("durable")
    sync(kept)
    sync(disk.path)
    lost.write_text("never seen again")
    kept.with_name("moved").write_text("new")
    kept.with_name("moved").rename(kept)
    assert kept.read_text() == "new"
    assert disk.cut() == Lost(names=3, writes=0)
    assert [(path.name, path.read_text()) for path in disk.path.iterdir()] == [("kept", "durable")]


def test_a_mapping_reaches_the_disk_by_its_own_sync_only(disk: VolatileDisk) -> None:
    path = disk.path / "mapped"
    path.write_bytes(bytes(8192))
    sync(path)
    sync(disk.path)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0:3] = b"abc"
        mapping.flush()
        mapping[4096:4099] = b"def"
        disk.cut()
    assert path.read_bytes().strip(b"\0") == b"abc"


def test_sqlite_keeps_on_it_what_it_says_it_keeps(disk: VolatileDisk) -> None:
    path = disk.path / "journal.db"
    told = subprocess.run(
        [sys.executable, "-c", _WRITE, str(path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert told == ["wal", "3"]  # the second connection, in another process, saw through the shared memory
    disk.cut()
    with sqlite3.connect(path) as database:
        assert database.execute(COUNT).fetchone() == (3,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


_WRITE = """
import os, sqlite3, subprocess, sys
path = sys.argv[1]
database = sqlite3.connect(path, isolation_level=None)
print(database.execute("PRAGMA journal_mode=WAL").fetchone()[0])
database.execute("PRAGMA synchronous=FULL")
database.execute("CREATE TABLE line (number)")
for number in range(3):
    database.execute("INSERT INTO line VALUES (?)", (number,))
count = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM line').fetchone()[0])"
subprocess.run([sys.executable, "-c", count, path], check=True)
database.execute("BEGIN")
database.execute("INSERT INTO line VALUES (4)")
sys.stdout.flush()
os._exit(0)
"""


def test_it_says_how_full_it_is_and_is_full_then(disk: VolatileDisk) -> None:
    path = disk.path / "large"
    before = shutil.disk_usage(disk.path)
    path.write_bytes(bytes(10 * MIB))
    assert before.total - SIZE == 0 == before.used
    assert shutil.disk_usage(disk.path).used == 10 * MIB
    with path.open("r+b") as file, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        os.posix_fallocate(file.fileno(), 0, SIZE + 1)


def test_an_open_file_outlives_its_name(disk: VolatileDisk) -> None:
    path = disk.path / "gone"
    with path.open("w+b") as file:
        file.write(b"still there")
        path.unlink()
        assert list(disk.path.iterdir()) == []
        file.seek(0)
        assert file.read() == b"still there"


def test_a_socket_can_be_bound_on_it_and_folders_go_as_a_whole(disk: VolatileDisk) -> None:
    folder = disk.path / "run"
    (folder / "deep").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as asking:
        listening.bind(str(folder / "socket"))
        listening.listen()
        asking.connect(str(folder / "socket"))
    (folder / "link").symlink_to("socket")
    assert (folder / "link").is_socket()
    shutil.rmtree(folder)
    assert list(disk.path.iterdir()) == []


def test_frozen_it_lets_nobody_go_on_and_who_waits_for_it_can_be_killed(disk: VolatileDisk) -> None:
    path = disk.path / "counted"
    with subprocess.Popen([sys.executable, "-c", _COUNT, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(100)]
        disk.freeze()
        writer.kill()
        disk.cut()
        told += writer.stdout.read().splitlines()
    assert path.stat().st_size - len(told) in {0, 1}  # what was told was synced, and one write more may have been


_COUNT = """
import os, sys
directory = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.fsync(directory)
for number in range(1, 10 ** 9):
    os.write(file, b"x")
    os.fsync(file)
    os.write(1, b"%d\\n" % number)
"""


def test_each_cut_starts_from_what_the_last_one_left(disk: VolatileDisk) -> None:
    for number in range(5):
        path = disk.path / str(number)
        path.write_text("x")
        sync(path)
        sync(disk.path)
        disk.cut(Way.REORDERED, str(number))
    assert sorted(path.name for path in disk.path.iterdir()) == list("01234")


def test_closed_it_is_gone(tmp_path: Path, disk: VolatileDisk) -> None:
    disk.close()
    assert not (tmp_path / "disk").is_mount()
