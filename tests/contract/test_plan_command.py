"""``nibbled plan`` as people call it: with the real builder, a real checkpoint, and devices that are not at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli import main
from agent.planning.methods import NAMES
from agent.workbench import profiles
from agent.workbench.profiles import ProfileError
from tests.fakes.files import serve

pytest.importorskip("torch")

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def checkpoint(kanji: Path) -> str:
    return str(kanji / "checkpoint_best.pt")


def call(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["plan", *arguments])


def record(*arguments: str) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_a_profile_is_planned_for_and_explained_without_building_anything(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(checkpoint, "--profile", "orin-nano-8gb")
    assert list(tmp_path.iterdir()) == []
    assert result.exit_code == 0, result.output
    told = result.stdout
    assert "cnn, 208 classes" in told
    assert "NVIDIA Jetson Orin Nano 8 GB" in told
    assert "→ nf4" in told
    assert "the case 'edge' of the decision matrix" in told
    assert "the device's profile says that" in told
    assert "If the gate refuses it, in this order: mixed, int8, fp16." in told


def test_this_device_is_planned_for_by_its_own_memory_and_its_own_self_test(checkpoint: str) -> None:
    told = record(checkpoint)
    assert told["device"]["title"] == "this device, as it is now"
    assert told["decision"]["budget"]["source"] in ("meminfo", "cgroup", "nvml", "cuda")
    assert told["decision"]["method"] in NAMES
    assert told["checkpoint"]["float32_bytes"] == 3_871_684


@pytest.mark.parametrize(
    ("more", "scenario", "method"),
    [
        (("--profile", "h100"), "cloud-gpu", "nf4"),
        (("--profile", "t4"), "cloud-gpu", "nf4"),
        (("--profile", "xavier-nx-8gb"), "older-gpu", "fp4"),
        (("--profile", "cpu-4gb"), "edge", "nf4"),
        (("--profile", "orin-nano-8gb", "--budget", "64MiB"), "edge-limited-memory", "nf4-dq"),
        (("--profile", "orin-nano-8gb", "--budget", "16MiB"), "extreme-constraints", "fp4-dq"),
        (("--profile", "orin-nano-8gb", "--purpose", "research"), "research", "nf4"),
        (("--profile", "orin-nano-8gb", "--method", "int8"), "edge", "int8"),
    ],
)
def test_every_row_of_the_guide_is_some_question(
    checkpoint: str, more: tuple[str, ...], scenario: str, method: str
) -> None:
    decision = record(checkpoint, *more)["decision"]
    assert (decision["scenario"], decision["method"]) == (scenario, method)


def test_what_does_not_fit_is_refused_with_numbers_and_a_status(checkpoint: str) -> None:
    result = call(checkpoint, "--profile", "orin-nano-8gb", "--budget", "1MiB")
    assert result.exit_code == 1
    assert "Nothing was built: fp4-dq needs 11.5 MiB, budget 1.0 MiB" in result.stdout


def test_a_url_is_fetched_for_the_moment(checkpoint: str) -> None:
    with serve(Path(checkpoint).read_bytes()) as files:
        told = record(files.url, "--profile", "t4")
    assert told["checkpoint"]["model_type"] == "cnn"
    assert len(files.requests) == 1
    assert record(Path(checkpoint).as_uri(), "--profile", "t4")["checkpoint"]["model_type"] == "cnn"


def test_a_matrix_of_ones_own_is_followed_and_its_errors_are_named(checkpoint: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[[row]]\nscenario = "ours"\nmethods = ["int8"]\nrationale = "because"\n')
    decision = record(checkpoint, "--profile", "t4", "--matrix", str(mine), "--matrix-only")["decision"]
    assert (decision["scenario"], decision["method"], decision["fallbacks"]) == ("ours", "int8", [])
    mine.write_text('[[row]]\nscenario = "ours"\nmethods = ["int3"]\nrationale = "because"\n')
    result = call(checkpoint, "--profile", "t4", "--matrix", str(mine))
    assert result.exit_code == 1
    assert "mine.toml: line 3, row 1 'ours', key methods: unknown method 'int3'" in result.stderr


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--profile", "orin-nano"), "no profile 'orin-nano'; did you mean orin-nano-"),
        (("--profile", "nowhere/x.toml"), "no profile 'nowhere/x.toml'"),
        (("--budget", "lots"), "--budget 'lots' is no size; write it as 512MiB"),
        (("--reserve", "-1"), "--reserve"),
    ],
)
def test_a_wrong_argument_ends_with_a_sentence(checkpoint: str, more: tuple[str, ...], told: str) -> None:
    result = call(checkpoint, *more)
    assert result.exit_code in (1, 2)
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_all_profiles_are_named_by_list_and_can_be_read() -> None:
    told = call("--profile", "list")
    assert told.exit_code == 0
    assert [line.split()[0] for line in told.stdout.splitlines()] == profiles.names()
    assert len(profiles.names()) == len(list((CONFIGS / "profiles").glob("*.toml")))
    for name in profiles.names():
        budget = profiles.load(name).budget(0, None)
        assert 0 < budget.available_bytes < budget.total_bytes
        assert (budget.capability is not None) == budget.has_gpu


def test_a_profile_with_a_wrong_key_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('schema = 1\ntitle = "t"\ngpu = "huge"\ntotal = "1GiB"\nsystem = "1MiB"\n')
    with pytest.raises(ProfileError, match=r"mine\.toml: gpu: "):
        profiles.load(str(path))
    path.write_text("schema = ")
    with pytest.raises(ProfileError, match=r"mine\.toml: "):
        profiles.load(str(path))
