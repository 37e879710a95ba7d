"""``nibbled quantize`` and ``compare`` as people call them, with the real builder and the real checkpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from agent.cli import main
from agent.workbench import builds
from agent.workbench.compare import lines
from agent.workbench.report import render

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")


def call(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments))


def test_the_guide_s_command_writes_the_files_that_the_guide_names(kanji: Path, tmp_path: Path) -> None:
    checkpoint, evaluation = str(kanji / "checkpoint_best.pt"), str(kanji / "evaluation.safetensors")

    result = call(
        *("quantize", "--model-path", checkpoint, "--model-type", "cnn", "--method", "nf4", "--double-quant"),
        *("--eval", evaluation, "--output", str(tmp_path), "--json"),
    )

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cnn_4bit_NF4_dq.json", "cnn_4bit_NF4_dq.safetensors"]
    assert told["artifact"] == str(tmp_path / "cnn_4bit_NF4_dq.safetensors")
    assert told["gate"]["inputs"] == "dataset"
    assert told["gate"]["agreement"] >= 0.95
    sidecar = json.loads((tmp_path / "cnn_4bit_NF4_dq.json").read_text())
    assert sidecar["double_quant"] is True


def test_auto_says_which_method_it_took_and_why(kanji: Path, tmp_path: Path) -> None:
    result = call("quantize", "--model-path", str(kanji / "checkpoint_best.pt"), "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "auto: edge" in result.stderr
    assert (tmp_path / "cnn_4bit_NF4.safetensors").exists()


def test_a_file_that_is_no_checkpoint_ends_with_its_code_and_leaves_nothing(tmp_path: Path) -> None:
    path, output = tmp_path / "notes.pt", tmp_path / "out"
    path.write_text("hello")
    result = call("quantize", "--model-path", str(path), "--method", "nf4", "--output", str(output))
    assert result.exit_code == 1
    assert "bad_checkpoint" in result.stderr
    assert list(output.iterdir()) == []


def test_a_comparison_measures_each_method_and_writes_table_and_page(kanji: Path, tmp_path: Path) -> None:
    checkpoint, evaluation = str(kanji / "checkpoint_best.pt"), str(kanji / "evaluation.safetensors")

    result = call(
        *("compare", "--model-path", checkpoint, "--eval", evaluation, "--methods", "nf4,int8"),
        *("--output", str(tmp_path)),
    )

    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "compare.json").read_text())
    nf4, int8 = table["rows"]
    assert (nf4["method"], int8["method"]) == ("nf4", "int8")
    assert nf4["resident_bytes"] < int8["resident_bytes"] < nf4["source_bytes"]
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<svg") == 3
    assert "<script" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "compare.json"]


def test_an_unknown_method_is_a_usage_error_that_names_the_known_ones(kanji: Path) -> None:
    result = call("compare", "--model-path", str(kanji / "checkpoint_best.pt"), "--methods", "nf4,nf5")
    assert result.exit_code == 2
    assert "nf4-dq" in result.stderr


@pytest.mark.parametrize(
    ("method", "double_quant", "meant"),
    [
        ("nf4", True, "nf4-dq"),
        ("fp4", True, "fp4-dq"),
        ("nf4-dq", True, "nf4-dq"),
        ("auto", True, "auto"),
        ("int8", False, "int8"),
    ],
)
def test_double_quant_and_method_mean_one_method_together(method: str, *, double_quant: bool, meant: str) -> None:
    assert builds.method_name(method, double_quant=double_quant) == meant


def test_double_quant_of_a_method_without_scales_to_quantize_is_refused() -> None:
    with pytest.raises(builds.WorkbenchError, match="int8 has none"):
        builds.method_name("int8", double_quant=True)


def test_names_cannot_become_markup_and_a_failed_method_keeps_its_row() -> None:
    table = {
        "model_path": "<script>alert(1)</script>.pt",
        "model_type": "cnn",
        "inputs": "dataset",
        "gate_rows": 1,
        "machine": {"system": "Linux", "processor": "x86_64", "device": None},
        "rows": [{"method": "nf4", "error": "build_killed: <b>gone</b>"}],
    }
    page = render(table)
    assert "<script>" not in page
    assert "&lt;b&gt;gone" in page
    assert "build_killed" in lines(table)[1]
