"""The process behind a disk that forgets: it mounts `volatile_tree` by FUSE, and takes orders on standard input.

    python -m tests.torture.volatile_fuse DIRECTORY BYTES

A line of JSON each: ``{"do": "freeze"}`` lets no call of the system return from now on; ``{"do": "cut", "way": …,
"seed": …}`` takes the disk away from everyone who has it, lets it forget, mounts it anew and answers what was lost. The
end of the input ends it. A process of its own, since who maps a file of a disk must not be the one who brings it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import random
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import mfusepy

from tests.torture.volatile_tree import BLOCK, File, Folder, Node, Tree, Way, failure

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")
MNT_FORCE, MNT_DETACH = 1, 2
FOREVER_S = 3600.0
"""How long the kernel may believe what it was told: nobody changes anything behind its back."""


class Gate:
    """Lets calls through one at a time; shut, it holds them until they may fail.

    Threads: FUSE's, and the one that takes orders.
    """

    def __init__(self) -> None:
        self._is_busy = threading.Lock()
        self._is_shut = False
        self._may_fail = threading.Event()

    def open(self) -> None:
        """Let calls through from now on."""
        self._is_shut = False
        self._may_fail.clear()

    def shut(self) -> None:
        """Let none through from now on; what was under way is done when this returns."""
        with self._is_busy:
            self._is_shut = True

    def let_fail(self) -> None:
        """Give up what is held."""
        self._may_fail.set()

    def through(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Make a call when it is its turn."""
        with self._is_busy:
            if not self._is_shut:
                return call(*arguments)
        self._may_fail.wait()
        raise failure(errno.EIO)


def gated(call: Callable[..., Result]) -> Callable[..., Result]:
    """Return a method of ``Calls`` that goes through its gate."""

    @functools.wraps(call)
    def held(self: Calls, *arguments: Any) -> Result:
        return self.gate.through(call, self, *arguments)

    return held


class Calls(mfusepy.Operations):  # type: ignore[misc] # mfusepy has no types of its own
    """What the kernel asks for, by the names of libfuse; handles are numbers of this process."""

    use_ns = True

    def __init__(self, tree: Tree, on_mounted: Callable[[], None]) -> None:
        self.tree = tree
        self.gate = Gate()
        self._on_mounted = on_mounted
        self._open: dict[int, Node] = {}
        self._next = 1

    def init(self, _path: str) -> None:
        self._open.clear()
        self._on_mounted()

    @gated
    def getattr(self, path: str | None, handle: int | None = None) -> dict[str, Any]:
        node = self._node(path, handle)
        size = len(node.content) if isinstance(node, File) else len(node.target)
        return {
            "st_ino": node.number,
            "st_mode": node.mode,
            "st_nlink": 2 if isinstance(node, Folder) else 1,
            "st_uid": node.owner[0],
            "st_gid": node.owner[1],
            "st_size": size,
            "st_blocks": -(-size // 512),
            "st_blksize": BLOCK,
            **dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), node.modified_ns),
        }

    @gated
    def readdir(self, path: str, _handle: int) -> list[tuple[str, dict[str, int], int]]:
        folder = self._folder(path)
        named = {".": folder, "..": folder, **folder.entries}  # a number that is not 0: readdir(3) would skip it
        return [(name, {"st_ino": node.number, "st_mode": node.mode}, 0) for name, node in named.items()]

    @gated
    def readlink(self, path: str) -> str:
        return self.tree.at(path).target

    @gated
    def mknod(self, path: str, mode: int, _device: int) -> int:
        self.tree.make(path, mode, self._caller())
        return 0

    @gated
    def mkdir(self, path: str, mode: int) -> int:
        self.tree.make(path, stat.S_IFDIR | mode, self._caller())
        return 0

    @gated
    def symlink(self, path: str, target: str) -> int:
        self.tree.make(path, stat.S_IFLNK | 0o777, self._caller(), target)
        return 0

    @gated
    def unlink(self, path: str) -> int:
        self.tree.remove(path)
        return 0

    @gated
    def rmdir(self, path: str) -> int:
        self.tree.remove(path)
        return 0

    @gated
    def rename(self, old: str, new: str) -> int:
        self.tree.rename(old, new)
        return 0

    @gated
    def chmod(self, path: str, mode: int) -> int:
        node = self.tree.at(path)
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return 0

    @gated
    def chown(self, path: str, user: int, group: int) -> int:
        node = self.tree.at(path)
        keeps = 2**32 - 1, -1
        node.owner = (node.owner[0] if user in keeps else user, node.owner[1] if group in keeps else group)
        return 0

    @gated
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self.tree.at(path).modified_ns = times[1] if times else time.time_ns()
        return 0

    @gated
    def create(self, path: str, mode: int, _flags: int) -> int:
        return self._handle(self.tree.make(path, stat.S_IFREG | stat.S_IMODE(mode), self._caller()))

    @gated
    def open(self, path: str, flags: int) -> int:
        node = self.tree.at(path)
        if flags & os.O_TRUNC and isinstance(node, File):
            self.tree.resize(node, 0)
        return self._handle(node)

    @gated
    def release(self, _path: str | None, handle: int) -> int:
        self._open.pop(handle, None)
        return 0

    @gated
    def read(self, _path: str | None, size: int, offset: int, handle: int) -> bytes:
        return bytes(self._file(handle).content[offset : offset + size])

    @gated
    def write(self, _path: str | None, data: bytes, offset: int, handle: int) -> int:
        self.tree.write(self._file(handle), offset, data)
        return len(data)

    @gated
    def truncate(self, path: str, length: int, _handle: int | None = None) -> int:
        node = self.tree.at(path)
        if not isinstance(node, File):
            raise failure(errno.EISDIR)
        self.tree.resize(node, length)
        return 0

    @gated
    def fallocate(self, _path: str | None, mode: int, offset: int, size: int, handle: int) -> int:
        file = self._file(handle)
        if mode:
            raise failure(errno.EOPNOTSUPP)
        if offset + size > len(file.content):
            self.tree.resize(file, offset + size)
        return 0

    @gated
    def fsync(self, _path: str | None, _only_data: int, handle: int) -> int:
        self.tree.sync(self._file(handle))
        return 0

    @gated
    def fsyncdir(self, path: str, _only_data: int, _handle: int) -> int:
        self.tree.sync(self._folder(path))
        return 0

    @gated
    def statfs(self, _path: str) -> dict[str, int]:
        blocks, free = self.tree.size // BLOCK, (self.tree.size - self.tree.used()) // BLOCK
        return {
            "f_bsize": BLOCK,
            "f_frsize": BLOCK,
            "f_blocks": blocks,
            "f_bfree": free,
            "f_bavail": free,
            "f_namemax": 255,
        }

    def _handle(self, node: Node) -> int:
        self._next += 1
        self._open[self._next] = node
        return self._next

    def _node(self, path: str | None, handle: int | None) -> Node:
        if handle in self._open:
            return self._open[handle]
        if path is None:  # its last name is gone
            raise failure(errno.ENOENT)
        return self.tree.at(path)

    def _file(self, handle: int) -> File:
        node = self._open.get(handle)
        if not isinstance(node, File):
            raise failure(errno.EBADF)
        return node

    def _folder(self, path: str) -> Folder:
        node = self.tree.at(path)
        if not isinstance(node, Folder):
            raise failure(errno.ENOTDIR)
        return node

    @staticmethod
    def _caller() -> tuple[int, int]:
        user, group, _process = mfusepy.fuse_get_context()
        return user, group


class Disk:
    """The mount, and what may be done with it."""

    def __init__(self, directory: str, size: int) -> None:
        self._directory = directory
        self._is_mounted = threading.Event()
        self._is_away = threading.Event()
        self._is_over = False
        self._calls = Calls(Tree(size), self._is_mounted.set)

    def serve(self) -> None:
        """Be the disk until the orders end: one mount for each time that there is power."""
        threading.Thread(target=self._obey, name="orders", daemon=True).start()
        while not self._is_over:
            self._calls.gate.open()
            self._mount()
            self._is_away.wait()  # unmounting goes on after the calls were aborted, and would take the next mount along
            self._is_away.clear()

    def _mount(self) -> None:
        """Mount it, and answer calls until it is taken away."""
        mfusepy.FUSE(
            self._calls,
            self._directory,
            foreground=True,
            nothreads=True,
            fsname="volatile",
            allow_other=True,
            default_permissions=True,
            kernel_cache=True,
            attr_timeout=FOREVER_S,
            entry_timeout=FOREVER_S,
            hard_remove=True,
            use_ino=True,
        )

    def _obey(self) -> None:
        self._is_mounted.wait()
        _say({"mounted": self._directory})
        for line in sys.stdin:
            order = json.loads(line)
            self._calls.gate.shut()
            _say(self._cut(Way(order["way"]), order["seed"]) if order["do"] == "cut" else {})
        self._is_over = True
        self._take_away()

    def _cut(self, way: Way, seed: str) -> dict[str, int]:
        lost = self._calls.tree.forget(way, random.Random(seed))
        self._is_mounted.clear()
        self._take_away()
        self._is_mounted.wait()
        return {"names": lost.names, "writes": lost.writes}

    def _take_away(self) -> None:
        """Abort every call and unmount, whoever has something open; what pages of memory still held is lost."""
        ctypes.CDLL(None).umount2(self._directory.encode(), MNT_FORCE | MNT_DETACH)
        self._calls.gate.let_fail()
        self._is_away.set()


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    Disk(sys.argv[1], int(sys.argv[2])).serve()
