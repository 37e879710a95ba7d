"""Certificates for the broker: read anew for every connection, and their troubles in words."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from agent.adapters.tls import RenewingContext, TlsFiles
from tests.fakes.authority import Authority

if TYPE_CHECKING:
    from pathlib import Path

BEGIN = datetime(2026, 11, 1, tzinfo=timezone.utc)
END = BEGIN + timedelta(days=90)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def files(authority: Authority) -> TlsFiles:
    certificate, key = authority.issue("box-1", begin=BEGIN, life=END - BEGIN)
    return TlsFiles(str(authority.file), str(certificate), str(key))


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (BEGIN - timedelta(hours=1), "is valid from 2026-11-01 00:00 UTC only"),
        (BEGIN, None),
        (END - timedelta(days=31), None),
        (END - timedelta(days=30), "expires in 30 days, at 2027-01-30 00:00 UTC"),
        (END - timedelta(hours=5), "expires in 5 hours"),
        (END, "expired at 2027-01-30 00:00 UTC; put a renewed one at"),
        (None, None),
    ],
)
def test_a_certificate_is_spoken_of_before_it_ends(files: TlsFiles, now: datetime | None, words: str | None) -> None:
    problem = files.problem(now)
    if words is None:
        assert problem is None
    else:
        assert words in str(problem)
        assert "CN=box-1" in str(problem)


def test_a_short_lived_certificate_is_spoken_of_in_its_last_third(authority: Authority) -> None:
    certificate, key = authority.issue("box-1", begin=BEGIN, life=timedelta(days=3))
    files = TlsFiles(str(authority.file), str(certificate), str(key))
    assert files.problem(BEGIN + timedelta(days=1, hours=23)) is None
    assert "expires in 24 hours" in str(files.problem(BEGIN + timedelta(days=2)))


def test_files_that_cannot_be_used_are_named_and_their_content_is_not(files: TlsFiles, tmp_path: Path) -> None:
    assert TlsFiles().problem(BEGIN) is None
    assert "cannot be used" in str(TlsFiles(str(tmp_path / "none.pem")).problem(BEGIN))
    other = Authority(tmp_path).issue("box-2")[1]
    assert "cannot be used" in str(TlsFiles(files.ca_file, files.cert_file, str(other)).problem(None))
    (tmp_path / "box-2.key").write_text("canary-secret")
    problem = str(TlsFiles(files.ca_file, files.cert_file, str(other)).problem(None))
    assert "box-2.key" in problem
    assert "canary" not in problem


def test_every_connection_shows_the_certificate_that_lies_there_now(authority: Authority, tmp_path: Path) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    server.load_cert_chain(*authority.issue("localhost"))
    server.verify_mode = ssl.CERT_REQUIRED
    certificate, key = authority.issue("box-1", number=1)
    context = RenewingContext(TlsFiles(str(authority.file), str(certificate), str(key)))

    first = _subject(server, context)
    authority.issue("box-1", number=2)
    second = _subject(server, context)
    assert [dict(part[0] for part in each)["serialNumber"] for each in (first, second)] == ["1", "2"]

    key.write_text("torn in the middle of a renewal")
    sock, other = socket.socketpair()
    with sock, other, pytest.raises(OSError, match=r"PEM|SSL|KEY"):
        context.wrap_socket(sock, server_hostname="localhost")
    assert tmp_path.exists()


def _subject(server: ssl.SSLContext, context: RenewingContext) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Return whom a server sees at one connection."""
    ours, theirs = socket.socketpair()
    seen: list[object] = []

    def accept() -> None:
        with server.wrap_socket(theirs, server_side=True) as accepted:
            seen.append(accepted.getpeercert())
            accepted.recv(1)

    thread = threading.Thread(target=accept)
    thread.start()
    with context.wrap_socket(ours, server_hostname="localhost") as wrapped:
        wrapped.send(b"x")
        thread.join(10.0)
    assert isinstance(seen[0], dict)
    subject: tuple[tuple[tuple[str, str], ...], ...] = seen[0]["subject"]
    return subject
