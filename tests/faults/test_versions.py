"""The package is replaced while an operation is under way, and the old one comes back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent import __version__
from tests.faults.box import Box, eventually

if TYPE_CHECKING:
    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
NEWER = "99.0.0"


def newer_package(folder: Path) -> Path:
    """Return a directory with a copy of the package under another version."""
    shutil.copytree(ROOT / "agent", folder / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "agent" / "__init__.py"
    text = init.read_text(encoding="utf-8")
    assert __version__ in text
    init.write_text(text.replace(__version__, NEWER), encoding="utf-8")
    return folder


def test_an_operation_outlives_an_upgrade_and_the_way_back(world: World, tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    box = Box("versions", tmp_path / "box", world)
    try:
        box.start()
        box.serve()
        served = box.operator.served()
        for root, version in ((newer_package(tmp_path / "newer"), NEWER), (ROOT, __version__)):
            method = "nf4-dq" if box.operator.served()["method"] != "nf4-dq" else "fp4"
            operation = box.switch(method)
            box.operator.reaches(operation, "building")
            assert box.agent.terminate() == 0
            box.agent = replace(box.agent, root=root)
            mark = box.operator.mark()
            box.start()
            report = box.operator.result(operation)
            assert report["state"] == "succeeded", report["error"]
            presence = box.operator.subscriber.on(box.operator.topic("presence"), since=mark)[-1]
            assert (presence["state"], presence["agent"]) == ("online", version)
            assert box.operator.served()["method"] == method
            assert box.operator.served()["version"] == served["version"]
            eventually(lambda: bool(box.answers()), "the model answers")
    finally:
        box.agent.close()
