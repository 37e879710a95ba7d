"""The partial file: what is kept of a download between tries, processes and power cuts, and how far it may grow.

Rules: never into the reserve that journal and logs live on, before and while writing; when another writer takes that
room meanwhile, as much of the part is given back as restores it, and the rest is gone on with later. Every
``MARK_EVERY`` bytes, and whenever a try ends, what was written is synchronised and noted; `notes` says what that is
good for.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.adapters.download.notes import Mark, Notes, trusted_length
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.failpoints import around

if TYPE_CHECKING:
    import io
    from pathlib import Path

    from agent.deployment.ports import Watch

MARK_EVERY = 4 * 2**20
"""Bytes that a power cut may cost, and what a disk is asked to synchronise at once: the line waits meanwhile."""
_READ = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Part:
    """One partial file; close it at the end.

    Args:
        path: the file; ``path`` plus ``.meta`` holds its notes.
        place: what it is to be a part of.
        boot: this run of the operating system, None if unknown.
        reserve_bytes: disk space that stays free.

    Raises:
        StepError: ``insufficient_disk`` with the numbers, or ``internal`` when the disk fails.
    """

    def __init__(self, path: Path, place: str, *, boot: str | None, reserve_bytes: int) -> None:
        self._path = path
        self._meta = path.with_name(path.name + ".meta")
        self._boot = boot
        self._reserve_bytes = reserve_bytes
        self._notes = Notes(place)
        self._hash = hashlib.sha256()
        self.length = 0
        self._durable = 0  # of these, made so by this process: who was killed may have left marks that are not
        self._file: io.FileIO | None = None

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    @property
    def validator(self) -> str | None:
        """What proves that an answer belongs to the same entity."""
        return self._notes.validator

    @property
    def is_pieced(self) -> bool:
        """Whether what is there came in more than one answer."""
        return self._notes.is_pieced

    def recover(self, size: int | None, watch: Watch) -> None:
        """Look what an earlier process left: hash it again, and trust as much as `notes` allows.

        Args:
            size: bytes that the whole file has, or None.
            watch: looked at while hashing.
        """
        try:
            notes = Notes.from_json(self._meta.read_text(encoding="utf-8"))
            there = self._path.stat().st_size
        except (OSError, UnicodeDecodeError):
            return
        length = trusted_length(notes, self._notes.place, there, self._boot)
        if notes is None or not length or (size is not None and length > size):
            return
        if self._rehash(length, notes.mark, watch):
            self._notes, self.length = replace(notes, boot=self._boot), length

    def forget(self) -> None:
        """Go on from nothing."""
        self._meta.unlink(missing_ok=True)
        self._notes, self._hash = Notes(self._notes.place), hashlib.sha256()
        self.length = self._durable = 0

    def begin(self, offset: int, total: int | None, validator: str | None) -> None:
        """Get ready to write from ``offset`` on, which is 0 or what is there.

        Args:
            offset: where the next byte belongs.
            total: bytes that the whole file will have, if known.
            validator: what to remember the entity by.
        """
        if total is not None:
            self._check_room(total - offset, total)
        if offset == 0:
            self.forget()
        self._notes = replace(self._notes, validator=validator, boot=self._boot, is_pieced=offset > 0)
        try:
            self._open().truncate(offset)
            self._open().seek(offset)
            self._write_notes()  # after the cut: old bytes must not pass for a part of something new
        except OSError as error:
            raise self._failure(error, total) from None

    def write(self, chunk: bytes, total: int | None = None) -> None:
        """Append ``chunk``; ``total`` is what the whole file will have, for errors."""
        self._check_room(len(chunk), total)
        view = memoryview(chunk)
        try:
            while view:
                written = self._open().write(view)
                self._hash.update(view[:written])
                self.length += written
                view = view[written:]
            if self.length - self._durable >= MARK_EVERY:
                self.keep()
        except OSError as error:
            raise self._failure(error, total) from None

    def keep(self) -> None:
        """Make what is there survive a power cut: the bytes, what is noted of them, and both names."""
        if self.length == self._durable:
            return
        try:
            _sync(self._open().fileno())
            self._notes = replace(self._notes, mark=Mark(self.length, self._hash.hexdigest()))
            self._write_notes()
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _sync(directory)
            finally:
                os.close(directory)
            self._durable = self.length
        except OSError as error:
            raise self._failure(error, None) from None

    def _open(self) -> io.FileIO:
        if self._file is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "r+b", buffering=0)
            self._file.seek(self.length)
        return self._file

    def _rehash(self, length: int, mark: Mark | None, watch: Watch) -> bool:
        digest, done = hashlib.sha256(), 0
        stops = sorted({length, *((mark.length,) if mark and mark.length <= length else ())})
        try:
            with self._path.open("rb") as file:
                for stop in stops:
                    while done < stop and (chunk := file.read(min(_READ, stop - done))):
                        watch.check()
                        digest.update(chunk)
                        done += len(chunk)
                    if done != stop or (mark is not None and done == mark.length and digest.hexdigest() != mark.sha256):
                        return False
        except OSError:
            return False
        self._hash = digest
        return True

    def _write_notes(self) -> None:
        partial = self._meta.with_name(self._meta.name + ".tmp")
        with partial.open("w", encoding="utf-8") as file:
            file.write(self._notes.to_json())
            file.flush()
            _sync(file.fileno())
        with around("download.mark.rename"):
            partial.replace(self._meta)

    def _room(self) -> int:
        """Return the bytes that may still be written; negative inside the reserve."""
        return shutil.disk_usage(self._path.parent).free - self._reserve_bytes

    def _check_room(self, more: int, total: int | None) -> None:
        if more > max(self._room(), 0):
            raise self._disk_is_full(more, total)

    def _failure(self, error: OSError, total: int | None) -> StepError:
        if error.errno in _FULL:
            return self._disk_is_full(None, total)
        return StepError(ErrorCode.INTERNAL, f"{self._path.name}: {error.strerror}", retryable=True)

    def _disk_is_full(self, more: int | None, total: int | None) -> StepError:
        room = self._room()
        if room < 0 and self.length:
            self.length = max(0, self.length + room)
            os.truncate(self._path, self.length)
        wanted = "more" if more is None else f"{more} bytes more"
        whole = "" if total is None else f" of {total}"
        return StepError(
            ErrorCode.INSUFFICIENT_DISK,
            f"needs {wanted} beside {self.length}{whole} that are kept, {self._reserve_bytes + room} bytes were free "
            f"and {self._reserve_bytes} of them are reserved",
            f"free space below {self._path.parent}; sent again, the download goes on where it stopped",
            retryable=True,
        )


def _sync(descriptor: int) -> None:
    with around("download.mark.fsync"):
        os.fsync(descriptor)
