"""Graphs and the compiler on a real GPU, under the server's own network: the same answers, and what they take."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from agent import architectures
from agent.quantization import jobs
from agent.serving import acceleration, network
from agent.serving.residency import Wish
from agent.serving.terms import Terms

if TYPE_CHECKING:
    from pathlib import Path

    from agent.serving.tensors import Array

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GIB = 1 << 30


@pytest.fixture
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "WORTH", float("inf"))


def served(folder: Path, method: str, model_type: str = "cnn") -> network.TorchNetwork:
    torch.manual_seed(0)
    source = folder / f"{model_type}.pt"
    torch.save(architectures.build(model_type, 300).state_dict(), source)
    job = {"job": "build", "checkpoint": str(source), "method": method, "output_dir": str(folder / method)}
    built = jobs.run({**job, "model_type": model_type, "gate": {"rows": 4}}, lambda _event: None)
    return network.load(folder / method / built["artifact"].rpartition("/")[2], "cuda")


def examples(it: network.TorchNetwork, rows: int) -> list[Array]:
    return [np.resize(array, (rows, *array.shape[1:])) for array in it._examples]


@pytest.mark.parametrize("method", ["nf4", "nf4-dq", "int8", "fp16"])
@pytest.mark.parametrize("residency", ["packed", "unpacked"])
@pytest.mark.usefixtures("always_worth_it")
def test_graphs_answer_as_the_model_does_at_every_size(method: str, residency: str, tmp_path: Path) -> None:
    it = served(tmp_path, method)
    it.warm_up(32)
    it.reside(Wish("unpacked" if residency == "unpacked" else "packed", GIB))
    wanted = {rows: it.run(examples(it, rows)) for rows in (1, 3, 8, 32, 40)}
    found = it.accelerate(Terms(graphs="auto", allowed_bytes=GIB), 32)["graphs"]
    assert found.is_kept, found.reason
    for rows, answers in wanted.items():
        assert acceleration.distance(it.run(examples(it, rows)), answers) <= acceleration.TOLERANCE["cuda"]


@pytest.mark.usefixtures("always_worth_it")
def test_another_model_computes_and_allocates_while_graphs_are_recorded(tmp_path: Path) -> None:
    it = served(tmp_path, "nf4")
    it.warm_up(32)
    done, errors = threading.Event(), []

    def compute() -> None:
        layer = torch.nn.Linear(512, 512).cuda()
        rows = 1
        while not done.is_set():
            rows = rows % 4096 + 61
            try:
                with torch.inference_mode():
                    layer(torch.randn(rows, 512, device="cuda")).sum().item()
            except RuntimeError as error:
                errors.append(error)
                return

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        found = it.accelerate(Terms(graphs="auto", allowed_bytes=GIB), 32)["graphs"]
    finally:
        done.set()
        thread.join()
    assert (errors, found.is_kept) == ([], True), found.reason


@pytest.mark.usefixtures("always_worth_it")
def test_graphs_that_are_let_go_give_their_memory_back(tmp_path: Path) -> None:
    it = served(tmp_path, "nf4")
    it.warm_up(32)
    network.release_memory()
    before = torch.cuda.memory_reserved()
    assert not it.accelerate(Terms(graphs="auto", allowed_bytes=0), 32)["graphs"].is_kept
    network.release_memory()
    assert torch.cuda.memory_reserved() <= before + (32 << 20)


@pytest.mark.usefixtures("always_worth_it")
def test_what_was_compiled_is_recorded_and_answers_alike(tmp_path: Path) -> None:
    it = served(tmp_path, "nf4")
    it.warm_up(8)
    it.reside(Wish("unpacked", GIB))
    wanted = it.run(examples(it, 5))
    found = it.accelerate(Terms(compile="auto", graphs="auto", allowed_bytes=GIB), 8)
    assert found["graphs"].is_kept, (found["compile"].reason, found["graphs"].reason)
    assert acceleration.distance(it.run(examples(it, 5)), wanted) <= acceleration.TOLERANCE["cuda"]
