"""What more than one folder of tests uses."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kanji() -> Path:
    """The demo's folder: a trained checkpoint and the evaluation data of fonts that it never saw."""
    return Path(__file__).parents[1] / "deploy" / "demo" / "kanji"
