"""Files of OCI artifacts, from a stand-in that wants a token as public registries do; a real one: test_oci_real.py."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest

from agent.adapters.download.policy import Policy
from agent.contract.errors import ErrorCode
from tests.fakes.authority import Authority
from tests.fakes.fetching import CONTENT, fetch, refuse
from tests.fakes.files import FileServer, Reply, serve
from tests.fakes.web import Answered, Asked, Web, web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET, TOKEN = "edge:canary-password", "canary-token"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Registry:
    """One artifact. Blobs lie elsewhere, under signed addresses; who asks needs a token of another host.

    As the OCI Distribution Specification and distribution.github.io's "Token Authentication Specification" have it.
    """

    def __init__(self, storage: FileServer) -> None:
        self.storage = storage
        self.tokens: Web | None = None
        self.manifest: Any = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "layers": [self.layer("model.pt", CONTENT)],
        }

    @staticmethod
    def layer(title: str | None, content: bytes) -> dict[str, Any]:
        """Return a layer as ``oras push`` writes it."""
        return {
            "mediaType": "application/octet-stream",
            "digest": f"sha256:{digest(content)}",
            "size": len(content),
            "annotations": {"org.opencontainers.image.title": title} if title else None,
        }

    @property
    def body(self) -> bytes:
        """The manifest as it is sent."""
        return json.dumps(self.manifest).encode()

    def url(self, host: str, title: str = "") -> str:
        """Return its address."""
        return f"oci://{host}/acme/kanji@sha256:{digest(self.body)}{title and f'/{title}'}"

    def answer(self, asked: Asked) -> Answered:
        """Return what the registry says to a request."""
        if self.tokens is not None and asked.headers.get("Authorization") != f"Bearer {TOKEN}":
            realm = f'Bearer realm="{self.tokens.url}/token",service="registry",scope="repository:acme/kanji:pull"'
            return Answered(401, {"WWW-Authenticate": realm})
        if asked.url.path == f"/v2/acme/kanji/manifests/sha256:{digest(self.body)}":
            assert "application/vnd.oci.image.manifest.v1+json" in asked.headers["Accept"]
            return Answered(200, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}, self.body)
        if asked.url.path == f"/v2/acme/kanji/blobs/sha256:{digest(CONTENT)}":
            return Answered(307, {"Location": f"{self.storage.url}?X-Amz-Signature=canary"})
        return Answered(404)

    @staticmethod
    def give_token(asked: Asked) -> Answered:
        """Return what the host says that hands out tokens."""
        assert parse_qs(asked.url.query) == {"service": ["registry"], "scope": ["repository:acme/kanji:pull"]}
        if asked.headers.get("Authorization") != f"Basic {base64.b64encode(SECRET.encode()).decode()}":
            return Answered(401)
        return Answered(200, {}, json.dumps({"token": TOKEN}).encode())


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serve(CONTENT) as storage:
        yield Registry(storage)


@pytest.fixture
def site(registry: Registry) -> Iterator[Web]:
    with web(registry.answer) as found:
        yield found


@pytest.fixture
def tokens(registry: Registry) -> Iterator[Web]:
    with web(registry.give_token) as found:
        registry.tokens = found
        yield found


@pytest.fixture
def policy() -> Policy:
    return Policy(schemes=frozenset({"oci", "http"}), hosts=frozenset({"127.0.0.1"}))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "kanji.part"


def known(policy: Policy, site: Web, directory: Path, secret: str = SECRET) -> Policy:
    file = directory / f"{site.host}-{secret}"
    file.write_text(secret)
    file.chmod(0o600)
    return replace(policy, token_files={site.host: str(file)})


def test_the_layer_of_an_artifact_arrives(registry: Registry, site: Web, part: Path, policy: Policy) -> None:
    assert fetch(registry.url(site.host), part, policy) == CONTENT


def test_of_several_layers_one_is_named_by_its_title(registry: Registry, site: Web, part: Path, policy: Policy) -> None:
    registry.manifest["layers"] = [registry.layer("eval.bin", b"x"), registry.layer("model.pt", CONTENT)]
    assert fetch(registry.url(site.host, "model.pt"), part, policy) == CONTENT
    for title, words in (("", "has 2 layers"), ("other.pt", "has 0 layers with the title other.pt")):
        error = refuse(registry.url(site.host, title), part.with_name("other.part"), policy)
        assert words in error.detail
        assert 'its titles: "eval.bin", "model.pt"' in error.detail
        assert "oci://HOST/REPO@sha256:DIGEST/TITLE" in str(error.hint)


def test_a_token_is_asked_of_the_host_that_hands_them_out_and_goes_to_the_registry_alone(
    registry: Registry, site: Web, tokens: Web, part: Path, policy: Policy
) -> None:
    registry.storage.replies = [Reply(cut_after=300_000)]
    assert fetch(registry.url(site.host), part, known(policy, tokens, part.parent)) == CONTENT
    assert len(tokens.requests) == 2  # one a try
    assert [asked.get("Range") for asked in registry.storage.requests] == [None, "bytes=300000-"]
    assert all("Authorization" not in asked for asked in registry.storage.requests)
    assert {asked.headers.get("Authorization") for asked in site.requests} == {None, f"Bearer {TOKEN}"}


def test_who_has_no_token_is_told_whose_is_missing(
    registry: Registry, site: Web, tokens: Web, part: Path, policy: Policy
) -> None:
    for rules in (policy, known(policy, tokens, part.parent, SECRET + "x"), known(policy, site, part.parent)):
        error = refuse(registry.url(site.host), part, rules)
        assert "HTTP 401" in error.detail
        assert f'under "{tokens.host}" in downloads.token_files' in str(error.hint)
    registry.tokens = replace(tokens, url="http://10.0.0.7")
    assert refuse(registry.url(site.host), part, policy).code is ErrorCode.FORBIDDEN_SOURCE


def test_a_registry_over_https_gets_no_secret_sent_over_http(
    registry: Registry, tokens: Web, part: Path, policy: Policy
) -> None:
    authority = Authority(part.parent)
    rules = replace(policy, schemes=frozenset({"oci", "https", "http"}), ca_file=str(authority.file))
    with web(registry.answer, authority.issue("registry")) as secure:
        error = refuse(registry.url(secure.host), part, known(rules, tokens, part.parent))
        assert error.code is ErrorCode.FORBIDDEN_SOURCE
        assert "scheme 'http'" in error.detail
        assert tokens.requests == []
        registry.tokens = None
        assert fetch(registry.url(secure.host), part, rules) == CONTENT


def test_a_manifest_that_is_not_the_one_of_the_digest_is_refused(
    registry: Registry, site: Web, part: Path, policy: Policy
) -> None:
    url = registry.url(site.host)
    changed = json.dumps({**registry.manifest, "layers": [registry.layer("model.pt", b"other")]}).encode()
    site.answer = lambda _asked: Answered(200, {}, changed)
    error = refuse(url, part, policy)
    assert error.code is ErrorCode.CHECKSUM_MISMATCH
    assert digest(changed) in error.detail


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"layers": []},
        {"layers": 7},
        {"layers": [{"digest": "sha256:../../x"}]},
        {"layers": [None]},
        {"manifests": []},
    ],
)
def test_a_manifest_without_a_layer_is_refused(
    registry: Registry, site: Web, part: Path, policy: Policy, manifest: dict[str, Any]
) -> None:
    registry.manifest = manifest
    assert "has 0 layers" in refuse(registry.url(site.host), part, policy).detail


def test_what_the_registry_does_not_have_is_told(registry: Registry, site: Web, part: Path, policy: Policy) -> None:
    error = refuse(registry.url(site.host)[:-4] + "0000", part, policy)
    assert "HTTP 404" in error.detail
    assert "oras resolve" in str(error.hint)
    site.answer = lambda _asked: Answered(502)
    assert refuse(registry.url(site.host), part, policy).retryable


def test_what_may_be_reached_is_judged_as_with_every_download(
    registry: Registry, site: Web, part: Path, policy: Policy
) -> None:
    url = registry.url(site.host)
    assert "scheme 'oci'" in refuse(url, part, replace(policy, schemes=frozenset({"http"}))).detail
    assert "must be named" in refuse(url, part, replace(policy, hosts=frozenset())).detail
    assert "tags move" in refuse(url.partition("@")[0] + ":v1", part, policy).detail
    assert site.requests == []
    secure = replace(policy, schemes=frozenset({"oci", "https", "http"}))
    assert "while talking to 127.0.0.1" in refuse(url, part, secure).detail  # https is not what answers here
