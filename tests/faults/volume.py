"""A real file system of its own for a device: ext4 in a loop device, which can be full, and fail like a worn card."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20
SIZE = 192 * MIB


class Volume:
    """The file system in ``image``, mounted at ``path``."""

    def __init__(self, image: Path, path: Path, size: int = SIZE) -> None:
        self._image, self.path = image, path
        self._filler = path / ".filler"
        with image.open("wb") as file:
            file.truncate(size)
        path.mkdir()
        run("mkfs.ext4", "-q", "-m", "0", str(image))
        self.mount()

    def mount(self) -> None:
        """Mount it; a fault makes it read-only, as Debian's installer has it."""
        run("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.path))

    def unmount(self) -> None:
        """Unmount it; nobody may have a file open."""
        run("umount", str(self.path))

    def repair(self) -> None:
        """Do what a boot does with a file system that had a fault: check, and mount."""
        self.unmount()
        subprocess.run(["fsck.ext4", "-fy", str(self._image)], capture_output=True, check=False)  # 1: it was mended
        self.mount()

    @property
    def free_bytes(self) -> int:
        """What can still be written."""
        told = os.statvfs(self.path)
        return told.f_bavail * told.f_frsize

    def fill(self, left_bytes: int = 0) -> None:
        """Take all but ``left_bytes``: in large pieces first, then to the last block."""
        with self._filler.open("ab") as file:
            for piece in (MIB, 4096):
                with contextlib.suppress(OSError):
                    while self.free_bytes - left_bytes >= piece:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), piece)
            if not left_bytes:
                with contextlib.suppress(OSError):
                    while True:
                        os.write(file.fileno(), bytes(4096))

    def free(self) -> None:
        """Give back what was taken."""
        self._filler.unlink(missing_ok=True)

    def fail(self) -> None:
        """Let the file system find a fault: from now on it refuses every write, to open files as well."""
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(self.path)], capture_output=True, text=True, check=True
        ).stdout.strip()
        Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("1", encoding="ascii")

    @contextlib.contextmanager
    def read_only(self, *names: str) -> Iterator[None]:
        """Let nothing be opened for writing below those folders while the block runs; open files stay as they are."""
        folders = [str(self.path / name) for name in names]
        with contextlib.ExitStack() as stack:
            for folder in folders:
                run("mount", "--bind", folder, folder)
                stack.callback(run, "umount", "--lazy", folder)
                run("mount", "-o", "remount,bind,ro", folder)
            yield


def run(*command: str) -> None:
    """Run a tool; its complaint is the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def volume_or_skip(folder: Path) -> Iterator[Volume]:
    """Yield a volume mounted at ``folder/state``; where the system allows none the test is skipped, visibly."""
    try:
        volume = Volume(folder / "state.img", folder / "state")
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield volume
    volume.unmount()
