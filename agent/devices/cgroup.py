"""What the control groups of this process leave it: version 2 and version 1, this group and every one above it.

A limit on a slice holds for every service in it, so each group on the way up is asked, and the one that leaves least
decides. What a group uses includes the page cache of every file that it read, which the kernel drops before it kills:
inactive file pages are therefore counted as free, as ``MemAvailable`` does for the whole box. Without that, a
checkpoint that was just downloaded would seem to fill the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from agent.devices import files

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Limit:
    """One group's limit in bytes, what it leaves, and the file that says so."""

    limit_bytes: int
    available_bytes: int
    path: str


@dataclass(frozen=True)
class _Version:
    """The files of a version of the interface.

    Attributes:
        kind: type of the file system in ``mountinfo``.
        limits: files with a limit; the first one ends the process, the second one slows it down to a crawl.
        used: file with what is used.
        reclaimable: line of ``memory.stat``.
        nesting: a file that says ``0`` in a group whose limit does not hold for the groups in it.
    """

    kind: str
    limits: tuple[str, ...]
    used: str
    reclaimable: str
    nesting: str | None = None


V2 = _Version("cgroup2", ("memory.max", "memory.high"), "memory.current", "inactive_file")
V1 = _Version(
    "cgroup", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file", "memory.use_hierarchy"
)
_DEFAULT_MOUNTS = {V2.kind: ("/", "/sys/fs/cgroup"), V1.kind: ("/", "/sys/fs/cgroup/memory")}
_NO_LIMIT_BYTES = 2**62
"""Version 1 spells "no limit" as the largest multiple of a page."""


def limits(root: Path) -> list[Limit]:
    """Return every limit that holds for this process, from its own group upwards. Reads only; never raises."""
    own = _memberships(root)
    found: list[Limit] = []
    for version in (V2, V1):
        if version.kind in own:
            for group, is_own in _ancestry(root, version, own[version.kind]):
                found += _limits_of(root, group, version, is_own=is_own)
    return found


def _memberships(root: Path) -> dict[str, str]:
    """Return this process's group by file system type, from lines as ``0::/a`` (v2) and ``4:memory:/a`` (v1)."""
    own = {}
    for line in (files.text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            own[V2.kind] = group
        elif "memory" in controllers.split(","):
            own[V1.kind] = group
    return own


def _mount(root: Path, version: _Version) -> tuple[str, str]:
    """Return the group at the top of the mounted tree and where it is mounted: proc_pid_mountinfo(5)."""
    for line in (files.text(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        place, system = left.split(), right.split()
        if len(place) < 5 or len(system) < 3 or system[0] != version.kind:  # noqa: PLR2004 - the fields used below
            continue
        if version is V2 or "memory" in system[2].split(","):
            return place[3], place[4]
    return _DEFAULT_MOUNTS[version.kind]


def _ancestry(root: Path, version: _Version, own: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of each group from the process's own up to the top of the mount, and whether it is its own."""
    top, mountpoint = _mount(root, version)
    mounted = root / mountpoint.lstrip("/")
    group = PurePosixPath("/" + own.lstrip("/"))
    # A container sees its top as it is named outside. Of `/..`, the name of a group above that, only the top is there.
    inner = group.relative_to(top) if group.is_relative_to(top) else PurePosixPath()
    for index, each in enumerate((inner, *inner.parents) if inner.parts else (inner,)):
        yield mounted / each, index == 0


def _limits_of(root: Path, group: Path, version: _Version, *, is_own: bool) -> Iterator[Limit]:
    if not is_own and version.nesting and files.text(group / version.nesting) == "0":
        return
    used = files.integer(group / version.used)
    if used is None:
        return
    free_again = _stat(group / "memory.stat", version.reclaimable)
    for name in version.limits:
        limit = files.integer(group / name)  # None for "max"
        if limit is not None and limit < _NO_LIMIT_BYTES:
            left = max(0, limit - max(0, used - free_again))
            yield Limit(limit, left, f"/{(group / name).relative_to(root)}")


def _stat(path: Path, name: str) -> int:
    for line in (files.text(path) or "").splitlines():
        key, _, number = line.partition(" ")
        if key == name and number.strip().isdigit():
            return int(number)
    return 0
