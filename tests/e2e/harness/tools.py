"""Finding the system's programs; a missing one fails in CI and is skipped visibly elsewhere."""

from __future__ import annotations

import os
import shutil

import pytest

SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))


PACKAGES = {
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "curl": "curl",
    "docker-registry": "docker-registry",
    "jq": "jq",
    "mosquitto": "mosquitto",
    "mosquitto_passwd": "mosquitto",
    "mosquitto_pub": "mosquitto-clients",
    "mosquitto_sub": "mosquitto-clients",
    "openssl": "openssl",
    "promtool": "prometheus",
}
"""Every program that the harness runs, with the Debian package that brings it."""
OF_A_FLEET = ("mosquitto", "mosquitto_passwd", "mosquitto_pub", "mosquitto_sub", "openssl")
"""Those without which no device can be tried at all."""


def require(tool: str) -> str:
    """Return the path of ``tool``; without it the test fails under CI and is skipped elsewhere."""
    found = shutil.which(tool, path=SYSTEM_PATH)
    if found is not None:
        return found
    message = f"{tool} is not installed: apt-get install {PACKAGES[tool]}"
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
