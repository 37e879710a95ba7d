"""What one connection may do: bytes that are no HTTP, heads that drip, and too many connections at once."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from agent.serving.connection import Connection
from agent.serving.limits import DEFAULT, Limits
from tests.fakes.serving import harness, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def listening(limits: Limits = DEFAULT) -> AsyncIterator[int]:
    """Yield the port of a server whose connections are ours."""
    async with harness(limits=limits) as it:
        config = uvicorn.Config(it.app, loop="none", ws="none", lifespan="off", log_config=None, access_log=False)
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(config, state, {}, limits=limits), "127.0.0.1", 0
        )
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for one in list(state.connections):
                one.transport.close()
            await server.wait_closed()


async def say(port: int, *parts: bytes) -> tuple[bytes, dict[str, Any]]:
    """Send ``parts``, read until the server closes, and return the reply's head and JSON body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, json.loads(body)


def test_what_is_no_http_gets_the_protocols_error_object() -> None:
    async def scenario() -> None:
        async with listening() as port:
            head, body = await say(port, b"\x16\x03\x01\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/json" in head
        assert body["error"]

    run(scenario)


@pytest.mark.parametrize("sent", [b"", b"GET /v2/health/live HTTP/1.1\r\nHost: "])
def test_a_head_that_is_not_complete_in_time_ends_its_connection(sent: bytes) -> None:
    async def scenario() -> None:
        async with listening(Limits(head_s=0.02)) as port:
            head, body = await say(port, sent)
        assert head.startswith(b"HTTP/1.1 408 ")
        assert "not complete" in body["error"]

    run(scenario)


def test_a_second_request_on_a_connection_has_a_deadline_of_its_own() -> None:
    async def scenario() -> None:
        async with listening(Limits(head_s=0.1)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEALTH)
            assert b"200 OK" in await reader.readuntil(b'{"live":true}')
            writer.write(HEALTH[:20])
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
            writer.close()

    run(scenario)


def test_a_connection_too_many_is_told_to_come_back_and_the_others_live() -> None:
    async def scenario() -> None:
        async with listening(Limits(max_connections=1)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEALTH)
            await reader.readuntil(b'{"live":true}')
            head, body = await say(port)
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in head
            assert "1 connections are open" in body["error"]
            writer.write(HEALTH)
            await reader.readuntil(b'{"live":true}')
            writer.close()

    run(scenario)
