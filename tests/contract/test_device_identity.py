"""The names that a broker knows a device by, from real certificates, beside its id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent import parts
from agent.adapters.identity import NEXT_STEP, differences, names
from agent.adapters.tls import TlsFiles
from agent.console import judging_agent
from agent.console.check import State
from agent.settings import Mqtt, Settings
from tests.fakes.authority import Authority

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def configured(device: str, username: str | None, files: tuple[Path, Path] | None) -> Settings:
    cert_file, key_file = files or (None, None)
    return Settings(device_id=device, mqtt=Mqtt(username=username, cert_file=cert_file, key_file=key_file))


def test_a_name_is_read_from_the_subject_of_the_certificate(authority: Authority) -> None:
    certificate, key = authority.issue("box-17")
    assert TlsFiles(None, str(certificate), str(key)).common_name() == "box-17"
    assert TlsFiles().common_name() is None


@pytest.mark.parametrize(
    ("username", "common_name", "wrong"),
    [
        (None, None, ()),
        ("box-17", None, ()),
        (None, "box-17", ()),
        ("box-17", "box-17", ()),
        ("plant", None, ("mqtt.username is 'plant'",)),
        (None, "box-18", ("the common name in ",)),
        ("BOX-17", "box-18", ("mqtt.username is 'BOX-17'", "the common name in ")),
    ],
)
def test_every_name_that_is_not_the_id_is_told(
    authority: Authority, username: str | None, common_name: str | None, wrong: tuple[str, ...]
) -> None:
    settings = configured("box-17", username, authority.issue(common_name) if common_name else None)
    found = parts.differing_names(settings)
    assert len(found) == len(wrong)
    assert all(sentence.startswith(words) for sentence, words in zip(found, wrong, strict=True))
    assert all(sentence.endswith("device_id is 'box-17'") for sentence in found)


def test_a_certificate_that_cannot_be_read_has_no_name_and_ends_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for file in (broken, tmp_path / "missing.pem"):
        assert names("box-17", TlsFiles(None, str(file), str(file))) == {"mqtt.username": "box-17"}


def test_the_doctor_warns_with_the_rules_that_would_refuse() -> None:
    known = {"mqtt.username": "plant"}
    check = judging_agent.identity("box-17", known, differences("box-17", known))
    assert (check.state, check.next_step) == (State.WARNING, NEXT_STEP)
    assert "deploy/mosquitto/devices.acl" in NEXT_STEP
    assert judging_agent.identity("box-17", {}, ()).state is State.OK
