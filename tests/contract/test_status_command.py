"""``nibbled status`` against the agent's own port over real HTTP."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from agent.cli import main
from agent.console import screen
from agent.console import status as command
from agent.health.web import StatusSite
from tests.e2e.harness.mqtt import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 2**20
HEALTH = {
    "status": "degraded",
    "reasons": ["relaxed: trust.require_signature is off"],
    "device": {
        "memory": {"available_bytes": 512 * MIB, "total_bytes": 1024 * MIB, "bytes": 256 * MIB, "source": "meminfo"}
    },
    "models": {"kanji": {"requests": 12, "latency_ms": {"p50": 3.25}}},
    "supervisor_rss_bytes": 60 * MIB,
    "server_rss_bytes": None,
    "server_starts": 1,
    "disk": {"free_bytes": 7 * 1024 * MIB},
}
MODEL = {
    "version": "2",
    "method": "nf4",
    "resident_bytes": 4 * MIB,
    "agreement": 0.987,
    "previous": {"version": "1", "method": "fp4"},
}
ERROR = {"code": "checksum_mismatch", "detail": "got 9f with 3 bytes, announced 51 with 4 bytes"}
OPERATIONS = [
    {
        "id": "d-2",
        "command": "deploy",
        "model": "kanji",
        "state": "failed",
        "phase": None,
        "error": ERROR,
        "decision": None,
    },
    {"id": "d-1", "command": "status", "model": None, "state": "running", "phase": "building", "error": None},
]
BODY = {
    "device_id": "box-17",
    "agent": "0.1.0",
    "broker": "broker:8883",
    "connection": {"connected": True, "echo": True},
    "inference": "http://127.0.0.1:8000/v2",
    "health": HEALTH,
    "models": {"kanji": MODEL},
    "operations": OPERATIONS,
}


@pytest.fixture
def body() -> dict[str, Any]:
    return {**BODY, "health": dict(HEALTH)}


@pytest.fixture
def config(tmp_path: Path, body: dict[str, Any]) -> Iterator[Path]:
    site = StatusSite("127.0.0.1", 0, lambda: body)
    site.start()
    port = site.url.rpartition(":")[2].strip("/")
    yield write(tmp_path, f"port = {port}")
    site.stop()


def write(directory: Path, line: str) -> Path:
    path = directory / "nibbled.toml"
    path.write_text(f"[status]\n{line}\n")
    return path


def run(config: Path, *more: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["status", "--config", str(config), *more])
    return done.exit_code, done.stdout, done.stderr


def test_one_screen_has_device_reasons_models_operations_and_numbers(config: Path) -> None:
    status, text, _ = run(config)
    lines = text.splitlines()
    assert status == 0
    assert lines[0] == "box-17  degraded  nibbled 0.1.0"
    assert "  ! relaxed: trust.require_signature is off" in lines
    (model,) = [line.split() for line in lines if line.startswith("kanji")]
    assert model == ["kanji", "2", "nf4", "4.0", "MiB", "98.7", "%", "12", "3.2", "ms", "1", "fp4"]
    assert any(line.startswith("d-2") and "checksum_mismatch: got 9f" in line for line in lines)
    assert any(line.startswith("d-1") and line.endswith("building") for line in lines)
    assert "512 MiB of 1.0 GiB available according to meminfo; 256 MiB for models" in text
    assert "broker:8883, connected" in text
    assert len(lines) < 24
    assert ERROR["detail"] in text, "what goes into a pipe is never cut"


def test_on_a_terminal_lines_end_where_it_does(config: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "agent", "status", "--config", str(config)]
    try:
        subprocess.run(command, stdout=theirs, stdin=theirs, env=environment, check=True, timeout=60)
        lines = os.read(ours, 65536).decode().splitlines()
    finally:
        os.close(ours)
        os.close(theirs)
    assert lines[0].startswith("box-17")
    assert max(map(len, lines)) == 60


def test_a_wide_terminal_shows_a_line_whole_and_a_narrow_one_says_that_it_is_cut() -> None:
    assert ERROR["detail"] in "\n".join(screen.lines(BODY, 200))
    narrow = screen.lines(BODY, 40)
    assert max(map(len, narrow)) == 40
    assert any(line.endswith("…") for line in narrow)


def test_a_box_that_serves_nothing_yet_says_so() -> None:
    bare = {"device_id": "box", "health": {"status": "starting", "reasons": []}, "models": {}, "operations": []}
    text = "\n".join(screen.lines(bare, 80))
    assert "no models" in text
    assert "no operations" in text


def test_json_is_what_the_agent_said(config: Path) -> None:
    assert json.loads(run(config, "--json")[1]) == BODY


def test_a_failing_agent_is_exit_status_one(config: Path, body: dict[str, Any]) -> None:
    body["health"]["status"] = "failing"
    assert run(config)[0] == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(f"port = {free_port()}", "no agent answers at http://127.0.0.1:", id="nobody"),
        ("port = 0", "status.port is 0"),
        ("enabled = false", "status.enabled = true"),
    ],
)
def test_where_no_agent_can_be_asked_a_sentence_says_why_and_what_to_do(tmp_path: Path, line: str, words: str) -> None:
    status, text, error = run(write(tmp_path, line))
    assert (status, text) == (4, "")
    assert words in error
    assert len(error.splitlines()) == 2, "the reason, and the next step"
    assert "Traceback" not in error


def test_another_server_on_the_port_is_not_taken_for_an_agent(tmp_path: Path) -> None:
    site = StatusSite("127.0.0.1", 0, lambda: {"health": {"status": "ok"}})
    site.start()
    status, _, error = run(write(tmp_path, f"port = {site.url.rpartition(':')[2].strip('/')}"))
    site.stop()
    assert status == 4
    assert "is not an agent's" in error


def test_a_wrong_configuration_is_a_sentence(tmp_path: Path) -> None:
    status, _, error = run(write(tmp_path, "prot = 1"))
    assert status == 1
    assert "did you mean port?" in error


def test_watching_shows_it_again_and_again_until_it_is_interrupted(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    assert command.show(config, watch=True, as_json=True, pause=pause) == 0
    assert [json.loads(line)["device_id"] for line in capsys.readouterr().out.splitlines()] == ["box-17"] * 3
    assert pauses == [2.0] * 3


def test_watching_goes_on_while_no_agent_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = iter([None, None])

    def pause(_seconds: float) -> None:
        if next(left, "over") == "over":
            raise KeyboardInterrupt

    assert command.show(write(tmp_path, f"port = {free_port()}"), watch=True, as_json=False, pause=pause) == 0
    assert capsys.readouterr().err.count("no agent answers") == 3
