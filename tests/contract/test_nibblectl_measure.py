"""``nibblectl --measure``: what lies at an address is fetched and hashed here, and nothing else is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from agent.fleet.cli import main
from agent.fleet.measuring import measured
from tests.fakes.device import sha256
from tests.fakes.web import Answered, web

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"weights" * 1000
TOLD = {"sha256": sha256(CONTENT), "size": len(CONTENT)}


def test_artifact_and_data_set_are_measured_over_http_and_from_files(tmp_path: Path) -> None:
    (tmp_path / "eval").write_bytes(CONTENT)
    file = (tmp_path / "eval").as_uri()
    with web(lambda _asked: Answered(body=CONTENT)) as server:
        url = f"{server.url}/model.pt?signature=secret"
        entry = {"artifact": {"url": url}, "method": "nf4", "gate": {"dataset": {"url": file}, "min_agreement": 0.9}}
        found = measured(entry)
    assert found == {
        "artifact": {"url": url, **TOLD},
        "method": "nf4",
        "gate": {"dataset": {"url": file, **TOLD}, "min_agreement": 0.9},
    }
    assert entry["artifact"] == {"url": url}, "what was given stays as it was"


def test_what_was_measured_is_told_without_the_secrets_of_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    with web(lambda _asked: Answered(body=CONTENT)) as server:
        measured({"artifact": {"url": f"{server.url}/model.pt?signature=secret"}})
        told = capsys.readouterr()
        assert told.err == f"nibblectl: {server.url}/model.pt: {TOLD['size']} bytes, sha256 {TOLD['sha256']}\n"
        assert told.out == ""


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"artifact": {"url": "https://h.example/a", "sha256": "a" * 64}},
        {"artifact": {"sha": 1}},
        {"artifact": "https://h.example/a"},
        {"artifact": {"url": 5}, "gate": [1]},
        {"gate": {"dataset": None}},
    ],
)
def test_what_says_its_digest_or_has_no_address_stays_as_it_is(entry: object) -> None:
    assert measured(entry) == entry


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///nowhere/model.pt", "/nowhere/model.pt: No such file or directory"),
        ("hf://org/model@main/a", "it fetches from file, http, https; else give sha256"),
    ],
)
def test_an_address_that_cannot_be_fetched_ends_the_command_before_anything_is_sent(url: str, words: str) -> None:
    entry = f'{{"models": {{"kanji": {{"artifact": {{"url": "{url}"}}}}}}}}'
    command = ["desired", "set", "-", "--group", "lab", "--measure"]
    done = CliRunner().invoke(main, command, input=entry, prog_name="nibblectl")
    assert (done.exit_code, done.stdout) == (1, "")
    assert words in done.stderr
