"""Making texts over HTTP: several at once, how they end, and what is refused. In-process, without torch."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.serving import slots
from agent.serving.generation import engine as engines
from agent.serving.generation import stepper
from agent.serving.limits import Limits
from tests.fakes.language import Call, language_model, writer
from tests.fakes.serving import FakeNetwork, harness, run, until

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def texts(events: list[Any]) -> str:
    return "".join(event["text_output"] for event in events)


def test_a_text_is_continued_whole_and_in_pieces() -> None:
    async def scenario() -> None:
        async with writer() as it:
            assert await it.text("abc", max_tokens=4) == "defg"
            call = it.stream("abc", max_tokens=4)
            events = await call.events()
            assert (call.status, texts(events), len(events)) == (200, "defg", 4)
            assert call.headers[b"content-type"].startswith(b"text/event-stream")
            assert events[0] == {"model_name": "m", "model_version": "1", "text_output": "d"}

    run(scenario)


def test_the_id_is_echoed_and_a_version_can_be_named() -> None:
    async def scenario() -> None:
        async with writer() as it:
            body = {"id": "7", "text_input": "a", "parameters": {"temperature": 0, "max_tokens": 1}}
            reply = await it.it.data.post("/v2/models/m/versions/1/generate", json=body)
            assert reply.json() == {"id": "7", "model_name": "m", "model_version": "1", "text_output": "b"}
            assert (await it.it.data.post("/v2/models/m/versions/2/generate", json=body)).status_code == 404
            assert "generate" in (await it.it.data.get("/v2")).json()["extensions"]

    run(scenario)


def test_two_streams_take_turns_token_by_token() -> None:
    async def scenario() -> None:
        async with writer() as it:
            first, second = await it.held("a", "m", max_tokens=5)
            it.decoder.permit(100)
            assert (texts(await first.events()), texts(await second.events())) == ("bcdef", "nopqr")
        # Both prompts are read before either text has ended; most steps make a token of each.
        assert [call for call in it.decoder.calls if call[0] == "step" and len(call[1]) == 2] != []
        assert len(it.decoder.calls) < 2 * 5

    run(scenario)


def test_a_long_prompt_holds_up_a_stream_for_one_chunk_at_a_time() -> None:
    async def scenario() -> None:
        async with writer(context_tokens=1000, cache_tokens=2000) as it:
            it.decoder.hold()
            talker = it.stream("a", max_tokens=20)
            it.decoder.permit(2)
            await until(lambda: it.decoder.entered == 3)
            reader = it.stream("b" * (3 * stepper.CHUNK_TOKENS), max_tokens=1)
            await until(lambda: it.waiting == 1)
            it.decoder.permit(100)
            await asyncio.gather(talker.events(), reader.events())
        kinds = [kind for kind, _ in it.decoder.calls]
        reads = [at for at, kind in enumerate(kinds) if kind == "read"][1:]
        assert len(reads) == 3
        assert all(kinds[at - 1] == "step" and kinds[at + 1] == "step" for at in reads), (
            "a token between any two chunks"
        )

    run(scenario)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    async def scenario() -> None:
        async with writer(context_tokens=2000, cache_tokens=4000) as it:
            long, short = await it.held("b" * (9 * stepper.CHUNK_TOKENS), "a", max_tokens=1)
            it.decoder.permit(3)
            assert texts(await short.events()) == "b"
            it.decoder.permit(100)
            await long.events()

    run(scenario)


def test_the_end_token_a_stop_and_the_limit_each_end_a_text_with_their_reason() -> None:
    async def scenario() -> None:
        async with writer() as it:
            for prompt, fields, text, reason in (
                ("!", {}, "", "stop"),
                ("a", {"stop": "de"}, "bc", "stop"),
                ("a", {"max_tokens": 3}, "bcd", "length"),
                ("a", {"stop": ["bz"], "max_tokens": 1}, "b", "length"),
            ):
                body = {"model": "m", "prompt": prompt, "temperature": 0, **fields}
                choice = (await it.it.data.post(COMPLETIONS, json=body)).json()["choices"][0]
                assert (choice["text"], choice["finish_reason"]) == (text, reason)

    run(scenario)


def test_usage_counts_the_prompt_and_every_token_that_was_computed() -> None:
    async def scenario() -> None:
        async with writer() as it:
            body = {"model": "m", "prompt": "ab", "temperature": 0, "max_tokens": 3}
            reply = (await it.it.data.post(COMPLETIONS, json=body)).json()
            assert reply["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
            assert (reply["object"], reply["model"], reply["system_fingerprint"]) == ("text_completion", "m", "r1")
            call = Call(it.it.app, COMPLETIONS, {**body, "stream": True, "stream_options": {"include_usage": True}})
            *pieces, usage, done = await call.start().events()
            assert "".join(piece["choices"][0]["text"] for piece in pieces) == "cde"
            assert all(piece["usage"] is None for piece in pieces)
            assert (usage["choices"], usage["usage"]["total_tokens"], done) == ([], 5, "[DONE]")

    run(scenario)


def test_a_chat_goes_through_the_models_template_and_streams_deltas() -> None:
    async def scenario() -> None:
        async with writer() as it:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 2}
            reply = (await it.it.data.post(CHAT, json=body)).json()
            message = reply["choices"][0]["message"]
            assert (reply["object"], message["role"], message["content"]) == ("chat.completion", "assistant", "yz")
            assert reply["usage"]["prompt_tokens"] == len("<user>x")
            first, *pieces, done = await Call(it.it.app, CHAT, {**body, "stream": True}).start().events()
            assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert [piece["choices"][0]["delta"] for piece in pieces] == [{"content": "y"}, {"content": "z"}]
            assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None, "length"]
            assert ("usage" in first, done) == (False, "[DONE]")

    run(scenario)


def test_a_client_that_leaves_frees_its_place_before_the_next_step() -> None:
    async def scenario() -> None:
        async with writer() as it:
            slot = it.it.plane.models.active("m")
            leaving, staying = await it.held("a", "m", max_tokens=10)
            it.decoder.permit(3)  # both prompts, and a joint step
            assert (await leaving.event())["text_output"] == "b"
            await until(lambda: it.decoder.entered == 4)
            leaving.leave()
            await leaving.task  # type: ignore[misc]
            assert slot.in_flight == 2, "the step that runs still has it"
            it.decoder.permit()
            await until(lambda: slot.in_flight == 1)
            assert slot.generated.reserved_tokens == 1 + 10
            it.decoder.permit(100)
            assert texts(await staying.events()) == "nopqrstuvw"
            assert slot.stats.outcomes["canceled"] == 1
            assert await it.metric("nibbled_generation_running") == 0
        joint = [call for call in it.decoder.calls if len(str(call[1])) == 2]
        assert joint == [("step", "cn")], "nothing was computed for who had left"

    run(scenario)


def test_a_client_that_leaves_while_it_waits_costs_no_step() -> None:
    async def scenario() -> None:
        async with writer(max_sequences=1) as it:
            first, waiting = await it.held("a", "m", max_tokens=2)
            waiting.leave()
            await waiting.task  # type: ignore[misc]
            it.decoder.permit(100)
            assert texts(await first.events()) == "bc"
            assert ("read", 1) in it.decoder.calls
            assert it.it.plane.models.active("m").in_flight == 0
        assert [call for call in it.decoder.calls if "m" in str(call[1])] == []

    run(scenario)


def test_memory_for_keys_and_values_bounds_how_many_begin_and_the_rest_wait_in_order() -> None:
    async def scenario() -> None:
        async with writer(cache_tokens=12) as it:
            calls, slot = await it.held(*"amx", max_tokens=5), it.it.plane.models.active("m")
            it.decoder.permit()
            await until(lambda: slot.generated.running == 2)
            assert (slot.generated.reserved_tokens, slot.generated.waiting) == (12, 1)
            it.decoder.permit(100)
            assert [texts(await call.events()) for call in calls] == ["bcdef", "nopqr", "yzabc"]
            assert slot.generated.reserved_tokens == 0

    run(scenario)


def test_a_queue_that_is_full_and_a_deadline_that_passes_are_503_with_retry_after() -> None:
    async def scenario() -> None:
        async with writer(max_sequences=1, max_waiting=1) as it:
            it.decoder.hold()
            running = it.stream("a", max_tokens=1)
            await until(lambda: it.decoder.entered == 1)
            expiring = it.stream("b", timeout=1)
            assert "waited 1e-06 s" in (await expiring.events())[0]["error"]
            waiting = it.stream("b", max_tokens=1)
            await until(lambda: it.it.plane.models.active("m").generated.waiting == 1)
            body = {"model": "m", "prompt": "c"}
            refused = await it.it.data.post(COMPLETIONS, json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["type"] == "server_error"
            it.decoder.permit(100)
            assert (texts(await running.events()), texts(await waiting.events())) == ("b", "c")
            assert (expiring.status, expiring.headers[b"retry-after"]) == (503, b"1")
            outcomes = it.it.plane.models.active("m").stats.outcomes
            assert (outcomes["expired"], outcomes["rejected"], outcomes["ok"]) == (1, 1, 2)

    run(scenario)


def test_what_cannot_fit_at_all_is_refused_with_the_numbers() -> None:
    async def scenario() -> None:
        async with writer(context_tokens=20, cache_tokens=10) as it:
            for prompt, tokens, param in (("abc", 8, "max_tokens"), ("a" * 11, 1, "prompt")):
                reply = await it.it.data.post(COMPLETIONS, json={"model": "m", "prompt": prompt, "max_tokens": tokens})
                error = reply.json()["error"]
                assert (reply.status_code, error["param"]) == (400, param)
                assert error["code"] == "context_length_exceeded"
                assert "this device's memory holds 10" in error["message"]
            for content in ("", [], [500]):
                reply = await it.it.data.post(COMPLETIONS, json={"model": "m", "prompt": content})
                assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")

    run(scenario)


def test_of_a_joint_step_only_the_text_that_fails_alone_ends_with_an_error() -> None:
    async def scenario() -> None:
        async with writer() as it:
            good, bad = await it.held("a", "m", max_tokens=4)
            it.decoder.permit(3)
            await until(lambda: it.decoder.entered == 4)
            bad_sequence = it.it.plane.models.active("m").engine._stepper._making[1]  # type: ignore[union-attr]
            bad_sequence.state.ids.append(ord("#"))
            it.decoder.permit(100)
            assert texts(await good.events()) == "bcde"
            *pieces, failure = await bad.events()
            assert (bad.status, texts(pieces)) == (200, "n")
            assert failure == {"error": "the model failed: RuntimeError"}
            assert it.it.plane.models.active("m").stats.outcomes["failed"] == 1

    run(scenario)


@pytest.mark.parametrize(
    ("prompt", "error", "status", "text"),
    [
        ("#", RuntimeError("poisoned"), 500, "the model failed: RuntimeError"),
        ("#", RuntimeError("CUDA out of memory"), 503, "not enough free memory"),
        ("%", RuntimeError(), 500, "NaN"),
    ],
)
def test_a_model_that_fails_before_the_first_token_is_an_error_of_the_request(
    prompt: str, error: Exception, status: int, text: str
) -> None:
    async def scenario() -> None:
        async with writer() as it:
            it.decoder.error = error
            reply = await it.it.data.post(COMPLETIONS, json={"model": "m", "prompt": prompt, "stream": True})
            assert reply.status_code == status
            assert text in reply.json()["error"]["message"]
            assert await it.text("a", max_tokens=1) == "b"

    run(scenario)


def test_an_error_in_the_middle_of_a_stream_is_an_event_in_the_form_of_its_protocol() -> None:
    async def scenario() -> None:
        async with writer() as it:
            it.decoder.hold()
            body = {"model": "m", "prompt": "a", "stream": True, "temperature": 0}
            call = Call(it.it.app, COMPLETIONS, body).start()
            it.decoder.permit()
            await call.event()
            it.it.plane.models.active("m").engine._stepper._making[0].state.ids.append(ord("#"))  # type: ignore[union-attr]
            it.decoder.permit(100)
            (failure,) = await call.events()
            assert failure["error"]["type"] == "server_error"

    run(scenario)


class TestSwitching:
    def test_a_stream_ends_on_the_release_that_began_it_and_new_ones_go_to_the_next(self) -> None:
        async def scenario() -> None:
            async with writer() as it:
                it.decoder.hold()
                old = it.stream("a", max_tokens=4)
                it.decoder.permit()
                await old.event()
                network = FakeNetwork(text=language_model())
                await it.it.serve("m", network, version="2", release="r2")
                unloading = asyncio.ensure_future(it.it.change("m", "unload", release="r1"))
                # The thread is the model's: the next release takes turns with the last stream of the old one.
                new = it.stream("m", max_tokens=2)
                it.decoder.permit(100)
                told = await new.events()
                assert [(event["model_version"], event["text_output"]) for event in told] == [("2", "n"), ("2", "o")]
                assert {event["model_version"] for event in await old.events()} == {"1"}
                assert (await unloading).status_code == 200
                assert old.status == 200

        run(scenario)

    def test_an_unload_waits_for_a_bounded_time_and_then_cuts_streams_off(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(slots, "DRAIN_S", 0.0)

        async def scenario() -> None:
            async with writer() as it:
                it.decoder.hold()
                call = it.stream("a", max_tokens=40)
                it.decoder.permit()
                await call.event()
                unloading = asyncio.ensure_future(it.it.change("m", "unload", release="r1"))
                failure = (await call.events())[-1]
                assert "unloaded" in failure["error"]
                it.decoder.permit(100)
                assert (await unloading).status_code == 200
            assert len(it.decoder.calls) < 5

        run(scenario)


def test_health_metrics_and_inference_answer_while_a_step_takes_long() -> None:
    async def scenario() -> None:
        async with writer() as it:
            it.decoder.hold()
            call = it.stream("a", max_tokens=2)
            await until(lambda: it.decoder.entered == 1)
            assert (await it.it.data.get("/v2/health/ready")).status_code == 200
            assert await it.metric("nibbled_inference_in_flight") == 1
            it.decoder.permit(100)
            await call.events()

    run(scenario)


def test_tokens_and_their_times_are_counted_per_release() -> None:
    async def scenario() -> None:
        async with writer() as it:
            await it.text("abc", max_tokens=4)
            await it.text("abc", max_tokens=1)
            assert await it.metric("nibbled_generation_tokens_total") == 5
            assert await it.metric("nibbled_generation_prompt_tokens_total") == 6
            assert await it.metric("nibbled_generation_time_to_first_token_seconds_count") == 2
            assert await it.metric("nibbled_generation_inter_token_seconds_count") == 3
            stats = (await it.it.data.get("/v2/models/m/stats")).json()["model_stats"][0]
            assert stats["inference_stats"]["fail"]["count"] == 0

    run(scenario)


class TestRefusals:
    def test_a_model_that_makes_no_texts_says_what_it_is(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                reply = await it.data.post("/v2/models/m/generate", json={"text_input": "a"})
                assert reply.status_code == 400
                assert reply.json() == {
                    "error": "model 'm' of type 'fake' makes no texts: it answers tensors; ask /v2/models/m/infer"
                }
                reply = await it.data.post(COMPLETIONS, json={"model": "m", "prompt": "a"})
                assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
                assert (await it.data.get("/v1/models")).json()["data"] == []
                assert it.plane.models.active("m").stats.outcomes["invalid"] == 2

        run(scenario)

    def test_a_model_that_is_unknown_is_404_in_both_forms(self) -> None:
        async def scenario() -> None:
            async with writer() as it:
                reply = await it.it.data.post("/v2/models/x/generate", json={"text_input": "a"})
                assert (reply.status_code, reply.json()) == (404, {"error": "there is no model 'x'; only 'm' answers"})
                reply = await it.it.data.post(COMPLETIONS, json={"model": "x", "prompt": "a"})
                assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
                assert reply.json()["error"]["message"] == "there is no model 'x' that makes texts; only 'm' answers"
                assert (await it.it.data.get("/v1/models/x")).status_code == 404
                assert (await it.it.data.get("/v1/models/m")).json()["id"] == "m"
                assert [entry["id"] for entry in (await it.it.data.get("/v1/models")).json()["data"]] == ["m"]

        run(scenario)

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", COMPLETIONS, 405),
            ("POST", "/v1/models", 405),
            ("POST", "/v1/embeddings", 404),
            ("GET", "/v1", 404),
            ("GET", "/v2/models/m/generate", 405),
        ],
    )
    def test_wrong_verbs_and_routes_have_their_status(self, method: str, path: str, status: int) -> None:
        async def scenario() -> None:
            async with writer() as it:
                reply = await it.it.data.request(method, path)
                assert reply.status_code == status
                error = reply.json()["error"]
                assert isinstance(error, dict if path.startswith("/v1") else str)

        run(scenario)

    def test_a_body_that_is_too_large_is_refused_in_openais_form(self) -> None:
        async def scenario() -> None:
            async with harness(limits=Limits(max_body_bytes=100)) as it:
                reply = await it.data.post(COMPLETIONS, json={"model": "m", "prompt": "a" * 200})
                assert (reply.status_code, reply.json()["error"]["type"]) == (413, "invalid_request_error")

        run(scenario)


def test_a_request_that_comes_during_a_switch_waits_for_the_next_release() -> None:
    async def scenario() -> None:
        async with writer() as it:
            it.it.loader.networks["r2"] = FakeNetwork(text=language_model())
            it.it.loader.gate.clear()
            parameters = {"artifact": "/store/r2", "version": "2", "release": "r2", "activate": True}
            switching = asyncio.ensure_future(it.it.change("m", "load", unload_first=True, **parameters))
            await until(lambda: "r2" in it.it.loader.loads)
            call = it.stream("a", max_tokens=1)
            await until(lambda: len(it.it.plane.models.get("m").room) == 1)
            it.it.loader.gate.set()
            assert (await call.events())[0]["model_version"] == "2"
            await switching

    run(scenario)


def test_the_queue_limit_in_time_is_the_servers_where_the_client_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with writer(max_sequences=1) as it:
            (running,) = await it.held("a", max_tokens=1)
            monkeypatch.setattr(engines, "QUEUE_S", 0.0)
            late = it.stream("b")
            assert "waited 0 s" in (await late.events())[0]["error"]
            it.decoder.permit(100)
            assert (running.status, late.status) == (None, 503)
            assert texts(await running.events()) == "b"

    run(scenario)
