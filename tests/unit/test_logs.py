"""Secrets that must not pass into a log line, each as a canary."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from agent import logs
from agent.log_stream import LogStream

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    "text",
    [
        "GET https://user:canary@host.example/kanji.pt",
        "https://canary@host.example/kanji.pt",
        "mqtts://user:can@canary@host.example/kanji.pt",
        "https://host.example/kanji.pt?X-Amz-Signature=canary&x=1",
        "https://host.example/kanji.pt#canary",
        "tried 'https://host.example/kanji.pt?sig=canary', then \"https://host.example/kanji.pt?canary\"",
        "HTTPS://USER:canary@host.example/kanji.pt",
        "https://host.example/kanji.pt?next=https://u:canary@other.example/x",
    ],
)
def test_no_secret_part_of_a_url_passes(text: str) -> None:
    shown = logs.redact(text)
    assert "canary" not in shown
    assert "host.example/kanji.pt" in shown


def test_a_full_disk_under_the_log_does_not_end_what_it_tells_of() -> None:
    code = "import structlog; from agent import logs; logs.set_up(); structlog.get_logger().info('a'); print('alive')"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, check=False)
    assert (done.stdout, done.returncode in (0, 120)) == (b"alive\n", True)  # 120: the interpreter's own last flush


def test_what_cannot_be_written_is_lost_and_what_comes_later_is_not(tmp_path: Path) -> None:
    class Flaky(io.StringIO):
        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    flaky = Flaky()
    stream = LogStream(flaky)
    stream.write("lost")
    flaky.is_full = False
    stream.write("kept")
    assert flaky.getvalue() == "kept"
    closed = (tmp_path / "log").open("w")
    closed.close()
    LogStream(closed).write("lost")
    LogStream(closed).flush()


@pytest.mark.parametrize("name", ["password", "mqtt_PASSWORD", "api_key", "apikey", "Authorization", "token", "secret"])
def test_a_value_under_a_telling_name_is_masked(name: str) -> None:
    assert logs.redact({name: "canary"}) == {name: "***"}


def test_secrets_are_found_however_deep() -> None:
    value = {"a": [{"b": ("https://u:canary@h/x", {"token": ["canary"]})}], "error": ValueError("https://h/?canary")}
    assert "canary" not in repr(logs.redact(value))


@pytest.mark.parametrize("value", ["plain", "user@host", "a?b=c#d", 7, None, True, 1.5, "C:/x?y"])
def test_what_is_no_url_passes_unchanged(value: Any) -> None:
    assert logs.redact(value) == value


@pytest.fixture
def _logging_is_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging_is_put_back")
def test_every_line_of_the_agent_and_its_libraries_is_redacted_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json", device="box-1")
    structlog.get_logger("test").info("fetching", url="https://u:canary@h.example/x?canary", password="canary")
    structlog.get_logger("test").debug("below the level")
    try:
        int("https://u:canary@h.example/x")
    except ValueError:
        structlog.get_logger("test").exception("it broke")
    logging.getLogger("some.library").warning("retrying %s", "https://u:canary@h.example/x")

    written = capsys.readouterr().err
    lines = [json.loads(line) for line in written.splitlines()]
    assert "canary" not in written
    assert [line["event"] for line in lines] == ["fetching", "it broke", "retrying https://h.example/x"]
    assert all(line["device"] == "box-1" for line in lines)
    assert "ValueError: invalid literal" in lines[1]["exception"]
    assert "https://h.example/x" in lines[1]["exception"]


@pytest.mark.usefixtures("_logging_is_put_back")
def test_lines_written_while_something_is_bound_to_the_thread_carry_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json")
    with structlog.contextvars.bound_contextvars(id="d-1"):
        structlog.get_logger("test").info("within")
        logging.getLogger("some.library").warning("of a library")
    structlog.get_logger("test").info("after")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line.get("id") for line in lines] == ["d-1", "d-1", None]


@pytest.mark.usefixtures("_logging_is_put_back")
@pytest.mark.parametrize("is_journal", [True, False])
def test_a_line_for_the_journal_begins_with_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_journal: bool
) -> None:
    path = tmp_path / "journal"
    with path.open("w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino if is_journal else 0}")
        logs.set_up("info", "auto")
        structlog.get_logger("test").info("fine")
        structlog.get_logger("test").error("broken")
        logging.getLogger("some.library").warning("hm")
    lines = path.read_text().splitlines()
    assert [line[:3] for line in lines] == (["<6>", "<3>", "<4>"] if is_journal else ['{"e'] * 3)
    assert json.loads(lines[0][3 if is_journal else 0 :])["event"] == "fine"


@pytest.mark.usefixtures("_logging_is_put_back")
def test_a_terminal_gets_lines_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        logs.set_up("info", "auto")
        structlog.get_logger("test").info("connected", host="broker", url="https://u:canary@h.example/x")
    written = os.read(leader, 4096).decode()
    os.close(leader)
    assert "connected" in written
    assert "canary" not in written
    with pytest.raises(ValueError, match=r"Expecting|Extra"):
        json.loads(written)
