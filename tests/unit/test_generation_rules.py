"""The rules of generating: choosing tokens, ending texts, letting in, reading wishes. Pure."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from agent.planning.texts import MAX_SEQUENCES, TextCache
from agent.serving.errors import BadRequestError, UnavailableError
from agent.serving.generation import openai, triton
from agent.serving.generation.limits import Limits, answer_tokens, limits_of
from agent.serving.generation.sampling import Sampler, Sampling, candidates
from agent.serving.generation.sequence import Order, TokenSequence
from agent.serving.generation.stepper import Stepper
from agent.serving.generation.stops import StopFinder
from agent.serving.generation.template import TEMPLATE_FILE, TemplateLimitError, bounded
from agent.serving.generation.wishes import FieldError
from tests.fakes.language import FakeDecoder, FakeText

CACHE = TextCache(layers=4, heads=8, kv_heads=2, head_width=16, context_tokens=2048)
LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], np.float32))


def drawn(sampling: Sampling, count: int = 400) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.choose(LOGITS) for _ in range(count)]


class TestSampling:
    def test_temperature_0_takes_the_likeliest_token(self) -> None:
        assert set(drawn(Sampling(temperature=0))) == {1}

    def test_the_same_seed_draws_the_same_tokens_and_another_others(self) -> None:
        assert drawn(Sampling(seed=7)) == drawn(Sampling(seed=7)) != drawn(Sampling(seed=8))

    def test_without_a_seed_two_sequences_differ(self) -> None:
        assert drawn(Sampling()) != drawn(Sampling())

    def test_draws_follow_the_probabilities(self) -> None:
        counts = np.bincount(drawn(Sampling(seed=1), 4000), minlength=5) / 4000
        np.testing.assert_allclose(counts, np.exp(LOGITS), atol=0.03)

    @pytest.mark.parametrize(
        ("sampling", "kept"),
        [
            (Sampling(top_k=2), {1, 3}),
            (Sampling(top_k=99), {0, 1, 2, 3, 4}),
            (Sampling(top_p=0.0), {1}),
            (Sampling(top_p=0.4), {1}),
            (Sampling(top_p=0.41), {1, 3}),
            (Sampling(top_p=0.9), {1, 2, 3, 0}),
            (Sampling(top_k=3, top_p=0.5), {1, 3}),
        ],
    )
    def test_top_k_and_top_p_leave_the_likeliest(self, sampling: Sampling, kept: set[int]) -> None:
        tokens, probabilities = candidates(LOGITS, sampling)
        assert set(tokens.tolist()) == kept
        assert probabilities.sum() == pytest.approx(1.0)

    def test_a_low_temperature_sharpens_without_overflow(self) -> None:
        tokens, probabilities = candidates(LOGITS * 1000, Sampling(temperature=1e-6))
        assert probabilities[tokens == 1] == pytest.approx(1.0)


class TestStops:
    @pytest.mark.parametrize("size", [1, 2, 3, 50])
    def test_a_stop_ends_the_text_wherever_pieces_are_cut(self, size: int) -> None:
        finder, text = StopFinder(["STOP", "\n\n"]), "one ST two STO\nthree STOP four"
        shown = "".join(finder.feed(text[at : at + size]) for at in range(0, len(text), size))
        assert (shown, finder.is_found) == ("one ST two STO\nthree ", True)
        assert finder.feed("more") + finder.flush() == ""

    def test_only_what_may_be_the_beginning_of_a_stop_is_held_back(self) -> None:
        finder = StopFinder(["abc"])
        assert [finder.feed(piece) for piece in ("xa", "b", "ab", "d")] == ["x", "", "ab", "abd"]
        assert finder.feed("ab") + finder.flush() == "ab"

    def test_of_two_stops_the_first_in_the_text_counts(self) -> None:
        finder = StopFinder(["world", "lo"])
        assert (finder.feed("hello world"), finder.is_found) == ("hel", True)

    def test_without_stops_nothing_is_held_back(self) -> None:
        assert StopFinder([]).feed("text") == "text"


class TestLimits:
    def test_memory_and_number_decide_who_begins(self) -> None:
        limits = Limits(context_tokens=100, cache_tokens=150, max_sequences=2)
        assert limits.admits(0, 0, 150)
        assert not limits.admits(0, 0, 151)
        assert limits.admits(1, 100, 50)
        assert not limits.admits(1, 101, 50)
        assert not limits.admits(2, 0, 1)

    def test_without_a_plan_a_quarter_of_the_available_memory_or_as_many_contexts_as_run_at_once(self) -> None:
        each = CACHE.token_bytes + CACHE.copied_bytes
        assert limits_of(CACHE, CACHE.token_bytes, 4000 * each).cache_tokens == 1000
        assert limits_of(CACHE, CACHE.token_bytes, 1 << 40).cache_tokens == MAX_SEQUENCES * CACHE.context_tokens
        assert limits_of(CACHE, CACHE.token_bytes, 0).cache_tokens == 1

    def test_with_a_plan_what_was_planned_or_what_is_free_if_that_is_less(self) -> None:
        each = CACHE.token_bytes + CACHE.copied_bytes
        planned = limits_of(CACHE, CACHE.token_bytes, 9000 * each, 3000 * each)
        assert (planned.cache_tokens, planned.max_sequences, planned.cache_bytes) == (3000, 2, 3000 * each)
        assert limits_of(CACHE, CACHE.token_bytes, 500 * each, 3000 * each).cache_tokens == 500

    def test_a_model_that_was_measured_to_remember_more_holds_less_in_the_same_memory(self) -> None:
        planned = CACHE.room_of(3000 * (CACHE.token_bytes + CACHE.copied_bytes))
        found = limits_of(CACHE, 2 * CACHE.token_bytes, 1 << 40, planned.bytes)
        assert found.cache_tokens < planned.tokens
        assert planned.bytes - (2 * CACHE.token_bytes + CACHE.copied_bytes) < found.cache_bytes <= planned.bytes

    def test_texts_of_very_different_lengths_step_apart_where_their_copies_would_be_more_than_all_may_hold(
        self,
    ) -> None:
        decoder = FakeDecoder()
        stepper = Stepper(decoder, Limits(context_tokens=64, cache_tokens=40))
        for prompt in ("k" * 30, "aa", "bb", "cc"):
            stepper.begin(TokenSequence(Order(list(map(ord, prompt)), 8, Sampling(0), (), ()), FakeText()))
        while len(stepper):
            stepper.step()
        steps = [last for kind, last in decoder.calls if kind == "step"]
        assert max(map(len, steps)) == 3, "the short ones take theirs together"
        long = [last for last in steps if max(last) >= "k"]
        assert (len(long), max(map(len, long))) == (7, 1), "the long one takes its own alone"

    def test_an_answer_has_what_is_asked_or_nothing(self) -> None:
        limits = Limits(context_tokens=100, cache_tokens=80)
        assert answer_tokens(limits, 30, 50) == 50
        assert answer_tokens(limits, 30, 51) is None
        assert answer_tokens(limits, 30, None) == 50
        assert answer_tokens(limits, 80, None) is None


def ask(is_chat: bool = False, **fields: Any) -> openai.Ask:  # noqa: FBT001, FBT002 - a test's shorthand
    content = {"messages": [{"role": "user", "content": "hi"}]} if is_chat else {"prompt": "hi"}
    return openai.parse(json.dumps({"model": "m", **content, **fields}).encode(), is_chat=is_chat)


class TestOpenAI:
    def test_defaults_are_openais(self) -> None:
        plain, chat = ask(), ask(is_chat=True)
        assert (plain.wish.max_tokens, chat.wish.max_tokens) == (16, None)
        assert (plain.wish.sampling, plain.wish.is_stream) == (Sampling(), False)
        assert chat.wish.prompt == [{"role": "user", "content": "hi"}]

    def test_fields_nobody_knows_and_neutral_values_are_ignored(self) -> None:
        neutral: dict[str, Any] = {
            "n": 1,
            "logprobs": None,
            "tools": [],
            "presence_penalty": 0.0,
            "response_format": {"type": "text"},
        }
        assert ask(user="me", store=False, metadata={"a": "b"}, **neutral).wish == ask().wish

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("n", 2), ("n", True), ("logprobs", 1), ("logprobs", True), ("top_logprobs", 3), ("best_of", 4),
            ("echo", True), ("suffix", "x"), ("logit_bias", {"1": 2}), ("presence_penalty", 0.5), ("tools", [{}]),
            ("response_format", {"type": "json_object"}), ("frequency_penalty", -1), ("modalities", ["audio"]),
        ],
    )  # fmt: skip
    def test_what_is_not_served_is_refused_by_name(self, key: str, value: Any) -> None:
        with pytest.raises(FieldError, match=key) as refusal:
            ask(**{key: value})
        assert (refusal.value.param, refusal.value.code) == (key, "unsupported_parameter")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model", 5), ("model", ""), ("prompt", None), ("prompt", ["a", "b"]), ("prompt", [1, True]),
            ("temperature", -1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True), ("top_p", 1.5),
            ("top_k", -2), ("top_k", 1.5), ("max_tokens", 0), ("max_tokens", 2**40), ("seed", 1.5), ("seed", 2**70),
            ("stop", [""]), ("stop", 5), ("stop", ["a"] * 17), ("stop", "x" * 257), ("stream", 1),
            ("stream_options", 3), ("prompt", {}),
        ],
    )  # fmt: skip
    def test_a_bad_value_is_told_with_its_field(self, key: str, value: Any) -> None:
        with pytest.raises(FieldError) as refusal:
            ask(**{key: value})
        assert refusal.value.param == key

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 100_000])
    def test_what_is_no_object_is_a_bad_request(self, body: bytes) -> None:
        with pytest.raises(BadRequestError):
            openai.parse(body, is_chat=False)

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([], "messages"),
            ("hi", "messages"),
            ([{"role": "user"}], "messages[0].content"),
            ([{"role": "user", "content": ""}, {"role": "robot", "content": "x"}], "messages[1]"),
            ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content"),
        ],
    )
    def test_a_bad_message_is_told_with_its_place(self, messages: Any, param: str) -> None:
        with pytest.raises(FieldError) as refusal:
            ask(is_chat=True, messages=messages)
        assert refusal.value.param == param

    def test_parts_of_a_message_are_joined_and_what_templates_do_not_read_is_left_out(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        messages = [{"role": "user", "content": parts, "name": "x", "secret": {"__class__": 1}}]
        assert ask(is_chat=True, messages=messages).wish.prompt == [{"role": "user", "content": "ab", "name": "x"}]

    def test_a_prompt_may_be_ids_alone_or_in_a_list(self) -> None:
        assert ask(prompt=[1, 2]).wish.prompt == ask(prompt=[[1, 2]]).wish.prompt == (1, 2)
        assert ask(prompt=["text"]).wish.prompt == "text"

    def test_the_newer_name_of_a_chats_limit_wins(self) -> None:
        assert ask(is_chat=True, max_tokens=5).wish.max_tokens == 5
        assert ask(is_chat=True, max_tokens=5, max_completion_tokens=7).wish.max_tokens == 7

    @pytest.mark.parametrize(
        ("error", "kind", "code"),
        [
            (FieldError("n", "no"), "invalid_request_error", "invalid_value"),
            (openai.UnknownModelError("no"), "invalid_request_error", "model_not_found"),
            (UnavailableError("busy"), "server_error", "unavailable"),
        ],
    )
    def test_errors_have_openais_form(self, error: Any, kind: str, code: str) -> None:
        told = json.loads(openai.failure(error))["error"]
        assert (told["message"], told["type"], told["code"]) == (str(error), kind, code)
        assert "param" in told


class TestTriton:
    def test_parameters_may_stand_in_their_object_or_beside_the_text(self) -> None:
        for body in ({"text_input": "a", "parameters": {"max_tokens": 3}}, {"text_input": "a", "max_tokens": 3}):
            wish, request_id = triton.parse(json.dumps(body).encode(), is_stream=False)
            assert (wish.prompt, wish.max_tokens, request_id) == ("a", 3, None)

    def test_a_timeout_is_in_microseconds_as_for_inference(self) -> None:
        body = json.dumps({"text_input": "a", "parameters": {"timeout": 1500}}).encode()
        assert triton.parse(body, is_stream=False)[0].timeout_s == 0.0015

    @pytest.mark.parametrize(
        "body", [{}, {"text_input": 5}, {"text_input": "a", "id": 5}, {"text_input": "a", "parameters": []}]
    )
    def test_a_bad_request_is_refused(self, body: Any) -> None:
        with pytest.raises(BadRequestError):
            triton.parse(json.dumps(body).encode(), is_stream=False)


def template(source: str) -> Any:
    """Return what runs Python as a compiled template would: under its file's name."""
    scope: dict[str, Any] = {}
    exec(compile(source, TEMPLATE_FILE, "exec"), scope)  # noqa: S102 - the test's own text
    return lambda: "".join(scope["root"]())


class TestTemplate:
    def test_a_template_that_ends_is_left_alone(self) -> None:
        assert bounded(template("def root():\n yield 'a'\n yield 'b'")) == "ab"

    def test_an_endless_template_is_stopped(self) -> None:
        with pytest.raises(TemplateLimitError, match="lines"):
            bounded(template("def root():\n while True:\n  pass\n yield ''"))

    def test_a_template_that_writes_without_end_is_stopped(self) -> None:
        with pytest.raises(TemplateLimitError, match="characters"):
            bounded(template("def root():\n while True:\n  yield 'x' * 1000000"))

    def test_code_that_is_no_template_is_not_counted(self) -> None:
        assert bounded(lambda: sum(1 for _ in range(1000)), max_lines=10) == 1000
