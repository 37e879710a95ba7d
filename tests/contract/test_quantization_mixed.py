"""``mixed`` finds the tensors that need more bits, spends no byte on the others, and its artifacts cannot lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import agent
from agent import architectures
from agent.architectures import ModelType, Reading, TensorSpec, registry
from agent.planning import mix
from agent.planning.gate import Thresholds, judge
from agent.planning.methods import METHODS
from agent.quantization import artifact, gate, jobs, mixing, modules, packed, sensitivity, trial
from agent.quantization.artifact import ArtifactError
from agent.quantization.assignment import Scheme
from agent.quantization.checkpoint import open_checkpoint
from agent.quantization.errors import InsufficientMemoryError, UnsupportedMethodError
from agent.quantization.packed import PackedTensor
from agent.quantization.swap import pack_layers
from agent.serving import network

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 64
LAYERS = ("entry.weight", "middle.weight", "exit.weight")
NF4, INT8, FP16 = METHODS["nf4"], METHODS["int8"], METHODS["fp16"]
BASE_BYTES, INT8_BYTES = (len(LAYERS) * method.tensor_bytes(WIDTH * WIDTH) + 3 * 4 * WIDTH for method in (NF4, INT8))
TO_INT8, TO_FP16 = (
    high.tensor_bytes(WIDTH * WIDTH) - low.tensor_bytes(WIDTH * WIDTH) for low, high in ((NF4, INT8), (INT8, FP16))
)
CLEAR, BLINDING = 6.0, 300.0
"""Outliers: next to the first 4 bits lose the other weights of a block, next to the second 8 bits do too."""


class Three(nn.Module):
    """Three square layers; the first feature is zero all the way if the data says so."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.entry = nn.Linear(WIDTH, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.exit = nn.Linear(WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.exit(torch.relu(self.middle(torch.relu(self.entry(x)))))
        return logits


THREE = ModelType(
    name="three",
    build=lambda num_classes, **_options: Three(num_classes),
    classifier_key="exit.weight",
    matches=lambda shapes: "middle.weight" in shapes,
    read=lambda _shapes, _sidecar: Reading({}),
    inputs=lambda _options: (TensorSpec("input", "FP32", (-1, WIDTH)),),
    synthetic_inputs=lambda _options, rows, generator: {
        "input": torch.from_numpy(generator.random((rows, WIDTH), dtype="float32"))
    },
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, THREE.name: THREE})
    monkeypatch.setattr(gate, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(gate, "LATENCY_CALLS", 1)


def network_with(outliers: dict[str, float]) -> nn.Module:
    """Return a network of permutations, which every method stores without loss, and of layers that none does.

    The named layers get random weights and, where the feature is always zero, an outlier a row: whoever stores them
    coarsely loses the other weights of the row.
    """
    model = Three(WIDTH)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_()
            if parameter.dim() == 2:
                parameter.copy_(torch.eye(WIDTH)[torch.cat([torch.zeros(1).long(), 1 + torch.randperm(WIDTH - 1)])])
            if name in outliers:
                parameter.normal_()
                parameter[0] = 0.0
                parameter[:, 0] = outliers[name]
    return model


def job(folder: Path, model: nn.Module, method: str = "mixed", **mixed: Any) -> dict[str, Any]:
    torch.save(model.state_dict(), folder / "source")
    inputs = torch.randn(400, WIDTH).abs()
    inputs[:, 0] = 0.0
    save_file({"inputs": inputs}, folder / "data")
    return {
        "job": "build",
        "checkpoint": str(folder / "source"),
        "method": method,
        "output_dir": str(folder / method),
        "gate": {"dataset": str(folder / "data"), "rows": 400},
        "mixed": {"base": "nf4", **mixed},
    }


def built(folder: Path, model: nn.Module, method: str = "mixed", **mixed: Any) -> dict[str, Any]:
    return jobs.run(job(folder, model, method, **mixed), lambda _event: None)


def is_accepted(result: dict[str, Any]) -> bool:
    return not judge(result["gate"], Thresholds())


@pytest.mark.parametrize("sensitive", LAYERS)
def test_exactly_the_tensor_that_needs_it_gets_int8(sensitive: str, tmp_path: Path) -> None:
    model = network_with({sensitive: CLEAR})
    assert not is_accepted(built(tmp_path, model, "nf4"))
    result = built(tmp_path, model)
    assert is_accepted(result)
    assert result["method"] == "mixed"
    assert result["artifact"].endswith("three_mixed.safetensors")
    assert result["mixed"]["tensors"] == {sensitive: "int8"}
    assert result["mixed"]["counts"] == {"nf4": 2, "int8": 1}
    assert result["resident_bytes"] == BASE_BYTES + TO_INT8
    assert sum(result["mixed"]["bytes"].values()) == result["resident_bytes"] - 3 * 4 * WIDTH


def test_where_int8_is_not_enough_the_tensor_gets_fp16(tmp_path: Path) -> None:
    result = built(tmp_path, network_with({"middle.weight": BLINDING}))
    assert is_accepted(result)
    assert result["mixed"]["tensors"] == {"middle.weight": "fp16"}
    assert result["resident_bytes"] == BASE_BYTES + TO_INT8 + TO_FP16 < INT8_BYTES


def test_two_tensors_are_found_among_three_in_the_order_of_what_they_save(tmp_path: Path) -> None:
    result = built(tmp_path, network_with({"entry.weight": CLEAR, "exit.weight": CLEAR}))
    assert result["mixed"]["tensors"] == {"entry.weight": "int8", "exit.weight": "int8"}
    record = artifact.load_sidecar(result["artifact"])["mixed"]
    measured = {item["tensors"][0]: item for item in record["sensitivity"]}
    assert measured["middle.weight"]["base"] < 1e-6 < measured["entry.weight"]["int8"]
    assert all(measured[name]["base"] > 10 * measured[name]["int8"] for name in result["mixed"]["tensors"])


def test_where_the_base_passes_nothing_is_measured_or_raised(tmp_path: Path) -> None:
    result = built(tmp_path, network_with({}))
    assert result["mixed"]["tensors"] == {}
    assert result["mixed"]["rows"] == 0
    assert [item["upgraded"] for item in result["mixed"]["trials"]] == [0]
    assert "nf4 alone passes" in result["mixed"]["notes"][0]
    assert result["resident_bytes"] == BASE_BYTES


@pytest.mark.parametrize("budget", [BASE_BYTES, BASE_BYTES + TO_INT8 - 1])
def test_a_budget_too_small_for_any_upgrade_leaves_the_base_and_says_so(budget: int, tmp_path: Path) -> None:
    result = built(tmp_path, network_with({"middle.weight": CLEAR}), budget_bytes=budget)
    assert result["resident_bytes"] == BASE_BYTES
    assert not is_accepted(result)
    assert result["mixed"]["rows"] == 0
    assert f"within the budget of {budget} bytes" in result["mixed"]["notes"][0]
    assert agent.load(result["artifact"], "cpu")(torch.rand(2, WIDTH)).shape == (2, WIDTH)


@pytest.mark.parametrize("upgrades", [1, 2])
def test_a_budget_is_kept_to_the_byte_and_the_best_that_fits_is_written(upgrades: int, tmp_path: Path) -> None:
    model = network_with(dict.fromkeys(LAYERS, CLEAR))
    budget = BASE_BYTES + upgrades * TO_INT8
    result = built(tmp_path, model, budget_bytes=budget)
    assert not is_accepted(result)
    assert result["resident_bytes"] == budget == modules.resident_bytes(agent.load(result["artifact"], "cpu"))
    assert len(result["mixed"]["tensors"]) == upgrades
    assert result["gate"]["agreement"] == max(item["agreement"] for item in result["mixed"]["trials"])


def test_a_budget_below_the_base_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(InsufficientMemoryError, match=f"{BASE_BYTES} bytes, {BASE_BYTES - 1} are allowed"):
        built(tmp_path, network_with({}), budget_bytes=BASE_BYTES - 1)


def test_a_mix_is_never_larger_than_int8_and_says_that_int8_is_the_same(tmp_path: Path) -> None:
    result = built(tmp_path, network_with(dict.fromkeys(LAYERS, 2.0)))
    assert is_accepted(result)
    assert set(result["mixed"]["counts"]) == {"int8"}
    assert result["resident_bytes"] == INT8_BYTES
    assert "uniform int8 is the same" in result["mixed"]["notes"][0]


def test_where_nothing_up_to_int8_passes_the_record_points_beyond_it(tmp_path: Path) -> None:
    result = built(tmp_path, network_with(dict.fromkeys(LAYERS, BLINDING)))
    assert not is_accepted(result)
    assert result["resident_bytes"] <= INT8_BYTES
    assert "int8 or fp16 is the better answer" in result["mixed"]["notes"][0]


@pytest.mark.parametrize("base", ["nf4", "nf4-dq", "fp4", "fp4-dq"])
def test_a_mix_starts_from_any_4_bit_method_and_comes_back_bit_for_bit(base: str, tmp_path: Path) -> None:
    model = network_with({"middle.weight": CLEAR})
    result = built(tmp_path, model, base=base)
    assert result["mixed"]["tensors"] == {"middle.weight": "int8"}
    loaded = agent.load(result["artifact"], "cpu")
    stored = {key: value for key, value in load_file(result["artifact"]).items() if not key.startswith("nibbled.")}
    state = loaded.state_dict()
    assert set(state) == set(stored)
    assert all(torch.equal(state[key], value) and state[key].dtype == value.dtype for key, value in stored.items())
    for name in LAYERS:
        holder = loaded.get_submodule(name)
        assert isinstance(holder, PackedTensor)
        assert holder.method.name == ("int8" if name == "middle.weight" else base)
        wanted = packed.pack(model.state_dict()[name], holder.method, 64)
        assert all(torch.equal(state[f"{name}.{key}"], value) for key, value in wanted.items())


def test_two_builds_of_one_checkpoint_give_the_same_mix_and_file(tmp_path: Path) -> None:
    wanted = job(tmp_path, network_with({"exit.weight": CLEAR}))
    one, two = (jobs.run({**wanted, "output_dir": str(tmp_path / name)}, lambda _event: None) for name in "ab")
    assert Path(one["artifact"]).read_bytes() == Path(two["artifact"]).read_bytes()
    assert one["mixed"]["trials"] == two["mixed"]["trials"]


def test_only_artifact_sidecar_and_gate_file_are_left(tmp_path: Path) -> None:
    built(tmp_path, network_with({"exit.weight": CLEAR}))
    left = sorted(path.name for path in (tmp_path / "mixed").iterdir())
    assert left == ["gate.safetensors", "three_mixed.json", "three_mixed.safetensors"]


def test_progress_counts_runs_and_ends_where_it_said(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    jobs.run(job(tmp_path, network_with({"exit.weight": CLEAR})), events.append)
    assert {(event["unit"], event["total"]) for event in events} == {("runs", 2 * len(LAYERS) + mix.MAX_TRIALS)}
    done = [event["done"] for event in events]
    assert done == sorted(done)
    assert done[-1] == events[-1]["total"]


def test_very_many_tensors_are_measured_in_groups_and_the_record_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mix, "MAX_PARTS", 2)
    result = built(tmp_path, network_with({"exit.weight": CLEAR}))
    assert is_accepted(result)
    assert result["mixed"]["tensors"] == {"exit.weight": "int8"}
    assert "3 tensors are too many" in result["mixed"]["notes"][0]
    assert "2 groups" in result["mixed"]["notes"][0]


def test_thresholds_decide_how_much_is_raised(tmp_path: Path) -> None:
    wanted = job(tmp_path, network_with({"exit.weight": CLEAR}))
    wanted["gate"]["thresholds"] = {"min_agreement": 0.1, "max_accuracy_drop": 1.0}
    assert jobs.run(wanted, lambda _event: None)["mixed"]["tensors"] == {}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"mixed": {"base": "int8"}}, UnsupportedMethodError, "base 'int8'"),
        ({"mixed": {"budget_bytes": "1 GiB"}}, jobs.BadJobError, "'1 GiB'"),
        ({"mixed": {"budget_bytes": True}}, jobs.BadJobError, "True"),
        ({"gate": {"thresholds": {"min_agreemnt": 1}}}, jobs.BadJobError, "min_agreemnt"),
        ({"method": "mixd"}, UnsupportedMethodError, "mixd"),
    ],
)
def test_a_job_that_asks_for_what_there_is_not_is_refused(
    change: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        jobs.run({**job(tmp_path, network_with({})), **change}, lambda _event: None)


def change_record(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        sidecar = path.with_suffix(".json")
        content = json.loads(sidecar.read_text())
        change(content)
        sidecar.write_text(json.dumps(content))

    return rewrite


def other_weights(path: Path) -> None:
    """Put the weights of the uniform method under the sidecar of the mix."""
    path.write_bytes((path.parents[1] / "nf4" / "three_4bit_NF4.safetensors").read_bytes())


def two_codebooks(path: Path) -> None:
    tensors = load_file(path)
    save_file({**tensors, "nibbled.codebook.fp4": tensors["nibbled.codebook.nf4"].clone()}, path)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (change_record(lambda it: it["mixed"]["table"].update({"exit.weight": "nf4"})), "nf4 is said of 'exit.weight'"),
        (change_record(lambda it: it["mixed"]["table"].update({"entry.weight": "int8"})), "which is stored as nf4"),
        (change_record(lambda it: it["mixed"]["table"].update({"entry.weight": "nf4-dq"})), "which is stored as nf4"),
        (change_record(lambda it: it["mixed"]["table"].pop("exit.weight")), "'exit.weight', which is stored as int8"),
        (change_record(lambda it: it["mixed"]["table"].update({"none.weight": "nf4"})), "which is not packed"),
        (change_record(lambda it: it["mixed"]["table"].update({"exit.weight": "nf5"})), "nf5"),
        (change_record(lambda it: it["mixed"].update(base="fp4", table={})), "fp4 is said of"),
        (change_record(lambda it: it["mixed"].pop("table")), "no table"),
        (change_record(lambda it: it.pop("mixed")), "no table"),
        (change_record(lambda it: it.update(method="nf4")), "nf4 is said of 'exit.weight'"),
        (change_record(lambda it: it.update(method="fp32")), "fp32 is said of"),
        (change_record(lambda it: it.update(blocksize=128)), "of another shape"),
        (other_weights, "int8 is said of 'exit.weight', which is stored as nf4"),
        (two_codebooks, "nf4 and fp4"),
    ],
)
def test_a_table_that_lies_is_refused_with_the_tensor(lie: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    model = network_with({"exit.weight": CLEAR})
    built(tmp_path, model, "nf4")
    path = Path(built(tmp_path, model)["artifact"])
    agent.load(path, "cpu")
    lie(path)
    with pytest.raises(ArtifactError, match=said):
        agent.load(path, "cpu")


def test_the_server_loads_a_mix_as_it_loads_every_artifact(tmp_path: Path) -> None:
    result = built(tmp_path, network_with({"exit.weight": CLEAR}))
    loaded = network.load(Path(result["artifact"]), "cpu")
    assert loaded.method == "mixed"
    assert loaded.resident_bytes == result["resident_bytes"]
    loaded.warm_up(2)


@pytest.mark.parametrize("model_type", architectures.names())
def test_what_a_model_will_weigh_is_known_before_it_is_built(model_type: str, tmp_path: Path) -> None:
    torch.save(architectures.build(model_type, 40).state_dict(), tmp_path / "source")
    opened = open_checkpoint(tmp_path / "source")
    found = architectures.recognise(opened.shapes, hint=model_type)
    data = gate.evaluation(found, None, 1, 0)
    subject = trial.Subject(opened, found, data, 64, "cpu", {})
    sizes = mixing.weigh(subject, NF4)
    source = subject.run_source()
    for method, expected in ((NF4, sizes.base_bytes), (INT8, sizes.int8_bytes)):
        path = tmp_path / f"{method.name}.safetensors"
        trial.make(subject, path, Scheme.uniform(method), lambda _done, _total: None)
        assert trial.measure(subject, path, source)["resident_bytes"] == expected


class Recurrent(nn.Module):
    """An LSTM, which computes with flat copies of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.rnn(x)[0][:, -1]
        return outputs


def test_a_recurrent_layer_sees_a_rounded_weight_and_has_its_own_again_afterwards() -> None:
    model, inputs = Recurrent().eval().requires_grad_(requires_grad=False), {"input": torch.randn(8, 5, WIDTH)}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = gate.answers(model, inputs, chunk_rows=32)
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0"):
        with sensitivity.rounded(model, [name], NF4, 64):
            during = gate.answers(model, inputs, chunk_rows=32)
            assert not torch.equal(model.state_dict()[name], weights[name])
        assert float((during - before).abs().max()) > 1e-4
        assert torch.equal(gate.answers(model, inputs, chunk_rows=32), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_run_that_fails_leaves_the_source_s_weights_in_place() -> None:
    model = Recurrent()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), sensitivity.rounded(model, ["rnn.weight_hh_l0"], NF4, 64):
        raise RuntimeError("stop")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def tied() -> nn.ModuleDict:
    embedding, head = nn.Embedding(100, 128), nn.Linear(128, 100, bias=False)
    head.weight = embedding.weight
    return nn.ModuleDict({"embedding": embedding, "head": head})


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_a_tied_weight_is_raised_under_either_of_its_names(name: str) -> None:
    model = tied()
    twin = pack_layers(model, Scheme.mixed(NF4, {name: INT8}).assignment(model), 64)
    assert twin.get_submodule("head").weight is twin.get_submodule("embedding").weight
    assert twin.get_submodule("embedding.weight").method == INT8


def test_a_tied_weight_is_rounded_in_both_places() -> None:
    model = tied()
    with sensitivity.rounded(model, ["embedding.weight"], NF4, 64):
        assert model["head"].weight is model["embedding"].weight
    assert model["head"].weight is model["embedding"].weight


def test_losses_are_divergence_for_classes_and_distance_for_embeddings() -> None:
    source = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    other = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert sensitivity.loss(source, other, "embedding") == pytest.approx(0.5)
    assert sensitivity.loss(source, 3 * source, "embedding") == pytest.approx(0.0)
    assert (sensitivity.loss(source, 3 * source, "classes") or 0.0) > 0.1
    assert sensitivity.loss(source, source / 0, "classes") is None


def test_sensitivity_takes_few_rows_and_the_same_ones_each_time() -> None:
    inputs = {"input": torch.arange(1000.0).view(-1, 1)}
    data = gate.Evaluation(inputs, torch.arange(1000), "dataset", "classes")
    one, two = (sensitivity.sample(data, is_batchable=True) for _ in range(2))
    assert one.labels is not None
    assert one.rows == sensitivity.MAX_ROWS == 128
    assert torch.equal(one.inputs["input"], two.inputs["input"])
    assert torch.equal(one.inputs["input"].view(-1).long(), one.labels)
    assert int(one.labels.max()) > 900
    assert sensitivity.sample(data, is_batchable=False).rows == sensitivity.MAX_ROWS_ALONE
    assert sensitivity.sample(replace(data, labels=None), is_batchable=True).labels is None


TRAINED = Path(__file__).parents[1] / "data" / "trained_rnn"


def test_a_trained_rnn_that_4_bits_ruin_reaches_the_gate_between_nf4_and_int8(tmp_path: Path) -> None:
    wanted = {
        "job": "build",
        "checkpoint": str(TRAINED / "rnn.pt"),
        "gate": {"dataset": str(TRAINED / "rnn.safetensors"), "rows": 416},
    }
    nf4, mixed, int8 = (
        jobs.run({**wanted, "method": method, "output_dir": str(tmp_path / method)}, lambda _event: None)
        for method in ("nf4", "mixed", "int8")
    )
    assert [is_accepted(result) for result in (nf4, mixed, int8)] == [False, True, True]
    assert nf4["gate"]["agreement"] < 0.93
    assert mixed["gate"]["agreement"] >= 0.95
    for size in ("artifact_bytes", "resident_bytes"):
        assert nf4[size] < mixed[size] < (nf4[size] + int8[size]) / 2
    assert len(mixed["mixed"]["trials"]) <= 8
    assert agent.load(mixed["artifact"], "cpu")(load_file(TRAINED / "rnn.safetensors")["inputs"].float()).shape == (
        416,
        208,
    )
