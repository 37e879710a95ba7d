"""From settings to a listening port: what has to be in order before it is opened, and what the server is told."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from agent import failpoints, parts, status_site
from agent.parts import StartError
from agent.serving.__main__ import _parse
from agent.serving.terms import Terms
from agent.settings import Serving, Settings
from tests.fakes.authority import Authority

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "0123456789abcdef"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return path


def test_a_directory_whose_name_cannot_be_made_durable_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_name: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setitem(failpoints.armed, "directory.fsync.before", fail)
    assert (parts.prepare(tmp_path / "lib" / "nibbled") / "run").is_dir()
    assert capsys.readouterr().out.count("directory_not_synced") == 3


def test_a_second_agent_on_one_state_directory_is_refused_with_the_process_that_has_it(tmp_path: Path) -> None:
    first = parts.claim(parts.prepare(tmp_path))
    assert first is not None
    with pytest.raises(StartError, match=rf"state_dir .* is in use by process {os.getpid()}, .* of its own"):
        parts.claim(tmp_path)
    first.close()
    second = parts.claim(tmp_path)
    assert second is not None
    second.close()


def test_a_file_system_without_locks_keeps_no_agent_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert parts.claim(parts.prepare(tmp_path)) is None
    assert "directory_not_locked" in capsys.readouterr().out


def test_an_address_that_others_reach_needs_a_token_or_a_word(token_file: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0 is reached from other machines; expected token_file"):
        Serving(host="0.0.0.0", http_port=0)
    for serving in (
        Serving(host="127.0.0.1", http_port=0),
        Serving(host="0.0.0.0", http_port=0, token_file=token_file),
        Serving(host="0.0.0.0", http_port=0, allow_anonymous=True),
    ):
        parts.listen(serving).close()


@pytest.mark.parametrize("name", ["token_file", "admin_token_file"])
def test_a_token_file_that_cannot_be_used_keeps_the_agent_from_starting(token_file: Path, name: str) -> None:
    token_file.chmod(0o644)
    with pytest.raises(StartError, match=rf"serving\.{name} .*its mode is 0644"):
        parts.listen(Serving(http_port=0, **{name: token_file}))


@pytest.mark.parametrize("name", ["token_file", "admin_token_file"])
def test_a_token_file_that_is_missing_is_told_with_the_command_that_makes_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokens"
    with pytest.raises(StartError) as caught:
        parts.listen(Serving(http_port=0, **{name: path}))
    assert str(caught.value).startswith(f"serving.{name} {path}: No such file or directory; make one: ")
    commands = re.search(r"make one: \((.+)\), and then", str(caught.value))
    assert commands is not None
    subprocess.run(["sh", "-c", commands[1]], check=True)
    parts.check_tokens(name, path)


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1", "::x"])
def test_an_address_that_this_machine_has_not_is_told_by_its_own_key(host: str) -> None:
    with pytest.raises(StartError, match=rf"^serving\.host {re.escape(host)}: .+; name an address of this machine"):
        parts.listen(Serving(host=host, http_port=0, allow_anonymous=True))


def test_a_certificate_that_cannot_be_used_keeps_the_agent_from_starting(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("box-1")
    parts.listen(Serving(http_port=0, cert_file=certificate, key_file=key)).close()
    other = Authority(tmp_path).issue("box-2")[1]
    with pytest.raises(StartError, match=r"serving\.cert_file .*box-1\.pem and key_file .*box-2\.key"):
        parts.listen(Serving(http_port=0, cert_file=certificate, key_file=other))


def test_the_server_understands_what_it_is_told(tmp_path: Path, token_file: Path) -> None:
    certificate, key = Authority(tmp_path).issue("box-1")
    serving = Serving(
        token_file=token_file, admin_token_file=token_file, cert_file=certificate, key_file=key,
        max_body=1000, max_connections=7, head_s=1.5, body_s=2.5, device="cpu",
    )  # fmt: skip
    options = _parse(["--http-fd", "3", "--control-fd", "4", *parts.server_options(serving, tmp_path)])
    assert (options.max_body_bytes, options.max_connections, options.head_s, options.body_s) == (1000, 7, 1.5, 2.5)
    assert (options.token_file, options.admin_token_file, options.store) == (token_file, token_file, tmp_path)
    assert (options.cert_file, options.key_file, options.device) == (certificate, key, "cpu")
    assert (
        _parse(["--http-fd", "3", "--control-fd", "4", *parts.server_options(Serving(), tmp_path)]).token_file is None
    )


def test_how_releases_are_served_is_told_in_terms_that_the_server_knows() -> None:
    assert Terms.from_json(parts.wanted(Serving())) == Terms("packed", "off", "off")
    asked = Serving(residency="auto", compile="auto", cuda_graphs="auto")
    assert Terms.from_json(parts.wanted(asked)) == Terms("auto", "auto", "auto")


def test_no_token_is_among_the_servers_arguments(tmp_path: Path, token_file: Path) -> None:
    assert TOKEN not in " ".join(parts.server_options(Serving(token_file=token_file), tmp_path))


def test_what_was_relaxed_is_told(tmp_path: Path, token_file: Path) -> None:
    assert parts.relaxations(Settings(state_dir=tmp_path)) == ()
    assert parts.relaxations(Settings(trust={"require_signature": False})) == ("trust.require_signature is off",)
    anonymous = parts.relaxations(Settings(serving={"host": "0.0.0.0", "allow_anonymous": True}))
    assert [text.partition(":")[0] for text in anonymous] == [
        "serving.allow_anonymous", "serving.cert_file is not set",
    ]  # fmt: skip
    certificate, key = Authority(tmp_path).issue("box-1")
    guarded = {"host": "0.0.0.0", "token_file": token_file, "cert_file": certificate, "key_file": key}
    assert parts.relaxations(Settings(serving=guarded)) == ()


def test_a_port_that_is_taken_keeps_the_agent_from_starting_with_its_name() -> None:
    with parts.listen(Serving(http_port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"serving\.http_port {port} on 127\.0\.0\.1: Address already in use"):
            parts.listen(Serving(http_port=port))


@pytest.mark.parametrize(
    ("status", "serving", "told"),
    [
        ({}, {}, {"ask": "open", "command": "off"}),
        ({"token_file": True}, {}, {"ask": "open", "command": "token"}),
        ({}, {"token_file": True}, {"ask": "token", "command": "off"}),
        ({"token_file": True}, {"token_file": True}, {"ask": "token", "command": "token"}),
        ({"host": "0.0.0.0"}, {}, {"ask": "off", "command": "off"}),
        ({"host": "0.0.0.0"}, {"allow_anonymous": True}, {"ask": "open", "command": "off"}),
        ({"host": "0.0.0.0"}, {"token_file": True}, {"ask": "token", "command": "off"}),
    ],
)
def test_the_page_asks_models_for_whom_the_inference_port_would_answer(
    token_file: Path, status: dict[str, Any], serving: dict[str, Any], told: dict[str, str]
) -> None:
    sections = (
        {**given, **({"token_file": token_file} if "token_file" in given else {})} for given in (status, serving)
    )
    settings = Settings(status=next(sections), serving=next(sections))
    assert status_site.access(settings).to_json() == told


def test_a_file_of_the_page_s_tokens_that_cannot_be_used_keeps_the_agent_from_starting(token_file: Path) -> None:
    token_file.chmod(0o644)
    with pytest.raises(StartError, match=r"status\.token_file .*its mode is 0644"):
        status_site.access(Settings(status={"token_file": token_file}))


def test_tokens_of_the_page_that_leave_the_machine_without_encryption_are_told(token_file: Path) -> None:
    exposed = {"host": "0.0.0.0", "token_file": token_file}
    (told,) = parts.relaxations(Settings(status=exposed))
    assert told.startswith("status.token_file:")
    assert parts.relaxations(Settings(status={"token_file": token_file})) == ()
