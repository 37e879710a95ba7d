"""Inference without the application: the same bytes and the same counts, and whatever is odd goes the other way."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog

from agent.serving.access import Access
from agent.serving.connection import MOST_JOINED
from agent.serving.direct import MOST_BYTES, DirectInference, inference_route
from agent.serving.http import HttpApp
from agent.serving.limits import DEFAULT, Limits
from agent.serving.oip import format_response
from agent.serving.tensors import TensorSpec
from agent.tokens import TokenFile
from tests.contract.test_serving_connection import BODY, HEALTH, INFER, listening, post, say, statuses
from tests.fakes.serving import POISON, WEIGHTS, FakeNetwork, Harness, json_request, run, until

if TYPE_CHECKING:
    from pathlib import Path

ENDS = b"Connection: close"


def body(rows: Any = ((1, 2, 3, 4),), **extra: Any) -> bytes:
    return json.dumps(json_request(rows, **extra)).encode()


def binary(rows: Any, *headers: bytes) -> bytes:
    """Return a request in binary form, for an answer in binary form."""
    raw = np.asarray(rows, "<f4")
    entry = {"name": "input", "shape": raw.shape, "datatype": "FP32", "parameters": {"binary_data_size": raw.nbytes}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    return post(head + raw.tobytes(), b"Inference-Header-Content-Length: %d" % len(head), *headers)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that the application is asked for."""
    paths: list[str] = []
    real = HttpApp.__call__

    async def noted(self: HttpApp, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("/infer"):
            paths.append(scope["path"])
        await real(self, scope, receive, send)

    monkeypatch.setattr(HttpApp, "__call__", noted)
    return paths


ROWS = np.ones((40, 4), np.float32)
ORDINARY: dict[str, tuple[bytes, int]] = {
    "JSON": (post(body(), ENDS), 200),
    "binary": (binary([[1, 2, 3, 4]], ENDS), 200),
    "raw": (post(np.ones(4, "<f4").tobytes(), b"Inference-Header-Content-Length: 0", ENDS), 200),
    "an id and parameters": (post(body(id="7", parameters={"sequence": 1}), ENDS), 200),
    "an output by its name": (post(body(outputs=[{"name": "logits"}]), ENDS), 200),
    "its version": (post(body(), ENDS).replace(b"/infer", b"/versions/1/infer", 1), 200),
    "a path that is encoded": (post(body(), ENDS).replace(b"/models/m/", b"/models/%6d/", 1), 200),
    "a query": (post(body(), ENDS).replace(b"/infer", b"/infer?x=/", 1), 200),
    "an answer that is packed": (binary(ROWS, b"Accept-Encoding: deflate, gzip;q=0", ENDS), 200),
    "an answer too small to pack": (post(body(), b"Accept-Encoding: gzip", ENDS), 200),
    "no JSON": (post(b"{", ENDS), 400),
    "another shape": (post(body([[1, 2]]), ENDS), 400),
    "a length that is no number": (post(body(), b"Inference-Header-Content-Length: x", ENDS), 400),
    "an unknown output": (post(body(outputs=[{"name": "x"}]), ENDS), 400),
    "a timeout that is none": (post(body(parameters={"timeout": -1}), ENDS), 400),
    "values that the model refuses": (post(body([[POISON, 0, 0, 0]]), ENDS), 500),
}
ODD: dict[str, tuple[bytes, int]] = {
    "packed": (post(gzip.compress(body()), b"Content-Encoding: gzip", ENDS), 200),
    "in chunks": (
        INFER + b"%b\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (ENDS, len(body()), body()), 200
    ),
    "of HTTP/1.0": (post(body()).replace(b"HTTP/1.1", b"HTTP/1.0", 1), 200),
    "of another verb": (post(body(), ENDS).replace(b"POST", b"PUT", 1), 405),
    "of no length": (INFER + ENDS + b"\r\n\r\n", 400),
    "an unknown model's": (post(body(), ENDS).replace(b"models/m", b"models/x", 1), 404),
    "another version's": (post(body(), ENDS).replace(b"/infer", b"/versions/2/infer", 1), 404),
    "large": (post(body() + b" " * MOST_BYTES, ENDS), 200),
    "too large": (post(b"", ENDS, length=DEFAULT.max_body_bytes + 1), 413),
    "of a long path": (post(body(), ENDS).replace(b"models/m", b"models/" + b"m" * 4100, 1), 404),
    "of a path in no encoding": (post(body(), ENDS).replace(b"models/m", b"models/\xff", 1), 400),
}  # fmt: skip


async def told(request: bytes, *, is_direct: bool) -> tuple[bytes, dict[int, int], dict[str, int], tuple[int, int]]:
    """Return what a server answers, and what it counted."""
    async with listening(is_direct=is_direct) as (port, it):
        await it.serve("m", FakeNetwork())
        answer = await say(port, request)
        stats = it.plane.models.active("m").stats
        return answer, dict(it.responses), stats.outcomes, (stats.inferences, stats.request.count)


@pytest.mark.parametrize("case", ORDINARY)
def test_an_ordinary_request_is_answered_with_the_same_bytes_and_counts_without_the_application(
    case: str, asked: list[str]
) -> None:
    async def scenario() -> None:
        request, status = ORDINARY[case]
        found = await told(request, is_direct=True)
        assert not asked
        assert found == await told(request, is_direct=False)
        assert asked
        assert statuses(found[0])[0] == status

    run(scenario)


@pytest.mark.parametrize("case", ODD)
def test_an_odd_request_is_the_applications(case: str, asked: list[str]) -> None:
    async def scenario() -> None:
        request, status = ODD[case]
        found = await told(request, is_direct=True)
        assert len(asked) == (status != 400 or case == "of no length")
        assert found == await told(request, is_direct=False)
        assert statuses(found[0]) == [status]

    run(scenario)


def test_the_route_is_that_of_inference_alone() -> None:
    assert inference_route(b"/v2/models/m/infer") == ("m", None, ("v2", "models", "m", "infer"))
    assert inference_route(b"/v2/models/a%2fb/versions/1/infer?x") == (
        "a/b", "1", ("v2", "models", "a/b", "versions", "1", "infer"),
    )  # fmt: skip
    for url in (b"/v2/models/m", b"/v2/models/m/infer/", b"/v1/models/m/infer", b"/v2/models/infer", b"*", b""):
        assert inference_route(url) is None


def test_a_body_that_comes_in_time_is_read_here_and_one_that_drips_goes_on_in_the_application(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            request = post(body(), ENDS)
            for patience_s, by_application in ((30.0, 0), (0.0, 1)):
                monkeypatch.setattr("agent.serving.connection.PATIENCE_S", patience_s)
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request[:-30])
                if by_application:
                    await until(lambda: bool(asked))
                else:
                    await asyncio.sleep(0.01)
                writer.write(request[-30:])
                answer = await reader.read()
                writer.close()
                assert statuses(answer) == [200]
                assert len(asked) == by_application

    run(scenario)


def test_a_client_that_waits_for_a_word_before_its_body_is_told_to_go_on_at_once(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.serving.connection.PATIENCE_S", 30.0)

    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head, _, content = post(body(), b"Expect: 100-continue", ENDS).partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(content)
            assert statuses(await reader.read()) == [200]
            writer.close()
        assert len(asked) == 1

    run(scenario)


def test_a_body_that_never_ends_has_the_applications_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.serving.connection.PATIENCE_S", 0.0)

    async def scenario() -> None:
        async with listening(Limits(body_grace_s=0.02), is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            monkeypatch.setattr("agent.serving.body.DISCARD_S", 0.0)
            assert statuses(await say(port, post(body())[:-5])) == [408]

    run(scenario)


def test_a_body_that_arrives_across_a_swap_is_answered_by_the_release_that_is_active_then(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.serving.connection.PATIENCE_S", 30.0)

    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            request = post(body(), ENDS)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = await _begun(it, writer, request[:-30])
            await it.serve("m", FakeNetwork(bias=100.0), version="2", release="r2")
            writer.write(request[-30:])
            answer = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
            writer.close()
            assert began.slot is it.plane.models.active("m")
        assert answer["model_version"] == "2"
        assert answer["outputs"][0]["data"] == (np.array([1, 2, 3, 4], "<f4") @ WEIGHTS + 100).tolist()
        assert not asked

    run(scenario)


async def _begun(it: Harness, writer: asyncio.StreamWriter, part: bytes) -> DirectInference:
    """Send a part of a request, and return what was begun of it once all of the part is there."""
    begun: list[DirectInference] = []
    real = it.app.direct.begin

    def noted(*arguments: Any, **named: Any) -> Any:
        begun.append(real(*arguments, **named))
        return begun[-1]

    it.app.direct.begin = noted  # type: ignore[method-assign]
    writer.write(part)
    size = len(part.partition(b"\r\n\r\n")[2])
    await until(lambda: bool(begun) and (not begun[0].more_body or sum(map(len, begun[0].parts)) == size))
    return begun[0]


async def _computing(network: FakeNetwork, port: int) -> asyncio.Task[bytes]:
    """Ask, and return once the network computes the answer, which it does until its gate is opened."""
    network.gate.clear()
    first = asyncio.create_task(say(port, post(body(), ENDS)))
    await until(network.entered.is_set)
    return first


def test_a_model_that_is_let_go_while_a_body_comes_in_is_waited_for(asked: list[str]) -> None:
    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            model = it.plane.models.get("m")
            request = post(body(), ENDS)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await _begun(it, writer, request[:-30])
            active, model.active = model.active, None
            model.room.open()
            model.room.touch()
            writer.write(request[-30:])
            await until(lambda: len(model.room) == 1)
            assert len(asked) == 1
            assert active is not None
            model.activate(active.release)
            assert statuses(await reader.read()) == [200]
            writer.close()

    run(scenario)


def test_a_client_that_leaves_while_its_request_waits_costs_no_computation(asked: list[str]) -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", network)
            first = await _computing(network, port)
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(body()))
            batcher = it.plane.models.get("m").batcher
            await until(lambda: len(batcher) == 1)
            writer.transport.abort()
            slot = it.plane.models.active("m")
            await until(lambda: slot.stats.outcomes["canceled"] == 1)
            assert len(batcher) == 0
            network.gate.set()
            assert statuses(await first) == [200]
            assert (network.calls, slot.in_flight, it.responses[200]) == ([1], 0, 2), "the first, and the load"
        assert not asked

    run(scenario)


def test_a_client_that_leaves_while_its_request_is_computed_is_counted_once() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", network)
            network.gate.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            began = await _begun(it, writer, post(body()))
            await until(network.entered.is_set)
            writer.transport.abort()
            await until(lambda: began.disconnected)
            network.gate.set()
            slot = it.plane.models.active("m")
            await until(lambda: not slot.in_flight)
            assert (slot.stats.outcomes["canceled"], slot.stats.outcomes["ok"], it.responses[200]) == (1, 0, 1)

    run(scenario)


def test_a_client_that_sent_more_ahead_and_is_gone_costs_no_computation_either(asked: list[str]) -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", network)
            first = await _computing(network, port)
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            slot, batcher = it.plane.models.active("m"), it.plane.models.get("m").batcher
            began = await _begun(it, writer, post(body()))
            await until(lambda: len(batcher) == 1)
            connection: Any = began.line
            writer.write(HEALTH)
            await until(lambda: bool(connection.pipeline))
            connection.transport.abort()  # over TLS a reset is noticed though nothing is read
            await until(lambda: slot.stats.outcomes["canceled"] == 1)
            assert len(batcher) == 0
            network.gate.set()
            assert statuses(await first) == [200]
            assert (network.calls, slot.in_flight) == ([1], 0)
            writer.close()
        assert not asked

    run(scenario)


def test_of_a_connection_that_is_idle_no_body_is_kept(asked: list[str]) -> None:
    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = await _begun(it, writer, post(body() + b" " * MOST_JOINED))
            await reader.readuntil(b"\r\n\r\n")
            assert began.response_complete
            assert began.parts == []
            writer.close()
        assert not asked

    run(scenario)


def test_one_request_that_fails_in_a_way_nobody_foresaw_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", network)
            first = await _computing(network, port)
            others = [asyncio.create_task(say(port, post(body(id=name), ENDS))) for name in "abc"]
            batcher = it.plane.models.get("m").batcher
            await until(lambda: len(batcher) == 3)

            def fails(response: Any) -> Any:
                if response.id == "b":
                    raise KeyError(response.id)
                return format_response(response)

            monkeypatch.setattr("agent.serving.direct.format_response", fails)
            network.gate.set()
            assert statuses(await first) == [200]
            answers = await asyncio.gather(*others)
            assert [statuses(answer) for answer in answers] == [[200], [500], [200]]
            assert json.loads(answers[1].partition(b"\r\n\r\n")[2]) == {"error": "internal error"}

    run(scenario)


def test_while_it_drains_every_answer_closes_its_connection(asked: list[str]) -> None:
    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            it.plane.drain()
            answer = await say(port, post(body()))
        assert b"\r\nconnection: close\r\n" in answer
        assert statuses(answer) == [200]
        assert not asked

    run(scenario)


def test_requests_sent_ahead_of_an_answer_keep_their_order(asked: list[str]) -> None:
    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            ahead = post(b"{") + HEALTH + post(body(id="a")) + post(b"{") + post(body(id="b"), ENDS)
            answer = await say(port, ahead)
            assert len(asked) == 3, "only what finds the connection idle is answered without it"
        assert statuses(answer) == [400, 200, 200, 400, 200]
        assert answer.index(b'"live"') < answer.index(b'"id":"a"') < answer.index(b'"id":"b"')
        async with listening(is_direct=False) as (port, it):
            await it.serve("m", FakeNetwork())
            assert await say(port, ahead) == answer

    run(scenario)


def test_a_large_answer_is_packed_beside_the_event_loop(asked: list[str]) -> None:
    async def scenario() -> None:
        wide = TensorSpec("logits", "FP32", (-1, 3))
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork(outputs=(wide,)))
            rows = np.ones((MOST_JOINED // 8, 4), np.float32)
            head, _, packed = (await say(port, binary(rows, b"Accept-Encoding: gzip", ENDS))).partition(b"\r\n\r\n")
            plain = (await say(port, binary(rows, ENDS))).partition(b"\r\n\r\n")[2]
        assert b"\r\ncontent-encoding: gzip\r\nvary: accept-encoding\r\n" in head
        assert gzip.decompress(packed) == plain
        assert len(plain) > MOST_JOINED
        assert not asked

    run(scenario)


@pytest.mark.parametrize("count", [100, MOST_JOINED // 8], ids=["small", "large"])
def test_an_answer_that_there_is_no_memory_to_pack_goes_out_as_it_is(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_body: bytes, _encoding: str) -> bytes:
        raise MemoryError

    monkeypatch.setattr("agent.serving.direct.compressed", exhausted)

    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            rows = np.ones((count, 4), np.float32)
            answer = await say(port, binary(rows, b"Accept-Encoding: gzip", ENDS))
            assert b"content-encoding" not in answer.partition(b"\r\n\r\n")[0]
            assert answer == await say(port, binary(rows, ENDS))

    run(scenario)


def test_a_token_is_asked_for_here_too(tmp_path: Path, asked: list[str]) -> None:
    file = tmp_path / "tokens"
    file.write_text("a-token-of-sufficient-length\n", encoding="ascii")
    file.chmod(0o600)

    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            it.app.direct._access = it.app._access = Access(TokenFile(file))
            good = post(body(), b"Authorization: Bearer a-token-of-sufficient-length", ENDS)
            assert statuses(await say(port, good)) == [200]
            assert not asked
            assert statuses(await say(port, post(body(), ENDS))) == [401]
            assert statuses(await say(port, good.replace(b"a-token", b"b-token"))) == [401]

    run(scenario)


def test_what_is_answered_here_is_in_the_log_and_in_the_traces() -> None:
    class Tracer:
        """Writes down what it is told."""

        def __init__(self) -> None:
            self.told: list[tuple[Any, ...]] = []

        def record(self, headers: Any, model: str, version: str, seconds: float, **what: Any) -> None:
            assert 0 < seconds < 30
            self.told.append((dict(headers)[b"traceparent"], model, version, sorted(what)))

    async def scenario() -> None:
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", FakeNetwork())
            tracer = Tracer()
            it.app.direct._tracer = tracer  # type: ignore[assignment]
            it.app._log_every = it.app._until_logged = 2
            with structlog.testing.capture_logs() as lines:
                for sent in (body(), b"{"):
                    await say(port, post(sent, b"traceparent: 00-x", ENDS))
        assert tracer.told == [(b"00-x", "m", "1", ["timing"]), (b"00-x", "m", "1", ["error"])]
        line = next(line for line in lines if line["event"] == "request")
        assert (line["method"], line["path"], line["status"]) == ("POST", "/v2/models/m/infer", 400)
        assert (line["client"], line["one_of"]) == ("127.0.0.1", 2)

    run(scenario)


def test_health_is_told_while_inference_waits(asked: list[str]) -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with listening(is_direct=True) as (port, it):
            await it.serve("m", network)
            network.gate.clear()
            waiting = asyncio.create_task(say(port, post(BODY, ENDS)))
            await until(network.entered.is_set)
            assert statuses(await say(port, HEALTH.replace(b"Host", ENDS + b"\r\nHost"))) == [200]
            assert not waiting.done()
            network.gate.set()
            assert statuses(await waiting) == [200]
        assert not asked

    run(scenario)
