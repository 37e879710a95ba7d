"""A switch for which there is no room, on a real server with the demo's artifacts, under clients that keep asking."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.deployment.models import Release, Served
from agent.planning.gate import Thresholds, judge
from agent.serving.memory import reset_peak_rss
from tests.e2e.harness.clients import Client, Floats, Reply, hammering
from tests.e2e.harness.releases import build_release, with_other_answers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

MODEL, INFER = "kanji", "/v2/models/kanji/infer"
CLIENTS = 16
# Far below what tells the two releases apart, above what batches of other sizes change.
TOLERANCE = 1e-3


@dataclass
class Subject:
    """A server that serves ``old``, which answers ``known["old"]`` for ``image``."""

    server: ServerProcess
    port: int
    old: Release
    new: Release
    image: Floats
    known: dict[str, Floats] = field(default_factory=dict)
    clients: list[Client] = field(default_factory=list)

    def client(self, number: int = 0) -> Client:
        """Return a client that speaks JSON for odd numbers, and in raw tensors otherwise; the fixture closes it."""
        self.clients.append(Client(self.port, INFER, self.image, is_binary=number % 2 == 0))
        return self.clients[-1]

    def gap(self) -> dict[str, Any]:
        gap: dict[str, Any] = self.server.status()["gaps"][MODEL]
        return gap

    def restore(self, release: Release) -> None:
        self.server.restore({MODEL: Served(MODEL, release)})

    def is_true(self, reply: Reply) -> bool:
        """Whether an answer is that of the version which it names."""
        known = self.known.get(reply.version, np.empty(0))
        return reply.logits.shape == known.shape and bool(np.allclose(reply.logits, known, atol=TOLERANCE))


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory, kanji: Path) -> tuple[Release, Release]:
    old, new = ("old", "fp16"), ("new", "nf4")
    return build_release(kanji, tmp_path_factory.mktemp("old"), *old), build_release(
        kanji, tmp_path_factory.mktemp("new"), *new
    )


@pytest.fixture
def start(tmp_path: Path, kanji: Path, releases: tuple[Release, Release]) -> Iterator[Callable[..., Subject]]:
    path = tmp_path / "control.sock"
    http, control = listen_tcp("127.0.0.1", 0), listen_unix(path)
    made: list[Subject] = []

    def make(hold_s: float = 30.0) -> Subject:
        server = ServerProcess(http, control, path, options=("--device", "cpu", "--hold-s", str(hold_s)))
        image = load_file(kanji / "evaluation.safetensors")["inputs"][:1].astype(np.float32)
        subject = Subject(server, int(http.getsockname()[1]), *releases, image)
        made.append(subject)
        for release in reversed(releases):
            subject.restore(release)
            reply = subject.client().ask()
            subject.known[reply.version] = reply.logits
        assert not np.allclose(subject.known["old"], subject.known["new"], atol=10 * TOLERANCE)
        return subject

    yield make
    for subject in made:
        for client in subject.clients:
            client.close()
        subject.server.stop(drain_s=1.0)
    http.close()
    control.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Ask again until ``condition`` holds: another process offers nothing to wait on."""
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at
        threading.Event().wait(0.005)


def every(clients: list[Client], condition: Callable[[Reply], bool]) -> Callable[[], bool]:
    """Return whether each client's latest reply fulfils ``condition``."""
    return lambda: all(client.replies and condition(client.replies[-1]) for client in clients)


def test_sixteen_clients_lose_nothing_and_get_no_refusal_within_the_bound(start: Callable[..., Subject]) -> None:
    subject = start()
    clients = [subject.client(number) for number in range(CLIENTS)]
    with hammering(clients):
        wait_for(every(clients, lambda reply: reply.version == "old"))
        loaded = subject.server.load(MODEL, subject.new, unload_first=True)
        wait_for(lambda: subject.gap()["waiting"] == CLIENTS)
        measured = subject.server.canary(MODEL, subject.new)
        activated = subject.server.activate(MODEL, subject.new)
        wait_for(every(clients, lambda reply: reply.version == "new"))
    replies = [reply for client in clients for reply in client.replies]
    assert Counter(reply.status for reply in replies) == {200: len(replies)}
    assert all(map(subject.is_true, replies))
    assert {reply.version for reply in replies} == {"old", "new"}
    assert all(client.is_still_connected for client in clients)
    assert measured["agreement"] >= 0.9
    assert 0 < loaded["gap_ms"] < activated["gap_ms"] == pytest.approx(subject.gap()["gap_ms"], abs=1.0)
    assert subject.gap()["held"] >= CLIENTS


def test_past_the_bound_clients_are_told_when_to_come_back_and_lose_nothing(start: Callable[..., Subject]) -> None:
    subject = start(hold_s=0.3)
    clients = [subject.client(number) for number in range(CLIENTS)]
    with hammering(clients):
        wait_for(every(clients, lambda reply: reply.version == "old"))
        subject.server.load(MODEL, subject.new, unload_first=True)
        wait_for(every(clients, lambda reply: reply.status == 503))
        subject.server.activate(MODEL, subject.new)
        wait_for(every(clients, lambda reply: reply.version == "new"))
    replies = [reply for client in clients for reply in client.replies]
    refusals = [reply for reply in replies if reply.status != 200]
    assert {(reply.status, reply.retry_after) for reply in refusals} == {(503, "1")}
    assert any("the request waited 0.3 s" in reply.error for reply in refusals)
    assert all(subject.is_true(reply) for reply in replies if reply.status == 200)
    assert all(client.is_still_connected for client in clients)


def test_after_a_canary_that_fails_the_old_release_answers_what_waited(
    start: Callable[..., Subject], tmp_path: Path
) -> None:
    subject = start()
    new = with_other_answers(subject.new, tmp_path)
    clients = [subject.client(number) for number in range(CLIENTS)]
    with hammering(clients):
        wait_for(every(clients, lambda reply: reply.version == "old"))
        subject.server.load(MODEL, new, unload_first=True)
        wait_for(lambda: subject.gap()["waiting"] == CLIENTS)
        assert judge(subject.server.canary(MODEL, new), Thresholds(0.95, 1.0))
        before = sum(len(client.replies) for client in clients)
        subject.restore(subject.old)
        wait_for(lambda: sum(len(client.replies) for client in clients) >= before + 2 * CLIENTS)
    replies = [reply for client in clients for reply in client.replies]
    assert {(reply.status, reply.version) for reply in replies} == {(200, "old")}
    assert all(map(subject.is_true, replies))
    assert all(client.is_still_connected for client in clients)


def test_a_client_that_leaves_in_the_gap_leaves_the_queue(start: Callable[..., Subject]) -> None:
    subject = start()
    subject.server.load(MODEL, subject.new, unload_first=True)
    gone, stays = subject.client(), subject.client()
    with ThreadPoolExecutor(1) as pool, hammering([stays]):
        asked = pool.submit(gone.ask)
        wait_for(lambda: subject.gap()["waiting"] == 2)
        gone.hang_up()
        wait_for(lambda: subject.gap()["waiting"] == 1)
        assert isinstance(asked.exception(), OSError)
        subject.server.activate(MODEL, subject.new)
    assert (subject.gap()["canceled"], stays.replies[0].version) == (1, "new")


def test_the_memory_of_many_switches_is_really_returned_and_their_figures_agree(start: Callable[..., Subject]) -> None:
    subject = start()
    releases = (subject.new, subject.old)
    figures: list[dict[str, Any]] = []
    for number in range(30):
        figures.append(subject.server.load(MODEL, releases[number % 2], unload_first=True))
        subject.server.activate(MODEL, releases[number % 2])
    memory = subject.server.status()["memory"]
    assert 0 < memory["base_rss_bytes"] < memory["rss_bytes"] <= memory["peak_rss_bytes"]
    assert memory["device"] is None
    assert all(one["rss_before_bytes"] < one["peak_rss_bytes"] for one in figures)
    assert all(one["max_batch_rows"] == 32 for one in figures)
    if reset_peak_rss():  # what this process may do, its sibling may do as well
        assert all(one["is_peak_exact"] for one in figures)
    growth = figures[-1]["rss_after_bytes"] - figures[9]["rss_after_bytes"]
    assert growth < 8 * 2**20, f"20 switches left {growth} bytes"
