"""Texts of real language models, small and random: the same as the library's own, by every method, and safely spelt."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from agent.planning.texts import cached_token_bytes
from agent.quantization import artifact, gate, jobs
from agent.serving import network
from agent.serving.errors import BadRequestError
from agent.serving.generation import template
from agent.serving.generation.codec import Codec
from agent.serving.generation.sampling import Sampling
from agent.serving.generation.sequence import Order, TokenSequence
from agent.serving.generation.stepper import Stepper
from tests.fakes.language import FakeDecoder
from tests.fakes.serving import harness, run

if TYPE_CHECKING:
    from agent.serving.generation.model import LanguageModel

transformers = pytest.importorskip("transformers", minversion="5.0", reason="the extra 'transformers' is not installed")
tokenizers = pytest.importorskip("tokenizers")

CONTEXT = 128
CORPUS = ["a language model says what it has read", "Grüße aus München: ein kleines Modell", "日本語の文章 🙂"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # what remembers in different ways: shared heads, learnt positions, a window that is shorter than the texts
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, "num_key_value_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": CONTEXT}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**SIZES, "num_key_value_heads": 2, "sliding_window": 8}),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(gate, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(gate, "LATENCY_CALLS", 1)


def tokenizer() -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|start|>", "<|end|>", "<|user|>", "<|assistant|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def saved(folder: Path, name: str = "llama", chat_template: str | None = TEMPLATE) -> Any:
    """Save a random model with a tokenizer; returns the model."""
    made = tokenizer()
    kind, config, sizes = MODELS[name]
    vocabulary = {"vocab_size": made.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 1}
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**sizes, **vocabulary})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)  # the library's 0.02 would make all answers alike
    model.save_pretrained(folder)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|start|>", eos_token="<|end|>", chat_template=chat_template
    )
    wrapped.save_pretrained(folder)
    return model


def built(folder: Path, method: str = "fp32") -> dict[str, Any]:
    job = {"job": "build", "checkpoint": str(folder), "method": method, "output_dir": str(folder.parent / method)}
    return jobs.run({**job, "gate": {"rows": 4}}, lambda _event: None)


def language(result: dict[str, Any]) -> LanguageModel:
    loaded = network.load(Path(result["artifact"]), "cpu")
    assert loaded.text is not None, loaded.no_text
    return loaded.text


class Kept:
    """Keeps the tokens of a sequence instead of spelling them."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def push(self, token: int) -> str:
        self.tokens.append(token)
        return ""


def continued(model: LanguageModel, prompts: list[list[int]], tokens: int, chunk: int = 128) -> list[list[int]]:
    """Continue all prompts greedily and at once."""
    stepper, kept = Stepper(model.decoder, model.limits, chunk), [Kept() for _ in prompts]
    for prompt, keep in zip(prompts, kept, strict=True):
        stepper.begin(TokenSequence(Order(prompt, tokens, Sampling(temperature=0), (), ()), keep))
    while len(stepper):
        for _, outcome in stepper.step():
            assert not isinstance(outcome, Exception), outcome
    return [keep.tokens for keep in kept]


def librarys(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """Return what the library's own generation continues a prompt with."""
    given = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "eos_token_id": None}
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=1, **given)
    return [int(token) for token in made[0, len(prompt) :]]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [128, 3])
def test_greedy_texts_that_are_made_together_are_the_librarys_own(name: str, chunk: int, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", name)
    model = language(built(tmp_path / "source"))
    prompts = [[5, 9, 200, 33, 7, 8, 9, 21, 4, 99, 100, 101], [17], [40, 41, 42, 250]]
    wanted = [librarys(source, prompt, 24) for prompt in prompts]
    assert len({tuple(row) for row in wanted}) == 3, "models that answer the same to everything would show nothing"
    assert continued(model, prompts, 24, chunk) == wanted


@pytest.mark.parametrize(("name", "heads"), [("llama", 2), ("gpt2", 4)])
def test_a_cached_token_takes_what_the_formula_says(name: str, heads: int, tmp_path: Path) -> None:
    saved(tmp_path / "source", name)
    model = language(built(tmp_path / "source"))
    expected = cached_token_bytes(layers=2, kv_heads=heads, head_width=16, element_bytes=4)
    assert (model.token_bytes, model.limits.context_tokens) == (expected, CONTEXT)


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_packed_layers_make_texts_that_are_those_of_the_packed_model_read_at_once(method: str, tmp_path: Path) -> None:
    saved(tmp_path / "source")
    result = built(tmp_path / "source", method)
    prompts = [[5, 9, 33], [17, 40]]
    (first, second), whole = continued(language(result), prompts, 6), artifact.load(result["artifact"], "cpu")
    for prompt, made in ((prompts[0], first), (prompts[1], second)):
        ids = torch.tensor([prompt + made[:-1]])
        with torch.inference_mode():
            logits = whole(ids, torch.ones_like(ids))
        assert int(logits.argmax()) == made[-1]


def test_a_failed_step_leaves_every_sequence_as_it_was(tmp_path: Path) -> None:
    saved(tmp_path / "source")
    decoder = language(built(tmp_path / "source")).decoder
    states = [decoder.begin(8), decoder.begin(8)]
    for state, prompt in zip(states, ([5, 6, 7], [8]), strict=True):
        decoder.read(state, prompt)
    with pytest.raises(IndexError):
        decoder.step(states, [9, 10**6])
    again, alone = decoder.begin(8), decoder.step(states[:1], [9])[0]
    np.testing.assert_allclose(alone, decoder.read(again, [5, 6, 7, 9]), atol=1e-4)


@pytest.mark.parametrize("kind", ["real", "fake"])
class TestDecoder:
    """What a decoder promises, of the one that computes and of the fake that other tests use."""

    @pytest.fixture
    def decoder(self, kind: str, tmp_path: Path) -> Any:
        if kind == "fake":
            return FakeDecoder()
        saved(tmp_path / "source")
        return language(built(tmp_path / "source")).decoder

    def test_reading_in_chunks_is_reading_at_once(self, decoder: Any) -> None:
        ids = [97, 98, 99, 100, 101]
        chunks, whole = decoder.begin(5), decoder.begin(5)
        decoder.read(chunks, ids[:2])
        np.testing.assert_allclose(decoder.read(chunks, ids[2:]), decoder.read(whole, ids), atol=1e-4)

    def test_a_joint_step_answers_each_as_if_it_were_alone(self, decoder: Any) -> None:
        texts = [[97, 98, 99], [120]]
        states = [decoder.begin(4) for _ in texts]
        for state, text in zip(states, texts, strict=True):
            decoder.read(state, text)
        together = decoder.step(states, [100, 101])
        for text, token, logits in zip(texts, (100, 101), together, strict=True):
            np.testing.assert_allclose(logits, decoder.read(decoder.begin(4), [*text, token]), atol=1e-4)


class TestWhatMakesNoTexts:
    def test_a_checkpoint_without_a_tokenizer_serves_its_logits_and_says_so(self, tmp_path: Path) -> None:
        saved(tmp_path / "source")
        (tmp_path / "source" / "tokenizer.json").unlink()
        result = built(tmp_path / "source")
        assert any("no tokenizer.json" in note for note in result["notes"])
        loaded = network.load(Path(result["artifact"]), "cpu")
        assert (loaded.text, loaded.no_text) == (None, "it came without a tokenizer.json")
        assert loaded.run([np.array([[5, 6]]), np.array([[1, 1]])])[0].shape == (1, 300)

    @pytest.mark.parametrize("content", [b"{", b"[]", b'{"model": {"type": "BPE"}}', b"\x80\x04pickle"])
    def test_a_tokenizer_that_is_none_is_a_note_and_no_failure(self, content: bytes, tmp_path: Path) -> None:
        saved(tmp_path / "source")
        (tmp_path / "source" / "tokenizer.json").write_bytes(content)
        result = built(tmp_path / "source")
        assert any("is no tokenizer" in note for note in result["notes"])
        assert "tokenizer" not in result

    def test_a_tokenizer_with_more_ids_than_the_model_is_refused(self, tmp_path: Path) -> None:
        saved(tmp_path / "source")
        made = tokenizer()
        made.add_tokens(["unheard-of"])
        made.save(str(tmp_path / "source" / "tokenizer.json"))
        assert any("ids up to 300" in note for note in built(tmp_path / "source")["notes"])

    def test_a_model_whose_memory_is_no_keys_and_values_is_found_out_at_its_load(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saved(tmp_path / "source")
        result = built(tmp_path / "source")
        llama = transformers.models.llama.modeling_llama
        forward = llama.LlamaModel.forward
        monkeypatch.setattr(
            llama.LlamaModel,
            "forward",
            lambda self, *args, **given: forward(self, *args, **{**given, "past_key_values": None}),
        )
        loaded = network.load(Path(result["artifact"]), "cpu")
        assert loaded.text is None
        assert loaded.no_text

    def test_a_tokenizer_that_was_exchanged_is_not_used(self, tmp_path: Path) -> None:
        saved(tmp_path / "source")
        result = built(tmp_path / "source")
        Path(result["tokenizer"]).write_text("{}", encoding="utf-8")
        loaded = network.load(Path(result["artifact"]), "cpu")
        assert (loaded.text, "another one" in loaded.no_text) == (None, True)

    def test_a_classifier_answers_tensors(self, tmp_path: Path) -> None:
        config = transformers.BertConfig(
            vocab_size=200,
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=3,
        )
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "source")
        loaded = network.load(Path(built(tmp_path / "source")["artifact"]), "cpu")
        assert (loaded.text, loaded.no_text) == (None, "it answers tensors")


class TestSidecar:
    def test_the_artifact_needs_neither_directory_nor_other_files_than_its_own(self, tmp_path: Path) -> None:
        saved(tmp_path / "source")
        result = built(tmp_path / "source")
        shutil.rmtree(tmp_path / "source")
        told = json.loads(Path(result["sidecar"]).read_text(encoding="utf-8"))["generation"]
        assert (told["eos_token_ids"], told["chat_template"]) == ([1], TEMPLATE)
        assert told["special_tokens"] == {"bos_token": "<|start|>", "eos_token": "<|end|>"}
        model = language(result)
        assert model.ends == frozenset({1})
        assert list(model.speller.encode("it", CONTEXT)) == tokenizer().encode("it").ids

    @pytest.mark.parametrize("named", [TEMPLATE, [{"name": "default", "template": TEMPLATE}]])
    def test_older_forms_of_a_template_are_read(self, named: Any, tmp_path: Path) -> None:
        saved(tmp_path / "source", chat_template=None)
        config = tmp_path / "source" / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": named}))
        told = json.loads(Path(built(tmp_path / "source")["sidecar"]).read_text(encoding="utf-8"))
        assert told["generation"]["chat_template"] == TEMPLATE

    def test_what_ends_a_text_is_the_generation_configs_before_the_configs(self, tmp_path: Path) -> None:
        saved(tmp_path / "source")
        (tmp_path / "source" / "generation_config.json").write_text('{"eos_token_id": [1, 7, 9999]}')
        assert language(built(tmp_path / "source")).ends == frozenset({1, 7})


@pytest.fixture
def codec(tmp_path: Path) -> Codec:
    return codec_with(tmp_path, TEMPLATE)


def codec_with(folder: Path, source: str | None) -> Codec:
    tokenizer().save(str(folder / "tokenizer.json"))
    return Codec(folder / "tokenizer.json", source, {"bos_token": "<|start|>", "eos_token": "<|end|>", "x": "<none>"})


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


class TestSpelling:
    @pytest.mark.parametrize("text", [*CORPUS, "naïve 🙂🙃 ÿ", "\x00\x7f"])
    def test_pieces_are_whole_characters_and_together_the_text(self, text: str, codec: Codec) -> None:
        ids = codec.encode(text, CONTEXT)
        stream = codec.stream([])
        pieces = [stream.push(token) for token in ids]
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
        assert len(ids) > len(text.encode()) // 8

    def test_bytes_that_are_no_character_do_not_stop_the_text(self, codec: Codec) -> None:
        broken = codec.encode("é", CONTEXT)[-1:] + codec.encode("abc", CONTEXT)
        stream = codec.stream([])
        assert "".join(map(stream.push, broken)).endswith("abc")

    def test_special_tokens_are_not_shown(self, codec: Codec) -> None:
        stream = codec.stream([])
        assert "".join(map(stream.push, [0, *codec.encode("it", CONTEXT), 3])) == "it"

    def test_a_space_before_the_first_new_word_is_kept_where_words_carry_theirs(self, tmp_path: Path) -> None:
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        made.decoder = tokenizers.decoders.Metaspace()
        made.train_from_iterator(["hello world hello all"], tokenizers.trainers.BpeTrainer(show_progress=False))
        made.save(str(tmp_path / "tokenizer.json"))
        spaced = Codec(tmp_path / "tokenizer.json", None, {})
        prompt, whole = spaced.encode("hello", CONTEXT), spaced.encode("hello world", CONTEXT)
        stream = spaced.stream(prompt)
        assert "".join(map(stream.push, whole[len(prompt) :])) == " world"

    def test_a_text_that_cannot_fit_is_refused_before_it_is_taken_apart(self, codec: Codec) -> None:
        with pytest.raises(BadRequestError, match="10000 characters"):
            codec.encode("a" * 10_000, CONTEXT)


class TestTemplates:
    def test_a_conversation_is_written_as_the_template_says(self, codec: Codec) -> None:
        expected = [2, *codec.encode("it", CONTEXT), 1, 3]
        assert codec.chat(user("it"), CONTEXT) == expected

    def test_control_tokens_in_a_message_are_text(self, codec: Codec) -> None:
        ids = codec.chat(user("a<|end|><|assistant|>b"), CONTEXT)
        assert (ids.count(1), ids.count(3)) == (1, 1)
        assert ids[0] == 2
        assert ids[-2:] == [1, 3]

    def test_a_model_without_a_template_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(BadRequestError, match="no chat template"):
            codec_with(tmp_path, None).chat(user("a"), CONTEXT)

    def test_what_a_template_raises_is_the_clients_to_read(self, tmp_path: Path) -> None:
        with pytest.raises(BadRequestError, match="roles must alternate"):
            codec_with(tmp_path, "{{ raise_exception('roles must alternate') }}").chat(user("a"), CONTEXT)

    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
            "{% include '/etc/passwd' %}",
        ],
    )
    def test_a_template_reaches_nothing_outside_of_its_sandbox(self, source: str, tmp_path: Path) -> None:
        with pytest.raises(BadRequestError, match="refuses"):
            codec_with(tmp_path, source).chat(user("a"), CONTEXT)

    @pytest.mark.parametrize(
        "source",
        [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% for a in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}",
        ],
    )
    def test_a_template_without_end_is_stopped(
        self, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(template.bounded, "__defaults__", (20_000, 100_000))
        with pytest.raises(BadRequestError, match="stopped after"):
            codec_with(tmp_path, source).chat(user("abcdefgh"), CONTEXT)


def test_over_http_a_seed_makes_a_text_again_and_two_at_once_are_what_each_is_alone(tmp_path: Path) -> None:
    saved(tmp_path / "source")
    loaded = network.load(Path(built(tmp_path / "source", "nf4")["artifact"]), "cpu")

    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", loaded)

            async def text(prompt: str, seed: int) -> Any:
                body = {"model": "m", "prompt": prompt, "max_tokens": 20, "seed": seed, "top_p": 0.9, "top_k": 50}
                return (await it.data.post("/v1/completions", json=body)).json()["choices"][0]["text"]

            alone = [await text("language", 1), await text("Modell", 2)]
            together = await asyncio.gather(text("language", 1), text("Modell", 2))
            assert list(together) == alone
            assert await text("language", 3) != alone[0]
            body = {"model": "m", "messages": user("hi"), "max_tokens": 3}
            assert (await it.data.post("/v1/chat/completions", json=body)).json()["usage"]["completion_tokens"] <= 3
            await it.change("m", "unload")

    run(scenario)
