"""TLS on the inference port: what is accepted, and how certificates are renewed while it answers."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
import uvicorn
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from uvicorn.server import ServerState

from agent.serving.connection import Connection
from agent.serving.tls import LOOK_AGAIN_S, RenewedContext
from tests.fakes.authority import Authority
from tests.fakes.serving import harness, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def listening(renewed: RenewedContext) -> AsyncIterator[int]:
    async with harness() as it:
        config = uvicorn.Config(it.app, loop="none", ws="none", lifespan="off", log_config=None, access_log=False)
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(config, state, {}), "127.0.0.1", 0, ssl=renewed.context
        )
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await server.wait_closed()


async def ask(port: int, context: ssl.SSLContext) -> tuple[str, bytes]:
    """Return the serial number that the server's certificate shows, and what it answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    shown = dict(part[0] for part in writer.get_extra_info("peercert")["subject"])
    writer.write(HEALTH)
    answer = await reader.read()
    writer.close()
    return shown["serialNumber"], answer


def test_a_renewed_certificate_is_shown_to_new_connections_and_a_torn_one_is_not(authority: Authority) -> None:
    clock = Clock()
    certificate, key = authority.issue("localhost", number=1)
    renewed = RenewedContext(certificate, key, clock=clock)
    client = ssl.create_default_context(cafile=str(authority.file))

    async def scenario() -> None:
        async with listening(renewed) as port:
            shown, answer = await ask(port, client)
            assert (shown, answer.startswith(b"HTTP/1.1 200 ")) == ("1", True)
            authority.issue("localhost", number=2)
            clock.now += LOOK_AGAIN_S
            assert (await ask(port, client))[0] == "2"
            good = key.read_bytes()
            key.write_text("torn in the middle of a renewal")
            clock.now += LOOK_AGAIN_S
            assert (await ask(port, client))[0] == "2"
            key.write_bytes(good)
            authority.issue("localhost", number=3)
            clock.now += LOOK_AGAIN_S
            assert (await ask(port, client))[0] == "3"

    run(scenario)


def test_files_that_never_could_be_used_fail_handshakes_until_they_can(authority: Authority, tmp_path: Path) -> None:
    clock = Clock()
    renewed = RenewedContext(tmp_path / "localhost.pem", tmp_path / "localhost.key", clock=clock)
    client = ssl.create_default_context(cafile=str(authority.file))

    async def scenario() -> None:
        async with listening(renewed) as port:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await ask(port, client)
            authority.issue("localhost")
            clock.now += LOOK_AGAIN_S
            assert (await ask(port, client))[1].startswith(b"HTTP/1.1 200 ")

    run(scenario)


def test_an_old_protocol_and_a_client_without_tls_get_nothing_and_harm_nobody(authority: Authority) -> None:
    renewed = RenewedContext(*authority.issue("localhost"))
    client = ssl.create_default_context(cafile=str(authority.file))
    assert renewed.context.minimum_version == ssl.TLSVersion.TLSv1_2

    async def scenario() -> None:
        async with listening(renewed) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEALTH)
            assert not (await reader.read()).startswith(b"HTTP")
            writer.close()
            assert (await ask(port, client))[1].startswith(b"HTTP/1.1 200 ")

    run(scenario)


def test_a_key_with_a_password_is_not_waited_for(authority: Authority) -> None:
    certificate, key = authority.issue("localhost")
    loaded = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    renewed = RenewedContext(certificate, key)
    client = ssl.create_default_context(cafile=str(authority.file))

    async def scenario() -> None:
        async with listening(renewed) as port:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await ask(port, client)

    run(scenario)


@pytest.mark.parametrize("whose", ["stranger", "expired"])
def test_a_client_refuses_a_certificate_that_is_not_the_servers(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory, whose: str
) -> None:
    issuer = Authority(tmp_path_factory.mktemp("stranger")) if whose == "stranger" else authority
    begin = datetime.now(timezone.utc) - timedelta(days=2)
    renewed = RenewedContext(*issuer.issue("localhost", begin=begin if whose == "expired" else None))
    client = ssl.create_default_context(cafile=str(authority.file))

    async def scenario() -> None:
        async with listening(renewed) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(port, client)

    run(scenario)
