"""What a plan says about the memory of texts, beside what a real language model takes when it writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from agent.planning.budget import Budget
from agent.planning.memory import Footprint
from agent.planning.plan import plan
from agent.planning.texts import MAX_SEQUENCES
from agent.quantization import gate, jobs
from tests.contract.test_generation_model import MODELS, built, language, saved

if TYPE_CHECKING:
    from pathlib import Path

    from agent.planning.plan import Texts

pytest.importorskip("transformers", minversion="5.0", reason="the extra 'transformers' is not installed")

MIB, GIB = 2**20, 2**30
# Wide enough for the cache to be far larger than what comes and goes besides.
LARGE = {"hidden_size": 256, "num_hidden_layers": 4, "max_position_embeddings": 512, "intermediate_size": 512}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(gate, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(gate, "LATENCY_CALLS", 1)


def planned(folder: Path, budget: Budget) -> tuple[Texts, int]:
    """Return the texts that a plan has room for, and what else answering takes for a moment."""
    found = jobs.run({"job": "inspect", "checkpoint": str(folder)}, lambda _event: None)
    made = plan(Footprint.from_json(found["footprint"]), budget, requested="fp32")
    assert made.texts is not None
    assert made.chosen is not None
    return made.texts, made.chosen.estimate.working_bytes


@pytest.mark.parametrize("name", MODELS)
def test_the_directory_of_a_checkpoint_tells_what_its_tokens_take(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "source", name)
    texts, _working = planned(tmp_path / "source", Budget(GIB, 0, "meminfo", GIB))
    model = language(built(tmp_path / "source"))
    assert texts.cache.token_bytes == model.token_bytes
    assert texts.cache.context_tokens == model.limits.context_tokens


# In a process of its own: the memory of this one is everybody's.
WRITE = """
import json, sys
from pathlib import Path
from agent.quantization.process import peak_rss_bytes
from agent.serving import network
from agent.serving.generation.sampling import Sampling
from agent.serving.generation.sequence import Order, TokenSequence
from agent.serving.generation.stepper import Stepper
from agent.serving.memory import reset_peak_rss, rss_bytes, trim_heap

class Kept:
    def push(self, token):
        return ""

network.configure(1, "cpu")
model = network.load(Path(sys.argv[1]), "cpu", int(sys.argv[2])).text
warm = Stepper(model.decoder, model.limits)  # the libraries' code that the first pass brings in is no part of texts
warm.begin(TokenSequence(Order([1, 2, 3], 4, Sampling(temperature=0), (), ()), Kept()))
while len(warm):
    warm.step()
del warm
network.release_memory()
was_reset, before = reset_peak_rss(), rss_bytes()
limits, stepper = model.limits, Stepper(model.decoder, model.limits)
length = limits.cache_tokens // limits.max_sequences
for number in range(limits.max_sequences):
    prompt = [(7 * at + number) % 200 for at in range(length - 4)]
    order = Order(prompt, 4, Sampling(temperature=0), (), ())
    assert stepper.has_room(order)
    stepper.begin(TokenSequence(order, Kept()))
assert not stepper.has_room(Order([1] * length, 4, Sampling(), (), ()))
held = 0
while len(stepper):
    for _, outcome in stepper.step():
        assert not isinstance(outcome, Exception), outcome
    trim_heap()  # what the heap keeps for the next pass is part of the pass
    held = max(held, rss_bytes() - before)
print(json.dumps({"was_reset": was_reset, "held": held, "peak": peak_rss_bytes() - before, **model.told()}))
"""


@pytest.mark.parametrize(("kv_heads", "sequences"), [(4, 4), (1, MAX_SEQUENCES)], ids=["bounded", "whole contexts"])
def test_texts_take_what_was_planned_for_them_and_no_more(
    kv_heads: int, sequences: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, config, sizes = MODELS["llama"]
    monkeypatch.setitem(MODELS, "llama", (kind, config, {**sizes, **LARGE, "num_key_value_heads": kv_heads}))
    saved(tmp_path / "source")
    texts, working_bytes = planned(tmp_path / "source", Budget(128 * MIB, 0, "meminfo", GIB))
    assert texts.room.sequences == sequences
    done = subprocess.run(
        [sys.executable, "-c", WRITE, built(tmp_path / "source")["artifact"], str(texts.room.bytes)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    assert {name: found[name] for name in texts.to_json()} == texts.to_json()
    assert 0.9 * texts.cache.token_bytes * texts.room.tokens <= found["held"]
    assert found["held"] <= texts.room.bytes
    if found["was_reset"]:
        assert found["peak"] <= texts.room.bytes + working_bytes
