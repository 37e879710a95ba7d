"""The rest of a device's surroundings: files to fetch, a builder, memory, a fixed trust."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters import headers
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import Signer
from agent.deployment.ports import StepError
from agent.planning.budget import Budget
from agent.planning.memory import Footprint, Learned
from agent.planning.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.contract.manifest import Envelope
    from agent.contract.oms import Bundle
    from agent.deployment.ports import Watch

MIB = 2**20
GOOD_GATE = {
    "answer": "classes",
    "rows": 16,
    "non_finite": 0,
    "agreement": 1.0,
    "cosine": 0.999,
    "accuracy": None,
    "accuracy_source": None,
    "latency_ms": {"p50": 1.0},
}


def checkpoint(*numels: int, seed: int = 0) -> bytes:
    """Return an archive laid out as torch.save lays it out, with one float32 storage per entry of ``numels``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        for index, numel in enumerate(numels):
            archive.writestr(f"archive/data/{index}", bytes([seed % 256]) * (4 * numel))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    """Return the digest as manifests spell it."""
    return hashlib.sha256(content).hexdigest()


class FakeSources:
    """Implements ``Sources`` from memory.

    Attributes:
        files: content by URL; anything else is unreachable.
        fetched: the URLs asked for, in order.
        cut_after: how many bytes of the next fetch arrive before the line breaks, None for all.
        pieced: what the next fetch puts together of pieces that do not fit, None for the file as it is.
        scheme: the only one that is allowed.
    """

    scheme = "https"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.cut_after: int | None = None
        self.pieced: bytes | None = None

    def judge(self, url: str) -> None:
        if not url.startswith(f"{self.scheme}:"):
            raise StepError(ErrorCode.FORBIDDEN_SOURCE, f"{url}: only {self.scheme} is allowed here")

    def fetch(self, url: str, destination: Path, size: int | None, watch: Watch) -> bool:
        self.judge(url)
        self.fetched.append(url)
        watch.check()
        if url not in self.files:
            raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{url}: nobody answers", retryable=True)
        content = self.files[url]
        if size is not None and len(content) != size:
            raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{url} has {len(content)} bytes, {size} were announced")
        cut, self.cut_after = self.cut_after, None
        pieced, self.pieced = self.pieced, None
        destination.write_bytes((content if pieced is None else pieced)[:cut])
        if cut is not None:
            raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{url}: cut after {cut} bytes", retryable=True)
        watch.progress(len(content), len(content), "bytes")
        return pieced is not None


class FakeBuilder:
    """Implements ``Builder``: writes small files where an artifact belongs.

    Attributes:
        gate: what it measures.
        gates: what it measures for a method, where that differs.
        resident_bytes: what a model holds by a method, where that matters.
        error: raised instead of building, once.
        jobs: the builds it was asked for.
    """

    def __init__(self) -> None:
        self.gate: dict[str, Any] = dict(GOOD_GATE)
        self.gates: dict[str, dict[str, Any]] = {}
        self.resident_bytes: dict[str, int] = {}
        self.error: Exception | None = None
        self.jobs: list[dict[str, Any]] = []

    def build(self, job: dict[str, Any], watch: Watch) -> dict[str, Any]:
        watch.check()
        if job["job"] == "inspect":
            return {"footprint": Footprint.of_numels(headers.numels(Path(job["checkpoint"]))).to_json()}
        self.jobs.append(job)
        error, self.error = self.error, None
        if error is not None:
            raise error
        directory = Path(job["output_dir"])
        names = {"artifact": "model.safetensors", "sidecar": "model.json", "gate_file": "gate.safetensors"}
        for name in names.values():
            (directory / name).write_bytes(job["method"].encode())
        watch.progress(3, 3, "tensors")
        return {
            **{key: str(directory / name) for key, name in names.items()},
            "model_type": "cnn",
            "artifact_bytes": 1000,
            "resident_bytes": self.resident_bytes.get(job["method"], 1200),
            "coverage": 0.98,
            "gate": dict(self.gates.get(job["method"], self.gate)),
        }


class FakeDevice:
    """Implements ``Device``, as the probe of a box does.

    Attributes:
        available_bytes: what is free for use, beside what the models take.
        taken_bytes: returns what they take, where that matters.
        methods: what the self-test finds.
        tests: how often it was run on demand.
    """

    def __init__(self) -> None:
        self.available_bytes = 4096 * MIB
        self.taken_bytes: Callable[[], int] = lambda: 0
        self.methods: dict[str, dict[str, Any]] = {name: {"ok": True} for name in METHODS}
        self.tests = 0

    def budget(self) -> Budget:
        return Budget(self.available_bytes - self.taken_bytes(), 512 * MIB, "meminfo", 8192 * MIB)

    def last_budget(self) -> Budget:
        return self.budget()

    def facts(self) -> dict[str, Any]:
        return {"memory": self.budget().to_json()}

    def test_again(self) -> Mapping[str, dict[str, Any]]:
        self.tests += 1
        return self.methods

    def usable_methods(self) -> Mapping[str, dict[str, Any]]:
        return self.methods


class FakeLessons:
    """Implements ``Lessons``.

    Attributes:
        kept: what was learned, oldest first.
    """

    def __init__(self) -> None:
        self.kept: list[Learned] = []

    def learned(self) -> Learned:
        return self.kept[-1] if self.kept else Learned()

    def keep(self, learned: Learned) -> None:
        self.kept.append(learned)


class FakeTrust:
    """Implements ``Signatures`` with one answer for everybody."""

    def __init__(self, refusal: RefusalError | None = None) -> None:
        self._refusal = refusal

    def verify(self, envelope: Envelope, model: str, now: object) -> Signer:
        del envelope, model, now
        return self._answer()

    def verify_bundle(self, bundle: Bundle, model: str, now: object) -> Signer:
        del bundle, model, now
        return self._answer()

    def _answer(self) -> Signer:
        if self._refusal is not None:
            raise self._refusal
        return Signer("fake")
