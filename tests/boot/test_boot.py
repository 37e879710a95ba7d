"""The service under a real systemd: installed, ready, fed, stopped, failed, booted again with its model."""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.boot.machine import BASE, TREE, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.minutes, pytest.mark.timeout(600)]

MODEL = TREE / "deploy" / "demo" / "kanji" / "checkpoint_best.pt"
LOCAL = """
[Service]
WatchdogSec=12
Environment=NIBBLED_TRUST__REQUIRE_SIGNATURE=false
Environment='NIBBLED_DOWNLOADS__ALLOWED_SCHEMES=["file"]'
Environment=NIBBLED_SERVING__SILENCE_S=3
Environment=NIBBLED_DEPLOYMENT__SOAK_S=0
Environment=NIBBLED_MEMORY__RESERVE=64MiB
"""
"""Unsigned files of this box, and times that a test can wait for."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    done = machine.before_boot(
        "/src/deploy/install.sh", "--wheelhouse", "/wheels", "--device-id", "box-17", "--no-start"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "keeping torch" in done.stdout
    folder = machine.root / "etc" / "systemd" / "system" / "nibbled.service.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "90-test.conf").write_text(LOCAL)
    machine.boot()
    yield machine
    machine.shut_down()


def is_active(machine: Machine) -> bool:
    return machine.show("ActiveState") == "active"


def served(machine: Machine) -> dict[str, object]:
    reported = machine.retained("edge/v1/box-17/reported")
    return dict(reported["models"]) if reported else {}


def pids(machine: Machine, what: str) -> list[str]:
    return machine.tell("pgrep", "-f", what).split()


def test_it_starts_is_ready_and_says_how_it_is(machine: Machine) -> None:
    machine.run("systemctl", "enable", "--now", "nibbled.service", "nibbled-watch.path")
    machine.eventually(lambda: is_active(machine))
    machine.eventually(lambda: "broker connected" in machine.show("StatusText"))
    assert machine.tell("ps", "-o", "user=", "-p", machine.show("MainPID")).strip() == "nibbled"
    assert machine.show("OOMScoreAdjust") == "-500"  # asked for; a container without CAP_SYS_RESOURCE may not lower it
    assert machine.show("Slice") == "nibbled.slice"
    assert "nibbled, version" in machine.tell("nibbled", "--version")


def test_it_deploys_a_model_inside_its_walls(machine: Machine) -> None:
    place = machine.root / "srv" / "model.pt"
    place.write_bytes(MODEL.read_bytes())
    place.chmod(0o644)
    digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    artifact = {"url": "file:///srv/model.pt", "sha256": digest, "size": MODEL.stat().st_size}
    body = {"schema": 1, "id": "d-1", "model": "kanji", "version": "1", "artifact": artifact, "method": "nf4"}
    machine.run(
        "mosquitto_pub", "-h", "127.0.0.1", "-q", "1", "-t", "edge/v1/box-17/cmd/deploy", "-m", json.dumps(body)
    )
    machine.eventually(
        lambda: (machine.retained("edge/v1/box-17/op/d-1") or {}).get("state") in {"succeeded", "failed"}
    )
    assert machine.retained("edge/v1/box-17/op/d-1")["state"] == "succeeded", machine.retained("edge/v1/box-17/op/d-1")
    machine.eventually(lambda: "serving kanji" in machine.show("StatusText"))
    assert "kanji" in served(machine)
    (server,) = pids(machine, "agent[.]serving")
    assert machine.tell("cat", f"/proc/{server}/oom_score_adj").strip() == "200"


def test_a_stopped_server_costs_the_agent_nothing(machine: Machine) -> None:
    agent, (server,) = machine.show("MainPID"), pids(machine, "agent[.]serving")
    machine.run("kill", "-STOP", server)
    machine.eventually(lambda: pids(machine, "agent[.]serving") not in ([], [server]))
    machine.eventually(lambda: machine.http("/v2/models/kanji"))
    assert machine.show("MainPID") == agent


def test_a_hanging_agent_is_killed_by_the_watchdog_and_serves_again(machine: Machine) -> None:
    before, restarts = machine.show("MainPID"), int(machine.show("NRestarts"))
    machine.run("kill", "-STOP", before)
    machine.eventually(lambda: int(machine.show("NRestarts")) > restarts)
    machine.eventually(lambda: is_active(machine) and machine.http("/v2/models/kanji"))
    assert "Watchdog timeout" in machine.journal()
    assert before not in pids(machine, "nibbled run")


def test_it_drains_and_stops_in_order(machine: Machine) -> None:
    machine.run("systemctl", "stop", "nibbled.service")
    assert (machine.show("ActiveState"), machine.show("Result")) == ("inactive", "success")
    assert pids(machine, "agent[.]serving") == []
    assert machine.retained("edge/v1/box-17/presence")["state"] == "offline"


def test_a_start_that_fails_says_why_and_is_given_up_after_some_tries(machine: Machine) -> None:
    config = machine.root / "etc" / "nibbled" / "nibbled.toml"
    text = config.read_text()
    config.write_text(text + "\n[zzz]\nkey = 1\n")
    try:
        machine.run("systemctl", "start", "nibbled.service")
        machine.eventually(lambda: machine.show("ActiveState") == "failed", within_s=300)  # ten starts of Python
    finally:
        config.write_text(text)
    assert "zzz" in machine.journal()
    machine.run("systemctl", "reset-failed", "nibbled.service")


def test_after_a_reboot_it_serves_and_reports_what_it_served(machine: Machine) -> None:
    machine.shut_down()
    machine.boot()
    machine.eventually(lambda: is_active(machine) and machine.http("/v2/models/kanji"))
    machine.eventually(lambda: "kanji" in served(machine))


def test_a_renewed_credential_reaches_the_agent(machine: Machine) -> None:
    place = machine.root / "etc" / "nibbled" / "credentials" / "mqtt.ca"
    place.write_text("first\n")
    done = machine.run("/src/deploy/install.sh", "--wheelhouse", "/wheels", "--no-start")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is installed already" in done.stdout
    assert "wrote /etc/systemd/system/nibbled.service.d/10-credentials.conf" in done.stdout
    assert "wrote /etc/systemd/system/nibbled.service\n" not in done.stdout
    machine.run("systemctl", "restart", "nibbled-watch.path")
    machine.run("systemctl", "restart", "nibbled.service")
    held = "/run/credentials/nibbled.service/mqtt.ca"
    machine.eventually(lambda: machine.tell("cat", held) == "first\n")
    machine.run("sh", "-c", f"echo second > {'/etc/nibbled/credentials/mqtt.ca'}")
    machine.eventually(lambda: machine.tell("cat", held) == "second\n")
    machine.run("rm", "/etc/nibbled/credentials/mqtt.ca", "/etc/systemd/system/nibbled.service.d/10-credentials.conf")


def test_uninstalling_keeps_journal_and_models_until_it_is_told_otherwise(machine: Machine) -> None:
    assert machine.run("/src/deploy/install.sh", "--uninstall").returncode == 0
    assert machine.show("LoadState") == "not-found" or machine.show("ActiveState") == "inactive"
    assert not (machine.root / "opt" / "nibbled").exists()
    assert (machine.root / "var" / "lib" / "nibbled" / "journal.db").exists()
    assert machine.run("/src/deploy/install.sh", "--uninstall", "--purge").returncode == 0
    assert not (machine.root / "var" / "lib" / "nibbled").exists()


def test_the_package_installs_serves_and_goes_with_its_state_kept_until_it_is_purged(machine: Machine) -> None:
    built = subprocess.run(
        [str(TREE / "deploy" / "deb" / "build.sh"), str(BASE / "wheelhouse"), str(machine.root / "srv")],
        capture_output=True,
        text=True,
        check=True,
    )
    package = "/srv/" + built.stdout.strip().rpartition("/")[2]
    done = machine.run("dpkg", "--install", package)
    assert done.returncode == 0, done.stdout + done.stderr
    machine.eventually(lambda: is_active(machine) and "broker connected" in machine.show("StatusText"))
    assert machine.tell("sh", "-c", "command -v nibbled").strip() == "/usr/bin/nibbled"
    assert "nibbled, version" in machine.tell("nibbled", "--version")
    done = machine.run("dpkg", "--remove", "nibbled")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not is_active(machine)
    assert (machine.root / "var" / "lib" / "nibbled" / "journal.db").exists()
    assert machine.run("dpkg", "--purge", "nibbled").returncode == 0
    assert not (machine.root / "var" / "lib" / "nibbled").exists()
