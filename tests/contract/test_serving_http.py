"""The data plane over HTTP: every route, every refusal, both forms, compression. In-process."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
import structlog

from agent.serving import body as bodies
from agent.serving import http as serving_http
from agent.serving.http import HttpApp
from agent.serving.limits import Limits
from agent.serving.tensors import TensorSpec
from tests.fakes.described import Described
from tests.fakes.serving import POISON, WEIGHTS, FakeNetwork, Harness, harness, json_request, run, until

ROW = [1.0, 2.0, 3.0, 4.0]
INFER = "/v2/models/m/infer"


def is_protocol_error(reply: httpx.Response) -> bool:
    """Return whether a refusal has the protocol's form, in the exact type that strict clients compare."""
    body = reply.json()
    return (
        reply.headers["content-type"] == "application/json" and isinstance(body["error"], str) and body["error"] != ""
    )


def binary_request(rows: Any, **extra: Any) -> dict[str, Any]:
    """Return the arguments of a post with one binary input, asking for binary outputs."""
    data = np.asarray(rows, "<f4")
    entry = {"name": "input", "shape": data.shape, "datatype": "FP32", "parameters": {"binary_data_size": data.nbytes}}
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}, **extra}).encode()
    return {"content": header + data.tobytes(), "headers": {"Inference-Header-Content-Length": str(len(header))}}


def binary_answer(reply: httpx.Response) -> tuple[dict[str, Any], bytes]:
    length = int(reply.headers["inference-header-content-length"])
    return json.loads(reply.content[:length]), reply.content[length:]


def test_before_a_model_is_active_the_server_is_live_and_not_ready() -> None:
    async def scenario() -> None:
        async with harness() as it:
            assert (await it.data.get("/v2/health/live")).json() == {"live": True}
            reply = await it.data.get("/v2/health/ready")
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
            assert reply.json()["ready"] is False
            assert is_protocol_error(reply)
            await it.serve("m", FakeNetwork())
            assert (await it.data.get("/v2/health/ready")).json() == {"live": True, "ready": True}

    run(scenario)


@pytest.mark.parametrize("prefix", ["/v2/models/m", "/v2/models/m/versions/1"])
def test_a_model_describes_itself_with_and_without_its_version(prefix: str) -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            metadata = (await it.data.get(prefix)).json()
            assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
            assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("m", ["1"], "pytorch")
            assert all(isinstance(value, str) for value in metadata["properties"].values())
            assert (await it.data.get(f"{prefix}/ready")).json() == {"name": "m", "ready": True}
            config = (await it.data.get(f"{prefix}/config")).json()
            assert config["max_batch_size"] == 32
            assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [4]}]
            reply = await it.data.post(f"{prefix}/infer", json=json_request([ROW]))
            assert reply.json()["model_version"] == "1"
            stats = (await it.data.get(f"{prefix}/stats")).json()["model_stats"]
            assert (stats[0]["inference_count"], stats[0]["inference_stats"]["success"]["count"]) == (1, 1)
            (batch,) = stats[0]["batch_stats"]
            assert (batch["batch_size"], batch["compute_infer"]["count"]) == (1, 1)
            assert 0 < batch["compute_infer"]["ns"] <= stats[0]["inference_stats"]["compute_infer"]["ns"]
            await it.data.post(f"{prefix}/infer", json=json_request([ROW] * 40))
            stats = (await it.data.get(f"{prefix}/stats")).json()["model_stats"]
            sizes = [(each["batch_size"], each["compute_output"]["count"]) for each in stats[0]["batch_stats"]]
            assert sizes == [(1, 1), (8, 1), (32, 1)]

    run(scenario)


def test_the_server_describes_itself_and_lists_its_models() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("a", FakeNetwork())
            await it.serve("b", FakeNetwork(), release="r2")
            for path in ("/v2", "/v2/"):
                metadata = (await it.data.get(path)).json()
                assert metadata["name"] == "nibbled"
                assert {"binary_tensor_data", "statistics"} <= set(metadata["extensions"])
            assert (await it.data.get("/v2/models")).json() == {"models": ["a", "b"]}
            stats = (await it.data.get("/v2/models/stats")).json()["model_stats"]
            assert [entry["name"] for entry in stats] == ["a", "b"]
            assert (await it.data.head("/v2/health/live")).status_code == 200

    run(scenario)


def test_whoever_asks_for_an_unknown_model_is_told_which_ones_answer() -> None:
    async def scenario() -> None:
        async with harness() as it:
            told = ["none answers", "only 'm0' answers", "2 answer: 'm0', 'm1'"]
            for number in range(7):
                for path in ("/v2/models/x", "/v2/models/x/ready"):
                    reply = await it.data.get(path)
                    assert reply.status_code == 404
                    if number < len(told):
                        assert reply.json() == {"error": f"there is no model 'x'; {told[number]}"}
                await it.serve(f"m{number}", FakeNetwork(), release=f"r{number}")
            await it.change("m1", "unload")
            await load_only(it, "silent")
            reply = await it.data.post("/v2/models/x/infer", json=json_request([ROW]))
            known = "6 answer: 'm0', 'm2', 'm3', 'm4', 'm5', …"
            assert (reply.status_code, reply.json()) == (404, {"error": f"there is no model 'x'; {known}"})

    run(scenario)


async def load_only(it: Harness, name: str) -> None:
    it.loader.networks[name] = FakeNetwork()
    loaded = await it.change(name, "load", artifact=f"/store/{name}", version="1", release=name)
    assert loaded.status_code == 200


def test_a_model_that_cannot_be_batched_declares_its_whole_shape() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork(is_batchable=False))
            config = (await it.data.get("/v2/models/m/config")).json()
            assert (config["max_batch_size"], config["input"][0]["dims"]) == (0, [-1, 4])

    run(scenario)


def test_json_and_binary_give_the_same_answer_bit_for_bit() -> None:
    async def scenario() -> None:
        rows = np.arange(12, dtype="<f4").reshape(3, 4)
        async with harness() as it:
            await it.serve("m", FakeNetwork(bias=0.1))
            plain = (await it.data.post(INFER, json=json_request(rows, id="a:1"))).json()
            reply = await it.data.post(INFER, **binary_request(rows, id="a:1"))
            header, raw = binary_answer(reply)
            whole = await it.data.post(
                INFER, content=rows[:1].tobytes(), headers={"Inference-Header-Content-Length": "0"}
            )
        assert reply.headers["content-type"] == "application/octet-stream"
        assert plain["id"] == header["id"] == "a:1"
        assert plain["parameters"] == {"method": "nf4", "release": "r1"}
        expected = np.frombuffer(raw, "<f4").reshape(3, 3)
        np.testing.assert_array_equal(np.array(plain["outputs"][0]["data"], "<f4").reshape(3, 3), expected)
        np.testing.assert_array_equal(np.frombuffer(binary_answer(whole)[1], "<f4"), expected[0])

    run(scenario)


def test_a_json_reply_carries_no_binary_header_and_no_id_that_was_not_given() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            reply = await it.data.post(INFER, json=json_request([ROW]))
        assert reply.headers["content-type"] == "application/json"
        assert "inference-header-content-length" not in reply.headers
        assert "id" not in reply.json()
        assert reply.json()["outputs"][0]["data"] == (np.array(ROW, "<f4") @ WEIGHTS).tolist()

    run(scenario)


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain; charset=utf-16"])
def test_a_content_type_never_matters(content_type: str | None) -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            headers = {} if content_type is None else {"Content-Type": content_type}
            body = json.dumps(json_request([ROW])).encode()
            assert (await it.data.post(INFER, content=body, headers=headers)).status_code == 200

    run(scenario)


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_requests_and_replies_may_be_compressed(name: str, pack: Any) -> None:
    async def scenario() -> None:
        rows = np.ones((200, 4), "<f4")
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            request = binary_request(rows)
            headers = {**request["headers"], "Content-Encoding": name, "Accept-Encoding": name}
            reply = await it.data.post(INFER, content=pack(request["content"]), headers=headers)
            plain = await it.data.post(INFER, **binary_request(rows[:1]))
        assert reply.headers["content-encoding"] == name
        # The client library has decompressed it: the header's length is that of the decompressed body.
        assert np.frombuffer(binary_answer(reply)[1], "<f4").shape == (600,)
        assert int(reply.headers["content-length"]) < 1000
        assert "content-encoding" not in plain.headers

    run(scenario)


REFUSALS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "unknown route": ("GET", "/nope", {}, 404),
    "root": ("GET", "/", {}, 404),
    "unknown route below v2": ("GET", "/v2/nope", {}, 404),
    "unknown verb of a model": ("GET", "/v2/models/m/explain", {}, 404),
    "unknown model": ("GET", "/v2/models/x", {}, 404),
    "unknown model's readiness": ("GET", "/v2/models/x/ready", {}, 404),
    "unknown model's inference": ("POST", "/v2/models/x/infer", {"json": {}}, 404),
    "unknown version": ("POST", "/v2/models/m/versions/2/infer", {"json": {}}, 404),
    "path traversal": ("POST", "/v2/models/..%2fm/infer", {"json": {}}, 404),
    "encoded slash": ("GET", "/v2%2fmodels", {}, 404),
    "name of 4 KB": ("GET", "/v2/models/" + "a" * 4096, {}, 404),
    "canary on the data plane": ("POST", "/v2/repository/models/m/canary", {"json": {}}, 404),
    "activation on the data plane": ("POST", "/v2/repository/models/m/activate", {"json": {}}, 404),
    "load of what is not loaded": ("POST", "/v2/repository/models/x/load", {}, 403),
    "load with parameters": ("POST", "/v2/repository/models/m/load", {"json": {"parameters": {"release": "r2"}}}, 403),
    "unload on the data plane": ("POST", "/v2/repository/models/m/unload", {}, 403),
    "index by GET": ("GET", "/v2/repository/index", {}, 405),
    "index of no object": ("POST", "/v2/repository/index", {"content": b"[]"}, 400),
    "status on the data plane": ("GET", "/v2/control/status", {}, 404),
    "inference by GET": ("GET", INFER, {}, 405),
    "metadata by POST": ("POST", "/v2/models/m", {}, 405),
    "health by DELETE": ("DELETE", "/v2/health/ready", {}, 405),
    "metrics by POST": ("POST", "/metrics", {}, 405),
    "empty body": ("POST", INFER, {}, 400),
    "cut JSON": ("POST", INFER, {"content": b"{bad"}, 400),
    "nested to death": ("POST", INFER, {"content": b"[" * 200_000}, 400),
    "wrong shape": ("POST", INFER, {"json": json_request([[1.0]])}, 400),
    "unknown output": ("POST", INFER, {"json": json_request([ROW], outputs=[{"name": "x"}])}, 400),
    "bad timeout": ("POST", INFER, {"json": json_request([ROW], parameters={"timeout": -1})}, 400),
    "header length as text": ("POST", INFER, {"headers": {"Inference-Header-Content-Length": "abc"}}, 400),
    "negative header length": ("POST", INFER, {"headers": {"Inference-Header-Content-Length": "-1"}}, 400),
    "header length beyond": ("POST", INFER, {"headers": {"Inference-Header-Content-Length": "99"}}, 400),
    "brotli": ("POST", INFER, {"content": b"x", "headers": {"Content-Encoding": "br"}}, 415),
    "no gzip": ("POST", INFER, {"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 400),
    "cut gzip": (
        "POST",
        INFER,
        {"content": gzip.compress(b"x" * 99)[:-3], "headers": {"Content-Encoding": "gzip"}},
        400,
    ),
}


def test_clients_see_the_repository_and_may_load_what_is_loaded_but_paths_are_kept_from_them() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            assert (await it.change("n", "load", artifact="/store/x", version="1", release="r2")).status_code == 400
            entries = (await it.data.post("/v2/repository/index")).json()
            found = {entry["name"]: (entry["state"], entry["reason"]) for entry in entries}
            assert found == {"m": ("READY", ""), "n": ("UNAVAILABLE", "the load failed")}
            ready = (await it.data.post("/v2/repository/index", json={"ready": True})).json()
            assert [entry["name"] for entry in ready] == ["m"]
            reply = await it.data.post("/v2/repository/models/m/load", json={})
            assert (reply.status_code, it.loader.loads) == (200, ["r1", "x"])

    run(scenario)


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_has_its_status_and_says_why_in_the_protocols_form(case: str) -> None:
    async def scenario() -> None:
        method, path, arguments, status = REFUSALS[case]
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            reply = await it.data.request(method, path, **arguments)
            assert reply.status_code == status, reply.text
            assert is_protocol_error(reply)
            assert ("allow" in reply.headers) == (status == 405)
            again = await it.data.post(INFER, json=json_request([ROW]))
            assert again.status_code == 200

    run(scenario)


class TestBodyLimit:
    def test_an_announced_body_over_the_limit_is_refused_before_it_is_read(self) -> None:
        async def scenario() -> None:
            asked = 0

            async def receive() -> dict[str, Any]:
                nonlocal asked
                asked += 1
                return {"type": "http.disconnect"}

            sent: list[dict[str, Any]] = []

            async def send(message: dict[str, Any]) -> None:
                sent.append({**message, "asked": asked})

            async with harness(limits=Limits(max_body_bytes=1000)) as it:
                await it.serve("m", FakeNetwork())
                scope = {"type": "http", "method": "POST", "path": INFER, "raw_path": INFER.encode()}
                await it.app({**scope, "headers": [(b"content-length", b"1001")]}, receive, send)
            assert (sent[0]["status"], sent[0]["asked"]) == (413, 0)
            assert (b"connection", b"close") in sent[0]["headers"]

        run(scenario)

    @pytest.mark.parametrize("size", [999, 1001])
    def test_a_body_in_pieces_without_length_is_cut_off_at_the_limit(self, size: int) -> None:
        async def scenario() -> None:
            async def pieces() -> Any:
                for _ in range(size // 100):
                    yield b" " * 100
                yield b" " * (size % 100)

            async with harness(limits=Limits(max_body_bytes=1000)) as it:
                await it.serve("m", FakeNetwork())
                reply = await it.data.post(INFER, content=pieces())
            assert reply.status_code == (413 if size > 1000 else 400)
            assert is_protocol_error(reply)

        run(scenario)

    def test_a_decompression_bomb_is_cut_off_at_the_limit(self) -> None:
        async def scenario() -> None:
            async with harness(limits=Limits(max_body_bytes=100_000)) as it:
                await it.serve("m", FakeNetwork())
                bomb = gzip.compress(bytes(10_000_000), 1)
                reply = await it.data.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
            assert (reply.status_code, len(bomb) < 100_000) == (413, True)
            assert "100000 bytes" in reply.json()["error"]

        run(scenario)

    def test_a_body_that_drips_is_ended_at_its_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scenario() -> None:
            never = asyncio.Event()

            async def pieces() -> Any:
                yield b"{"
                await never.wait()

            async with harness(limits=Limits(body_grace_s=0.01)) as it:
                await it.serve("m", FakeNetwork())
                monkeypatch.setattr(bodies, "DISCARD_S", 0.0)
                reply = await it.data.post(INFER, content=pieces())
            assert reply.status_code == 408
            assert reply.headers["connection"] == "close"

        run(scenario)


def test_a_full_queue_is_a_503_with_retry_after_while_health_and_metrics_still_answer() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with harness() as it:
            await it.serve("m", network)
            it.plane.models.get("m").batcher.max_queue = 1
            waiting = await hold(it, network, 2)
            reply = await it.data.post(INFER, json=json_request([ROW]))
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
            assert is_protocol_error(reply)
            assert (await it.data.get("/v2/health/ready")).status_code == 200
            assert 'nibbled_inference_queue_length{model="m"} 1' in (await it.data.get("/metrics")).text
            network.gate.set()
            assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
            metrics = (await it.data.get("/metrics")).text
            assert 'outcome="rejected"} 1' in metrics
            assert 'nibbled_inference_shed_total{model="m"} 1' in metrics

    run(scenario)


def test_a_timeout_in_the_queue_is_a_503_and_costs_no_computation() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with harness() as it:
            await it.serve("m", network)
            waiting = await hold(it, network, 1)
            reply = await it.data.post(INFER, json=json_request([ROW], parameters={"timeout": 500}))
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
            network.gate.set()
            await asyncio.gather(*waiting)
            assert network.calls == [1]
            assert 'outcome="expired"} 1' in (await it.data.get("/metrics")).text

    run(scenario)


def test_a_body_that_arrives_across_a_swap_is_answered_by_the_release_that_is_active_then() -> None:
    async def scenario() -> None:
        body = json.dumps(json_request([ROW])).encode()
        async with harness() as it:
            await it.serve("m", FakeNetwork())

            async def pieces() -> Any:
                yield body[:10]
                await it.serve("m", FakeNetwork(bias=100.0), version="2", release="r2")
                assert (await it.change("m", "unload", release="r1")).status_code == 200
                yield body[10:]

            answer = (await it.data.post(INFER, content=pieces())).json()
        assert answer["model_version"] == "2"
        assert answer["outputs"][0]["data"] == (np.array(ROW, "<f4") @ WEIGHTS + 100).tolist()

    run(scenario)


def test_a_client_that_leaves_while_its_request_waits_costs_no_computation() -> None:
    async def scenario() -> None:
        network, left = FakeNetwork(), asyncio.Event()
        messages = [{"type": "http.request", "body": json.dumps(json_request([ROW])).encode(), "more_body": False}]
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async with harness() as it:
            await it.serve("m", network)
            waiting = await hold(it, network, 1)
            scope = {"type": "http", "method": "POST", "path": INFER, "raw_path": INFER.encode(), "headers": []}
            leaving = asyncio.ensure_future(it.app(scope, receive, send))
            batcher = it.plane.models.get("m").batcher
            await until(lambda: len(batcher) == 1)
            left.set()
            await leaving
            assert (len(batcher), sent) == (0, [])
            network.gate.set()
            await asyncio.gather(*waiting)
            assert network.calls == [1]
            assert 'outcome="canceled"} 1' in (await it.data.get("/metrics")).text

    run(scenario)


async def hold(it: Harness, network: FakeNetwork, count: int) -> list[asyncio.Task[httpx.Response]]:
    """Send requests of which the first is being computed and the others wait until ``network.gate`` is set."""
    network.gate.clear()
    tasks = [asyncio.create_task(it.data.post(INFER, json=json_request([ROW])))]
    await until(network.entered.is_set)
    tasks += [asyncio.create_task(it.data.post(INFER, json=json_request([ROW]))) for _ in range(count - 1)]
    await until(lambda: len(it.plane.models.get("m").batcher) == count - 1)
    return tasks


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("secret detail"), 500),
        (IndexError("index out of range in self"), 400),
        (ValueError("lengths are within 1..9, the input holds 1..4 steps"), 400),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 503),
    ],
)
def test_a_model_that_raises_answers_by_whose_fault_it_was(error: Exception, status: int) -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork(error=error))
            reply = await it.data.post(INFER, json=json_request([[POISON] * 4]))
            assert reply.status_code == status
            assert is_protocol_error(reply)
            assert "secret" not in reply.text

    run(scenario)


def test_an_answer_that_is_not_finite_is_counted_and_sent_only_as_bits() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork(bias=float("nan")))
            plain = await it.data.post(INFER, json=json_request([ROW]))
            assert plain.status_code == 500
            assert "output 'logits' holds nan at [0, 0], which JSON cannot express" in plain.json()["error"]
            binary = await it.data.post(INFER, **binary_request([ROW]))
            assert np.isnan(np.frombuffer(binary_answer(binary)[1], "<f4")).all()
            status = (await it.control.get("/v2/control/status")).json()["models"]["m"]
            assert (status["requests"], status["failures"], status["non_finite"]) == (2, 1, 2)

    run(scenario)


@pytest.mark.parametrize("value", [float("nan"), 65_600.0])
def test_an_answer_that_inputs_made_infinite_is_their_fault_and_not_the_release_s(value: float) -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork(bias=float("inf")))
            request = binary_request([[value, 0, 0, 0]], parameters={})
            plain = await it.data.post(INFER, **request)
            assert plain.status_code == 400
            assert f"; input 'input' holds {value} at [0, 0]: send numbers of at most 65504" in plain.json()["error"]
            status = (await it.control.get("/v2/control/status")).json()["models"]["m"]
            assert (status["requests"], status["failures"], status["non_finite"]) == (1, 0, 0)
            assert 'nibbled_inference_non_finite_total{model="m"' in (await it.data.get("/metrics")).text

    run(scenario)


def test_nan_bits_in_a_binary_request_pass_through() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            reply = await it.data.post(INFER, **binary_request([[float("nan"), 0, 0, 0]]))
            assert reply.status_code == 200

    run(scenario)


def test_while_it_drains_readiness_is_gone_and_every_reply_closes_its_connection() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            it.plane.is_draining = True
            ready = await it.data.get("/v2/health/ready")
            assert (ready.status_code, ready.headers["connection"]) == (503, "close")
            answer = await it.data.post(INFER, json=json_request([ROW]))
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")

    run(scenario)


def test_what_clients_send_never_becomes_a_label() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            before = await labels(it)
            for name in ("evil-1", "evil-2"):
                await it.data.post(f"/v2/models/{name}/infer", json=json_request([ROW]))
                await it.data.post(INFER, json=json_request([ROW], id=name))
                await it.data.get(f"/v2/models/m/versions/{name}")
            after = await labels(it)
        assert after - before == {'nibbled_http_responses_total{code="404"}'}
        assert not any("evil" in label for label in after)

    run(scenario)


async def labels(it: Harness) -> set[str]:
    lines = (await it.data.get("/metrics")).text.splitlines()
    await it.data.get("/metrics")
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_one_request_of_many_makes_a_line_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            app: Any = HttpApp(it.plane, it.responses, log_every=3)
            with structlog.testing.capture_logs() as lines:
                async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
                    for _ in range(7):
                        await client.get("/v2/models/m?token=secret", headers={"Authorization": "Bearer secret"})
        assert [(line["event"], line["path"], line["status"]) for line in lines] == [
            ("request", "/v2/models/m", 200)
        ] * 2
        assert "secret" not in str(lines)

    monkeypatch.setattr(serving_http, "log", structlog.get_logger("http"))
    run(scenario)


def test_the_document_says_what_it_cannot_list_and_a_reply_that_it_does_not_promise_is_noticed() -> None:
    async def scenario() -> None:
        async with harness() as it:
            document = (await it.data.get("/openapi.json")).json()
        assert document["openapi"] == "3.1.0"
        described = Described(document)
        kind = {"content-type": "application/json"}
        described.expect("GET", "/v2", 400, kind, b'{"error":"x"}')
        for method, path, status, headers, body in (
            ("GET", "/v2", 418, kind, b'{"error":"x"}'),
            ("GET", "/v2", 400, {"content-type": "text/plain"}, b"x"),
            ("GET", "/v2", 400, kind, b'{"detail":"x"}'),
            ("GET", "/v2", 503, kind, b'{"error":"without Retry-After"}'),
            ("GET", "/v2/new", 200, kind, b"{}"),
            ("PUT", "/v2", 200, kind, b"{}"),
        ):
            with pytest.raises(AssertionError):
                described.expect(method, path, status, headers, body)

    run(scenario)


OTHERWISE = {"unload": 403, "generate": 400, "generate_stream": 400, "completions": 400, "/v1/models/{model}": 404}
"""What this model does not do, and what nobody does over this socket."""


def test_every_route_of_the_document_is_answered() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            for path, operations in it.app.description()["paths"].items():
                where = path.replace("{model}", "m").replace("{version}", "1")
                for method in operations:
                    body = json_request([ROW]) if method == "post" else None
                    status = (await it.data.request(method, where, json=body)).status_code
                    assert status == OTHERWISE.get(path, OTHERWISE.get(path.rpartition("/")[2], 200)), where
                assert (await it.data.options(where)).status_code == 405

    run(scenario)


def test_strings_go_in_and_out_where_a_model_takes_them() -> None:
    class Upper(FakeNetwork):
        def run(self, arrays: Any) -> list[Any]:
            return [np.array([[value.upper() for value in row] for row in arrays[0]], dtype=object)]

        def warm_up(self, rows: int) -> int:
            return rows

    async def scenario() -> None:
        spec = (TensorSpec("text", "BYTES", (-1, 2)),)
        async with harness() as it:
            await it.serve("m", Upper(inputs=spec, outputs=spec))
            entry: dict[str, Any] = {"name": "text", "datatype": "BYTES", "shape": [1, 2]}
            plain = await it.data.post(INFER, json={"inputs": [{**entry, "data": ["a", "ü"]}]})
            assert plain.json()["outputs"][0]["data"] == ["A", "ü"]
            raw = b"\1\0\0\0a\2\0\0\0bc"
            entry["parameters"] = {"binary_data_size": len(raw)}
            header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
            reply = await it.data.post(
                INFER, content=header + raw, headers={"Inference-Header-Content-Length": str(len(header))}
            )
            assert binary_answer(reply)[1] == raw.upper()
            wrong = await it.data.post(INFER, json=json_request([[1, 2]]))
            assert wrong.status_code == 400

    run(scenario)
