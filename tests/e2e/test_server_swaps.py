"""A long life of the server: a hundred swaps under clients of both protocols, two hundred loads, loads that collide."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agent.adapters.control import ControlError, call
from tests.e2e.harness.inference_server import ask as ask_plain
from tests.e2e.harness.inference_server import serving
from tests.e2e.harness.torch_server import (
    IMAGE,
    Artifact,
    Server,
    ask,
    build_artifact,
    infer,
    rss_bytes,
    running,
    wait_for,
)

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e
SWAPS, CLIENTS = 100, 16
PAUSE_S = 0.1
"""Between a client's requests while a release is only loaded, which would take four times as long under all of them."""
Ask = tuple[int, str, bytes]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """Two 4-bit artifacts of one model type whose answers differ."""
    return [build_artifact(tmp_path_factory.mktemp("store"), seed) for seed in (1, 2)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as it:
        yield it


def grpc_asker(server: Server) -> Callable[[], Ask]:
    """Return what asks for ``IMAGE`` over gRPC as ``infer`` does over HTTP; one connection, kept."""
    import grpc  # noqa: PLC0415 - an extra

    from agent.serving.grpc import inference_pb2 as pb  # noqa: PLC0415 - as above
    from agent.serving.grpc.methods import INFER  # noqa: PLC0415 - as above

    channel = grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)])
    method = channel.unary_unary(INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
    request = pb.ModelInferRequest(model_name="kanji", raw_input_contents=[IMAGE.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=IMAGE.shape)

    def ask_once() -> Ask:
        answer = method(request, timeout=30)
        return 200, answer.model_version, answer.raw_output_contents[0]

    return ask_once


@pytest.mark.timeout(600)
def test_a_hundred_swaps_under_sixteen_clients_of_both_protocols_lose_nothing_and_every_answer_is_its_versions(
    server: Server, artifacts: list[Artifact]
) -> None:
    known: dict[str, bytes] = {}
    for artifact in artifacts:
        server.serve(artifact)
        _, version, known[artifact.version] = infer(server.client())
        assert version == artifact.version
    assert known["1"] != known["2"]
    server.unload(artifacts[0])
    done, pressing = threading.Event(), threading.Event()
    wrong: list[Any] = []
    answered: list[str] = []
    over_grpc = CLIENTS // 2 if find_spec("grpc") else 0

    def over_http() -> Callable[[], Ask]:
        client = server.client()
        return lambda: infer(client)

    def hammer(ask_once: Callable[[], Ask]) -> set[str]:
        versions: set[str] = set()
        while not done.is_set():
            pressing.wait(PAUSE_S)
            status, version, logits = ask_once()
            close = np.allclose(np.frombuffer(logits, "<f4"), np.frombuffer(known.get(version, b""), "<f4"), atol=1e-5)
            if status != 200 or not close:
                wrong.append((status, version, logits[:80]))
            versions.add(version)
            answered.append(version)
        return versions

    def more_are_answered() -> None:
        enough = len(answered) + CLIENTS
        wait_for(lambda: len(answered) >= enough or any(each.done() for each in seen), 100.0)

    askers = [over_http() for _ in range(CLIENTS - over_grpc)] + [grpc_asker(server) for _ in range(over_grpc)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        seen = [pool.submit(hammer, asker) for asker in askers]
        try:
            for swap in range(SWAPS):
                server.serve(artifacts[swap % 2], activate=False)
                pressing.set()
                more_are_answered()
                server.activate(artifacts[swap % 2])
                server.unload(artifacts[(swap + 1) % 2])
                more_are_answered()
                pressing.clear()
        finally:
            done.set()
        versions = [each.result() for each in seen]  # an error of a connection is raised here
    assert wrong == []
    assert versions == [{"1", "2"}] * CLIENTS
    status = server.control("GET", "/v2/control/status")
    assert list(status["models"]) == ["kanji"]
    assert status["models"]["kanji"]["failures"] == 0


def test_two_hundred_loads_and_unloads_leave_no_file_no_thread_and_no_memory_behind(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        client = server.client()

        def cycle(times: int) -> tuple[int, int, int]:
            for _ in range(times):
                parameters = {"artifact": "/store/r1", "version": "2", "release": "other", "activate": True}
                call(server.control_path, "POST", "/v2/repository/models/other/load", {"parameters": parameters})
                assert ask_plain(client, path="/v2/models/other/infer")[0] == 200
                call(server.control_path, "POST", "/v2/repository/models/other/unload", {"parameters": {}})
                assert ask_plain(client, path="/v2/models/other/infer")[0] == 404
            wait_for(lambda: server.threads() <= threads)
            return server.files(), server.threads(), server.rss_bytes()

        threads = server.threads()
        files, _, before = cycle(50)
        assert cycle(150)[:2] == (files, threads)
        growth = server.rss_bytes() - before
        assert growth < 2 * 2**20, f"150 cycles left {growth} bytes"


@pytest.mark.minutes
@pytest.mark.timeout(1200)
def test_two_hundred_real_artifacts_come_and_go_in_the_memory_of_one(server: Server, artifacts: list[Artifact]) -> None:
    def cycle(times: int) -> int:
        for number in range(times):
            artifact = artifacts[number % 2]
            server.serve(artifact)
            assert infer(server.client())[1] == artifact.version
            server.clients.pop().close()
            server.control("POST", "/v2/repository/models/kanji/unload")
        wait_for(lambda: server.files() <= files and server.threads() <= threads)
        return rss_bytes(server.process.pid)

    server.serve(artifacts[0])
    server.control("POST", "/v2/repository/models/kanji/unload")
    files, threads = server.files(), server.threads()
    before = cycle(40)
    growth = cycle(160) - before
    # The codes of one artifact alone are 0.4 MB; torch unpacks them to ten times that.
    assert growth < 32 * 2**20, f"160 cycles left {growth} bytes"


def test_loads_of_one_model_that_collide_take_turns_and_an_unload_meets_what_was_loaded(
    server: Server, artifacts: list[Artifact]
) -> None:
    """Two loads at once, an unload during a load, a way back during a load: whatever comes last is the state."""

    def load(artifact: Artifact) -> Any:
        return server.serve(artifact, activate=False)

    def unload() -> Any:
        return server.control("POST", "/v2/repository/models/kanji/unload")

    server.serve(artifacts[0])
    with ThreadPoolExecutor(4) as pool:
        twice = [pool.submit(load, artifacts[1]) for _ in range(2)]
        back = pool.submit(server.activate, artifacts[0])
        assert {each.result()["release"] for each in twice} == {artifacts[1].release}
        assert back.result()["previous"] in (artifacts[0].release, artifacts[1].release)
        assert infer(server.client())[:2] == (200, "1")
        loads = [event for event in server.events() if event["event"] == "loaded"]
        assert len(loads) == 2, "the second of two equal loads finds what the first brought"
        gone, again = pool.submit(unload), pool.submit(load, artifacts[1])
        assert set(gone.result()["unloaded"]) <= {artifact.release for artifact in artifacts}
        again.result()
    names = {entry["name"] for entry in server.control("POST", "/v2/repository/index")}
    assert names <= {"kanji"}
    server.serve(artifacts[1])
    assert infer(server.client())[:2] == (200, "2")
    assert ask(server.client(), "GET", "/v2/health/ready")[0] == 200


def metrics(client: http.client.HTTPConnection) -> dict[str, float]:
    """Return every sample of the metrics that only ever grow."""
    status, _, body = ask_plain(client, "GET", "/metrics")
    assert status == 200
    grows, samples = ("_total", "_bucket", "_sum", "_count"), {}
    for line in body.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and name.partition("{")[0].endswith(grows):
            samples[name] = float(value)
    return samples


def test_counters_only_grow_over_swaps_and_tell_all_that_was_sent(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        client, scraper = server.client(), server.client()
        before, sent, told = metrics(scraper), 0, 0.0
        # Two of them come back, and each is unloaded before the next one is there.
        for version in (2, 3, 4, 2, 3, 5, 2):
            for body in (None, b"{bad", None):
                status, _, _ = ask_plain(client) if body is None else ask_plain(client, body=body)
                assert status == (200 if body is None else 400)
                sent += 1
            now = metrics(scraper)
            assert {name for name, value in before.items() if name in now and now[name] < value} == set()
            told += sum(
                value - before.get(name, 0.0)
                for name, value in now.items()
                if name.startswith("nibbled_inference_requests_total")
            )
            assert told == sent
            release = {"release": f"v{version}", "version": str(version)}
            load = {"artifact": "/store/r1", "activate": True, "unload_first": True, **release}
            call(server.control_path, "POST", "/v2/repository/models/m/load", {"parameters": load})
            now, before = before, metrics(scraper)
            assert {name for name, value in now.items() if before.get(name, -1.0) < value} == set()
        (stats,) = json.loads(ask(client, "GET", "/v2/models/m/stats")[2])["model_stats"]
        assert stats["inference_stats"]["success"]["count"] == 4, "v2 was asked in two of its times, twice each"
        told_now = call(server.control_path, "GET", "/v2/control/status")["models"]["m"]
        assert (told_now["requests"], told_now["answered"]) == (0, 0), "the supervisor counts from the load"
        with pytest.raises(ControlError):
            call(server.control_path, "POST", "/v2/repository/models/m/activate", {"parameters": {"release": "none"}})
        assert ask_plain(client, path="/v2/models/nobody/infer")[0] == 404
        names = set(metrics(scraper))
        assert not [name for name in names if "nobody" in name or '"none"' in name]
