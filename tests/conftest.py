"""What more than one folder of tests uses, and which tests a machine without torch can run."""

from __future__ import annotations

import re
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

HAS_TORCH = find_spec("torch") is not None
NEEDS_TORCH = re.compile(r"^\s*(?:import|from) (?:torch|agent\.(?:architectures|quantization))\b", re.MULTILINE)
_left_out: list[str] = []

# A shell has what it starts in the background ignore SIGINT, and children inherit that: tests send it to some of them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the modules that import torch where there is none: the supervisor's side needs no torch."""
    if HAS_TORCH or collection_path.suffix != ".py" or not NEEDS_TORCH.search(collection_path.read_text("utf-8")):
        return None
    _left_out.append(collection_path.name)
    return True


def pytest_report_collectionfinish() -> str:
    """Say what was left out, so that nobody takes a part for the whole."""
    return f"torch is not installed: {len(_left_out)} test modules left out" if _left_out else ""


@pytest.fixture(scope="session")
def kanji() -> Path:
    """The demo's folder: a trained checkpoint and the evaluation data of fonts that it never saw."""
    return Path(__file__).parents[1] / "deploy" / "demo" / "kanji"
