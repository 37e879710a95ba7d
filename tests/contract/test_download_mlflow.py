"""Files of versions in an MLflow registry: what each kind of answer leads to. The real server: test_mlflow_real.py."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from agent.adapters.download import locating
from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy
from agent.contract.errors import ErrorCode
from agent.deployment.ports import InterruptedStepError
from tests.fakes.fetching import CONTENT, SIZE, fetch, refuse
from tests.fakes.files import FileServer, serve
from tests.fakes.object_store import Account
from tests.fakes.watch import EagerWatch
from tests.fakes.web import Answered, Asked, Web, web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URL = "models:/Kanji classifier/7/data/a b.pth"
ACCOUNT = Account("AKIDEXAMPLE", "canary-secret-key")
TOKEN = "canary-token"


class Registry:
    """A tracking server with one version, which lies where a test says, and the file where it is handed on."""

    def __init__(self) -> None:
        self.location: object = "mlflow-artifacts:/1/0af3/artifacts/model"
        self.token: str | None = None

    def answer(self, asked: Asked) -> Answered:
        """Return what the server says to a request."""
        if self.token and asked.headers.get("Authorization") != self.token:
            return Answered(401, {"WWW-Authenticate": 'Basic realm="mlflow"'}, b"You are not authenticated.")
        if asked.url.path.endswith("/mlflow/model-versions/get-download-uri"):
            if asked.url.query != "name=Kanji+classifier&version=7":
                told = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "canary"}
                return Answered(404, {}, json.dumps(told).encode())
            return Answered(200, {}, json.dumps({"artifact_uri": self.location}).encode())
        if asked.url.path.endswith("/mlflow-artifacts/artifacts/1/0af3/artifacts/model/data/a%20b.pth"):
            return Answered(200, {}, CONTENT)
        return Answered(404)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def site(registry: Registry) -> Iterator[Web]:
    with web(registry.answer) as found:
        yield found


@pytest.fixture
def files() -> Iterator[FileServer]:
    with serve(CONTENT) as found:
        yield found


@pytest.fixture
def policy(site: Web) -> Policy:
    return Policy(
        schemes=frozenset({"models", "http"}), hosts=frozenset({"127.0.0.1"}), mlflow_tracking_uri=f"{site.url}/mlflow"
    )


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "kanji.part"


def with_secret(policy: Policy, site: Web, directory: Path, secret: str) -> Policy:
    file = directory / "mlflow.token"
    file.write_text(secret + "\n")
    file.chmod(0o600)
    return replace(policy, token_files={site.host: str(file)})


def test_what_the_tracking_server_hands_on_comes_from_there(site: Web, part: Path, policy: Policy) -> None:
    assert fetch(URL, part, policy) == CONTENT
    assert site.paths() == [
        "/mlflow/api/2.0/mlflow/model-versions/get-download-uri",
        "/mlflow/api/2.0/mlflow-artifacts/artifacts/1/0af3/artifacts/model/data/a%20b.pth",
    ]


def test_a_version_that_is_a_file_needs_no_path(registry: Registry, part: Path, policy: Policy) -> None:
    registry.location = "mlflow-artifacts:/1/0af3/artifacts/model/data/a b.pth"
    assert fetch("models:/Kanji classifier/7", part, policy) == CONTENT


@pytest.mark.parametrize(
    ("secret", "header"), [(TOKEN, f"Bearer {TOKEN}"), ("edge:canary pass:word", "Basic ZWRnZTpjYW5hcnkgcGFzczp3b3Jk")]
)
def test_a_token_or_a_password_of_the_server_s_is_sent_to_it_alone(
    registry: Registry, site: Web, files: FileServer, part: Path, *, policy: Policy, secret: str, header: str
) -> None:
    registry.token = header
    known = with_secret(policy, site, part.parent, secret)
    assert fetch(URL, part, known) == CONTENT
    part.unlink()
    registry.location = files.url.removesuffix("/kanji.pt")
    assert fetch(URL, part, known) == CONTENT
    assert "Authorization" not in files.requests[0]

    error = refuse(URL, part.with_name("other.part"), with_secret(policy, site, part.parent, secret + "x"))
    assert "HTTP 401" in error.detail
    assert f'under "{site.host}" in downloads.token_files' in str(error.hint)


def test_another_host_that_hands_on_is_asked_where_it_is(
    registry: Registry, site: Web, files: FileServer, part: Path, policy: Policy
) -> None:
    registry.location = f"mlflow-artifacts://{urlsplit(files.url).netloc}/1/model"
    assert fetch(URL, part, policy) == CONTENT
    assert files.requests[0][":path"] == "/api/2.0/mlflow-artifacts/artifacts/1/model/data/a%20b.pth"
    assert len(site.requests) == 1


def test_a_version_in_an_object_store_comes_from_there_with_the_device_s_own_credentials(
    registry: Registry, files: FileServer, part: Path, policy: Policy, tmp_path: Path
) -> None:
    registry.location, files.judge = "s3://models/1/model", ACCOUNT.judge
    assert "scheme 's3'" in refuse(URL, part, policy).detail
    policy = replace(policy, schemes=policy.schemes | {"s3"})
    assert "no credentials for s3://models" in refuse(URL, part, policy).detail
    store = tmp_path / "models.toml"
    store.write_text(
        f'access_key_id = "{ACCOUNT.key_id}"\nsecret_access_key = "{ACCOUNT.secret}"\nregion = "{ACCOUNT.region}"\n'
        f'endpoint = "http://{urlsplit(files.url).netloc}"\n'
    )
    store.chmod(0o600)
    assert fetch(URL, part, replace(policy, store_files={"s3://models": str(store)})) == CONTENT
    assert files.requests[0][":path"].startswith("/models/1/model/data/a%20b.pth?X-Amz-")


def test_azure_s_address_is_the_one_that_is_signed_for(registry: Registry, policy: Policy, tmp_path: Path) -> None:
    registry.location = "wasbs://models@edge.blob.core.windows.net/1/model"
    store = tmp_path / "models.toml"
    store.write_text('account_name = "edge"\naccount_key = "c2VjcmV0"\n')
    store.chmod(0o600)
    policy = replace(
        policy,
        schemes=policy.schemes | {"az"},
        hosts=policy.hosts | {"edge.blob.core.windows.net"},
        store_files={"az://models": str(store)},
    )
    found = locating.locate(URL, policy, EagerWatch())
    assert found.url.startswith("https://edge.blob.core.windows.net/models/1/model/data/a%20b.pth?")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/srv/mlruns/1/model", "lies in the tracking server's own disk"),
        ("file:///srv/mlruns/1/model", "lies in the tracking server's own disk"),
        ("dbfs:/databricks/mlflow/1", "lies in dbfs:/databricks/mlflow/1"),
        ("ftp://me:canary@files.example.com/1", "lies in ftp://files.example.com/1"),
        (None, "which cannot be fetched from"),
        (["s3://models"], "which cannot be fetched from"),
    ],
)
def test_a_place_that_no_device_reaches_is_told(
    registry: Registry, part: Path, policy: Policy, location: object, words: str
) -> None:
    registry.location = location
    error = refuse(URL, part, replace(policy, schemes=policy.schemes | {"file"}))
    assert words in error.detail
    assert "--artifacts-destination" in str(error.hint)


@pytest.mark.parametrize(
    "location", ["http://10.0.0.7/model", "http://169.254.169.254/latest", "mlflow-artifacts://10.0.0.7/x"]
)
def test_a_registry_leads_nowhere_that_is_not_allowed(
    registry: Registry, part: Path, policy: Policy, location: str
) -> None:
    registry.location = location
    assert refuse(URL, part, policy).code is ErrorCode.FORBIDDEN_SOURCE


def test_what_is_not_there_is_told_apart(site: Web, part: Path, policy: Policy) -> None:
    error = refuse(URL.replace("/7/", "/8/"), part, policy)
    assert "HTTP 404" in error.detail
    assert f"the registry has no version 8 of Kanji classifier: compare them with {site.url}/mlflow" in str(error.hint)
    error = refuse(URL.replace("data", "weights"), part, policy)
    assert "compare the path with those that it has" in str(error.hint)
    error = refuse("models:/Kanji classifier/7", part, policy)
    assert str(error.hint) == "name a file: the version may be a directory"


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        (Answered(404, {}, b"<html>"), "mlflow_tracking_uri"),
        (Answered(302, {"Location": "https://login.example.com"}), "a login before it"),
        (Answered(200, {}, b"<html>"), "a page in front of it"),
        (Answered(200, {}, b"[" * 100_000), "a page in front of it"),
        (Answered(200, {}, b" " * (4 * 2**20 + 1)), "None"),
    ],
)
def test_what_is_no_registry_is_found_out(
    site: Web, part: Path, policy: Policy, answered: Answered, words: str
) -> None:
    site.answer = lambda _asked: answered
    error = refuse(URL, part, policy)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, False)
    assert words in str(error.hint)


def test_a_server_that_cannot_answer_is_asked_again(registry: Registry, site: Web, part: Path, policy: Policy) -> None:
    def answer(asked: Asked) -> Answered:
        return registry.answer(asked) if len(site.requests) > 2 else Answered(503)

    site.answer = answer
    assert fetch(URL, part, policy) == CONTENT
    site.answer = lambda _asked: Answered(500)
    error = refuse(URL, part.with_name("other.part"), policy)
    assert error.retryable
    assert f"{URL}: HTTP 500" in error.detail


def test_without_a_server_the_setting_is_named(site: Web, part: Path, policy: Policy) -> None:
    error = refuse(URL, part, replace(policy, mlflow_tracking_uri=None))
    assert error.code is ErrorCode.FORBIDDEN_SOURCE
    assert error.hint == "name it in downloads.mlflow_tracking_uri"
    assert "must be named" in refuse(URL, part, replace(policy, hosts=frozenset())).detail
    assert site.requests == []


def test_a_question_stops_when_nobody_waits(site: Web, part: Path, policy: Policy) -> None:
    watch = EagerWatch()
    watch.interrupt()
    with pytest.raises(InterruptedStepError):
        Downloader(policy).fetch(URL, part, SIZE, watch)
    assert site.requests == []
