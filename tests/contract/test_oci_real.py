"""Downloads from a real registry (Debian's docker-registry), of what was pushed to it as the specification says."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy
from agent.deployment.ports import InterruptedStepError, StepError
from tests.e2e.harness.tools import require
from tests.fakes.watch import EagerWatch, LeavingWatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 4096
SIZE = len(CONTENT)
REPO = "acme/kanji"
USER, PASSWORD = "edge", "canary-password"
HASHED = "$2y$05$Nd4mcSWOvZJXIX5fS.kqa.iphzm7iN5fXX9vJW4q.Rgc0sjcgPQ/m"
"""The password by bcrypt, as ``htpasswd -nbB`` prints it."""
_CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {directory}/store}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: tests, path: {directory}/htpasswd}}}}
"""
START_S = 60.0


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program, directory = require("docker-registry"), tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (directory / "htpasswd").write_text(f"{USER}:{HASHED}\n")
    (directory / "config.yml").write_text(_CONFIG.format(directory=directory, port=port))
    log = directory / "log"
    with log.open("wb") as out:
        server = subprocess.Popen([program, "serve", str(directory / "config.yml")], stdout=out, stderr=out)
        try:
            until = time.monotonic() + START_S
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def url(host: str) -> str:
    """Push an artifact of two layers; return the address of one, by the digest of the manifest."""
    with httpx.Client(base_url=f"http://{host}/v2/{REPO}", auth=(USER, PASSWORD)) as client:

        def push(content: bytes) -> dict[str, object]:
            begun = client.post("/blobs/uploads/").raise_for_status()
            place = httpx.URL(begun.headers["Location"]).copy_merge_params({"digest": digest(content)})
            client.put(place, content=content).raise_for_status()
            return {"mediaType": "application/octet-stream", "digest": digest(content), "size": len(content)}

        layers = [
            {**push(content), "annotations": {"org.opencontainers.image.title": title}}
            for title, content in (("evaluation.bin", b"evaluation"), ("model.pt", CONTENT))
        ]
        kind = "application/vnd.oci.image.manifest.v1+json"
        config = {**push(b"{}"), "mediaType": "application/vnd.oci.empty.v1+json"}
        manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}).encode()
        client.put("/manifests/v1", content=manifest, headers={"Content-Type": kind}).raise_for_status()
    return f"oci://{host}/{REPO}@{digest(manifest)}/model.pt"


@pytest.fixture
def policy(host: str, tmp_path: Path) -> Policy:
    file = tmp_path / "registry.secret"
    file.write_text(f"{USER}:{PASSWORD}\n")
    file.chmod(0o600)
    return Policy(schemes=frozenset({"oci", "http"}), hosts=frozenset({"127.0.0.1"}), token_files={host: str(file)})


def test_a_layer_arrives_and_a_part_of_it_is_gone_on_with(url: str, tmp_path: Path, policy: Policy) -> None:
    part = tmp_path / "kanji.part"
    downloader = Downloader(policy, boot="this run")
    with pytest.raises(InterruptedStepError):
        downloader.fetch(url, part, SIZE, LeavingWatch())
    assert 0 < part.stat().st_size < SIZE
    is_pieced = downloader.fetch(url, part, SIZE, EagerWatch())
    assert part.read_bytes() == CONTENT
    assert is_pieced


def test_who_may_not_read_is_told_what_is_missing(url: str, host: str, tmp_path: Path, policy: Policy) -> None:
    with pytest.raises(StepError) as caught:
        Downloader(replace(policy, token_files={})).fetch(url, tmp_path / "kanji.part", SIZE, EagerWatch())
    assert "HTTP 401" in caught.value.detail
    assert f'under "{host}" in downloads.token_files' in str(caught.value.hint)


def test_what_is_not_there_is_told(url: str, tmp_path: Path, policy: Policy) -> None:
    other = url.replace(url.partition("sha256:")[2][:8], "00000000")
    with pytest.raises(StepError) as caught:
        Downloader(policy).fetch(other, tmp_path / "kanji.part", SIZE, EagerWatch())
    assert "HTTP 404" in caught.value.detail
    assert "it has no such digest" in str(caught.value.hint)
