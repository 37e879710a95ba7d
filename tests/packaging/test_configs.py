"""Every file in configs/ loads, says what it is for, and names profiles that exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agent import settings
from agent.settings import Settings
from agent.workbench import profiles

CONFIGS = Path(__file__).parents[2] / "configs"
DEVICES = ("orin-nano", "agx-orin", "thor", "desktop-gpu", "cloud-gpu", "cpu-dev")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("NIBBLED_") or name == "CREDENTIALS_DIRECTORY"]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", [*DEVICES, "nibbled"])
def test_a_configuration_loads(name: str) -> None:
    assert settings.load(CONFIGS / f"{name}.toml").device_id


def test_there_is_one_for_every_kind_of_device_and_no_other() -> None:
    assert {file.stem for file in CONFIGS.glob("*.toml")} == {*DEVICES, "nibbled", "matrix", "rollout"}


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_s_configuration_names_a_profile_that_exists(name: str) -> None:
    (profile,) = re.findall(r"--profile (\S+)", (CONFIGS / f"{name}.toml").read_text(encoding="utf-8"))
    assert (CONFIGS / "profiles" / f"{profile}.toml").is_file()
    assert profiles.load(profile).title


@pytest.mark.parametrize("name", [name for name in DEVICES if name != "cpu-dev"])
def test_only_a_developer_s_machine_relaxes_security(name: str) -> None:
    found = settings.load(CONFIGS / f"{name}.toml")
    assert found.trust.require_signature
    assert {"http", "file"}.isdisjoint(found.downloads.allowed_schemes)
    assert (found.serving.host, found.status.host) == ("127.0.0.1", "127.0.0.1")


def test_the_annotated_file_has_every_section_and_every_key() -> None:
    told: dict[str, set[str]] = {}
    section = ""
    for line in (CONFIGS / "nibbled.toml").read_text(encoding="utf-8").splitlines():
        head, key = re.match(r"(?:# )?\[(\w+)(?:\.(\w+))?\]", line), re.match(r"(?:# )?(\w+) = ", line)
        if head is not None:
            section = head[1]
            told.setdefault(section, set()).add(head[2] or "")
        elif key is not None:
            told.setdefault(section, set()).add(key[1])
    for name, field in Settings.model_fields.items():
        keys = getattr(field.annotation, "model_fields", None)
        if keys is None:
            assert name in told[""]
        else:
            assert set(keys) <= told[name], set(keys) - told[name]
