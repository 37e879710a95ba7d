"""The contents of a disk that forgets: files and folders in memory, and of each what is durable. Knows nothing of FUSE.

Of every file there is what reads return and what its last fsync or fdatasync made durable; of every folder the names
in it and those of its last fsync. ``forget`` is the power cut: what is durable is all there is. Read strictly, POSIX
promises no more: a new name is there once its folder is synchronised, a rename likewise, and the contents of a file
once the file is. What the kernel wrote back by itself meanwhile survives as well on a real disk; the other ways to
forget draw by chance what that is.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

SECTOR = 512
BLOCK = 4096


class Way(str, Enum):
    """What of the unsynchronised survives a power cut."""

    STRICT = "strict"  # nothing
    REORDERED = "reordered"  # the first changes of names, as a journal of metadata keeps them; any writes
    TORN = "torn"  # the first changes of names; the first writes of each file, the last of them up to a sector
    HOLLOW = "hollow"  # every change of names, no write; of some files their length, with zeros in it

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Change:
    """One change of a file's contents: ``data`` at ``offset``, or with None its length."""

    offset: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        """Carry it out; what was never written reads as zeros."""
        content.extend(bytes(max(0, self.offset - len(content))))
        if self.data is None:
            del content[self.offset :]
        else:
            content[self.offset : self.offset + len(self.data)] = self.data

    def torn(self, sectors: int) -> Change:
        """Return as much of a write as reached the disk, which writes whole sectors."""
        if self.data is None:
            return self
        end = (self.offset // SECTOR + sectors) * SECTOR - self.offset
        return Change(self.offset, self.data[: max(0, end)])

    @property
    def sectors(self) -> int:
        """How many sectors it touches."""
        size = len(self.data or b"")
        return -(-(self.offset + size) // SECTOR) - self.offset // SECTOR if size else 0


@dataclass(eq=False)
class Node:
    """Anything with a name, or several.

    Attributes:
        number: its inode's.
        mode: kind and permissions.
        owner: user and group.
        modified_ns: when.
        target: of a symbolic link.
    """

    number: int
    mode: int
    owner: tuple[int, int] = (0, 0)
    modified_ns: int = field(default_factory=time.time_ns)
    target: str = ""


@dataclass(eq=False)
class File(Node):
    """Attributes: ``content`` is what reads return, ``pending`` what of it is not durable yet, in order."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        """Write, or change the length."""
        change.apply(self.content)
        self.pending.append(change)
        self.modified_ns = time.time_ns()

    def sync(self) -> None:
        """Make what was written durable."""
        for change in self.pending:
            change.apply(self.durable)
        self.pending.clear()

    def forget(self, way: Way, chance: random.Random) -> int:
        """Hold what is durable, and what survives by chance; return how many changes were lost."""
        survivors = _survivors(self.pending, len(self.content), way, chance)
        for change in survivors:
            change.apply(self.durable)
        whole = {id(change) for change in survivors}
        lost = sum(id(change) not in whole for change in self.pending)
        self.content = bytearray(self.durable)
        self.pending.clear()
        return lost


@dataclass(eq=False)
class Folder(Node):
    """Attributes: ``entries`` are the names that are seen, ``durable`` those of its last fsync."""

    entries: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Naming:
    """One name in one folder leads somewhere else from now on, or nowhere."""

    folder: Folder
    name: str
    node: Node | None

    def apply(self, entries: dict[str, Node]) -> None:
        """Carry it out in what is seen or what is durable."""
        if self.node is None:
            entries.pop(self.name, None)
        else:
            entries[self.name] = self.node


@dataclass(frozen=True)
class Lost:
    """What a power cut took: changes of names, and writes to files that still have one."""

    names: int
    writes: int


class Tree:
    """The whole disk, of ``size`` bytes. Paths begin at its root; errors are ``OSError``, as of the system's calls."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._numbers = itertools.count(1)
        self._root = Folder(next(self._numbers), stat.S_IFDIR | 0o755)
        self._unsynced: list[list[Naming]] = []

    def at(self, path: str) -> Node:
        """Return what a path leads to, without following links."""
        node: Node = self._root
        for name in PurePosixPath(path).parts[1:]:
            node = _child(node, name)
        return node

    def make(self, path: str, mode: int, owner: tuple[int, int], target: str = "") -> Node:
        """Make whatever ``mode`` says."""
        kinds: dict[int, type[Node]] = {stat.S_IFDIR: Folder, stat.S_IFREG: File}
        folder, name = self._place(path)
        if name in folder.entries:
            raise failure(errno.EEXIST)
        node = kinds.get(stat.S_IFMT(mode), Node)(next(self._numbers), mode, owner, target=target)
        self._name([Naming(folder, name, node)])
        return node

    def remove(self, path: str) -> None:
        """Take a name away, of a folder only if it is empty."""
        folder, name = self._place(path)
        node = self.at(path)
        if isinstance(node, Folder) and node.entries:
            raise failure(errno.ENOTEMPTY)
        self._name([Naming(folder, name, None)])

    def rename(self, old: str, new: str) -> None:
        """Move a name; what had the new one before has it no more."""
        node, (source, name), (target, wanted) = self.at(old), self._place(old), self._place(new)
        before = target.entries.get(wanted)
        if before is node:
            return
        if before is not None:
            if isinstance(before, Folder) and not isinstance(node, Folder):
                raise failure(errno.EISDIR)
            if isinstance(node, Folder) and not isinstance(before, Folder):
                raise failure(errno.ENOTDIR)
            if isinstance(before, Folder) and before.entries:
                raise failure(errno.ENOTEMPTY)
        self._name([Naming(source, name, None), Naming(target, wanted, node)])

    def write(self, file: File, offset: int, data: bytes) -> None:
        """Write into a file."""
        self._require_room(offset + len(data) - len(file.content))
        file.change(Change(offset, data))

    def resize(self, file: File, size: int) -> None:
        """Give a file another length."""
        self._require_room(size - len(file.content))
        file.change(Change(size, None))

    def sync(self, node: Node) -> None:
        """Make a file's contents durable, or a folder's names."""
        if isinstance(node, File):
            node.sync()
        elif isinstance(node, Folder):
            node.durable = dict(node.entries)
            left = ([naming for naming in together if naming.folder is not node] for together in self._unsynced)
            self._unsynced = [together for together in left if together]

    def used(self) -> int:
        """Return the bytes of all files, in whole blocks."""
        sizes = (len(node.content) for node in self.nodes() if isinstance(node, File))
        return sum(-(-size // BLOCK) * BLOCK for size in sizes)

    def nodes(self) -> Iterator[Node]:
        """Yield everything that has a name, each once, folders before what is in them."""
        seen, left = set[int](), [self._root]
        while left:
            for node in left.pop().entries.values():
                if node.number not in seen:
                    seen.add(node.number)
                    yield node
                    left += [node] if isinstance(node, Folder) else []

    def forget(self, way: Way, chance: random.Random) -> Lost:
        """Cut the power: what is durable is all there is, and what survives by chance is durable from now on."""
        kept = {Way.STRICT: 0, Way.HOLLOW: len(self._unsynced)}.get(way)
        if kept is None:
            kept = chance.randint(0, len(self._unsynced))
        for naming in itertools.chain.from_iterable(self._unsynced[:kept]):
            naming.apply(naming.folder.durable)
        lost = len(self._unsynced) - kept
        self._unsynced.clear()
        self._root.entries = dict(self._root.durable)
        writes = 0
        for node in self.nodes():
            if isinstance(node, Folder):
                node.entries = dict(node.durable)
            elif isinstance(node, File):
                writes += node.forget(way, chance)
        return Lost(lost, writes)

    def _place(self, path: str) -> tuple[Folder, str]:
        pure = PurePosixPath(path)
        folder = self.at(str(pure.parent))
        if not isinstance(folder, Folder):
            raise failure(errno.ENOTDIR)
        return folder, pure.name

    def _name(self, together: list[Naming]) -> None:
        for naming in together:
            naming.apply(naming.folder.entries)
            naming.folder.modified_ns = time.time_ns()
        self._unsynced.append(together)

    def _require_room(self, more: int) -> None:
        if more > 0 and self.used() + more > self.size:
            raise failure(errno.ENOSPC)


def _child(node: Node, name: str) -> Node:
    if not isinstance(node, Folder):
        raise failure(errno.ENOTDIR)
    if name not in node.entries:
        raise failure(errno.ENOENT)
    return node.entries[name]


def failure(number: int) -> OSError:
    """Return the error of that number."""
    return OSError(number, os.strerror(number))


def _survivors(pending: list[Change], length: int, way: Way, chance: random.Random) -> list[Change]:
    if way is Way.REORDERED:
        share = chance.random()
        return [change for change in pending if chance.random() < share]
    if way is Way.TORN:
        first = pending[: chance.randint(0, len(pending))]
        return [*first[:-1], *(change.torn(chance.randint(0, change.sectors)) for change in first[-1:])]
    if way is Way.HOLLOW and pending and chance.random() < 0.5:
        return [Change(length, None)]
    return []
