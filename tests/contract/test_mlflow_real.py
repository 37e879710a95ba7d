"""Downloads from a real MLflow server, of what its own client registered: `make test-mlflow`."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy
from agent.deployment.ports import InterruptedStepError, StepError
from tests.fakes.mlflow_server import Mlflow, mlflow
from tests.fakes.watch import EagerWatch, LeavingWatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)
CONTENT = bytes(range(256)) * 4096
SIZE = len(CONTENT)
NAME = "Kanji classifier"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    with mlflow(tmp_path_factory.mktemp("mlflow")) as found:
        yield found


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("logged") / "a b.pth"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture(scope="module")
def version(server: Mlflow, logged: Path) -> str:
    return server.register(NAME, logged)


def policy(server: Mlflow) -> Policy:
    return Policy(schemes=frozenset({"models", "http"}), hosts=frozenset({"127.0.0.1"}), mlflow_tracking_uri=server.url)


def refuse(url: str, part: Path, rules: Policy) -> StepError:
    with pytest.raises(StepError) as caught:
        Downloader(rules).fetch(url, part, SIZE, EagerWatch())
    return caught.value


def fetch(url: str, part: Path, rules: Policy) -> bytes:
    Downloader(rules).fetch(url, part, SIZE, EagerWatch())
    return part.read_bytes()


def test_a_file_of_a_version_arrives(server: Mlflow, version: str, tmp_path: Path) -> None:
    assert fetch(f"models:/{NAME}/{version}/a b.pth", tmp_path / "part", policy(server)) == CONTENT


def test_a_part_is_gone_on_with_where_the_artifacts_lie_on_the_server_s_disk(
    server: Mlflow, version: str, tmp_path: Path
) -> None:
    part, url = tmp_path / "part", f"models:/{NAME}/{version}/a b.pth"
    downloader = Downloader(policy(server), boot="this run")
    with pytest.raises(InterruptedStepError):
        downloader.fetch(url, part, SIZE, LeavingWatch())
    assert 0 < part.stat().st_size < SIZE
    is_pieced = downloader.fetch(url, part, SIZE, EagerWatch())
    assert part.read_bytes() == CONTENT
    assert is_pieced


def test_a_model_that_is_logged_without_a_run_arrives_too(server: Mlflow, logged: Path, tmp_path: Path) -> None:
    version = server.register("logged", logged, is_logged_model=True)
    assert fetch(f"models:/logged/{version}/a b.pth", tmp_path / "part", policy(server)) == CONTENT


def test_an_alias_means_what_the_hint_s_address_says(server: Mlflow, version: str, tmp_path: Path) -> None:
    body = json.dumps({"name": NAME, "alias": "champion", "version": version}).encode()
    where = f"{server.url}/api/2.0/mlflow/registered-models/alias"
    request = urllib.request.Request(where, body, {"Content-Type": "application/json"})  # noqa: S310 - loopback
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310 - loopback
    error = refuse(f"models:/{NAME}@champion/a b.pth", tmp_path / "part", policy(server))
    assert "/api/2.0/mlflow/registered-models/alias?name=NAME&alias=ALIAS" in str(error.hint)
    query = urllib.parse.urlencode({"name": NAME, "alias": "champion"})
    with urllib.request.urlopen(f"{where}?{query}", timeout=10) as answer:  # noqa: S310 - loopback
        assert json.load(answer)["model_version"]["version"] == version


def test_what_the_registry_does_not_have_is_told_apart(server: Mlflow, version: str, tmp_path: Path) -> None:
    error = refuse(f"models:/{NAME}/{int(version) + 50}/a b.pth", tmp_path / "part", policy(server))
    assert "the registry has no version" in str(error.hint)
    error = refuse(f"models:/nobody/{version}/a b.pth", tmp_path / "part", policy(server))
    assert "the registry has no version" in str(error.hint)


def test_what_the_version_does_not_have_is_told_apart(server: Mlflow, version: str, tmp_path: Path) -> None:
    error = refuse(f"models:/{NAME}/{version}/other.pth", tmp_path / "part", policy(server))
    assert "HTTP 404" in error.detail
    assert "compare the path with those that it has" in str(error.hint)
    error = refuse(f"models:/{NAME}/{version}", tmp_path / "part", policy(server))
    assert "the version may be a directory" in str(error.hint)


def test_a_server_with_accounts_is_asked_with_user_and_password(logged: Path, tmp_path: Path) -> None:
    secret = tmp_path / "mlflow.secret"
    secret.write_text("admin:canary-password-1234")
    secret.chmod(0o600)
    accounts = tmp_path / "accounts.ini"
    accounts.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/accounts.db\n"
        "admin_username = admin\nadmin_password = canary-password-1234\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(accounts),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "tests",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": "canary-password-1234",
    }
    with mlflow(tmp_path, "--app-name", "basic-auth", environment=environment) as guarded:
        version = guarded.register(NAME, logged)
        url, rules = f"models:/{NAME}/{version}/a b.pth", policy(guarded)
        error = refuse(url, tmp_path / "part", rules)
        assert "HTTP 401" in error.detail
        host = guarded.url.removeprefix("http://")
        assert f'under "{host}" in downloads.token_files' in str(error.hint)
        assert fetch(url, tmp_path / "part", replace(rules, token_files={host: str(secret)})) == CONTENT
