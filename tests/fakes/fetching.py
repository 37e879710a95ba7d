"""A file that registries hand out in tests of downloads, fetched or refused as by a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.adapters.download.downloader import Downloader
from agent.deployment.ports import StepError
from tests.fakes.watch import EagerWatch

if TYPE_CHECKING:
    from pathlib import Path

    from agent.adapters.download.policy import Policy

CONTENT = bytes(range(256)) * 4096
SIZE = len(CONTENT)


def fetch(url: str, part: Path, policy: Policy, size: int | None = SIZE) -> bytes:
    """Judge an address, fetch what lies there, and return it."""
    downloader = Downloader(policy, boot="this run")
    downloader.judge(url)
    downloader.fetch(url, part, size, EagerWatch())
    return part.read_bytes()


def refuse(url: str, part: Path, policy: Policy) -> StepError:
    """Return the error that fetching ends with; no secret of these tests, which all name the canary, is in it."""
    with pytest.raises(StepError) as caught:
        fetch(url, part, policy)
    assert "canary" not in f"{caught.value!r} {caught.value.detail} {caught.value.hint}"
    return caught.value
