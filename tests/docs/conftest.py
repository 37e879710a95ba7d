"""One device for all pages that speak of `box-17`, and a word on what is not run."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.docs.blocks import NEEDS, PAGES, blocks
from tests.docs.device import ROOT, Place
from tests.docs.sandbox import ports
from tests.e2e.harness.files import FileServer
from tests.e2e.harness.mqtt import Broker, Subscriber
from tests.e2e.harness.signing import Signer
from tests.e2e.harness.tools import OF_A_FLEET, require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHELL = ("curl", "jq")
"""What the pages use besides the tools of a fleet."""
HOSTED = {"model.pt": "checkpoint_best.pt", "eval.safetensors": "evaluation.safetensors"}
"""Files that the pages name, and the demo's that take their place."""


def pytest_report_collectionfinish() -> str:
    """Say which command blocks of the documents are not run, and why."""
    every = [block for page in PAGES for block in blocks(page) if block.is_command]
    left = Counter(block.options["needs"] for block in every if not block.is_run)
    reasons = ", ".join(f"{number} need {NEEDS.get(name, name)}" for name, number in sorted(left.items()))
    return f"documents: {len(every) - left.total()} of {len(every)} command blocks are run; {reasons}"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, kanji: Path) -> Iterator[Place]:
    """The device of the pages, with the demo's model and data on its file server."""
    for tool in (*OF_A_FLEET, *SHELL):
        require(tool)
    with contextlib.ExitStack() as stack:
        broker = Broker(tmp_path_factory.mktemp("broker"))
        stack.callback(broker.stop)
        broker.start()
        subscriber = Subscriber(broker.port)
        stack.callback(subscriber.close)
        files = FileServer()
        stack.callback(files.close)
        urls = [files.host(name, (kanji / file).read_bytes()).url for name, file in HOSTED.items()]
        files_url = urls[0].rpartition("/")[0]
        place = Place(tmp_path_factory.mktemp("machine"), ports(), broker, subscriber, files_url)
        for folder in ("etc/bash_completion.d", "etc/mosquitto/conf.d", "opt", "var"):
            (place.root / folder).mkdir(parents=True)
        agent = place.agent()
        Signer(place.keys_dir, tmp_path_factory.mktemp("private"), "first")
        stack.callback(agent.close)
        agent.start()
        subscriber.wait(f"{ROOT}/presence", lambda body: body["state"] == "online")
        yield place
