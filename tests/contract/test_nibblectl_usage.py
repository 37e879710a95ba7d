"""``nibblectl`` before it reaches a device: wrong usage is status 2 with the next step, a missing broker 4."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, get_args, get_type_hints

import pytest
from click.testing import CliRunner

from agent.contract import sources
from agent.fleet import keys
from agent.fleet.cli import main
from agent.settings import Downloads
from tests.e2e.harness.mqtt import free_port

if TYPE_CHECKING:
    from pathlib import Path

ID_RULE = "must match ^[A-Za-z0-9_-]{1,64}$"
OWN_RULE = "no group can be called 'own': a device calls its own document that"


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    private, _ = keys.generate(tmp_path, "operator")
    files = [{"name": "kanji.pt", "url": "https://h.example/kanji.pt", "sha256": "a" * 64, "size": 9}]
    path = tmp_path / "manifest.json"
    body = {"model": "kanji", "version": "1", "sequence": 1, "files": files}
    path.write_text(json.dumps(keys.sign(body, private)))
    return str(path)


def refused(*arguments: str, stdin: str | None = None, status: int = 2) -> str:
    done = CliRunner().invoke(main, arguments, input=stdin, prog_name="nibblectl")
    assert (done.exit_code, done.stdout) == (status, ""), done.output
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("status",), "which device? give --device, or set NIBBLECTL_DEVICE"),
        (("-d", "a/b", "status"), f"device id 'a/b' {ID_RULE}"),
        (("-d", "box", "--prefix", "a/#", "status"), "topic prefix 'a/#' must be 1-4 non-empty levels"),
        (("-d", "box", "follow", "a b"), f"operation 'a b' {ID_RULE}"),
        (("-d", "box", "set-config", "{bad"), "CONFIG is not JSON: Expecting property name"),
        (
            ("-d", "box", "compare", "kanji", "--gate", '{"min_agreemnt": 1}'),
            "no device knows min_agreemnt (did you mean",
        ),
        (("-d", "box", "compare", "kanji", "--gate", '{"min_agreemnt": 1}'), "known: dataset, min_agreement, max_acc"),
        (("-d", "box", "compare", "kanji", "--gate", '{"dataset": {"sha": ""}}'), "no device knows dataset.sha"),
        (("-d", "box", "set-config", "[1]"), "CONFIG is a JSON array, expected an object"),
        (("rollback", "kanji", "--host", "box"), "--host goes before the command: nibblectl --host … rollback …"),
        (("rollback", "kanji", "--url", "x"), "--url goes before the command: nibblectl --url … rollback …"),
        (("rollback", "kanji", "--frob"), "No such option '--frob'"),
        (("-d", "box", "--wait", "-1", "status"), "-1.0 is not in the range x>=0"),
        (("-d", "box", "--port", "0", "status"), "0 is not in the range 1<=x<=65535"),
        (("-d", "box", "set-method", "kanji", "nf5"), "Invalid value for 'METHOD': 'nf5' is not one of 'auto', 'nf4'"),
        (("desired", "set", "/dev/null", "--group", "lab"), "/dev/null: empty, expected a wanted state as JSON"),
        (("desired", "halt", "a/b", "--reason", "x"), f"group 'a/b' {ID_RULE}"),
        (("desired", "halt", "own", "--reason", "x"), f"nibblectl: {OWN_RULE}"),
        (("desired", "resume", "own"), f"nibblectl: {OWN_RULE}"),
        (("desired", "set", "/dev/null", "--group", "own"), f"nibblectl: {OWN_RULE}"),
        (("sign-command", "halt", "/dev/null", "--key", "/dev/null", "--for-group", "own"), OWN_RULE),
        (("desired", "halt", "lab"), "Missing option '--reason'"),
        (("-d", "box", "deploy", "kanji", "/dev/null"), "/dev/null: empty, expected a signed manifest as nibblectl"),
        (("-d", "box", "deploy", "kanji", "nowhere.json"), "'nowhere.json' does not exist"),
    ],
)
def test_wrong_usage_is_told_with_what_would_be_right(arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(*arguments)


def test_a_manifest_that_no_device_would_take_is_not_sent(manifest: str) -> None:
    unsigned = refused("-d", "box", "deploy", "kanji", "-", stdin='{"model": "kanji"}')
    assert "-: no signed manifest: payloadType: Field required" in unsigned
    assert "make one with nibblectl sign" in unsigned
    assert "the manifest is for kanji, not for digits" in refused("-d", "box", "deploy", "digits", manifest)
    assert "--gate is not JSON" in refused("-d", "box", "deploy", "kanji", manifest, "--gate", "0.9 or so")


def test_where_models_answer_is_an_option_of_the_command_that_asks_them() -> None:
    having = {
        name
        for name, command in main.commands.items()
        if any("--url" in each.opts and each.callback is not None for each in command.params)
    }
    assert having == {"infer"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("h.example/kanji.pt", "--url 'h.example/kanji.pt' has no scheme, such as https://"),
        (
            "ftp://x/y",
            "--url: no device fetches from ftp://; what downloads.allowed_schemes can have: https, http, file",
        ),
        ("hf://acme/kanji@main/x.pt", "git ls-remote https://huggingface.co/acme/kanji main prints the commit"),
        ("models:/kanji@champion", "name the version"),
        ("oci://ghcr.io/acme/kanji:v1", "oras resolve ghcr.io/acme/kanji:TAG prints the digest"),
    ],
)
def test_an_address_that_no_device_would_take_is_not_signed(tmp_path: Path, url: str, words: str) -> None:
    private, _ = keys.generate(tmp_path, "operator")
    asked = ("--url", url, "--model", "kanji", "--version", "1", "--sequence", "1")
    assert words in refused("sign", str(private), "--key", str(private), *asked)


def test_a_manifest_for_a_group_that_no_device_may_be_in_is_not_signed(tmp_path: Path) -> None:
    private, _ = keys.generate(tmp_path, "operator")
    asked = ("--url", "https://h.example/k", "--model", "kanji", "--version", "1", "--sequence", "1")
    assert OWN_RULE in refused("sign", str(private), "--key", str(private), *asked, "--for-group", "own")


def test_the_schemes_that_are_signed_are_those_that_a_device_can_be_allowed() -> None:
    (allowed, _) = get_args(get_type_hints(Downloads)["allowed_schemes"])
    assert set(get_args(allowed)) == set(sources.SCHEMES)


def test_a_broker_that_is_not_there_is_named_with_what_to_look_at(manifest: str) -> None:
    port = str(free_port())
    for command in (("status",), ("deploy", "kanji", manifest)):
        told = refused("-d", "box", "--port", port, *command, status=4)
        assert told.startswith(f"nibblectl: broker 127.0.0.1:{port}: Connection refused\n  check --host and --port")


def test_files_for_tls_that_cannot_be_used_are_named(manifest: str) -> None:
    for option in ("--ca-file", "--cert-file"):
        told = refused("-d", "box", option, manifest, "status")
        assert told.startswith(f"nibblectl: the certificates for the broker ({manifest}) cannot be used: ")
