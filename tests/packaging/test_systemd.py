"""The unit files: valid, closed as far as a GPU allows; every directive that stays open has its reason beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.adapters.pulse import LONGEST_QUESTION_S, PAUSE_S
from agent.serving.process import OOM_SCORE_ADJ
from agent.settings import Serving

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = UNITS / "nibbled.service"
VERIFIED = ("nibbled.service", "nibbled.slice", "nibbled-watch.path", "nibbled-watch.service")
THRESHOLD = "20"
"""Of `systemd-analyze security`, in tenths: an exposure of 2.0."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and "CI" not in os.environ, reason="systemd-analyze is not installed"
)


def sections(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the assignments of a unit file by section, in their order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = section = []
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            section.append((name, value))
    return found


def service() -> dict[str, str]:
    return dict(sections(SERVICE)["Service"])


def complaints(root: Path, text: str) -> list[str]:
    """Return what systemd says of the units, with ``text`` for the service, in a tree that has what they start."""
    place = root / "etc" / "systemd" / "system"
    place.mkdir(parents=True)
    for file in (*UNITS.iterdir(), *Path("/lib/systemd/system").glob("*.target")):
        if file.suffix in {".service", ".slice", ".path", ".target"}:
            shutil.copy(file, place)
    (place / SERVICE.name).write_text(text, encoding="utf-8")
    for program in ("opt/nibbled/bin/nibbled", "bin/systemctl", "bin/sleep"):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        (root / program).write_text("#!/bin/sh\n")
        (root / program).chmod(0o755)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", *VERIFIED],
        capture_output=True,
        text=True,
        check=False,
    )
    # The targets that were copied name units which are not there; what counts is what is said of our own.
    return [line for line in (done.stdout + done.stderr).splitlines() if "nibbled" in line]


@needs_systemd
def test_systemd_finds_no_fault_in_the_units_and_does_in_broken_ones(tmp_path: Path) -> None:
    text = SERVICE.read_text(encoding="utf-8")
    assert complaints(tmp_path / "sound", text) == []
    (told,) = complaints(tmp_path / "misspelt", text.replace("WatchdogSec=90", "WatchdogSex=90"))
    assert "Unknown key 'WatchdogSex'" in told
    assert complaints(tmp_path / "astray", text.replace("ExecStart=/opt/nibbled/bin", "ExecStart=/opt/nibbled/sbin"))


@needs_systemd
def test_the_exposure_of_the_service_is_two_at_most() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={THRESHOLD}", "--no-pager", str(SERVICE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    exposure = re.search(r"exposure level for nibbled.service: (\d+\.\d+)", done.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= 2.0


@needs_systemd
def test_every_directive_that_is_left_open_has_its_reason_in_the_unit() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(SERVICE)],
        capture_output=True,
        text=True,
        check=False,
    )
    open_ones = re.findall(r"^✗ (\S+)", done.stdout, re.MULTILINE)
    assert open_ones
    text = SERVICE.read_text(encoding="utf-8")
    for name in open_ones:
        directive, _, what = name.partition("=")
        assert directive in text, name
        for part in re.findall(r"@\w+|AF_\w+", what.replace("(INET|INET6)", "INET")):
            assert part in text, name


def test_nothing_that_takes_the_gpu_away_is_set() -> None:
    told = service()
    assert not {"PrivateDevices", "MemoryDenyWriteExecute", "DeviceAllow", "DevicePolicy", "PrivateUsers"} & set(told)
    assert told.get("ProcSubset") != "pid"
    assert {"video", "render"} <= set(told["SupplementaryGroups"].split())
    assert "@resources" not in "".join(
        value for name, value in sections(SERVICE)["Service"] if name == "SystemCallFilter"
    )


def test_a_silent_server_is_replaced_before_the_watchdog_bites() -> None:
    watchdog_s = float(service()["WatchdogSec"])
    # The last meal may be a sixth of the time old when the server falls silent.
    assert watchdog_s / 6 + Serving().silence_s + PAUSE_S + 2 * LONGEST_QUESTION_S < watchdog_s


def test_memory_takes_the_builder_first_the_server_next_and_the_agent_last() -> None:
    assert int(service()["OOMScoreAdjust"]) < 0 < OOM_SCORE_ADJ < 1000
    assert service()["OOMPolicy"] == "continue"


def test_the_service_s_user_folders_and_groups_are_made_by_sysusers_and_tmpfiles() -> None:
    users = (UNITS / "nibbled.sysusers").read_text(encoding="utf-8")
    made = set(re.findall(r"^[ug] (\w+)", users, re.MULTILINE))
    assert {service()["User"], *service()["SupplementaryGroups"].split()} <= made
    folders = dict(re.findall(r"^d (\S+)\s+(\d+)", (UNITS / "nibbled.tmpfiles").read_text("utf-8"), re.MULTILINE))
    assert folders[f"/var/lib/{service()['StateDirectory']}"] == service()["StateDirectoryMode"]
    assert folders["/etc/nibbled/credentials"] == "0700"


def test_a_renewed_credential_starts_the_service_again() -> None:
    path = dict(sections(UNITS / "nibbled-watch.path")["Path"])
    assert (path["PathChanged"], path["Unit"]) == ("/etc/nibbled/credentials", "nibbled-watch.service")
    assert "try-restart nibbled.service" in dict(sections(UNITS / "nibbled-watch.service")["Service"])["ExecStart"]


def test_no_directive_is_newer_than_the_systemd_of_jetpack_6() -> None:
    newer = {
        "RestartSteps",
        "RestartMaxDelaySec",
        "LoadCredentialEncrypted",
        "OpenFile",
        "MemoryZSwapMax",
        "ImportCredential",
    }
    for file in UNITS.iterdir():
        if file.suffix in {".service", ".slice", ".path"}:
            names = {name for section in sections(file).values() for name, _ in section}
            assert not newer & names, file.name
