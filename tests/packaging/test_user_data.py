"""cloud-init's user data fits the rest of ``deploy``: the agent reads what it writes, and our broker lets that in."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from agent import settings

DEPLOY = Path(__file__).parents[2] / "deploy"
CREDENTIALS = "/etc/nibbled/credentials/"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("NIBBLED_") or name == "CREDENTIALS_DIRECTORY"]:
        monkeypatch.delenv(name)


def written() -> dict[str, str]:
    """Return the files that the user data writes, by path."""
    found = yaml.safe_load((DEPLOY / "cloud-init" / "user-data.yaml").read_text(encoding="utf-8"))
    return {each["path"]: each["content"] for each in found["write_files"]}


def test_the_device_logs_in_as_the_listener_of_our_broker_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = written()
    for path in files:
        if path.startswith(CREDENTIALS):
            (tmp_path / path.removeprefix(CREDENTIALS)).write_text("")
    config = tmp_path / "nibbled.toml"
    config.write_text(files["/etc/nibbled/nibbled.toml"])
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    mqtt = settings.load(config).mqtt
    broker = (DEPLOY / "mosquitto" / "mosquitto.conf").read_text(encoding="utf-8")
    (listener,) = re.findall(rf"^listener {mqtt.port}\n(.*?)(?=^listener|\Z)", broker, re.MULTILINE | re.DOTALL)
    assert "require_certificate true" in listener
    given = {mqtt.ca_file, mqtt.cert_file, mqtt.key_file}
    assert given == {tmp_path / f"mqtt.{name}" for name in ("ca", "cert", "key")}
    assert (mqtt.username, mqtt.password_file) == (None, None), "the certificate says who it is"


def test_it_does_not_say_that_keygen_prints_a_key() -> None:
    (key,) = [content for path, content in written().items() if path.startswith("/etc/nibbled/trust.d/")]
    assert "operator.pub, which nibblectl keygen wrote" in key
