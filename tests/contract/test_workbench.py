"""``nibbled quantize`` and ``compare`` as people call them, with the real builder and the real checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from agent.cli import main
from agent.planning.gate import Thresholds
from agent.workbench import builds
from agent.workbench.compare import keeps, lines
from agent.workbench.report import agreement, render, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("torch")

TRAINED_RNN = Path(__file__).parents[1] / "data" / "trained_rnn"


@pytest.fixture(scope="module", autouse=True)
def proved_once() -> Iterator[None]:
    """Prove the methods of this machine for the first test that asks: they are the same for the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builds, "_self_test", cache(builds._self_test))
        yield


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
    assert len(sidecar["skipped"]) == sidecar["skipped_count"] > len(told["skipped"]) == 20


def test_auto_says_which_method_it_took_and_why(kanji: Path, tmp_path: Path) -> None:
    data = ("--model-path", str(kanji / "checkpoint_best.pt"), "--eval", str(kanji / "evaluation.safetensors"))
    result = call("quantize", *data, "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "auto: edge" in result.stderr
    assert (tmp_path / "cnn_4bit_NF4.safetensors").exists()


def test_auto_climbs_while_the_gate_refuses_and_keeps_only_what_passed(kanji: Path, tmp_path: Path) -> None:
    checkpoint, demanded = str(kanji / "checkpoint_best.pt"), ("--min-agreement", "1", "--rows", "128")
    result = call("quantize", "--model-path", checkpoint, *demanded, "--output", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["gate"]["rows"] == 128
    assert told["gate"]["agreement"] == 1
    assert told["complaints"] == []
    assert told["overruled"][0].startswith("nf4: agreement 0.")
    assert all(refusal in result.stderr for refusal in told["overruled"])
    assert told["method"] in ("int8", "fp16")
    assert {path.stem for path in tmp_path.iterdir()} == {f"cnn_{told['method']}"}


def quantize_rnn(output: Path, *more: str) -> Any:
    """Mix the methods of a trained rnn whose answers 4 bits change too often."""
    data = ("--model-path", str(TRAINED_RNN / "rnn.pt"), "--eval", str(TRAINED_RNN / "rnn.safetensors"))
    return call("quantize", "--method", "mixed", *data, "--rows", "416", "--output", str(output), *more)


def test_mixed_writes_one_artifact_and_says_what_it_raised(tmp_path: Path) -> None:
    result = quantize_rnn(tmp_path, "--strict")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rnn_mixed.json", "rnn_mixed.safetensors"]
    raised = [line.split() for line in result.stdout.splitlines() if line.startswith("raised")]
    table = json.loads((tmp_path / "rnn_mixed.json").read_text())["mixed"]["table"]
    assert {words[1]: words[3] for words in raised} == {name: to for name, to in table.items() if to != "nf4"}
    assert result.stdout.splitlines()[-1].startswith("trials")


def test_the_budget_and_the_base_of_a_mix_are_kept(tmp_path: Path) -> None:
    result = quantize_rnn(tmp_path, "--double-quant", "--budget-bytes", "105000", "--json")
    told = json.loads(result.stdout)
    assert told["mixed"]["base"] == "nf4-dq"
    assert told["resident_bytes"] <= told["mixed"]["budget_bytes"] == 105000
    assert told["complaints"]
    assert "within the budget of 105000 bytes" in told["mixed"]["notes"][0]


def test_the_thresholds_of_the_command_line_reach_the_search(tmp_path: Path) -> None:
    told = json.loads(quantize_rnn(tmp_path, "--min-agreement", "0.99", "--json").stdout)
    assert told["gate"]["agreement"] >= 0.99
    assert told["complaints"] == []


def test_a_comparison_has_a_row_for_mixed_if_it_is_asked_for(tmp_path: Path) -> None:
    data = ("--model-path", str(TRAINED_RNN / "rnn.pt"), "--eval", str(TRAINED_RNN / "rnn.safetensors"))
    result = call("compare", *data, "--methods", "nf4,mixed,int8", "--output", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    nf4, mixed, int8 = json.loads(result.stdout)["rows"]
    assert nf4["bits_per_weight"] < mixed["bits_per_weight"] < int8["bits_per_weight"]
    assert nf4["resident_bytes"] < mixed["resident_bytes"] < int8["resident_bytes"]
    assert "<td>mixed</td>" in (tmp_path / "compare.html").read_text()


def test_a_named_method_that_the_gate_refuses_is_written_with_a_warning(kanji: Path, tmp_path: Path) -> None:
    result = refused(kanji, tmp_path)
    assert result.exit_code == 0, result.output
    assert "warning: the gate refuses nf4: agreement 0." in result.stderr
    assert (tmp_path / "cnn_4bit_NF4.safetensors").exists()


def test_under_strict_a_refused_method_is_an_error_and_nothing_is_written(kanji: Path, tmp_path: Path) -> None:
    result = refused(kanji, tmp_path, "--strict")
    assert result.exit_code == 1
    assert "nibbled: gate_failed: nf4: agreement 0." in result.stderr
    assert list(tmp_path.iterdir()) == []


def refused(kanji: Path, output: Path, *more: str) -> Any:
    """Quantize by a method that cannot give every answer to noise unchanged, and demand that it does."""
    checkpoint, demanded = str(kanji / "checkpoint_best.pt"), ("--min-agreement", "1", "--rows", "128")
    return call("quantize", "--model-path", checkpoint, "--method", "nf4", *demanded, "--output", str(output), *more)


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
    assert nf4["resident_bytes"] < int8["resident_bytes"] < nf4["source_tensor_bytes"]
    assert table["auto"]["keeps"] == "nf4"
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:3]] == [["→", "nf4"], ["int8", "1.0"]]
    page = (tmp_path / "compare.html").read_text()
    assert page.count("class='kept'") == 4
    assert page.count("<svg") == 3
    assert "<script" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "compare.json"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("compare", "--methods", "nf4,nf5"), "nf4-dq"),
        (("quantize", "--method", "nf5"), "nf4-dq"),
        (("quantize", "--method", "int8", "--double-quant"), "int8 has none"),
        (("quantize", "--method", "nf4", "--budget-bytes", "1000"), "nf4 has none"),
        (("quantize", "--blocksize", "63"), "64"),
        (("quantize", "--rows", "0"), "--rows"),
        (("quantize", "--min-agreement", "95"), "--min-agreement"),
    ],
)
def test_a_wrong_argument_is_a_usage_error_that_names_what_is_right(
    arguments: tuple[str, ...], told: str, kanji: Path
) -> None:
    result = call(*arguments, "--model-path", str(kanji / "checkpoint_best.pt"))
    assert result.exit_code == 2
    assert told in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "quantize --model-path {checkpoint} --method nf4 --output {bad}",
        "compare --model-path {checkpoint} --output {bad}",
        "export {checkpoint} --output {bad}/model.onnx",
        "demo --state-dir {bad}",
    ],
)
def test_a_place_that_cannot_be_written_to_is_named_in_one_line(command: str, kanji: Path, tmp_path: Path) -> None:
    bad = tmp_path / "file" / "out"
    bad.parent.touch()
    words = command.format(checkpoint=kanji / "checkpoint_best.pt", bad=bad).split(" ")
    done = subprocess.run([sys.executable, "-m", "agent", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"nibbled: {bad}: Not a directory"
    assert "Traceback" not in done.stderr


def test_evaluation_data_of_another_format_ends_with_a_sentence_and_leaves_nothing(kanji: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "notes.txt", tmp_path / "out"
    data.write_text("hello, I am no safetensors file")
    arguments = ("--method", "nf4", "--eval", str(data), "--output", str(output))
    result = call("quantize", "--model-path", str(kanji / "checkpoint_best.pt"), *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("nibbled: ")
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "meant"), [("nf4", "nf4-dq"), ("fp4", "fp4-dq"), ("nf4-dq", "nf4-dq"), ("int8", "int8")]
)
def test_double_quant_means_the_method_with_quantized_scales_where_there_are_any(method: str, meant: str) -> None:
    assert builds.double_quantized(method) == meant


def gate(share: float) -> dict[str, Any]:
    """Return a gate with an agreement of ``share``; as far as it is judged and shown."""
    latency = {"p50": 1.0, "p99": 2.0}
    return {
        "rows": 200, "inputs": "dataset", "agreement": share, "cosine": None, "non_finite": 0,
        "accuracy": None, "accuracy_source": None, "latency_ms": latency, "source_latency_ms": latency,
    }  # fmt: skip


def row(method: str, share: float) -> dict[str, Any]:
    return {"method": method, "gate": gate(share), "resident_bytes": 1}


@pytest.mark.parametrize(
    ("fallbacks", "kept", "overruled"),
    [
        (("int8", "fp16"), "int8", ["nf4: agreement 0.5000"]),
        ((), None, ["nf4: agreement 0.5000"]),
        (("fp16",), None, ["fp16: not measured"]),
    ],
)
def test_a_comparison_marks_what_auto_would_keep_if_all_that_it_needs_was_measured(
    fallbacks: tuple[str, ...], kept: str | None, overruled: list[str]
) -> None:
    rows = {"nf4": row("nf4", 0.5), "int8": row("int8", 0.99), "fp16": {"method": "fp16", "error": ""}}
    decision = {"method": "nf4", "fallbacks": fallbacks, "alternatives": (), "reason": "why"}
    found, told = keeps(decision, rows.get, Thresholds())
    assert found == kept
    assert [each[: len(start)] for each, start in zip(told, overruled, strict=True)] == overruled


def test_a_comparison_marks_what_overrules_the_matrix_and_says_so_where_nothing_fits() -> None:
    rows = {"fp4": row("fp4", 0.96), "nf4": row("nf4", 1.0)}
    decision = {"method": "fp4", "fallbacks": (), "alternatives": ("nf4",), "reason": "why"}
    assert keeps(decision, rows.get, Thresholds())[0] == "nf4"
    assert keeps({"method": None, "reason": "too large"}, rows.get, Thresholds()) == (None, ["too large"])


def test_the_agreement_of_an_embedding_is_said_to_be_that_of_neighbours() -> None:
    assert agreement(gate(0.975)) == "97.50 %"
    assert agreement({**gate(0.975), "answer": "embedding"}) == "97.50 % of nearest neighbours kept"
    assert agreement({**gate(0.0), "answer": "embedding", "agreement": None}) == "not told by fewer than 3 rows"


def test_names_cannot_become_markup_and_a_failed_method_keeps_its_row() -> None:
    figures = {"bits_per_weight": 4.5, "artifact_bytes": 1, "resident_bytes": 1, "source_tensor_bytes": 4}
    table = {
        "model_path": "<script>alert(1)</script>.pt",
        "model_type": "cnn",
        "machine": {"system": "Linux", "processor": "x86_64", "device": "auto"},
        "auto": {"keeps": None, "reason": "nf4 needs <i>more</i>", "overruled": []},
        "rows": [
            {"method": "nf4", "error": "build_killed: <b>gone</b>"},
            {"method": "int8", "gate": gate(0.5), **figures},
        ],
    }
    page = render(table)
    assert "<script>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;gone" in page
    assert "not finite" in page
    told = lines(table)
    assert "build_killed" in told[1]
    assert told[-1].startswith("auto keeps none here: nf4 needs")


def test_a_gpu_that_is_not_there_is_said_in_a_sentence(kanji: Path, tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - a machine with a GPU has nothing to say

    if torch.cuda.is_available():
        pytest.skip("a CUDA device answers here")
    options = ("--method", "nf4", "--device", "cuda", "--output", str(tmp_path))
    result = call("quantize", "--model-path", str(kanji / "checkpoint_best.pt"), *options)
    assert result.exit_code == 1
    assert "nibbled: unsupported" in result.stderr
    assert "no CUDA device answers" in result.stderr


def test_what_overruled_the_plan_comes_before_the_plan_in_the_verdict() -> None:
    auto = {"keeps": "mixed", "planned": "nf4", "reason": "edge: it fits", "overruled": ["nf4: agreement 0.9"]}
    assert verdict({"auto": auto}) == "auto keeps mixed here: nf4: agreement 0.9; the plan was nf4: edge: it fits"
    assert verdict({"auto": {**auto, "overruled": []}}) == "auto keeps mixed here: edge: it fits"


def test_compare_measures_nothing_where_it_cannot_write(
    kanji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(builds, "decide", lambda *given: measured.append(given))
    (tmp_path / "file").touch()
    given = ("--model-path", str(kanji / "checkpoint_best.pt"), "--output", str(tmp_path / "file" / "out"))
    assert call("compare", *given).exit_code != 0
    assert not measured
