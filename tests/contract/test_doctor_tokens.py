"""The doctor's lines for files of tokens that downloads read, and what root is told of the service's user."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from agent.console import looking
from agent.console.check import State
from agent.settings import Settings

NOBODY = "nobody-of-that-name"


@pytest.fixture(autouse=True)
def _no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out a service that is installed on this machine."""
    monkeypatch.setattr(looking, "SERVICE_USER", NOBODY)


def for_downloads(folder: Path, content: str | None, mode: int) -> Settings:
    file = folder / "token"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    return Settings(downloads={"token_files": {"files.example.com": file}})


DOWNLOADS = {"one token": "0123456789abcdef\n", "a password": "edge:secret"}


@pytest.mark.parametrize("what", DOWNLOADS)
def test_a_file_of_a_host_that_downloads_can_use_is_well(tmp_path: Path, what: str) -> None:
    (check,) = looking.tokens(for_downloads(tmp_path, DOWNLOADS[what], 0o640))
    assert (check.name, check.state) == ("tokens downloads files.example.com", State.OK)
    assert DOWNLOADS[what].strip() not in check.detail


@pytest.mark.parametrize(
    ("content", "mode", "words", "next_step"),
    [
        (None, 0, "No such file or directory", "(umask 027; cat > {file}), and then chown root:"),
        ("0123456789abcdef", 0o644, "its mode is 0644, at most 0640 keeps it secret", "chmod 0640 {file}"),
        ("\n", 0o600, "it is empty, expected one bearer token or user:password", "mend it, or change"),
        ("two words", 0o600, "neither one bearer token nor user:password", "mend it, or change"),
    ],
    ids=["missing", "open to others", "empty", "no token"],
)
def test_a_file_of_a_host_that_downloads_cannot_use_is_told_with_the_next_step(
    tmp_path: Path, content: str | None, mode: int, words: str, next_step: str
) -> None:
    loaded = for_downloads(tmp_path, content, mode)
    (check,) = looking.tokens(loaded)
    assert check.state is State.FAILED
    assert check.detail.startswith('downloads.token_files."files.example.com" ')
    assert words in check.detail
    assert check.detail.endswith("nothing can be fetched from files.example.com")
    assert next_step.format(file=loaded.downloads.token_files["files.example.com"]) in str(check.next_step)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can ask as another user")
def test_root_is_told_what_the_user_of_the_service_may_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "SERVICE_USER", "nobody")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens"
        file.write_text("0123456789abcdef")
        file.chmod(0o600)
        Path(folder).chmod(0o755)
        loaded = Settings(serving={"token_file": file}, downloads={"token_files": {"files.example.com": file}})
        found = {check.name: check for check in looking.tokens(loaded)}
        assert {check.state for check in found.values()} == {State.FAILED}
        for name in ("tokens serving", "tokens downloads files.example.com"):
            assert "nobody, the user of the service, may not read it" in found[name].detail
        assert f"chown root:nobody {file} && chmod 0640 {file}" in str(found[name].next_step)
        os.chown(file, 0, pwd.getpwnam("nobody").pw_gid)
        file.chmod(0o640)
        assert {check.state for check in looking.tokens(loaded)} == {State.OK}
        Path(folder).chmod(0o700)
        assert {check.state for check in looking.tokens(loaded)} == {State.FAILED}, "the folder is closed"
        monkeypatch.setattr(looking, "SERVICE_USER", NOBODY)
        assert {check.state for check in looking.tokens(loaded)} == {State.OK}, "no service is installed"
