"""Requests that a generator makes up from our own OpenAPI document, against a real server with a real model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from agent.serving.openapi import document
from tests.e2e.harness.fuzz import fuzz, kanji_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis needs Python 3.11"),
    pytest.mark.timeout(600),
]


def test_made_up_requests_find_no_server_error_no_undocumented_status_and_no_broken_schema(tmp_path: Path) -> None:
    with kanji_server(tmp_path) as port:
        outcome = fuzz(port, tmp_path, examples=5, leave_out="/versions/")  # the same code; the long run has them
    assert outcome.status == 0, outcome.text
    operations = sum(len(found) for path, found in document()["paths"].items() if "/versions/" not in path)
    assert f"Tested: {operations}\n" in outcome.text
