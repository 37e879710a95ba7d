"""Tokens and certificates of downloads: who gets a token, over what, and that nobody else ever sees it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy
from agent.adapters.download.tokens import authorization
from agent.deployment.ports import StepError
from agent.deployment.runner import WorkWatch
from tests.fakes.authority import Authority
from tests.fakes.files import FileServer, Reply, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 16
TOKEN = "canary-0123456789.abc~def+ghi/jkl=="
HOST = "127.0.0.1"


class EagerWatch(WorkWatch):
    """Waits for nothing."""

    def __init__(self) -> None:
        super().__init__(lambda _done, _total, _unit: None)

    def wait(self, seconds: float) -> None:
        del seconds
        super().wait(0.0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Iterator[FileServer]:
    with serve(CONTENT, authority.issue("files")) as files:
        yield files


@pytest.fixture
def plain() -> Iterator[FileServer]:
    with serve(CONTENT) as files:
        yield files


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "files.token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o640)
    return path


@pytest.fixture
def policy(authority: Authority, server: FileServer, plain: FileServer, token_file: Path) -> Policy:
    return Policy(
        schemes=frozenset({"https", "http"}),
        hosts=frozenset({HOST}),
        ca_file=str(authority.file),
        token_files={f"{HOST}:{port(server)}": str(token_file), f"{HOST}:{port(plain)}": str(token_file)},
    )


def port(files: FileServer) -> str:
    return files.url.rpartition(":")[2].partition("/")[0]


def fetch(url: str, directory: Path, policy: Policy) -> bytes:
    part = directory / "kanji.part"
    Downloader(policy, chance=lambda: 0.0).fetch(url, part, len(CONTENT), EagerWatch())
    return part.read_bytes()


def refuse(url: str, directory: Path, policy: Policy) -> StepError:
    with pytest.raises(StepError) as caught:
        fetch(url, directory, policy)
    error = caught.value
    assert "canary" not in f"{error!r} {error.detail} {error.hint} {error.__cause__!r}"
    return error


def test_a_host_gets_its_token_over_https(server: FileServer, tmp_path: Path, policy: Policy) -> None:
    assert fetch(server.url, tmp_path, policy) == CONTENT
    assert server.requests[0]["Authorization"] == f"Bearer {TOKEN}"


def test_a_token_that_is_renewed_on_the_disk_is_the_one_that_is_sent(
    server: FileServer, tmp_path: Path, policy: Policy, token_file: Path
) -> None:
    downloader = Downloader(policy)
    downloader.fetch(server.url, tmp_path / "first.part", None, EagerWatch())
    token_file.write_text("renewed")
    downloader.fetch(server.url, tmp_path / "second.part", None, EagerWatch())
    assert [request["Authorization"] for request in server.requests] == [f"Bearer {TOKEN}", "Bearer renewed"]


def test_a_redirect_takes_no_token_to_another_host(
    server: FileServer, plain: FileServer, tmp_path: Path, policy: Policy, authority: Authority
) -> None:
    with serve(CONTENT, authority.issue("other")) as other:
        server.replies = [Reply(status=302, headers={"Location": other.url})]
        assert fetch(server.url, tmp_path, policy) == CONTENT
        assert "Authorization" not in other.requests[0]
    assert plain.requests == []


def test_a_redirect_that_leaves_https_takes_no_token_even_where_one_is_meant(
    server: FileServer, plain: FileServer, tmp_path: Path, policy: Policy
) -> None:
    server.replies = [Reply(status=302, headers={"Location": plain.url})]
    assert fetch(server.url, tmp_path, policy) == CONTENT
    assert "Authorization" not in plain.requests[0]


def test_a_token_goes_over_http_only_to_a_host_that_is_named(plain: FileServer, tmp_path: Path, policy: Policy) -> None:
    assert fetch(plain.url, tmp_path, policy) == CONTENT
    assert plain.requests[0]["Authorization"] == f"Bearer {TOKEN}"

    public = replace(
        policy, hosts=frozenset(), token_files={"files.example.com": next(iter(policy.token_files.values()))}
    )
    for scheme, headers in (("http", {}), ("https", {"Authorization": f"Bearer {TOKEN}"})):
        parts = urlsplit(f"{scheme}://files.example.com/kanji.pt")
        assert authorization(parts, public, is_downgraded=False) == headers


def test_a_user_and_a_password_go_where_a_token_would(
    server: FileServer, tmp_path: Path, policy: Policy, token_file: Path
) -> None:
    token_file.write_text("edge:pass word: ä\n")
    assert fetch(server.url, tmp_path, policy) == CONTENT
    assert server.requests[0]["Authorization"] == "Basic ZWRnZTpwYXNzIHdvcmQ6IMOk"  # RFC 7617, in UTF-8


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o620])
def test_a_token_that_others_may_read_is_not_used(
    server: FileServer, tmp_path: Path, policy: Policy, token_file: Path, mode: int
) -> None:
    token_file.chmod(mode)
    error = refuse(server.url, tmp_path, policy)
    assert str(token_file) in error.detail
    assert f"{mode:04o}" in error.detail
    assert error.hint == f"chmod 0640 {token_file}"
    assert server.requests == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"canary\r\nX-Evil: 1",
        b"canary secret",
        b"\xffcanary",
        "canäry".encode(),
        b":canary",
        b"edge:",
        b"edge: \n canary",
    ],
)
def test_a_file_that_holds_no_token_is_named_and_not_quoted(
    server: FileServer, tmp_path: Path, policy: Policy, token_file: Path, content: bytes
) -> None:
    token_file.write_bytes(content)
    assert str(token_file) in refuse(server.url, tmp_path, policy).detail
    token_file.unlink()
    assert "No such file" in refuse(server.url, tmp_path, policy).detail
    assert server.requests == []


def test_no_failure_shows_or_keeps_a_token(server: FileServer, tmp_path: Path, policy: Policy) -> None:
    for reply in (
        Reply(status=401, headers={"WWW-Authenticate": "Bearer"}),
        Reply(status=404),
        Reply(status=302, headers={"Location": "http://10.0.0.7/x"}),
        Reply(headers={"Content-Length": "7"}),
        Reply(headers={"Content-Encoding": "gzip", "Content-Length": "7"}),
    ):
        server.replies = [reply]
        refuse(server.url, tmp_path, policy)
    server.replies = [Reply(status=500)] * 50
    refuse(server.url, tmp_path, policy)
    server.replies = [Reply(cut_after=100), Reply(status=404)]
    refuse(server.url, tmp_path, policy)
    kept = [path.read_bytes() for path in tmp_path.glob("kanji.part*")]
    assert kept
    assert not any(b"canary" in content for content in kept)


def test_a_certificate_of_the_configured_authority_is_believed_and_no_other(
    server: FileServer, tmp_path: Path, policy: Policy
) -> None:
    assert fetch(server.url, tmp_path, policy) == CONTENT
    (tmp_path / "kanji.part").unlink()
    error = refuse(server.url, tmp_path, replace(policy, ca_file=None))
    assert "certificate verify failed" in error.detail
    assert error.retryable
    (tmp_path / "other").mkdir()
    strangers = str(Authority(tmp_path / "other", "another authority").file)
    assert "certificate verify failed" in refuse(server.url, tmp_path, replace(policy, ca_file=strangers)).detail
    assert len(server.requests) == 1


def test_a_certificate_for_another_name_or_another_time_is_refused(
    authority: Authority, tmp_path: Path, policy: Policy
) -> None:
    past = datetime.now(timezone.utc) - timedelta(days=5)
    with serve(CONTENT, authority.issue("late", begin=past, life=timedelta(days=1))) as files:
        assert "expired" in refuse(files.url, tmp_path, policy).detail
    with serve(CONTENT, authority.issue("named")) as files:
        named = replace(policy, hosts=frozenset({"127.0.0.2"}))
        url = files.url.replace(HOST, "127.0.0.2")
        assert "127.0.0.2" in refuse(url, tmp_path, named).detail
        assert files.requests == []


def test_authorities_that_cannot_be_read_are_named(server: FileServer, tmp_path: Path, policy: Policy) -> None:
    for path in (tmp_path / "none.pem", tmp_path / "empty.pem"):
        if path.name == "empty.pem":
            path.write_text("nothing")
        error = refuse(server.url, tmp_path, replace(policy, ca_file=str(path)))
        assert f"downloads.ca_file {path} cannot be used" in error.detail
