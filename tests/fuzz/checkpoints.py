"""A checkpoint's file that is fuzzed."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import TYPE_CHECKING

import torch

from agent.adapters import headers
from agent.deployment.ports import StepError
from agent.quantization.checkpoint import open_checkpoint
from agent.quantization.errors import BuildError
from tests.fuzz.mutators import mutated_bytes, mutated_json
from tests.fuzz.targets import WORDS, BrokenClaimError

if TYPE_CHECKING:
    import random
    from pathlib import Path


class Checkpoints:
    """The first byte says what the rest is: a whole file, the header of a safetensors file, or a pickle in a zip."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "checkpoint"

    def seeds(self) -> list[bytes]:
        tensors = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}
        header = json.dumps(tensors).encode()
        weights = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2, dtype=torch.float16)}
        saved = [
            _saved(value) for value in (weights, {"model_state_dict": weights, "epoch": 3, "config": {"a": [1.5]}})
        ]
        whole = [*saved, struct.pack("<Q", len(header)) + header + bytes(24)]
        return [
            *(b"\0" + each for each in whole),
            b"\1" + header,
            *(b"\2" + _pickle_of(each) for each in saved),
        ]

    def mutate(self, data: bytes, draw: random.Random, most: int) -> bytes:
        if data[:1] == b"\1" and draw.random() < 0.8:
            return (data[:1] + mutated_json(data[1:], draw, WORDS))[:most]
        return data[:1] + mutated_bytes(data[1:], draw, most - 1)

    def __call__(self, data: bytes) -> None:
        if not data:
            return
        kind, rest = data[0] % 3, data[1:]
        if kind == 1:
            rest = struct.pack("<Q", len(rest)) + rest + bytes(24)
        elif kind == 2:
            rest = _zipped(rest)
        self._path.write_bytes(rest)
        try:
            found = headers.numels(self._path)
            if sum(found) > len(rest):
                raise BrokenClaimError(f"{sum(found)} weights in {len(rest)} bytes")
        except StepError:
            pass
        try:
            opened = open_checkpoint(self._path)
            for entry in opened.entries.values():
                entry.read().sum()
        except BuildError:
            pass


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read("archive/data.pkl")


def _zipped(pickle: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(24))
        archive.writestr("archive/data/1", bytes(4))
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()
