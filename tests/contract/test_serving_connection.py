"""What one connection may do: bytes that are no HTTP, heads that drip, bodies that lie, and too many at once."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httptools
import pytest
import uvicorn
from uvicorn.server import ServerState

from agent.serving.connection import CONTINUE, MOST_JOINED, Connection, Joining
from agent.serving.limits import DEFAULT, Limits
from tests.fakes.serving import FakeNetwork, Harness, harness, json_request, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
NOWHERE = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = json.dumps(json_request([[1, 2, 3, 4]])).encode()
INFER = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"
WAY = {"is_direct": True}


@pytest.fixture(autouse=True, params=["directly", "by the application"])
def way(request: pytest.FixtureRequest) -> None:
    """Whether ordinary inference is answered without the application: every promise holds either way."""
    WAY["is_direct"] = request.param == "directly"


@asynccontextmanager
async def listening(
    limits: Limits = DEFAULT, *, is_direct: bool | None = None, keep_alive_s: float | None = None
) -> AsyncIterator[tuple[int, Harness]]:
    """Yield the port of a server whose connections are ours, and what is behind it; all as in ``process``."""
    is_direct = WAY["is_direct"] if is_direct is None else is_direct
    async with harness(limits=limits) as it:
        config = uvicorn.Config(it.app, loop="none", ws="none", lifespan="off", log_config=None, access_log=False)
        config.timeout_keep_alive = config.timeout_keep_alive if keep_alive_s is None else keep_alive_s  # type: ignore[assignment]
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(
                config, state, {}, limits=limits, responses=it.responses, direct=it.app.direct if is_direct else None
            ),
            "127.0.0.1",
            0,
        )
        try:
            yield server.sockets[0].getsockname()[1], it
        finally:
            server.close()
            for one in list(state.connections):
                one.transport.close()
            await server.wait_closed()


async def say(port: int, *parts: bytes, ends: bool = False) -> bytes:
    """Send ``parts``, close this end if it ``ends``, read until the server closes, and return all that it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
    if ends:
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def flood(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send ``data`` again and again, until the connection is reset."""
    while True:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0)


def one(answer: bytes) -> tuple[bytes, dict[str, Any]]:
    """Return head and JSON body of the only reply."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, json.loads(body)


def statuses(answer: bytes) -> list[int]:
    """Return the statuses of all replies, as a client's parser tells them apart."""
    found: list[int] = []

    class Replies:
        def on_headers_complete(self) -> None:
            found.append(parser.get_status_code())

    parser = httptools.HttpResponseParser(Replies())
    parser.feed_data(answer)
    return found


def post(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    """Return an inference request as bytes, with a length that may lie."""
    told = len(body) if length is None else length
    return INFER + b"Content-Length: %d\r\n" % told + b"".join(line + b"\r\n" for line in headers) + b"\r\n" + body


def test_what_is_no_http_gets_the_protocols_error_object() -> None:
    async def scenario() -> None:
        async with listening() as (port, _):
            head, body = one(await say(port, b"\x16\x03\x01\r\n\r\n"))
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/json" in head
        assert body["error"]

    run(scenario)


@pytest.mark.parametrize("sent", [b"", b"GET /v2/health/live HTTP/1.1\r\nHost: "])
def test_a_head_that_is_not_complete_in_time_ends_its_connection(sent: bytes) -> None:
    async def scenario() -> None:
        async with listening(Limits(head_s=0.02)) as (port, _):
            head, body = one(await say(port, sent))
        assert head.startswith(b"HTTP/1.1 408 ")
        assert "not complete" in body["error"]

    run(scenario)


def test_a_second_request_on_a_connection_has_a_deadline_of_its_own() -> None:
    async def scenario() -> None:
        async with listening(Limits(head_s=0.1)) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEALTH)
            assert b"200 OK" in await reader.readuntil(b'{"live":true}')
            writer.write(HEALTH[:20])
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
            writer.close()

    run(scenario)


def test_a_connection_too_many_is_told_to_come_back_and_the_others_live() -> None:
    async def scenario() -> None:
        async with listening(Limits(max_connections=1)) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEALTH)
            await reader.readuntil(b'{"live":true}')
            head, body = one(await say(port))
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in head
            assert "1 connections are open" in body["error"]
            writer.write(HEALTH)
            await reader.readuntil(b'{"live":true}')
            writer.close()

    run(scenario)


def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    async def scenario() -> None:
        async with listening() as (port, it):
            await it.serve("m", FakeNetwork())
            answer = await say(port, HEALTH + post(BODY) + NOWHERE + HEALTH, ends=True)
        assert statuses(answer) == [200, 200, 404, 200]
        assert answer.index(b'"live"') < answer.index(b'"model_name"') < answer.index(b"there is no route")

    run(scenario)


def test_what_is_no_http_behind_a_request_does_not_come_between_it_and_its_answer() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with listening() as (port, it):
            await it.serve("m", network)
            network.gate.clear()
            asked = asyncio.create_task(say(port, post(BODY) + b"\x16\x03\x01\r\n\r\n"))
            await until(network.entered.is_set)
            network.gate.set()
            answer = await asked
        assert statuses(answer) == [200]
        assert b"connection: close" in answer.lower()

    run(scenario)


def test_a_request_that_is_computed_outlasts_the_deadline_of_the_head_behind_it() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with listening(Limits(head_s=0.05)) as (port, it):
            await it.serve("m", network)
            network.gate.clear()
            asked = asyncio.create_task(say(port, post(BODY) + HEALTH[:20]))
            await until(network.entered.is_set)
            await asyncio.sleep(0.15)
            network.gate.set()
            answer = await asked
        assert statuses(answer) == [200, 408]

    run(scenario)


def test_a_client_that_closes_its_end_gets_the_answer() -> None:
    async def scenario() -> None:
        async with listening() as (port, it):
            await it.serve("m", FakeNetwork())
            assert statuses(await say(port, HEALTH, ends=True)) == [200]
            assert statuses(await say(port, post(BODY), ends=True)) == [200]

    run(scenario)


def test_a_client_that_closed_its_end_counts_as_gone_when_the_answer_takes_long() -> None:
    async def scenario() -> None:
        network = FakeNetwork()
        async with listening(Limits(half_closed_s=0.02)) as (port, it):
            await it.serve("m", network)
            network.gate.clear()
            first = asyncio.create_task(say(port, post(BODY)))
            await until(network.entered.is_set)
            assert await say(port, post(BODY), ends=True) == b""
            slot = it.plane.models.active("m")
            await until(lambda: slot.stats.outcomes["canceled"] == 1)
            network.gate.set()
            await until(lambda: slot.stats.outcomes["ok"] == 1)
        assert statuses(await first) == [200]
        assert network.calls == [1]

    run(scenario)


LIES: dict[str, tuple[list[bytes], list[int]]] = {
    "shorter than announced": ([post(BODY[:-9], length=len(BODY))], [400]),
    "longer than announced": ([post(BODY + b"garbage\r\n\r\n", length=len(BODY))], [200]),
    "no number": ([INFER + b"Content-Length: x\r\n\r\n"], [400]),
    "negative": ([INFER + b"Content-Length: -1\r\n\r\n"], [400]),
    "two that differ": ([post(BODY, b"Content-Length: 5")], [400]),
    "with chunks, too": ([post(BODY, b"Transfer-Encoding: chunked")], [400]),
    "chunked without length": (
        [INFER + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"], [200],
    ),
    "a chunk of no size": ([INFER + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], [400]),
    "a chunk that never ends": ([INFER + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"], [400]),
    "a chunk of 2^64": ([INFER + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n"], [400]),
    "an unknown coding": ([INFER + b"Transfer-Encoding: gzip\r\n\r\nx"], [400]),
    "more digits than a number has": ([INFER + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"], [400]),
    "thousands of zeros before the length": ([post(BODY, length=0).replace(b": 0", b": " + b"0" * 5000)], [400]),
    "a JSON part of 5,000 digits": ([post(BODY, b"Inference-Header-Content-Length: " + b"1" * 5000)], [400]),
    "over the limit": ([INFER + b"Content-Length: 99999999999\r\n\r\n"], [413]),
    "over the limit, and asking first": (
        [INFER + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"], [413],
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_body_that_is_not_what_was_announced_is_refused_and_the_server_lives(lie: str) -> None:
    async def scenario() -> None:
        sent, expected = LIES[lie]
        async with listening() as (port, it):
            await it.serve("m", FakeNetwork())
            answer = await say(port, *sent, ends=True)
            assert statuses(answer) == expected, answer
            assert expected == [200] or b"content-type: application/json" in answer
            assert statuses(await say(port, post(BODY), ends=True)) == [200]
            assert it.responses[expected[0]] >= 1

    run(scenario)


ODD_HEADS: dict[str, tuple[bytes, int]] = {
    "no path": (b"GET  HTTP/1.1\r\n\r\n", 400),
    "unknown method": (b"BREW /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "absolute form": (b"GET http://x/v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "absolute form without a path": (b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "bytes that are no ASCII": (b"GET /v2/models/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a header without a colon": (b"GET /v2 HTTP/1.1\r\nHost x\r\n\r\n", 400),
    "a folded header": (b"GET /v2 HTTP/1.1\r\nHost: x\r\n y: z\r\n\r\n", 400),
    "a space before the colon": (b"GET /v2 HTTP/1.1\r\nContent-Length : 0\r\n\r\n", 400),
    "a NUL": (b"GET /v2 HTTP/1.1\r\nHost: a\x00b\r\n\r\n", 400),
    "line ends in a name": (b"GET /v2/models/a%0d%0aSet-Cookie:%20b HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "HTTP/1.0": (b"GET /v2 HTTP/1.0\r\n\r\n", 200),
    "HTTP/0.9": (b"GET /v2\r\n\r\n", 200),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a websocket": (b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
    "OPTIONS": (b"OPTIONS /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "TRACE": (b"TRACE /v2 HTTP/1.1\r\nHost: x\r\nCookie: secret\r\n\r\n", 405),
}


@pytest.mark.parametrize("name", ODD_HEADS)
def test_an_odd_head_gets_its_status_and_nothing_of_it_comes_back_as_a_header(name: str) -> None:
    async def scenario() -> None:
        sent, expected = ODD_HEADS[name]
        async with listening() as (port, _):
            answer = await say(port, sent, ends=True)
            assert statuses(answer) == [expected], answer
            assert b"\r\nset-cookie" not in answer.lower()
            assert b"secret" not in answer
            assert statuses(await say(port, HEALTH, ends=True)) == [200]

    run(scenario)


def test_a_client_that_would_rather_speak_http_2_is_answered_in_http_1_body_and_all() -> None:
    async def scenario() -> None:
        offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
        async with listening() as (port, it):
            await it.serve("m", FakeNetwork())
            request = post(BODY, *offer)
            chunks = INFER + b"\r\n".join((*offer, b"Transfer-Encoding: chunked\r\n\r\n"))
            chunks += b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
            assert statuses(await say(port, request[:-20], request[-20:] + chunks + HEALTH, ends=True)) == [200] * 3

    run(scenario)


def test_a_head_that_comes_in_one_piece_has_the_limit_of_one_that_drips() -> None:
    async def scenario() -> None:
        async with listening(Limits(max_head_bytes=20_000)) as (port, it):
            await it.serve("m", FakeNetwork())
            wide = b"X-A: " + b"b" * 25_000
            many = b"\r\n".join(b"X-%d: %b" % (at, b"b" * 90) for at in range(250))
            for lines in (wide, many):
                head, body = one(await say(port, post(BODY, lines)))
                assert head.startswith(b"HTTP/1.1 431 ")
                assert "more than 20000 bytes" in body["error"]
            assert statuses(await say(port, post(BODY, b"X-A: " + b"b" * 18_000), ends=True)) == [200]

    run(scenario)


@pytest.mark.parametrize("drips", [False, True], ids=["in one piece", "dripping"])
@pytest.mark.parametrize("method", [b"GET", b"UNSUBSCRIBE"])
def test_a_target_that_is_longer_than_a_head_may_be_is_told_from_headers_that_are(
    method: bytes, *, drips: bool
) -> None:
    async def scenario() -> None:
        async with listening(Limits(max_head_bytes=20_000)) as (port, it):
            whole = method + b" /" + b"a" * 25_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
            begun = whole[:20_004]  # not a byte that stays unread: it would reset the connection
            parts = [begun[at : at + 300] for at in range(0, len(begun), 300)] if drips else [whole]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            head, body = one(await reader.read())
            writer.close()
            assert head.startswith(b"HTTP/1.1 414 ")
            assert "first line has more than 20000 bytes" in body["error"]
            assert it.responses == {414: 1}
            fits = b"GET /" + b"a" * 19_000 + b" HTTP/1.1\r\nHost: x\r\nX-A: " + b"b" * 3000 + b"\r\n\r\n"
            assert statuses(await say(port, fits)) == [431], "the target is not to blame"

    run(scenario)


def test_a_large_body_does_not_count_as_the_head_of_the_request_that_began_behind_it() -> None:
    async def scenario() -> None:
        async with listening(Limits(max_head_bytes=20_000)) as (port, it):
            await it.serve("m", FakeNetwork())
            spaces = BODY + b" " * 30_000
            sent = post(spaces) + HEALTH
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEALTH)
            await reader.readuntil(b'{"live":true}')
            writer.write(sent[:-20])
            await reader.readuntil(b"}]}")
            writer.write(sent[-20:])
            assert await reader.readuntil(b'{"live":true}')
            writer.close()
            assert 431 not in it.responses

    run(scenario)


REASONS: dict[str, tuple[bytes, int, str]] = {
    "no Host": (b"GET /v2 HTTP/1.1\r\n\r\n", 400, "has 0 Host headers, exactly one is needed"),
    "two Hosts": (b"GET /v2 HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n", 400, "has 2 Host headers"),
    "two Hosts in HTTP/1.0": (b"GET /v2 HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400, "has 2 Host headers"),
    "a second coding": (
        INFER + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501,
        "Transfer-Encoding 'gzip, chunked' is not chunked",
    ),
    "a second coding on a line of its own": (
        INFER + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501,
        "'gzip, chunked' is not chunked",
    ),
    "two lengths of the JSON part": (
        post(BODY, b"Inference-Header-Content-Length: 5", b"Inference-Header-Content-Length: 6"), 400,
        "2 headers inference-header-content-length that differ",
    ),
    "two tokens": (
        post(BODY, b"Authorization: Bearer a", b"Authorization: Bearer b"), 400, "authorization that differ",
    ),
    "chunks in HTTP/1.0": (
        INFER.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
        "HTTP/1.0 has no Transfer-Encoding: send Content-Length, or HTTP/1.1",
    ),
    "a length that is no number": (INFER + b"Content-Length: abc\r\n\r\n", 400, "Invalid character in Content-Length"),
    "two lengths": (post(BODY, b"Content-Length: 5"), 400, "Duplicate Content-Length"),
    "a length beside chunks": (
        post(BODY, b"Transfer-Encoding: chunked"), 400, "Transfer-Encoding can't be present with Content-Length",
    ),
    "chunks beside a length": (
        INFER + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400,
        "Content-Length can't be present with Transfer-Encoding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_a_head_that_could_be_read_in_two_ways_is_refused_with_the_reason(name: str) -> None:
    async def scenario() -> None:
        sent, status, reason = REASONS[name]
        async with listening() as (port, it):
            await it.serve("m", FakeNetwork())
            head, body = one(await say(port, sent))
            assert head.startswith(b"HTTP/1.1 %d " % status), head
            assert reason in body["error"]
            assert it.responses[status] == 1
            before = await say(port, HEALTH + sent)
            assert statuses(before)[0] == 200, "what came before is answered first"

    run(scenario)


def test_the_same_length_of_the_json_part_twice_is_one_length() -> None:
    async def scenario() -> None:
        async with listening() as (port, it):
            await it.serve("m", FakeNetwork())
            line = b"Inference-Header-Content-Length: %d" % len(BODY)
            assert statuses(await say(port, post(BODY, line, line), ends=True)) == [200]

    run(scenario)


def test_what_stands_behind_a_chunked_body_is_no_header_of_the_request() -> None:
    async def scenario() -> None:
        async with listening() as (port, it):
            await it.serve("m", FakeNetwork())
            chunks = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
            sent = INFER + chunks + b"Inference-Header-Content-Length: 3\r\n\r\n"
            assert statuses(await say(port, sent, ends=True)) == [200]

    run(scenario)


@pytest.mark.parametrize("endless", [b"X-A: b\r\n", b"a"], ids=["many headers", "one header"])
def test_a_head_without_end_is_cut_off(endless: bytes) -> None:
    async def scenario() -> None:
        async with listening(Limits(max_head_bytes=20_000)) as (port, it):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v2 HTTP/1.1\r\nHost: ")
            # What it goes on sending makes the kernel reset the connection, which may overtake the answer.
            with pytest.raises(ConnectionError):
                await flood(writer, endless * 1000)
            writer.transport.abort()
            assert it.responses == {431: 1}

    run(scenario)


def test_a_refused_body_that_drips_on_does_not_keep_its_connection() -> None:
    async def scenario() -> None:
        async with listening(Limits(head_s=0.05)) as (port, _):
            answer = await say(port, b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{")
        assert statuses(answer) == [404]

    run(scenario)


def test_a_refused_body_that_comes_whole_leaves_its_connection_to_the_next_request() -> None:
    async def scenario() -> None:
        body = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
        async with listening() as (port, _):
            assert statuses(await say(port, body, HEALTH, ends=True)) == [404, 200]

    run(scenario)


def test_a_client_that_does_not_read_its_answers_is_given_up() -> None:
    async def scenario() -> None:
        async with listening(Limits(write_s=0.05)) as (port, it):
            await it.serve("m", FakeNetwork())
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
            with pytest.raises(ConnectionError):
                await flood(writer, ask * 100)
            writer.transport.abort()
            assert statuses(await say(port, HEALTH, ends=True)) == [200]

    run(scenario)


def test_an_idle_connection_is_closed_without_a_word() -> None:
    async def scenario() -> None:
        async with harness() as it:
            config = uvicorn.Config(it.app, loop="none", ws="none", lifespan="off", log_config=None)
            config.timeout_keep_alive = 0
            state = ServerState()
            server = await asyncio.get_running_loop().create_server(
                lambda: Connection(config, state, {}), "127.0.0.1", 0
            )
            assert statuses(await say(server.sockets[0].getsockname()[1], HEALTH)) == [200]
            server.close()
            await server.wait_closed()

    run(scenario)


@pytest.mark.parametrize(
    ("asked", "answered", "then"),
    [
        (HEALTH, b'{"live":true}', b"\r\n\r\n"),
        (NOWHERE.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n1"), b"}", b"23456789"),
    ],
    ids=["lines without a request", "the rest of a refused body"],
)
def test_what_is_no_request_does_not_keep_an_idle_connection(asked: bytes, answered: bytes, then: bytes) -> None:
    async def scenario() -> None:
        async with listening(keep_alive_s=0.5) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(asked)
            await reader.readuntil(answered)
            writer.write(then)
            assert await reader.read() == b""
            writer.close()

    run(scenario)


def test_a_request_that_began_before_the_answer_to_another_has_not_the_time_of_an_idle_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[Connection] = []
    take = Connection.connection_made

    def taken(line: Connection, transport: asyncio.Transport) -> None:
        lines.append(line)
        take(line, transport)

    monkeypatch.setattr(Connection, "connection_made", taken)

    async def scenario() -> None:
        async with listening() as (port, it):
            network = FakeNetwork()
            await it.serve("m", network)
            network.gate.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(BODY) + INFER)
            await until(network.entered.is_set)
            network.gate.set()
            await reader.readuntil(b"}]}")
            await until(lambda: lines[0].timeout_keep_alive_task is not None)
            network.gate.clear()
            network.entered.clear()
            writer.write(post(BODY)[len(INFER) :])
            await until(network.entered.is_set)
            assert lines[0].timeout_keep_alive_task is None
            network.gate.set()
            await reader.readuntil(b"}]}")
            writer.close()

    run(scenario)


def test_empty_lines_without_end_are_cut_off() -> None:
    async def scenario() -> None:
        async with listening(Limits(max_head_bytes=20_000)) as (port, it):
            head, _ = one(await say(port, b"\r\n" * 10_001))
            assert head.startswith(b"HTTP/1.1 431 ")
            assert it.responses == {431: 1}

    run(scenario)


def test_a_client_that_waits_to_be_told_to_go_on_is_told_so_and_answered() -> None:
    async def scenario() -> None:
        async with listening() as (port, it):
            await it.serve("m", FakeNetwork())
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(INFER + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(BODY))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(BODY)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            writer.close()

    run(scenario)


class Transport:
    """Writes down what it is given, and whether it was closed."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ([b"head", b"body"], [b"headbody"]),
        ([b"head", b"body", b"more"], [b"headbody", b"more"]),
        ([CONTINUE + b"Continue", b"head", b"body"], [CONTINUE + b"Continue", b"headbody"]),
        ([b"head", b"x" * MOST_JOINED], [b"head" + b"x" * MOST_JOINED]),
        ([b"head", b"x" * (MOST_JOINED + 1)], [b"head", b"x" * (MOST_JOINED + 1)]),
    ],
)
def test_a_head_waits_for_the_first_part_of_its_body(given: list[bytes], written: list[bytes]) -> None:
    transport: Any = Transport()
    joining = Joining(transport)
    for data in given:
        joining.write(data)
    assert transport.writes == written


def test_a_head_that_nothing_follows_is_written_before_the_end() -> None:
    transport: Any = Transport()
    joining = Joining(transport)
    joining.write(b"head")
    assert (transport.writes, joining.is_closing()) == ([], False)
    joining.close()
    assert (transport.writes, joining.is_closing()) == ([b"head"], True)


def test_the_answers_of_one_connection_are_written_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    real = Joining.write

    def counted(self: Joining, data: bytes) -> None:
        writes.append(len(data))
        real(self, data)

    monkeypatch.setattr(Joining, "write", counted)

    async def scenario() -> None:
        async with listening(is_direct=False) as (port, it):
            await it.serve("m", FakeNetwork())
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(INFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
                head, _, body = (await reader.read(65536)).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert json.loads(body)["model_name"] == "m"
            writer.close()

    run(scenario)
    assert len(writes) == 3 * 2, "the head and the body of each reply go through it"
