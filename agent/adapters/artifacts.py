"""The store: files named by their SHA-256, moved into place only when whole, durable before anything refers to them.

    downloads/<sha256>.part         what is being fetched
    artifacts/<sha256>/source       a verified checkpoint or data set
    artifacts/<sha256>/footprint.json  what it will need in memory
    artifacts/<sha256>/<method>/    a finished artifact: packed weights, sidecar, gate inputs, result.json
    artifacts/<sha256>/<method>.tmp what is being built
    artifacts/<sha256>/<method>.old what a newer build of the same is about to replace

A rename after fsync, and fsync of the directory after the rename, make each move survive a power cut (rename(2)
alone promises order to other processes, not to the disk).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from agent.adapters import directories, headers
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.failpoints import around
from agent.planning.methods import MIXED

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.deployment.ports import Watch

log = structlog.get_logger("store")
CHUNK = 4 * 2**20
RESERVE_BYTES = 64 * 2**20
"""Disk space that stays free so that journal and logs can go on."""
RESULT = "result.json"
FOOTPRINT = "footprint.json"
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)
"""Errors of reading that say nothing of the file."""
_FETCH_AGAIN = "deploy it again, with a new id and signed with a higher sequence: the file is then fetched anew"


class ArtifactStore:
    """Content-addressed files under one directory."""

    def __init__(self, state_dir: Path, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._downloads = state_dir / "downloads"
        self._artifacts = state_dir / "artifacts"
        self._reserve_bytes = reserve_bytes
        for directory in (self._downloads, self._artifacts):
            directories.make(directory)
        self._mend()

    def partial(self, sha256: str) -> Path:
        """Return where a download of that digest is collected."""
        return self._downloads / f"{sha256}.part"

    def source(self, sha256: str) -> Path | None:
        """Return the file of that digest as it was once verified, or None."""
        path = self._artifacts / sha256 / "source"
        return path if path.is_file() else None

    def verify_again(self, sha256: str, watch: Watch) -> None:
        """Hash a file that lay in the store.

        Raises:
            StepError: ``checksum_mismatch`` for one that has changed, or that the disk has lost; it is deleted, so that
                a deploy fetches it. ``download_failed`` for one that cannot be read for another reason; it stays.
        """
        path = self._artifacts / sha256 / "source"
        try:
            length, digest = _digest(path, lambda _done, _total: watch.check())  # progress is the build's
            if digest == sha256:
                return
            detail = f"has changed in the store: its {length} bytes have sha256 {digest} now"
        except OSError as error:
            detail = f"cannot be read from the store: {path.name}: {error.strerror}"
            if error.errno in _PASSING:  # it may be whole, and there is no other copy
                raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{sha256[:12]} {detail}", retryable=True) from None
        path.unlink(missing_ok=True)
        detail = f"{sha256[:12]} {detail}"
        raise StepError(ErrorCode.CHECKSUM_MISMATCH, detail, _FETCH_AGAIN, retryable=True)

    def admit(self, sha256: str, size: int | None, watch: Watch) -> Path:
        """Hash the partial file and move it into the store.

        Raises:
            StepError: ``checksum_mismatch``; the partial file is deleted, so the next try starts over.
        """
        known = self.source(sha256)
        if known is not None:
            return known
        partial = self.partial(sha256)
        length, digest = _hash(partial, watch)
        if digest != sha256 or (size is not None and length != size):
            _discard(partial)
            announced = "" if size is None else f" with {size} bytes"
            raise StepError(
                ErrorCode.CHECKSUM_MISMATCH,
                f"got {digest} with {length} bytes, announced {sha256}{announced}",
                "compare the file with its manifest; sent again, it is fetched from the start",
                retryable=True,
            )
        target = self._artifacts / sha256 / "source"
        target.parent.mkdir(exist_ok=True)
        _settle(partial, target)
        _discard(partial)
        return target

    def numels(self, sha256: str) -> tuple[int, ...]:
        """Return the number of weights of each tensor, from the container's directory alone."""
        path = self.source(sha256)
        if path is None:
            raise StepError(ErrorCode.INTERNAL, f"checkpoint {sha256[:12]} is not in the store", retryable=True)
        return headers.numels(path)

    def ensure_space(self, needed_bytes: int) -> None:
        """Raise ``insufficient_disk`` unless ``needed_bytes`` fit beside the reserve."""
        free = shutil.disk_usage(self._artifacts).free
        if needed_bytes + self._reserve_bytes > free:
            raise StepError(
                ErrorCode.INSUFFICIENT_DISK,
                f"needs {needed_bytes} bytes, {free} are free and {self._reserve_bytes} of them reserved",
                f"free space below {self._artifacts}",
                retryable=True,
            )

    def built(self, sha256: str, method: str, dataset: str | None) -> dict[str, Any] | None:
        """Return the builder's result for a finished artifact that was measured with ``dataset``, or None.

        A sweep that was cut short may have taken some of its files, and storage that wears out flips bits: then it is
        built again.
        """
        directory = self._artifacts / sha256 / method
        try:
            result: dict[str, Any] = json.loads((directory / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if result.get("dataset") != dataset or not all(
            (directory / file).is_file() for file in _files(result).values()
        ):
            return None
        result = _with_paths(result, directory)
        written = result.get("artifact_sha256")
        if written is not None and not _has_digest(Path(result["artifact"]), written):
            log.error("artifact_damaged", path=result["artifact"], sha256=written)
            return None
        return result

    def artifacts(self, sha256: str) -> dict[str, dict[str, Any]]:
        """Return the builder's results of every finished artifact of a checkpoint, by name."""
        found = {}
        for file in sorted((self._artifacts / sha256).glob(f"*/{RESULT}")):
            if not file.parent.suffix:  # .tmp is not finished, .old not in force
                with contextlib.suppress(OSError, ValueError):
                    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                    found[file.parent.name] = _with_paths(result, file.parent)
        return found

    def staging(self, sha256: str, method: str) -> Path:
        """Return an empty directory to build in."""
        directory = self._artifacts / sha256 / f"{method}.tmp"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def publish(self, sha256: str, method: str, result: dict[str, Any]) -> dict[str, Any]:
        """Move the staging directory into place; return the result with its final paths.

        An artifact that was built before for other gate data is replaced: the bytes of its weights are the same.
        """
        staging, final = self._artifacts / sha256 / f"{method}.tmp", self._artifacts / sha256 / method
        (staging / RESULT).write_text(json.dumps(result), encoding="utf-8")
        for path in staging.iterdir():
            _sync(path, "publish")
        _sync(staging, "publish")
        old = self._artifacts / sha256 / f"{method}.old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            with around("store.aside.rename"):
                final.rename(old)
        with around("store.publish.rename"):
            staging.rename(final)
        _sync(final.parent, "publish")
        shutil.rmtree(old, ignore_errors=True)
        return _with_paths(result, final)

    def footprint(self, sha256: str) -> dict[str, Any] | None:
        """Return what was found out about a checkpoint's needs, or None."""
        try:
            found: dict[str, Any] = json.loads((self._artifacts / sha256 / FOOTPRINT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def keep_footprint(self, sha256: str, footprint: dict[str, Any]) -> None:
        """Remember a checkpoint's needs; what a power cut spoils is found out again."""
        path = self._artifacts / sha256 / FOOTPRINT
        partial = path.with_name(_drafted(FOOTPRINT))
        partial.write_text(json.dumps(footprint), encoding="utf-8")
        with around("store.footprint.rename"):
            partial.replace(path)

    def sweep(self, keep: set[str], in_use: set[str]) -> None:
        """Delete sources, artifacts and partial downloads of digests that are not in ``keep``, and what was cut short.

        Of the mixes of a digest that stays only those remain that are ``in_use``: there may be any number of them,
        where the other methods are few. Not to be called during a build: what is half made then is being made.

        Args:
            keep: digests.
            in_use: paths of artifacts.
        """
        self._mend()
        used = {Path(artifact).parts[-3:-1] for artifact in in_use}
        for mix in self._artifacts.glob(f"*/{MIXED}-*"):
            if mix.parts[-2:] not in used:
                shutil.rmtree(mix, ignore_errors=True)
        for directory in self._artifacts.iterdir():
            if directory.name not in keep:
                shutil.rmtree(directory, ignore_errors=True)
        for staging in self._artifacts.glob("*/*.tmp"):
            shutil.rmtree(staging, ignore_errors=True)
        for partial in self._artifacts.glob(f"*/{_drafted(FOOTPRINT)}"):
            partial.unlink(missing_ok=True)
        for path in self._downloads.iterdir():
            digest = path.name.partition(".")[0]
            if digest not in keep or self.source(digest) is not None:
                path.unlink(missing_ok=True)

    def _mend(self) -> None:
        """Put back what ``publish`` had moved aside when it was cut short: it may be what is being served."""
        for old in self._artifacts.glob("*/*.old"):
            final = old.with_suffix("")
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
                continue
            try:
                with around("store.mend.rename"):
                    old.rename(final)
                _sync(final.parent, "mend")
            except OSError as error:  # the agent starts all the same, and the next sweep tries again
                log.error("artifact_not_mended", path=str(old), error=str(error))  # noqa: TRY400 - one line says it

    def used_bytes(self) -> int:
        """Return the bytes of everything in the store."""
        roots = (self._downloads, self._artifacts)
        return sum(path.stat().st_size for root in roots for path in root.rglob("*") if path.is_file())


def _with_paths(result: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return ``result`` with its file names resolved below ``directory``: it was written before the move."""
    return {**result, **{name: str(directory / file) for name, file in _files(result).items()}}


def _files(result: dict[str, Any]) -> dict[str, str]:
    names = ("artifact", "sidecar", "gate_file", "tokenizer")
    return {name: os.path.basename(result[name]) for name in names if name in result}  # noqa: PTH119


def _hash(path: Path, watch: Watch) -> tuple[int, str]:
    def on_chunk(done: int, total: int) -> None:
        watch.check()
        watch.progress(done, total, "bytes")

    try:
        return _digest(path, on_chunk)
    except OSError as error:
        raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{path.name}: {error.strerror}", retryable=True) from None


def _has_digest(path: Path, sha256: str) -> bool:
    try:
        return _digest(path)[1] == sha256
    except OSError:
        return False


def _digest(path: Path, on_chunk: Callable[[int, int], None] = lambda _done, _total: None) -> tuple[int, str]:
    """Return length and SHA-256 of a file; Python 3.11 has ``hashlib.file_digest``, 3.10 not."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            on_chunk(done, total)
    return done, digest.hexdigest()


def _settle(source: Path, target: Path) -> None:
    _sync(source, "admit")
    with around("store.admit.rename"):
        source.rename(target)
    _sync(target.parent, "admit")
    _sync(target.parent.parent, "admit")


def _sync(path: Path, why: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with around(f"store.{why}.fsync"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drafted(name: str) -> str:
    return f"{name}.new"


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    partial.with_name(partial.name + ".meta").unlink(missing_ok=True)
