"""The disk that forgets, by itself: what a power cut leaves of files and names, strictly read and by chance."""

from __future__ import annotations

import errno
import random
import stat
from typing import TYPE_CHECKING

import pytest

from tests.torture.volatile_tree import SECTOR, File, Lost, Tree, Way

if TYPE_CHECKING:
    from collections.abc import Callable

OWNER = (0, 0)
SEEDS = range(60)


@pytest.fixture
def tree() -> Tree:
    return Tree(1 << 20)


def folder(tree: Tree, path: str) -> None:
    tree.make(path, stat.S_IFDIR | 0o755, OWNER)


def write(tree: Tree, path: str, *chunks: bytes, synced: bool = False) -> File:
    file = tree.make(path, stat.S_IFREG | 0o644, OWNER)
    assert isinstance(file, File)
    for chunk in chunks:
        tree.write(file, len(file.content), chunk)
    if synced:
        tree.sync(file)
    return file


def names(tree: Tree, path: str = "/") -> set[str]:
    return set(tree.at(path).entries)  # type: ignore[attr-defined]


def content(tree: Tree, path: str) -> bytes:
    file = tree.at(path)
    assert isinstance(file, File)
    return bytes(file.content)


def cut(tree: Tree, way: Way = Way.STRICT, seed: int = 0) -> Lost:
    return tree.forget(way, random.Random(seed))


def test_what_was_not_synced_is_lost_and_what_was_stays(tree: Tree) -> None:
    file = write(tree, "/file", b"durable", synced=True)
    tree.sync(tree.at("/"))
    tree.write(file, 0, b"lost")
    tree.write(file, 100, b"lost too")
    assert cut(tree) == Lost(names=0, writes=2)
    assert content(tree, "/file") == b"durable"


def test_a_new_name_needs_its_folder_synced_however_durable_the_file(tree: Tree) -> None:
    write(tree, "/file", b"durable", synced=True)
    assert cut(tree) == Lost(names=1, writes=0)
    assert names(tree) == set()


def test_a_name_whose_file_was_never_synced_is_an_empty_file(tree: Tree) -> None:
    write(tree, "/file", b"lost")
    tree.sync(tree.at("/"))
    cut(tree)
    assert content(tree, "/file") == b""


def test_a_rename_is_lost_until_its_folder_is_synced(tree: Tree) -> None:
    write(tree, "/old", b"old", synced=True)
    tree.sync(tree.at("/"))
    write(tree, "/new", b"new", synced=True)
    tree.rename("/new", "/old")
    assert content(tree, "/old") == b"new"
    cut(tree)
    assert (names(tree), content(tree, "/old")) == ({"old"}, b"old")


def test_a_rename_into_another_folder_needs_both_synced(tree: Tree) -> None:
    for path in ("/from", "/to"):
        folder(tree, path)
    write(tree, "/from/file", b"whole", synced=True)
    for path in ("/", "/from", "/to"):
        tree.sync(tree.at(path))
    tree.rename("/from/file", "/to/file")
    tree.sync(tree.at("/to"))
    cut(tree)
    assert (names(tree, "/from"), names(tree, "/to")) == ({"file"}, {"file"})
    assert content(tree, "/to/file") == b"whole"


def test_a_folder_that_is_not_synced_takes_all_below_it_along(tree: Tree) -> None:
    folder(tree, "/folder")
    write(tree, "/folder/file", b"durable", synced=True)
    tree.sync(tree.at("/folder"))
    cut(tree)
    assert names(tree) == set()


def test_a_removal_that_is_not_synced_did_not_happen(tree: Tree) -> None:
    write(tree, "/file", b"durable", synced=True)
    tree.sync(tree.at("/"))
    tree.remove("/file")
    cut(tree)
    assert content(tree, "/file") == b"durable"


def test_a_truncation_is_lost_and_kept_like_a_write(tree: Tree) -> None:
    file = write(tree, "/file", b"0123456789", synced=True)
    tree.sync(tree.at("/"))
    tree.resize(file, 3)
    cut(tree)
    assert content(tree, "/file") == b"0123456789"
    tree.resize(file, 3)
    tree.resize(file, 5)
    tree.sync(file)
    cut(tree)
    assert content(tree, "/file") == b"012\0\0"


def test_reordered_any_writes_survive_and_what_was_not_written_reads_as_zeros() -> None:
    found = {_after(Way.REORDERED, seed, b"a", b"b", b"c") for seed in SEEDS}
    assert {b"", b"a", b"\0b", b"\0\0c", b"abc"} <= found <= {*_subsets(b"abc")}


def _subsets(text: bytes) -> set[bytes]:
    found = set()
    for bits in range(1 << len(text)):
        kept = bytes(byte if bits >> place & 1 else 0 for place, byte in enumerate(text))
        found.add(kept[: bits.bit_length()])
    return found


def test_torn_the_first_writes_survive_and_of_the_last_one_whole_sectors() -> None:
    first, second = b"a" * 100, b"b" * (3 * SECTOR)
    found = {len(_after(Way.TORN, seed, first, second)) for seed in SEEDS}
    assert found == {0, 100, SECTOR, 2 * SECTOR, 3 * SECTOR, 100 + 3 * SECTOR}


def test_hollow_the_names_survive_without_what_they_name() -> None:
    found = {_after(Way.HOLLOW, seed, b"abc") for seed in SEEDS}
    assert found == {b"", bytes(3)}


def _after(way: Way, seed: int, *chunks: bytes) -> bytes:
    tree = Tree(1 << 20)
    write(tree, "/file", *chunks)
    tree.sync(tree.at("/"))
    cut(tree, way, seed)
    return content(tree, "/file")


def test_hollow_a_rename_survives_and_what_was_replaced_is_gone(tree: Tree) -> None:
    write(tree, "/old", b"old", synced=True)
    tree.sync(tree.at("/"))
    write(tree, "/new", b"new")
    tree.rename("/new", "/old")
    cut(tree, Way.HOLLOW)
    assert (names(tree), content(tree, "/old").strip(b"\0")) == ({"old"}, b"")


@pytest.mark.parametrize("way", [Way.REORDERED, Way.TORN])
def test_a_journal_of_names_keeps_the_first_ones(way: Way) -> None:
    found = set()
    for seed in SEEDS:
        tree = Tree(1 << 20)
        for name in "abc":
            write(tree, f"/{name}")
        cut(tree, way, seed)
        found.add("".join(sorted(names(tree))))
    assert found == {"", "a", "ab", "abc"}


@pytest.mark.parametrize("way", Way)
def test_the_same_seed_forgets_the_same(way: Way) -> None:
    assert _after(way, 7, b"a" * 700, b"b" * 700, b"c") == _after(way, 7, b"a" * 700, b"b" * 700, b"c")


@pytest.mark.parametrize("way", Way)
def test_what_is_durable_survives_in_every_way(way: Way) -> None:
    for seed in SEEDS:
        tree = Tree(1 << 20)
        folder(tree, "/folder")
        write(tree, "/folder/file", b"durable", synced=True)
        for path in ("/folder", "/"):
            tree.sync(tree.at(path))
        write(tree, "/folder/other", b"lost")
        cut(tree, way, seed)
        assert content(tree, "/folder/file") == b"durable"


def test_what_survived_is_durable_from_then_on(tree: Tree) -> None:
    write(tree, "/file", b"abc")
    cut(tree, Way.HOLLOW)
    assert names(tree) == {"file"}
    assert cut(tree) == Lost(0, 0)
    assert names(tree) == {"file"}


def test_it_is_full_when_it_is_full_and_counts_whole_blocks() -> None:
    tree = Tree(8192)
    write(tree, "/file", b"x")
    assert tree.used() == 4096
    other = write(tree, "/other")
    assert _error(lambda: tree.write(other, 0, bytes(4097))) == errno.ENOSPC
    tree.write(other, 0, bytes(4096))
    assert tree.used() == 8192


def test_its_errors_are_the_systems(tree: Tree) -> None:
    folder(tree, "/full")
    folder(tree, "/empty")
    write(tree, "/full/file")
    assert _error(lambda: tree.at("/nothing")) == errno.ENOENT
    assert _error(lambda: tree.at("/full/file/below")) == errno.ENOTDIR
    assert _error(lambda: folder(tree, "/full")) == errno.EEXIST
    assert _error(lambda: tree.remove("/full")) == errno.ENOTEMPTY
    assert _error(lambda: tree.rename("/empty", "/full")) == errno.ENOTEMPTY
    assert _error(lambda: tree.rename("/full/file", "/empty")) == errno.EISDIR
    assert _error(lambda: tree.rename("/empty", "/full/file")) == errno.ENOTDIR


def _error(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None
