"""Files of Hugging Face repositories: from a stand-in that Hugging Face's own client takes for the hub."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from tests.fakes.fetching import CONTENT, SIZE, fetch, refuse
from tests.fakes.files import Reply
from tests.fakes.hub import COMMIT, SIGNATURE, Hub, hub
from tests.fakes.web import Answered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URL = f"hf://acme/kanji@{COMMIT}/weights/model.safetensors"
TOKEN = "hf_canaryToken"


@pytest.fixture
def there() -> Iterator[Hub]:
    with hub(CONTENT) as found:
        yield found


@pytest.fixture
def policy(there: Hub, tmp_path: Path) -> Policy:
    file = tmp_path / "hub.token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return Policy(
        schemes=frozenset({"hf", "http"}),
        hosts=frozenset({"127.0.0.1"}),
        token_files={there.site.host: str(file)},
        hugging_face_endpoint=there.site.url,
    )


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "kanji.part"


def test_a_large_file_comes_from_where_the_hub_leads_and_the_token_stays_with_the_hub(
    there: Hub, part: Path, policy: Policy
) -> None:
    there.token = TOKEN
    assert fetch(URL, part, policy) == CONTENT
    assert [asked.url.path for asked in there.site.requests] == [
        f"/acme/kanji/resolve/{COMMIT}/weights/model.safetensors"
    ]
    (stored,) = there.storage.requests
    assert SIGNATURE in stored[":path"]
    assert "Authorization" not in stored


def test_a_small_file_comes_from_the_hub_itself(there: Hub, part: Path, policy: Policy) -> None:
    content = there.small["config.json"]
    assert fetch(f"hf://acme/kanji@{COMMIT}/config.json", part, policy, len(content)) == content


def test_a_file_of_a_data_set_has_an_address_of_its_own(there: Hub, part: Path, policy: Policy) -> None:
    there.repo = "datasets/acme/fonts"
    assert fetch(f"hf://datasets/acme/fonts@{COMMIT}/weights/model.safetensors", part, policy) == CONTENT


def test_a_name_is_written_as_it_is(there: Hub, part: Path, policy: Policy) -> None:
    there.large = "weights/漢字 100%20+1.safetensors"
    assert fetch(f"hf://acme/kanji@{COMMIT}/{there.large}", part, policy) == CONTENT


def test_a_cut_line_is_gone_on_with_under_the_next_signature(there: Hub, part: Path, policy: Policy) -> None:
    there.storage.replies = [Reply(cut_after=300_000), Reply(status=500)]
    assert fetch(URL, part, policy) == CONTENT
    assert [asked.get("Range") for asked in there.storage.requests] == [None, "bytes=300000-", "bytes=300000-"]
    assert len(there.site.requests) == 3
    assert there.storage.sent_bytes == SIZE


@pytest.mark.parametrize(
    ("url", "token", "is_gated", "status", "hint"),
    [
        (URL, TOKEN + "x", True, 401, "the repository is gated: let an account be accepted at {hub}/acme/kanji"),
        (URL, TOKEN + "x", False, 401, 'name a file with its token under "{host}" in downloads.token_files'),
        (URL.replace("acme", "nobody"), None, False, 401, "there is no nobody/kanji, or only for an account"),
        (URL.replace(COMMIT, "f" * 40), None, False, 404, "the repository has no such commit"),
        (URL.replace("weights", "w"), None, False, 404, f"compare the path with {{hub}}/acme/kanji/tree/{COMMIT}"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(
    there: Hub, part: Path, policy: Policy, url: str, token: str | None, *, is_gated: bool, status: int, hint: str
) -> None:
    there.token, there.is_gated = token, is_gated
    error = refuse(url, part, policy)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, False)
    assert f"HTTP {status}" in error.detail
    assert hint.format(hub=there.site.url, host=there.site.host) in str(error.hint)
    assert len(there.site.requests) == 1


def test_a_hub_that_cannot_answer_is_asked_again_and_given_up_in_the_end(
    there: Hub, part: Path, policy: Policy
) -> None:
    there.site.answer = lambda _asked: Answered(503, {"Retry-After": "1"})
    error = refuse(URL, part, policy)
    assert error.retryable
    assert URL in error.detail
    assert "HTTP 503" in error.detail


def test_what_may_be_reached_is_judged_as_with_every_download(there: Hub, part: Path, policy: Policy) -> None:
    assert "scheme 'hf'" in refuse(URL, part, replace(policy, schemes=frozenset({"http"}))).detail
    assert "scheme 'http'" in refuse(URL, part, replace(policy, schemes=frozenset({"hf"}))).detail
    assert "must be named" in refuse(URL, part, replace(policy, hosts=frozenset())).detail
    assert there.site.requests == []
    there.site.answer = lambda _asked: Answered(302, {"Location": "http://169.254.169.254/latest"})
    assert refuse(URL, part, policy).code is ErrorCode.FORBIDDEN_SOURCE
    there.site.answer = there.answer
    with pytest.raises(StepError, match="7 were announced"):
        fetch(URL, part, policy, 7)
    assert "downloads.max_size" in refuse(URL, part, replace(policy, max_bytes=1000)).detail


def test_an_address_that_is_judged_without_a_network_is_judged_in_full(there: Hub, policy: Policy) -> None:
    with pytest.raises(StepError, match=r"main.*40 hexadecimal"):
        Downloader(policy).judge(URL.replace(COMMIT, "main"))
    inside = replace(policy, hosts=frozenset(), hugging_face_endpoint="http://10.0.0.7")
    with pytest.raises(StepError, match=r"private address 10\.0\.0\.7"):
        Downloader(inside).judge(URL)
    assert there.site.requests == []


def test_the_stand_in_is_a_hub_to_hugging_face_s_own_client(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("huggingface_hub", reason="the extra 'transformers' is not installed")
    constants, errors = (importlib.import_module(f"huggingface_hub.{name}") for name in ("constants", "errors"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def get(path: str, revision: str = "main", repo: str = "acme/kanji") -> bytes:
        where = client.hf_hub_download(
            repo, path, revision=revision, cache_dir=tmp_path, endpoint=there.site.url, token=TOKEN
        )
        with open(where, "rb") as file:  # noqa: PTH123 - a text
            return bytes(file.read())

    assert get("weights/model.safetensors") == CONTENT
    assert get("config.json", COMMIT) == there.small["config.json"]
    assert urlsplit(there.storage.url).netloc != there.site.host
    with pytest.raises(errors.RepositoryNotFoundError):
        get("config.json", repo="acme/other")
    with pytest.raises(errors.RevisionNotFoundError):
        get("config.json", "v2")
    with pytest.raises(errors.EntryNotFoundError):
        get("other.json")
    there.token, there.is_gated = "another", True
    with pytest.raises(errors.GatedRepoError):
        get("README.md")
