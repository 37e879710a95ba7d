"""Models through torch's own compiler, as the server tries them: what is kept answers alike, what fails is left."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torch._dynamo import utils as dynamo_utils
from torch._inductor import config as inductor

from agent.planning.methods import METHODS
from agent.quantization import packed
from agent.quantization.layers import PackedLinear
from agent.quantization.packed import PackedTensor
from agent.serving import acceleration, compiled
from agent.serving.network import TorchNetwork
from agent.serving.residency import Wish
from agent.serving.terms import Terms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What torch says about its own code while it compiles, once a process.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs g++")
SPECS = {
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 6]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
}
AUTO = Terms(compile="auto")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


class Small(nn.Module):
    """A model; one with a ``hole`` looks at values, which no compiler can foresee."""

    def __init__(self, *, width: int = 16, has_hole: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 3))
        self.has_hole = has_hole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.has_hole and x.sum().item() > 1e9:
            return x[:, :3]
        answer: torch.Tensor = self.layers(x)
        return answer


def network(module: nn.Module, **more: Any) -> TorchNetwork:
    sidecar = {"model_type": "small", "method": "fp32", "batchable": True, **SPECS, **more}
    return TorchNetwork(module, sidecar, 1, [np.random.default_rng(0).random((2, 6), dtype=np.float32)])


@pytest.fixture
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model is hardly faster; what is looked at here is what is kept."""
    monkeypatch.setattr(acceleration, "WORTH", float("inf"))


@needs_compiler
@pytest.mark.usefixtures("always_worth_it")
def test_what_was_compiled_answers_alike_at_every_size_and_compiles_for_no_request() -> None:
    torch.manual_seed(0)
    module = Small()
    served = network(module)
    found = served.accelerate(AUTO, 4)["compile"]
    assert found.is_kept, found.reason
    assert found.own_ms
    assert found.ms
    assert served.call is not module
    programs = dynamo_utils.counters["stats"]["unique_graphs"]
    assert programs
    data = np.random.default_rng(1).random((40, 6), dtype=np.float32)
    for rows in (1, 2, 3, 4, 5, 40):
        for given in (data[:rows], np.asfortranarray(data[:rows])):  # the latter in an order that was not foreseen
            with torch.inference_mode():
                wanted = module(torch.from_numpy(given)).numpy()
            np.testing.assert_allclose(served.run([given])[0], wanted, rtol=1e-5, atol=1e-6)
    assert dynamo_utils.counters["stats"]["unique_graphs"] == programs


@needs_compiler
@pytest.mark.usefixtures("always_worth_it")
def test_releases_of_one_type_are_compiled_apart_however_many_there_are_and_go_when_they_are_closed() -> None:
    served, gone = [], []
    for seed in range(10):  # more than the compiler keeps programs for one piece of code
        torch.manual_seed(seed)
        module = Small()
        gone.append(weakref.ref(module))
        served.append(network(module))
        found = served[-1].accelerate(AUTO, 1)["compile"]
        assert found.is_kept, found.reason
        del module
    for each in served:
        each.close()
    gc.collect()
    assert [ref() for ref in gone] == [None] * 10


def test_a_model_that_cannot_be_compiled_whole_keeps_its_own_way_and_says_why() -> None:
    module = Small(has_hole=True)
    served = network(module)
    with capture_logs() as lines:
        found = served.accelerate(AUTO, 2)["compile"]
    assert (found.is_kept, served.call) == (False, module)
    assert found.reason.startswith("it failed: ")
    assert [(line["event"], line["way"]) for line in lines] == [("acceleration_failed", "compile")]


def test_without_a_compiler_on_the_device_the_model_keeps_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    module = Small(width=17)  # one that was never compiled: programs are kept
    served = network(module)
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}):
        found = served.accelerate(AUTO, 2)["compile"]
    assert (found.is_kept, served.call, served.run([np.ones((1, 6), np.float32)])[0].shape) == (False, module, (1, 3))
    assert "failed" in found.reason


def test_without_room_for_the_compiler_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "available_bytes", lambda: 2 * compiled.NEEDED_BYTES - 2)
    monkeypatch.setattr(torch, "compile", lambda *_a, **_k: pytest.fail("it is asked"))
    found = network(Small()).accelerate(AUTO, 2)["compile"]
    assert found.reason.startswith("the compiler needs 671,088,640 bytes, 1,342,177,278 are free")


def test_a_compiler_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(compiled, "LIMIT_S", 0.001)
    # The real one would go on compiling, into the next test.
    monkeypatch.setattr(compiled.CompiledWay, "_warm", lambda _way, _compiled: held.wait())
    module = Small()
    served = network(module)
    found = served.accelerate(AUTO, 2)["compile"]
    assert (found.is_kept, found.reason, served.call) == (False, "it took longer than 0.001 s", module)
    held.set()


def test_by_default_nothing_is_tried() -> None:
    assert network(Small()).accelerate(Terms(), 2) == {}


@needs_compiler
@pytest.mark.usefixtures("always_worth_it")
def test_weights_that_are_kept_unpacked_are_compiled_and_packed_ones_are_not() -> None:
    module = Small(width=64)
    weight = PackedTensor((64, 64), METHODS["nf4"], 64)
    for name, part in packed.pack(torch.randn(64, 64), METHODS["nf4"], 64).items():
        weight.register_buffer(name, part)
    module.layers.insert(1, PackedLinear(weight, None))
    it = network(module)
    assert not it.accelerate(AUTO, 1)["compile"].is_kept
    it.reside(Wish("unpacked", 1 << 30))
    data = np.random.default_rng(1).random((2, 6), dtype=np.float32)
    wanted = it.run([data])[0]
    found = it.accelerate(AUTO, 2)["compile"]
    assert found.is_kept, found.reason
    np.testing.assert_allclose(it.run([data])[0], wanted, rtol=1e-4, atol=1e-5)
