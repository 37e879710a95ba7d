"""The journal's file that is fuzzed."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.adapters.journal import JournalVersionError
from agent.contract.reports import Report
from agent.deployment.models import Release, Served
from agent.deployment.phases import State
from tests.fakes.box import Box
from tests.fuzz.mutators import mutated_bytes
from tests.fuzz.targets import BrokenClaimError, settle

if TYPE_CHECKING:
    import random
    from pathlib import Path

PATCH = struct.Struct("<BIB")
"""Which file, where in it (modulo its length), and how many bytes follow; none cut the file there."""


class Journals:
    """Patches to a journal as a device's life leaves it, its log, and the copy of what is served.

    A device must start on whatever comes out, take a command and know it after the next start. While the copy is
    whole, what is served is what was served.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = _lived(directory / "whole")

    def seeds(self) -> list[bytes]:
        names = range(len(self._files))
        return [
            b"",
            *(PATCH.pack(name, 0, 0) for name in names),
            *(PATCH.pack(name, 4096, 2) + b"xx" for name in names),
        ]

    def mutate(self, data: bytes, draw: random.Random, most: int) -> bytes:
        if draw.random() < 0.2:
            return mutated_bytes(data, draw, min(most, 4096))
        some = draw.randbytes(draw.choice((0, 1, 1, 2, 8, 64)))
        more = PATCH.pack(draw.choice((0, 0, 0, 1, 2)), draw.getrandbits(24), len(some)) + some
        return (data + more if draw.random() < 0.6 else more)[: min(most, 4096)]

    def __call__(self, data: bytes) -> None:
        state = self._directory / "state"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        files = {name: bytearray(content) for name, content in self._files.items()}
        _patch(list(files.values()), data)
        for name, content in files.items():
            (state / name).write_bytes(content)
        is_copy_whole = bytes(files["served.json"]) == self._files["served.json"]
        try:
            box = Box(state)
        except JournalVersionError:
            return
        box.engine.recover()
        settle(box)
        told = box.send("status", {"id": "after"})
        settle(box)
        if told != ["ack"] or (is_copy_whole and set(box.journal.served()) != {"kanji"}):
            raise BrokenClaimError(f"acknowledged {told}, serves {sorted(box.journal.served())}")
        box.journal.close()
        again = Box(state)
        if again.journal.operation("after") is None:
            raise BrokenClaimError("what was acknowledged is forgotten")
        again.journal.close()


def _patch(files: list[bytearray], data: bytes) -> None:
    at = 0
    while at + PATCH.size <= len(data):
        which, position, length = PATCH.unpack_from(data, at)
        some = data[at + PATCH.size : at + PATCH.size + length]
        at += PATCH.size + length
        file = files[which % len(files)]
        if file and some:
            start = position % len(file)
            file[start : start + len(some)] = some[: len(file) - start]
        elif file:
            del file[position % len(file) :]


def _lived(directory: Path) -> dict[str, bytes]:
    """Return the files of a device that has lived, with a log that was not yet written back."""
    directory.mkdir()
    box = Box(directory)
    release = Release(
        id="v1", version="v1", sha256="a" * 64, model_type="cnn", method="nf4", artifact="a", gate_file="g",
        artifact_bytes=1, resident_bytes=1, coverage=1.0, agreement=1.0, accuracy=None, accuracy_source=None,
    )  # fmt: skip
    box.deploy("first")
    box.settle()
    served = box.journal.served()["kanji"]
    assert isinstance(served, Served)
    box.want(3, config={"health": {"interval_s": 5}})
    box.engine.turn(wait_s=0)
    first = box.record("first")
    for number in range(20):
        box.journal.save(replace(first, id=f"o-{number}", state=State.FAILED), [Report("t", b"x" * 300)])
    box.journal.save(first, [Report("t", b"{}")], served=replace(served, previous=release), sequence=9)
    found = {name: (directory / name).read_bytes() for name in ("journal.db", "served.json", "journal.db-wal")}
    box.journal.close()
    return found
