"""A language model from a command on the broker to texts, read by OpenAI's own client."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.harness.operator import MODEL

if TYPE_CHECKING:
    from tests.e2e.harness.files import HostedFile
    from tests.e2e.harness.world import Device, StartDevice, World

pytest.importorskip("transformers", minversion="5.0", reason="the extra 'transformers' is not installed")
openai = pytest.importorskip("openai", reason="the extra 'dev' is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
STEPS = "60"
"""Enough that 4 bits change few answers: with 25 that hung on the corpus, which grows with what is installed."""
PROMPT = "Return a copy of"
LONG = 400


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model as the demo does, for seconds."""
    folder = tmp_path_factory.mktemp("lm")
    command = [sys.executable, "-m", "deploy.demo.train_lm", str(folder), "--steps", STEPS]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def archive(learnt: Path, world: World) -> HostedFile:
    """Host the model with an end that no text comes to: how long a text is must not hang on what was learnt."""
    folder = learnt / "lm"
    no_token = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    for path in (folder / "config.json", folder / "generation_config.json"):
        told = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**told, "eos_token_id": no_token}), encoding="utf-8")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, arcname="lm")
    return world.files.host("lm.tar", packed.getvalue())


@pytest.fixture(scope="module")
def writer(learnt: Path, archive: HostedFile, start_device: StartDevice, world: World) -> Device:
    """A device that was told to serve the model in 4 bits, judged on texts that it has not learnt from."""
    dataset = world.files.host("lm-evaluation.safetensors", (learnt / "evaluation.safetensors").read_bytes())
    device = start_device("writer")
    manifest = device.operator.manifest(archive, model_type="hf", version="1")
    gate = {"dataset": dataset.reference(), "min_agreement": 0.5}
    ended = device.operator.result(device.operator.deploy(manifest, gate=gate, method="nf4"))
    assert (ended["state"], ended["error"]) == ("succeeded", None)
    return device


def url(device: Device) -> str:
    return device.agent.url.removesuffix("/v2") + "/v1"


@pytest.fixture
def client(writer: Device) -> Any:
    with openai.OpenAI(base_url=url(writer), api_key="none", max_retries=0, timeout=120.0) as client:
        yield client


def running(device: Device) -> float:
    """Return how many requests hold the model's releases."""
    lines = httpx.get(url(device).removesuffix("/v1") + "/metrics", timeout=30.0).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("nibbled_inference_in_flight{"))


def test_the_gate_says_what_four_bits_cost_on_unseen_texts(writer: Device) -> None:
    served = writer.operator.served()
    assert (served["model_type"], served["method"]) == ("hf", "nf4")
    assert served["agreement"] >= 0.5
    assert served["accuracy"] is not None, "the data set has the tokens that follow"


def test_the_server_keeps_to_the_room_for_texts_that_was_planned(writer: Device) -> None:
    decision = writer.operator.served()["decision"]
    assert decision["texts"]["bytes"] > 0
    assert decision["measured"]["texts"] == decision["texts"]
    assert decision["measured"]["residency"]["reason"] == "packed, as configured"


def test_a_completion_is_the_same_whole_and_streamed(client: Any) -> None:
    given = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**given)
    pieces = list(client.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == whole.choices[0].text != ""
    assert pieces[-1].usage == whole.usage
    assert whole.usage.completion_tokens <= 24
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_chat_streams_with_a_seed_and_again(client: Any) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What does join do?"}]

    def said() -> str:
        stream = client.chat.completions.create(
            model=MODEL, messages=messages, max_completion_tokens=16, seed=5, stream=True
        )
        return "".join(piece.choices[0].delta.content or "" for piece in stream)

    assert said() == said()


def test_two_streams_advance_side_by_side(writer: Device) -> None:
    async def scenario() -> None:
        order: list[int] = []
        note = order.append
        async with openai.AsyncOpenAI(base_url=url(writer), api_key="none", max_retries=0, timeout=120.0) as client:

            async def read(number: int) -> None:
                stream = await client.completions.create(
                    model=MODEL, prompt=PROMPT, max_tokens=LONG, temperature=1, seed=number, stream=True
                )
                async for _ in stream:
                    note(number)

            await asyncio.gather(read(1), read(2))
        # One after the other would be one switch, however the pieces are read.
        assert sum(before != after for before, after in itertools.pairwise(order)) > 1

    asyncio.run(scenario())


def test_closing_a_stream_frees_its_place(client: Any, writer: Device) -> None:
    stream = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=LONG, seed=3, stream=True)
    next(iter(stream))
    assert running(writer) == 1
    stream.close()
    ends_at = time.monotonic() + 30.0
    while running(writer) and time.monotonic() < ends_at:
        pass  # each look is a request of its own
    assert running(writer) == 0


def test_errors_are_those_that_the_client_knows(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.completions.create(model="nobody", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model=MODEL, prompt=PROMPT, n=2)
    assert (refusal.value.param, refusal.value.code) == ("n", "unsupported_parameter")


def test_a_stream_ends_on_the_release_that_began_it_while_a_method_switch_goes_on(client: Any, writer: Device) -> None:
    stream = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=LONG, seed=4, stream=True)
    pieces = iter(stream)
    first = next(pieces)
    ended = writer.operator.result(writer.operator.send("set_method", model=MODEL, method="int8"))
    assert ended["state"] == "succeeded"
    rest = list(pieces)
    assert {piece.system_fingerprint for piece in rest} <= {first.system_fingerprint}
    after = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1)
    assert after.system_fingerprint != first.system_fingerprint
    generated = httpx.post(
        f"{writer.agent.url}/models/{MODEL}/generate",
        json={"text_input": PROMPT, "parameters": {"max_tokens": 3, "temperature": 0}},
        timeout=60.0,
    ).json()
    assert (generated["model_name"], isinstance(generated["text_output"], str)) == (MODEL, True)
