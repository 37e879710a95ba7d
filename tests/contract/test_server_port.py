"""The server's port: one contract for the simulator and for the real process with the demo's artifacts."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from agent.adapters.control import ControlError
from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.contract.errors import ErrorCode
from agent.deployment.models import Release, Served
from agent.deployment.ports import RestoreError, StepError
from tests.e2e.harness.releases import build_release
from tests.fakes.server import FakeServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from agent.deployment.ports import Server

MODEL = "kanji"
ADMINISTRATOR = "administrator-" + "a" * 32
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="the child itself needs torch")


@dataclass
class Subject:
    """A server that serves ``old``; ``broken`` looks whole and cannot be loaded."""

    server: Server
    old: Release
    new: Release
    broken: Release
    expect_failure: Callable[[], None] = lambda: None

    @property
    def served(self) -> dict[str, Served]:
        return {MODEL: Served(MODEL, self.old)}

    def answers(self) -> dict[str, str]:
        """Return the release that answers for each model."""
        return {name: str(counters["release"]) for name, counters in self.server.status()["models"].items()}

    def load_broken(self, *, unload_first: bool) -> None:
        """Load the release that cannot be loaded."""
        self.expect_failure()
        with pytest.raises(StepError) as caught:
            self.server.load(MODEL, self.broken, unload_first=unload_first)
        assert caught.value.code is ErrorCode.LOAD_FAILED


def simulated() -> Subject:
    server = FakeServer()
    names = ("old", "new", "broken")
    old, new, broken = (
        Release(name, name, "0" * 64, "cnn", "nf4", "/a", "/g", 10, 12, 1.0, 1.0, None, None) for name in names
    )
    return Subject(server, old, new, broken, lambda: server.fail("load"))


@pytest.fixture(scope="module")
def http() -> Iterator[socket.socket]:
    listener = listen_tcp("127.0.0.1", 0)
    yield listener
    listener.close()


@pytest.fixture(scope="module")
def process(http: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("run") / "control.sock"
    administrators = path.with_name("administrators")
    administrators.touch(0o600)
    administrators.write_text(ADMINISTRATOR)
    control = listen_unix(path)
    options = ("--device", "cpu", "--admin-token-file", str(administrators))
    process = ServerProcess(http, control, path, options=options)
    yield process
    process.stop(drain_s=1.0)
    control.close()


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory, kanji: Path) -> tuple[Release, Release, Release]:
    old, new = (build_release(kanji, tmp_path_factory.mktemp(method), method, method) for method in ("fp16", "nf4"))
    path = tmp_path_factory.mktemp("broken") / "cnn.safetensors"
    shutil.copy(new.artifact, path)
    sidecar = json.loads(Path(new.artifact).with_suffix(".json").read_bytes())
    path.with_suffix(".json").write_text(json.dumps(sidecar | {"num_classes": sidecar["num_classes"] + 1}))
    return old, new, replace(new, id="broken", version="broken", artifact=str(path))


@pytest.fixture(params=["simulator", pytest.param("process", marks=needs_torch)])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "simulator":
        subject = simulated()
    else:
        subject = Subject(request.getfixturevalue("process"), *request.getfixturevalue("releases"))
        subject.server.restore({})
    subject.server.restore(subject.served)
    return subject


class TestServer:
    def test_it_answers_with_what_is_restored(self, subject: Subject) -> None:
        assert subject.answers() == {MODEL: subject.old.id}

    def test_beside_the_old_release_a_new_one_is_loaded_without_a_gap(self, subject: Subject) -> None:
        assert subject.server.load(MODEL, subject.new)["gap_ms"] == 0.0
        assert subject.answers() == {MODEL: subject.old.id}
        assert subject.server.activate(MODEL, subject.new)["gap_ms"] == 0.0
        assert subject.answers() == {MODEL: subject.new.id}

    def test_in_its_place_nothing_answers_until_the_new_one_is_activated(self, subject: Subject) -> None:
        so_far = subject.server.load(MODEL, subject.new, unload_first=True)["gap_ms"]
        assert subject.answers() == {}
        subject.server.canary(MODEL, subject.new)
        assert 0 < so_far <= subject.server.activate(MODEL, subject.new)["gap_ms"]
        assert subject.answers() == {MODEL: subject.new.id}

    def test_the_gap_is_open_until_something_answers(self, subject: Subject) -> None:
        assert subject.server.status()["gaps"][MODEL]["is_open"] is False
        subject.server.load(MODEL, subject.new, unload_first=True)
        assert subject.server.status()["gaps"][MODEL]["is_open"] is True
        subject.server.restore(subject.served)
        assert subject.server.status()["gaps"][MODEL]["is_open"] is False

    def test_a_load_and_the_status_tell_what_they_took_of_the_memory(self, subject: Subject) -> None:
        loaded = subject.server.load(MODEL, subject.new)
        assert loaded["resident_bytes"] == subject.new.resident_bytes
        assert (loaded["max_batch_rows"], loaded["device"]) == (32, None)
        assert 2 <= loaded["warm_up_rows"] <= 32
        assert 0 < loaded["warm_up_ms"] < loaded["load_ms"]
        assert 0 < loaded["rss_before_bytes"] <= loaded["peak_rss_bytes"]
        assert loaded["rss_after_bytes"] > 0
        assert loaded["is_peak_exact"] in (True, False)
        memory = subject.server.status()["memory"]
        assert 0 < memory["base_rss_bytes"] < memory["rss_bytes"]
        assert memory["peak_rss_bytes"] > 0
        assert memory["device"] is None

    def test_the_old_release_comes_back_in_the_gap(self, subject: Subject) -> None:
        subject.server.load(MODEL, subject.new, unload_first=True)
        subject.server.restore(subject.served)
        assert subject.answers() == {MODEL: subject.old.id}

    def test_the_old_release_comes_back_after_the_new_one_answered(self, subject: Subject) -> None:
        subject.server.load(MODEL, subject.new, unload_first=True)
        subject.server.activate(MODEL, subject.new)
        subject.server.restore(subject.served)
        assert subject.answers() == {MODEL: subject.old.id}
        with pytest.raises(StepError) as caught:
            subject.server.activate(MODEL, subject.new)
        assert caught.value.code is ErrorCode.ACTIVATION_FAILED

    @pytest.mark.parametrize("unload_first", [False, True], ids=["beside", "in its place"])
    def test_the_old_release_answers_after_a_load_that_failed(self, subject: Subject, *, unload_first: bool) -> None:
        subject.load_broken(unload_first=unload_first)
        assert subject.answers() == ({} if unload_first else {MODEL: subject.old.id})
        subject.server.restore(subject.served)
        assert subject.answers() == {MODEL: subject.old.id}

    def test_a_model_whose_only_load_failed_can_be_taken_away(self, subject: Subject) -> None:
        subject.server.restore({})
        subject.load_broken(unload_first=False)
        subject.server.restore({})
        subject.server.undeploy(MODEL)
        assert subject.answers() == {}

    def test_a_release_can_be_loaded_again_after_its_load_failed(self, subject: Subject) -> None:
        subject.load_broken(unload_first=True)
        subject.server.load(MODEL, subject.new, unload_first=True)
        subject.server.activate(MODEL, subject.new)
        assert subject.answers() == {MODEL: subject.new.id}


def test_an_unload_that_fails_says_nothing_against_the_release_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, http: socket.socket, tmp_path: Path
) -> None:
    """What cannot be loaded is built again: not for that, in a server that holds both."""
    rows = [
        {"name": MODEL, "state": "READY", "parameters": {"release": name, "active": name == "new"}}
        for name in ("old", "new")
    ]

    def answer(_path: Path, _method: str, route: str, *_arguments: object, **_options: object) -> object:
        if route.endswith("/unload"):
            raise ControlError("internal error", 500)
        return rows if route.endswith("/index") else {}

    monkeypatch.setattr("agent.adapters.server.call", answer)
    path = tmp_path / "control.sock"
    with listen_unix(path) as control:
        server = ServerProcess(http, control, path)
        monkeypatch.setattr(server, "_ensure_running", lambda: None)
        with pytest.raises(RestoreError) as caught:
            server.restore({MODEL: Served(MODEL, simulated().new)})
    assert caught.value.failures[MODEL].retryable


@needs_torch
def test_what_an_administrator_unloaded_is_forgotten_by_an_undeploy(
    process: ServerProcess, releases: tuple[Release, Release, Release], http: socket.socket
) -> None:
    base, headers = f"http://127.0.0.1:{http.getsockname()[1]}", {"Authorization": f"Bearer {ADMINISTRATOR}"}
    with httpx.Client(base_url=base, headers=headers) as administrator:

        def states() -> list[str]:
            return [entry["state"] for entry in administrator.post("/v2/repository/index").json()]

        for takes_away in (partial(process.undeploy, MODEL), partial(process.restore, {})):
            process.restore({MODEL: Served(MODEL, releases[0])})
            assert administrator.post(f"/v2/repository/models/{MODEL}/unload").status_code == 200
            assert states() == ["UNAVAILABLE"]
            takes_away()
            assert states() == []
            assert administrator.post(f"/v2/repository/models/{MODEL}/load").status_code == 404
            process.undeploy(MODEL)
