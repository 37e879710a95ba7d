"""Object stores: signed by the real library, served by a stand-in that checks signatures, bound by the same rules."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.adapters.download import presign, stores
from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy
from agent.contract.errors import ErrorCode
from agent.deployment.ports import InterruptedStepError, StepError
from agent.deployment.runner import WorkWatch
from tests.fakes.files import FileServer, Reply, serve
from tests.fakes.object_store import Account

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 4096
SIZE = len(CONTENT)
ACCOUNT = Account("AKIDEXAMPLE", "canary-secret-key")
URL = "s3://models/kanji/a b+c.pt"


class EagerWatch(WorkWatch):
    """Waits for nothing."""

    def __init__(self) -> None:
        super().__init__(lambda _done, _total, _unit: None)

    def wait(self, seconds: float) -> None:
        del seconds
        super().wait(0.0)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(CONTENT) as files:
        files.judge = ACCOUNT.judge
        yield files


@pytest.fixture
def credentials(tmp_path: Path, server: FileServer) -> Path:
    parts = urlsplit(server.url)
    path = tmp_path / "models.toml"
    path.write_text(
        f'access_key_id = "{ACCOUNT.key_id}"\nsecret_access_key = "{ACCOUNT.secret}"\nregion = "{ACCOUNT.region}"\n'
        f'endpoint = "http://{parts.netloc}"\n'
    )
    path.chmod(0o600)
    return path


@pytest.fixture
def policy(credentials: Path) -> Policy:
    return Policy(
        schemes=frozenset({"s3", "http"}), hosts=frozenset({"127.0.0.1"}), store_files={"s3://models": str(credentials)}
    )


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "kanji.part"


def refuse(url: str, part: Path, policy: Policy, size: int | None = SIZE) -> StepError:
    with pytest.raises(StepError) as caught:
        Downloader(policy).fetch(url, part, size, EagerWatch())
    error = caught.value
    assert "canary" not in f"{error!r} {error.detail} {error.hint}"
    assert "X-Amz" not in f"{error!r} {error.detail} {error.hint}"
    return error


def test_an_object_arrives_under_a_signature(server: FileServer, part: Path, policy: Policy) -> None:
    Downloader(policy).fetch(URL, part, SIZE, EagerWatch())
    assert part.read_bytes() == CONTENT
    assert server.requests[0][":path"].startswith("/models/kanji/a%20b%2Bc.pt?X-Amz-Algorithm=AWS4-HMAC-SHA256")


def test_an_object_is_gone_on_with_under_the_next_signature(server: FileServer, part: Path, policy: Policy) -> None:
    server.replies = [Reply(cut_after=300_000), Reply(cut_after=300_000)]
    assert Downloader(policy).fetch(URL, part, SIZE, EagerWatch())
    assert part.read_bytes() == CONTENT
    assert [request.get("Range") for request in server.requests] == [None, "bytes=300000-", "bytes=600000-"]
    assert server.sent_bytes == SIZE


def test_a_wrong_key_is_a_final_refusal(server: FileServer, part: Path, policy: Policy, credentials: Path) -> None:
    credentials.write_text(credentials.read_text().replace(ACCOUNT.secret, "canary-other"))
    error = refuse(URL, part, policy)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, False)
    assert "/models/kanji/a%20b%2Bc.pt: HTTP 403" in error.detail
    assert len(server.requests) == 1


def test_the_rules_of_other_downloads_hold(server: FileServer, part: Path, policy: Policy) -> None:
    assert "scheme 's3'" in refuse(URL, part, replace(policy, schemes=frozenset({"http"}))).detail
    assert "scheme 'http'" in refuse(URL, part, replace(policy, schemes=frozenset({"s3"}))).detail
    elsewhere = replace(policy, hosts=frozenset({"s3.eu-central-1.amazonaws.com"}))
    assert "is not in downloads.allowed_hosts" in refuse(URL, part, elsewhere).detail
    assert "must be named" in refuse(URL, part, replace(policy, hosts=frozenset())).detail
    assert server.requests == []

    assert "were announced" in refuse(URL, part, policy, size=7).detail
    assert "downloads.max_size" in refuse(URL, part, replace(policy, max_bytes=1000), size=None).detail
    assert refuse(URL, part, replace(policy, reserve_bytes=2**62)).code is ErrorCode.INSUFFICIENT_DISK
    assert not part.exists()
    server.replies = [Reply(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data"})]
    assert refuse(URL, part, policy).code is ErrorCode.FORBIDDEN_SOURCE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('access_key_id = "AK"', "Missing SecretAccessKey"),
        ("", "the credentials lack access_key_id, secret_access_key"),
        ('acces_key_id = "canary"', "UnknownConfigurationKeyError"),
        ("access_key_id = 7", "not TOML with texts alone"),
        ("access_key_id = canary", "not TOML with texts alone"),
    ],
)
def test_credentials_that_are_none_are_told_apart(
    part: Path, policy: Policy, credentials: Path, content: str, words: str
) -> None:
    credentials.write_text(content)
    assert words in refuse(URL, part, policy).detail


def test_credentials_come_from_one_file_that_is_kept_secret(
    part: Path, policy: Policy, credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary")
    assert "no credentials for s3://other" in refuse("s3://other/x", part, policy).detail
    kept = credentials.read_text()
    credentials.write_text('region = "eu-central-1"')
    assert "the credentials lack" in refuse(URL, part, policy).detail
    credentials.write_text(kept)
    credentials.chmod(0o644)
    assert "its mode is 0644" in refuse(URL, part, policy).detail


def test_without_the_library_the_error_says_how_to_get_it(
    part: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setattr(stores, "_ask", lambda question, _watch: presign.answer(question))
    error = refuse(URL, part, policy)
    assert "no obstore" in error.detail
    assert error.hint == "pip install 'nibbled[cloud]'"


def test_the_library_is_never_loaded_by_who_downloads(server: FileServer, part: Path, policy: Policy) -> None:
    Downloader(policy).fetch(URL, part, SIZE, EagerWatch())
    assert server.requests
    assert "obstore" not in sys.modules


def test_signing_stops_when_asked(part: Path, policy: Policy) -> None:
    watch = EagerWatch()
    watch.interrupt()
    with pytest.raises(InterruptedStepError):
        stores.signed(urlsplit(URL), policy, watch)
    assert not part.exists()


def service_account() -> str:
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return json.dumps(
        {
            "type": "service_account",
            "private_key": key.decode(),
            "private_key_id": "1",
            "client_email": "box@models.example",
            "project_id": "models",
            "token_uri": "https://oauth2.googleapis.com/token",
        }
    )


@pytest.mark.parametrize(
    ("url", "config", "head", "words"),
    [
        (
            "gs://models/kanji/x.pt",
            {"service_account_key": "SERVICE ACCOUNT"},
            "https://storage.googleapis.com/models/kanji/x.pt?",
            "X-Goog-Signature=",
        ),
        (
            "az://models/kanji/x.pt",
            {"account_name": "edge", "account_key": "c2VjcmV0"},
            "https://edge.blob.core.windows.net/models/kanji/x.pt?",
            "sig=",
        ),
    ],
)
def test_other_stores_are_signed_for_too(
    tmp_path: Path, url: str, config: dict[str, str], head: str, words: str
) -> None:
    config = {key: value.replace("SERVICE ACCOUNT", service_account()) for key, value in config.items()}
    file = tmp_path / "store.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))
    file.chmod(0o600)
    bucket = url.removesuffix("/kanji/x.pt")
    policy = Policy(schemes=frozenset({"gs", "az"}), store_files={bucket: str(file)})
    signed = stores.signed(urlsplit(url), policy, EagerWatch())
    assert signed.startswith(head)
    assert words in signed
