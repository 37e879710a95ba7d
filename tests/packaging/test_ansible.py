"""The role for Ansible, run for real by Ansible on a tree of its own: a second run changes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent import settings
from tests.packaging.test_install import needs_root, wheel

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "deploy" / "ansible"
PLAYBOOK = shutil.which("ansible-playbook", path=f"{ROOT / '.venv-ansible' / 'bin'}{os.pathsep}{os.environ['PATH']}")
pytestmark = [
    pytest.mark.skipif(PLAYBOOK is None, reason="no Ansible: make test-ansible installs it and runs this"),
    pytest.mark.timeout(900),
]
SETTINGS: dict[str, Any] = {
    "labels": {"hall": "3"},
    "mqtt": {"host": "broker.example.com", "port": 8883, "groups": ["lab"]},
    "memory": {"reserve": "256MiB"},
    "downloads": {"token_files": {"files.example.com": "/etc/nibbled/files.token"}},
    "trust": {"require_command_signature": True},
}


def play(root: Path, variables: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    assert PLAYBOOK is not None
    given = {
        "nibbled_root": str(root),
        "nibbled_without_model": True,
        "nibbled_python": sys.executable,
        "nibbled_device_id": "box-9",
        "ansible_python_interpreter": sys.executable,
        "ansible_become": False,
        **variables,
    }
    command = [PLAYBOOK, "--connection", "local", "--inventory", "box-9,", *options, "--extra-vars", json.dumps(given)]
    playbook = root.parent / "play.yml"
    playbook.write_text("- hosts: all\n  gather_facts: false\n  roles: [nibbled]\n")
    environment = {
        **os.environ,
        "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
    return subprocess.run([*command, str(playbook)], env=environment, capture_output=True, text=True, check=False)


def counts(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Return Ansible's recap; raises with everything it said when something failed."""
    assert done.returncode == 0, done.stdout + done.stderr
    recap = done.stdout.partition("PLAY RECAP")[2]
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", recap)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, Any]:
    for name in ("operator.pub", "second.pub", "box-9.pem"):
        (tmp_path / name).write_text(f"{name}\n")
    return {
        "nibbled_wheelhouse": str(wheel(tmp_path / "wheels", "1.0.0")),
        "nibbled_settings": SETTINGS,
        "nibbled_trusted_keys": [str(tmp_path / "operator.pub"), str(tmp_path / "second.pub")],
        "nibbled_credentials": {"mqtt.cert": str(tmp_path / "box-9.pem")},
        "nibbled_secrets": {"mqtt.password": "canary"},
    }


def load(file: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
    monkeypatch.setenv("NIBBLED_DOWNLOADS__TOKEN_FILES", "{}")  # the file it names belongs to the device
    return settings.load(file)


@needs_root
def test_it_installs_configures_changes_nothing_twice_and_brings_an_installation_up_to_date(
    root: Path, variables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = play(root, variables)
    assert counts(first)["changed"] > 0
    assert "canary" not in first.stdout
    etc = root / "etc" / "nibbled"
    found = load(etc / "nibbled.toml", monkeypatch)
    assert found.device_id == "box-9"
    assert found.labels == {"hall": "3"}
    assert (found.mqtt.host, found.mqtt.port, list(found.mqtt.groups)) == ("broker.example.com", 8883, ["lab"])
    assert found.trust.require_command_signature
    assert '"files.example.com" = "/etc/nibbled/files.token"' in (etc / "nibbled.toml").read_text("utf-8")
    modes = {
        name: oct((etc / name).stat().st_mode & 0o777)
        for name in ("nibbled.toml", "credentials", "trust.d/operator.pub")
    }
    assert modes == {"nibbled.toml": "0o640", "credentials": "0o700", "trust.d/operator.pub": "0o644"}
    assert (etc / "credentials" / "mqtt.password").read_text() == "canary"
    dropin = (root / "etc/systemd/system/nibbled.service.d/10-credentials.conf").read_text()
    assert "LoadCredential=mqtt.cert:/etc/nibbled/credentials/mqtt.cert" in dropin
    assert str((root / "opt/nibbled/bin").readlink()) == "versions/1.0.0/bin"
    assert counts(play(root, variables))["changed"] == 0

    new = {
        **variables,
        "nibbled_wheelhouse": str(wheel(tmp_path / "newer", "2.0.0")),
        "nibbled_trusted_keys": variables["nibbled_trusted_keys"][:1],
        "nibbled_settings": {"mqtt": {"host": "other.example.com"}},
    }
    assert counts(play(root, new))["changed"] > 0
    assert str((root / "opt/nibbled/bin").readlink()) == "versions/2.0.0/bin"
    assert [file.name for file in (root / "etc/nibbled/trust.d").iterdir()] == ["operator.pub"]
    assert "other.example.com" in (root / "etc/nibbled/nibbled.toml").read_text()
    back = {**new, "nibbled_wheelhouse": variables["nibbled_wheelhouse"]}
    assert counts(play(root, back))["changed"] > 0
    assert str((root / "opt/nibbled/bin").readlink()) == "versions/1.0.0/bin"


@needs_root
def test_a_look_ahead_changes_nothing(root: Path, variables: dict[str, Any]) -> None:
    assert counts(play(root, variables, "--check", "--diff"))["changed"] > 0
    assert [file for file in root.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"nibbled_wheelhouse": ""}, "names the folder that deploy/wheelhouse.sh made"),
        ({"nibbled_device_id": "box 9"}, '("box 9") has 1 to 64'),
        ({"nibbled_settings": {"device_id": "x"}}, "device_id does not belong"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_done(
    root: Path, variables: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    done = play(root, {**variables, **change})
    assert done.returncode != 0
    assert says in " ".join(json.loads(f'"{part}"') for part in re.findall(r'"msg": "((?:[^"\\]|\\.)*)"', done.stdout))
    assert list(root.iterdir()) == [root / "etc"]


def test_the_example_is_a_playbook_with_an_inventory() -> None:
    assert PLAYBOOK is not None
    command = [PLAYBOOK, "--syntax-check", "--inventory", "inventory.example.yml", "site.yml"]
    done = subprocess.run(command, cwd=ANSIBLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
