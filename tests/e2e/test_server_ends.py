"""How a server ends that no other follows: every client of a busy one is answered, or refused."""

from __future__ import annotations

import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from agent.signals import END
from tests.e2e.harness.inference_server import BODY, INFER, InferenceServer, serving
from tests.fakes.authority import Authority

if TYPE_CHECKING:
    import socket
    from pathlib import Path

pytestmark = pytest.mark.e2e

REQUEST = (
    b"POST %b HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(BODY))
) + BODY


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_when_the_agent_ends_fresh_connections_are_answered_or_refused_and_never_reset(
    tmp_path: Path, *, is_encrypted: bool
) -> None:
    options: list[str] = []
    tls = None
    if is_encrypted:
        authority = Authority(tmp_path)
        certificate, key = authority.issue("localhost")
        options = ["--cert-file", str(certificate), "--key-file", str(key)]
        tls = ssl.create_default_context(cafile=str(authority.file))
    with serving(tmp_path, *options) as server, ThreadPoolExecutor(8) as pool:
        busy = threading.Barrier(9)
        clients = [pool.submit(until_refused, server, busy, tls) for _ in range(8)]
        busy.wait()
        server.listener.close()
        server.process.send_signal(END)
        answers = [answer for client in clients for answer in client.result()]
        assert server.process.wait(20) == 0
    assert {answer[:15] for answer in answers} == {b"HTTP/1.1 200 OK"}


def until_refused(server: InferenceServer, busy: threading.Barrier, tls: ssl.SSLContext | None) -> list[bytes]:
    """Ask on connection after connection, and return the answers; raises what a connection ends with but a refusal."""
    answers: list[bytes] = []
    while True:
        try:
            with (
                server.connect() as plain,
                tls.wrap_socket(plain, server_hostname="localhost") if tls else plain as connection,
            ):
                connection.sendall(REQUEST)
                answers.append(read(connection))
        except ConnectionRefusedError:
            return answers
        if len(answers) == 1:
            busy.wait(20)


def read(connection: socket.socket) -> bytes:
    """Return what comes up to the end of the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))
