"""What trains the models of the accuracy table writes what a build job takes; absent files are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agent import architectures
from agent.architectures import preprocess
from agent.planning.gate import Thresholds
from agent.quantization.checkpoint import open_checkpoint
from deploy.bench import accuracy, halves, train_kanji
from deploy.demo.bundle import Evaluation
from deploy.demo.learning import Score

CLASSES = 5


def drawings() -> Evaluation:
    inputs = torch.rand(CLASSES, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    return Evaluation(inputs.half(), torch.arange(CLASSES))


def network(model_type: str) -> torch.nn.Module:
    return architectures.build(model_type, CLASSES, **train_kanji.PLANS[model_type].options)


@pytest.mark.parametrize("model_type", sorted(train_kanji.PLANS))
def test_what_is_written_is_recognised_and_fed_as_it_was_trained(model_type: str, tmp_path: Path) -> None:
    trained = network(model_type).eval()
    checkpoint = train_kanji.write(tmp_path, model_type, trained, Score(1.0, 0.5), drawings())
    found = architectures.recognise(open_checkpoint(checkpoint).shapes)
    assert found.model_type == model_type
    inputs = load_file(tmp_path / f"{model_type}.safetensors")["inputs"].float()
    again = architectures.build(model_type, CLASSES, **found.options).eval()
    again.load_state_dict(trained.state_dict())
    with torch.inference_mode():
        trained_on = train_kanji.prepare(model_type, network(model_type)).eval()
        trained_on.load_state_dict(
            {f"1.{key}" if model_type == "rnn" else key: value for key, value in trained.state_dict().items()}
        )
        torch.testing.assert_close(again(inputs), trained_on(drawings().inputs.float()), rtol=1e-3, atol=1e-3)


def test_what_is_written_stays_out_of_the_repository(tmp_path: Path) -> None:
    train_kanji.write(tmp_path, "rnn", network("rnn"), Score(1.0, 0.5), drawings())
    assert (tmp_path / ".gitignore").read_text(encoding="ascii") == "*\n"


def test_a_step_of_the_rnn_is_a_row_of_the_grid() -> None:
    images = drawings().inputs.float()
    cells = torch.from_numpy(preprocess.cell_statistics(images.squeeze(1).numpy()))
    features = train_kanji.cell_features(images)
    assert features.shape == (CLASSES, 8, 32)
    assert torch.equal(features[:, 3, :4], cells[:, 24])


def test_the_forget_gates_start_open() -> None:
    rnn = network("rnn")
    train_kanji.prepare("rnn", rnn)
    bias = rnn.get_parameter("rnn.bias_ih_l0")
    hidden = len(bias) // 4
    assert (bias[hidden : 2 * hidden] == 1).all()
    assert (bias[:hidden] != 1).all()


def test_a_model_that_was_not_trained_yet_is_asked_for(tmp_path: Path) -> None:
    subject = accuracy.Subject("vit", tmp_path / "vit.pt", tmp_path / "vit.safetensors")
    with pytest.raises(accuracy.MissingModelError, match=r"python -m deploy\.bench\.train_kanji vit"):
        subject.require()


def line(agreement: float, *, is_kept: bool, method: str = "fp16", resident_bytes: int = 900) -> accuracy.Line:
    times = {"p50": 1.0, "p99": 2.0}
    gate = {
        "rows": 416,
        "agreement": agreement,
        "cosine": 0.99,
        "accuracy": 0.9,
        "accuracy_source": 0.9,
        "non_finite": 0,
        "latency_ms": times,
        "source_latency_ms": times,
    }
    return accuracy.Line("vit", method, is_kept, gate, 1000, resident_bytes, 4.5)


def test_a_method_below_the_gates_agreement_is_shown_as_refused_and_the_kept_one_is_named_first() -> None:
    least = Thresholds().min_agreement
    text = accuracy.part([line(least, is_kept=True), line(least - 0.01, is_kept=False)], threads=1)
    rows = [row for row in text.splitlines() if row.startswith("| vit")]
    assert [row.split(" | ")[-1] for row in rows] == ["passes |", "refuses |"]
    assert "`vit` fp16, 95.00%" in text.splitlines()[0]
    assert "nf4 is refused nowhere" in text.splitlines()[0]


def test_a_model_for_which_no_method_passes_is_said_first() -> None:
    text = accuracy.part([line(0.5, is_kept=False)], threads=1)
    assert "`vit` none, missed" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("agreement", "resident_bytes", "missed"), [(0.96, 150, []), (0.94, 150, ["vit"]), (0.96, 200, ["vit"])]
)
def test_where_nf4_is_refused_mixed_has_to_pass_between_nf4_and_int8(
    agreement: float, resident_bytes: int, missed: list[str]
) -> None:
    lines = [
        line(0.9, is_kept=False, method="nf4", resident_bytes=100),
        line(agreement, is_kept=True, method="mixed", resident_bytes=resident_bytes),
        line(1.0, is_kept=False, method="int8", resident_bytes=200),
    ]
    assert accuracy.missed_by_mixed(lines) == missed
    told = accuracy.part(lines, threads=1).splitlines()[0]
    assert f"`vit` 100 < {resident_bytes} < 200 resident bytes, {agreement:.2%}" in told
    assert told.count("missed") == len(missed)


def test_a_fixture_has_half_floats_and_is_recognised_all_the_same(tmp_path: Path) -> None:
    trained = network("rnn").eval()
    checkpoint = train_kanji.write(tmp_path, "rnn", trained, Score(1.0, 0.5), drawings(), is_half=True)
    opened = open_checkpoint(checkpoint)
    assert {entry.dtype for entry in opened.entries.values()} == {torch.float16}
    assert architectures.recognise(opened.shapes).model_type == "rnn"
    assert load_file(tmp_path / "rnn.safetensors")["inputs"].dtype == torch.float16
    assert {value.dtype for value in trained.state_dict().values()} == {torch.float32}


def test_a_mix_is_also_judged_by_drawings_that_did_not_choose_it() -> None:
    folder = Path(__file__).parents[1] / "data" / "trained_rnn"
    measured = halves.measure("rnn", folder / "rnn.pt", folder / "rnn.safetensors", splits=2)
    assert 0.95 <= measured.chosen_on < 1.0
    assert 0.85 < measured.held_out < 1.0
    told = accuracy.part([line(1.0, is_kept=True)], threads=1, held_out={"rnn": measured})
    assert f"`rnn` {measured.chosen_on:.2%}, then {measured.held_out:.2%}." in told
