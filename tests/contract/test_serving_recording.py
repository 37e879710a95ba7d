"""Forward passes as recorded graphs: used where nothing speaks against it, and never with other answers."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from agent import architectures
from agent.serving import recording
from agent.serving.network import TorchNetwork
from agent.serving.recording import RECORD_BELOW_S, record
from agent.serving.residency import Wish
from tests.contract.test_serving_residency import ROOM, served

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEC = {"datatype": "FP32", "shape": [-1, 4]}


def inputs(rows: int) -> list[torch.Tensor]:
    return [torch.from_numpy(np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32))]


class Made(nn.Module):
    """Answers by a function of its input."""

    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.layer = nn.Linear(4, 4)

    def forward(self, given: torch.Tensor) -> Any:
        return self.answer(self.layer(given))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(torch.relu, id="a tensor"),
        pytest.param(lambda given: (given, given.sum(1)), id="two"),
        pytest.param(lambda given: {"one": given, "two": given[:, :2]}, id="a mapping"),
        pytest.param(lambda given: given.reshape(given.shape[0], 2, 2), id="by its number of rows"),
    ],
)
def test_what_a_graph_can_hold_is_recorded(answer: Callable[[torch.Tensor], Any]) -> None:
    module = Made(answer).eval()
    graph, reason = record(module, inputs, row_s=0.001)
    assert graph is not module
    assert reason == "recorded: it answers alike"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            lambda given: given if given.sum() > 0 else -given,
            "cannot be recorded: Converting a tensor to a Python bool",
        ),
        (lambda given: given * int(given.shape[0]), "cannot be recorded: Converting a tensor to a Python integer"),
        (lambda given: given * float(given.detach().numpy()[0, 0]), "cannot be recorded"),
        (lambda given: given + np.random.default_rng().random(), "as recorded it answers otherwise"),
        (lambda given: given + torch.rand(()), "as recorded it answers otherwise"),
        (lambda _given: [], "as recorded it answers otherwise"),
    ],
    ids=["control flow", "a size", "numpy", "a constant", "chance", "nothing"],
)
def test_what_depends_on_more_than_tensors_goes_on_as_it_is(answer: Callable[[torch.Tensor], Any], says: str) -> None:
    module = Made(answer).eval()
    found, reason = record(module, inputs, row_s=0.001)
    assert found is module
    assert reason.startswith(says) or (says.endswith("otherwise") and reason.startswith("cannot be recorded"))


def test_slow_passes_are_left_alone() -> None:
    module = Made(torch.relu).eval()
    found, reason = record(module, inputs, row_s=RECORD_BELOW_S * 1.5)
    assert (found, reason) == (module, "a row takes 30 ms, beside which the lock is nothing")


def test_a_recorded_pass_leaves_the_interpreter_to_others() -> None:
    class Long(nn.Module):
        """Computes for a while in operators that are many and small."""

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            for _ in range(2000):
                given = given + 1
            return given

    module = Long().eval()
    graph, _ = record(module, inputs, row_s=0.001)
    entered: list[str] = []
    given = inputs(1)

    def compute() -> None:
        # The hooks of the interpreter see every Python function that is called: a graph calls none.
        sys.setprofile(lambda _frame, event, _argument: entered.append(event) if event == "c_call" else None)
        graph(*given)
        sys.setprofile(None)

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert len(entered) < 100, "as a module it calls two thousand"


@pytest.mark.parametrize(
    ("model_type", "method"), [("cnn", "fp32"), ("cnn", "nf4"), ("vit", "fp16"), ("hiercode", "fp32")]
)
def test_tuned_networks_answer_as_before(model_type: str, method: str, tmp_path: Path) -> None:
    network = served(tmp_path, model_type, method)
    examples = architectures.synthetic_inputs(model_type, {}, 5, 1)
    arrays = [examples[spec.name].numpy() for spec in network.inputs]
    before = network.run(arrays)
    found = network.tune(4)
    assert found.joined_rows in {1, 2, 4}
    for tuned, plain in zip(network.run(arrays), before, strict=True):
        np.testing.assert_allclose(tuned, plain, rtol=1e-4, atol=1e-5)


def test_weights_that_change_their_place_end_what_was_recorded_of_them(tmp_path: Path) -> None:
    network = served(tmp_path, "cnn", "nf4")
    network.reside(Wish("unpacked", ROOM))
    assert network.tune(4).is_recorded
    graph = network._forward
    network.reside(Wish("packed"))
    assert network._forward is network._module
    assert network._forward is not graph


def test_inputs_of_no_fixed_shape_and_rows_that_are_not_joined_are_not_recorded() -> None:
    free = {"datatype": "FP32", "shape": [-1, -1]}
    for spec, is_batchable in ((free, True), (SPEC, False)):
        sidecar = {"model_type": "made", "method": "fp32", "batchable": is_batchable}
        sidecar |= {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **SPEC}]}
        network = TorchNetwork(Made(torch.relu), sidecar, 0, [np.ones((2, 4), np.float32)])
        found = network.tune(8)
        assert (found.is_recorded, found.reason) == (False, "its rows have no fixed shape")


def test_graphs_are_recorded_on_cpus_only() -> None:
    class OnGpu:
        is_cuda = True

    module = Made(torch.relu)
    given: Any = lambda _rows: [OnGpu()]  # noqa: E731
    assert recording.record(module, given, row_s=0.0) == (module, "recorded on CPUs only")


FORGETS = """
import sys
from pathlib import Path
from agent.serving import network
from agent.serving.memory import rss_bytes

artifact = Path(sys.argv[1])
network.configure(1, "cpu")


def live(count):
    for _ in range(count):
        it = network.load(artifact, "cpu")
        it.warm_up(8)
        assert it.tune(8).is_recorded == (sys.argv[2] == "recorded")
        it.close()
        network.release_memory()


live(5)
before = rss_bytes()
live(20)
print(rss_bytes() - before)
"""


@pytest.mark.parametrize(("method", "how"), [("fp32", "recorded"), ("nf4", "refused")])
def test_releases_that_are_gone_leave_no_graph_behind(method: str, how: str, tmp_path: Path) -> None:
    served(tmp_path, "cnn", method).close()
    command = [sys.executable, "-c", FORGETS, str(tmp_path / "packed.safetensors"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights = (tmp_path / "packed.safetensors").stat().st_size
    assert int(done.stdout) < max(weights, 2 << 20) * 3, "twenty of them were loaded"


def test_a_long_reason_ends_at_a_sentence_or_with_an_ellipsis() -> None:
    assert recording.shortened("short") == "short"
    assert recording.shortened("One sentence. Another. A third one", 30) == "One sentence. Another."
    assert recording.shortened("x" * 31, 30) == "x" * 29 + "…"
