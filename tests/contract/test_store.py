"""The store on a real directory: nothing is referred to before it is whole, nothing needed is lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from agent import failpoints
from agent.adapters import artifacts
from agent.adapters.artifacts import ArtifactStore
from agent.contract.errors import ErrorCode
from agent.deployment.ports import InterruptedStepError, StepError
from agent.deployment.runner import WorkWatch
from tests.fakes.device import checkpoint, sha256

CONTENT = checkpoint(5000, 64)
DIGEST = sha256(CONTENT)
NAMES = {"artifact": "model.safetensors", "sidecar": "model.json", "gate_file": "gate.safetensors"}


class ProcessDeathError(BaseException):
    """The process ends here."""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


@pytest.fixture
def watch() -> WorkWatch:
    return WorkWatch(lambda _done, _total, _unit: None)


def admitted(store: ArtifactStore, watch: WorkWatch, content: bytes = CONTENT) -> Path:
    store.partial(sha256(content)).write_bytes(content)
    return store.admit(sha256(content), len(content), watch)


def build(store: ArtifactStore, word: str, name: str = "nf4", *, dataset: str | None = None) -> dict[str, Any]:
    staging = store.staging(DIGEST, name)
    for file in NAMES.values():
        (staging / file).write_text(word)
    return {**{key: str(staging / file) for key, file in NAMES.items()}, "dataset": dataset, "word": word}


def test_a_download_that_matches_becomes_the_source(store: ArtifactStore, watch: WorkWatch) -> None:
    path = admitted(store, watch)

    assert path.read_bytes() == CONTENT
    assert store.source(DIGEST) == path
    assert not store.partial(DIGEST).exists()
    assert store.numels(DIGEST) == (5000, 64)


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_download_that_does_not_match_is_deleted(store: ArtifactStore, watch: WorkWatch, size: int | None) -> None:
    partial = store.partial(DIGEST)
    partial.write_bytes(CONTENT[:-1] + b"?")
    partial.with_name(partial.name + ".meta").write_text("{}")
    with pytest.raises(StepError) as caught:
        store.admit(DIGEST, size, watch)

    assert caught.value.code is ErrorCode.CHECKSUM_MISMATCH
    assert sha256(CONTENT[:-1] + b"?") in caught.value.detail
    assert store.source(DIGEST) is None
    assert list(partial.parent.iterdir()) == []


def test_the_right_bytes_of_another_length_than_announced_are_refused(store: ArtifactStore, watch: WorkWatch) -> None:
    store.partial(DIGEST).write_bytes(CONTENT)
    with pytest.raises(StepError, match=f"{len(CONTENT)} bytes.*{len(CONTENT) + 1} bytes"):
        store.admit(DIGEST, len(CONTENT) + 1, watch)


def test_a_source_that_is_there_is_admitted_without_a_download(store: ArtifactStore, watch: WorkWatch) -> None:
    first = admitted(store, watch)
    assert store.admit(DIGEST, len(CONTENT), watch) == first


def test_a_missing_download_is_an_error_that_can_be_retried(store: ArtifactStore, watch: WorkWatch) -> None:
    with pytest.raises(StepError) as caught:
        store.admit(DIGEST, None, watch)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.DOWNLOAD_FAILED, True)


def test_hashing_stops_when_asked_and_keeps_the_download(store: ArtifactStore, watch: WorkWatch) -> None:
    store.partial(DIGEST).write_bytes(CONTENT)
    watch.interrupt()
    with pytest.raises(InterruptedStepError):
        store.admit(DIGEST, None, watch)
    assert store.partial(DIGEST).read_bytes() == CONTENT


def test_a_published_artifact_is_found_again_with_its_final_paths(store: ArtifactStore, watch: WorkWatch) -> None:
    admitted(store, watch)
    result = store.publish(DIGEST, "nf4", build(store, "new"))

    found = ArtifactStore(Path(result["artifact"]).parents[3]).built(DIGEST, "nf4", None)
    assert found == result
    assert Path(result["artifact"]).read_text() == "new"
    assert Path(result["artifact"]).parent.name == "nf4"


def test_an_artifact_measured_with_other_data_is_not_taken_for_this_one(store: ArtifactStore, watch: WorkWatch) -> None:
    admitted(store, watch)
    store.publish(DIGEST, "nf4", build(store, "new", dataset="d" * 64))

    assert store.built(DIGEST, "nf4", None) is None
    assert store.built(DIGEST, "fp4", "d" * 64) is None
    assert store.built(DIGEST, "nf4", "d" * 64) is not None


def test_a_damaged_result_counts_as_not_built(store: ArtifactStore, watch: WorkWatch) -> None:
    admitted(store, watch)
    result = store.publish(DIGEST, "nf4", build(store, "new"))
    (Path(result["artifact"]).parent / "result.json").write_text("{")
    assert store.built(DIGEST, "nf4", None) is None


@pytest.mark.parametrize("file", NAMES.values())
def test_an_artifact_of_which_a_sweep_that_was_cut_short_took_a_file_counts_as_not_built(
    store: ArtifactStore, watch: WorkWatch, file: str
) -> None:
    admitted(store, watch)
    final = Path(store.publish(DIGEST, "nf4", build(store, "whole"))["artifact"]).parent
    assert store.built(DIGEST, "nf4", None) is not None
    (final / file).unlink()
    assert store.built(DIGEST, "nf4", None) is None


def test_staging_starts_empty(store: ArtifactStore, watch: WorkWatch) -> None:
    admitted(store, watch)
    build(store, "left over")
    assert list(store.staging(DIGEST, "nf4").iterdir()) == []


@pytest.mark.parametrize("renames", [0, 1])
def test_a_cut_while_publishing_leaves_the_artifact_that_is_being_served(
    store: ArtifactStore, watch: WorkWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    admitted(store, watch)
    store.publish(DIGEST, "nf4", build(store, "old"))
    newer = build(store, "new", dataset="d" * 64)
    real = Path.rename
    done: list[Path] = []

    def rename(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise ProcessDeathError
        done.append(target)
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(ProcessDeathError):
            store.publish(DIGEST, "nf4", newer)

    found = ArtifactStore(tmp_path).built(DIGEST, "nf4", None)
    assert found is not None
    assert Path(found["artifact"]).read_text() == "old"


def test_a_cut_right_after_publishing_leaves_the_new_artifact(
    store: ArtifactStore, watch: WorkWatch, tmp_path: Path
) -> None:
    admitted(store, watch)
    result = store.publish(DIGEST, "nf4", build(store, "new"))
    old = Path(result["artifact"]).parent.with_name("nf4.old")
    old.mkdir()
    (old / "result.json").write_text(json.dumps({"word": "old"}))

    found = ArtifactStore(tmp_path).built(DIGEST, "nf4", None)
    assert found is not None
    assert found["word"] == "new"
    assert not old.exists()


def test_a_sweep_deletes_what_nobody_needs_and_nothing_else(store: ArtifactStore, watch: WorkWatch) -> None:
    other = checkpoint(4096, seed=5)
    admitted(store, watch)
    admitted(store, watch, other)
    result = store.publish(DIGEST, "nf4", build(store, "kept"))
    half_made = store.staging(DIGEST, "fp4")  # of a builder that was killed
    store.partial("e" * 64).write_bytes(b"half")
    store.partial("f" * 64).write_bytes(b"half")
    store.sweep({DIGEST, "f" * 64}, set())

    assert store.source(DIGEST) is not None
    assert Path(result["artifact"]).exists()
    assert not half_made.exists()
    assert store.partial("f" * 64).exists()
    assert store.source(sha256(other)) is None
    assert not store.partial("e" * 64).exists()
    store.sweep(set(), set())
    assert store.used_bytes() == 0


def test_of_the_mixes_of_a_checkpoint_a_sweep_leaves_those_that_are_used(
    store: ArtifactStore, watch: WorkWatch
) -> None:
    admitted(store, watch)
    served, uniform = (store.publish(DIGEST, name, build(store, name, name)) for name in ("mixed-0a1b2c3d", "nf4"))
    other = store.publish(DIGEST, "mixed-4e5f6a7b", build(store, "other", "mixed-4e5f6a7b"))
    store.sweep({DIGEST}, {served["artifact"]})
    there = {each["artifact"]: Path(each["artifact"]).exists() for each in (served, uniform, other)}
    assert there == {served["artifact"]: True, uniform["artifact"]: True, other["artifact"]: False}


def test_a_replacement_that_fails_half_way_is_undone_by_the_next_sweep(
    store: ArtifactStore, watch: WorkWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted(store, watch)
    store.publish(DIGEST, "nf4", build(store, "old"))
    staged = build(store, "new")

    def fail(name: str) -> None:
        raise OSError(errno.EIO, "Input/output error", name)

    monkeypatch.setitem(failpoints.armed, "store.aside.rename.after", fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.publish(DIGEST, "nf4", staged)
    assert store.built(DIGEST, "nf4", None) is None

    store.sweep({DIGEST}, set())
    found = store.built(DIGEST, "nf4", None)
    assert found is not None
    assert Path(found["artifact"]).read_text() == "old"


def test_a_disk_without_room_is_told_with_its_numbers(store: ArtifactStore) -> None:
    store.ensure_space(1)
    with pytest.raises(StepError) as caught:
        store.ensure_space(2**60)
    assert caught.value.code is ErrorCode.INSUFFICIENT_DISK
    assert str(2**60) in caught.value.detail


def test_the_sizes_of_a_checkpoint_that_is_gone_cannot_be_read(store: ArtifactStore) -> None:
    with pytest.raises(StepError, match="not in the store"):
        store.numels(DIGEST)


def test_the_finished_artifacts_of_a_checkpoint_are_found_by_name_and_nothing_else(
    store: ArtifactStore, tmp_path: Path
) -> None:
    assert store.artifacts(DIGEST) == {}
    for name in ("nf4", "mixed-0123abcd"):
        store.publish(DIGEST, name, build(store, name, name))
    half = build(store, "half", "int8")
    (Path(half["artifact"]).parent / "result.json").write_text(json.dumps(half))
    broken = tmp_path / "artifacts" / DIGEST / "fp16"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    found = store.artifacts(DIGEST)
    assert sorted(found) == ["mixed-0123abcd", "nf4"]
    assert Path(found["nf4"]["artifact"]).read_text() == "nf4"


def test_a_source_that_changed_in_the_store_is_deleted_and_told(store: ArtifactStore, watch: WorkWatch) -> None:
    path = admitted(store, watch)
    store.verify_again(DIGEST, watch)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(StepError, match=sha256(CONTENT[:-1] + b"?")) as caught:
        store.verify_again(DIGEST, watch)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.CHECKSUM_MISMATCH, True)
    assert store.source(DIGEST) is None


def test_a_source_that_cannot_be_read_any_more_is_deleted_too(
    store: ArtifactStore, watch: WorkWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted(store, watch)

    def worn_out(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(artifacts, "_digest", worn_out)
    with pytest.raises(StepError, match=r"cannot be read from the store: .*Input/output error"):
        store.verify_again(DIGEST, watch)
    assert store.source(DIGEST) is None, "else a deploy would take it for the file that it needs"


def test_a_source_that_cannot_be_read_for_want_of_descriptors_stays(
    store: ArtifactStore, watch: WorkWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted(store, watch)

    def exhausted(*_arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(artifacts, "_digest", exhausted)
    with pytest.raises(StepError, match="Too many open files") as caught:
        store.verify_again(DIGEST, watch)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.DOWNLOAD_FAILED, True)
    assert store.source(DIGEST) is not None


def test_an_artifact_that_changed_in_the_store_is_not_taken_for_a_finished_one(store: ArtifactStore) -> None:
    result = {**build(store, "whole"), "artifact_sha256": sha256(b"whole")}
    published = store.publish(DIGEST, "nf4", result)
    assert store.built(DIGEST, "nf4", None) == published
    Path(published["artifact"]).write_text("whale")
    assert store.built(DIGEST, "nf4", None) is None
