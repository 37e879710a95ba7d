"""The supervisor's routes: load, canary, activate, unload, index, status. In-process, with a loader of fakes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from agent.serving.errors import LoadFailedError
from agent.serving.ledger import KEPT
from agent.serving.terms import Terms
from tests.fakes.serving import POISON, WEIGHTS, FakeNetwork, Harness, harness, json_request, run, until

if TYPE_CHECKING:
    from pathlib import Path

ROW = [1.0, 2.0, 3.0, 4.0]
INFER = "/v2/models/m/infer"


async def load(it: Harness, release: str, version: str = "1", name: str = "m", **extra: Any) -> Any:
    return await it.change(name, "load", artifact=f"/store/{release}", version=version, release=release, **extra)


async def index(it: Harness) -> list[tuple[str, str, str, bool]]:
    entries = (await it.control.post("/v2/repository/index")).json()
    return [
        (entry["name"], entry["parameters"]["release"], entry["state"], entry["parameters"]["active"])
        for entry in entries
    ]


def test_a_load_says_how_the_weights_are_kept_and_why() -> None:
    async def scenario() -> None:
        async with harness() as it:
            it.loader.networks |= {"r1": FakeNetwork(), "r2": FakeNetwork()}
            assert (await load(it, "r1")).json()["residency"]["reason"] == "packed, as configured"
            reply = await load(it, "r2", terms={"residency": "unpacked", "allowed_bytes": 96})
            assert reply.json()["residency"]["is_unpacked"]
            await it.change("m", "activate", release="r2")
            assert (await it.data.get("/v2/models/m")).json()["properties"]["unpacked_bytes"] == "96"
            assert (
                'nibbled_model_unpacked_bytes{model="m",version="1",release="r2"} 96'
                in (await it.data.get("/metrics")).text
            )

    run(scenario)


def test_faster_ways_are_tried_with_the_rows_that_were_warmed_up_and_no_compiler_while_nothing_answers() -> None:
    async def scenario() -> None:
        async with harness() as it:
            first, second = FakeNetwork(), FakeNetwork()
            it.loader.networks |= {"r1": first, "r2": second}
            terms = {"compile": "auto", "graphs": "auto", "allowed_bytes": 96, "texts_bytes": 7}
            await load(it, "r1", terms=terms, activate=True)
            assert first.terms == Terms("packed", "auto", "auto", 96, 7)
            assert (first.accelerated_rows, it.loader.texts_bytes) == (32, 7)
            await load(it, "r2", terms=terms, unload_first=True)
            assert second.terms == Terms("packed", "off", "auto", 96, 7)

    run(scenario)


def test_a_release_that_loses_the_device_while_it_is_made_faster_is_not_loaded_and_ends_the_process() -> None:
    class Lost(FakeNetwork):
        def accelerate(self, terms: Terms, rows: int) -> Any:
            raise RuntimeError(f"CUDA error: an illegal memory access was encountered, {terms} {rows}")

    async def scenario() -> None:
        async with harness() as it:
            network = it.loader.networks["r1"] = Lost()
            assert (await load(it, "r1")).status_code == 400
            assert (network.is_closed, it.plane.is_lost.is_set()) == (True, True)

    run(scenario)


def test_a_release_is_loaded_then_activated_and_only_then_answers() -> None:
    async def scenario() -> None:
        async with harness() as it:
            it.loader.networks["r1"] = FakeNetwork()
            reply = (await load(it, "r1")).json()
            assert (reply["release"], reply["resident_bytes"]) == ("r1", 48)
            assert reply["load_ms"] >= 0
            assert await index(it) == [("m", "r1", "READY", False)]
            waiting = await it.data.post(INFER, json=json_request([ROW]))
            assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "1")
            assert (await it.data.get("/v2/models/m/ready")).status_code == 503
            assert (await it.change("m", "activate", release="r1")).json() == {"previous": None, "gap_ms": 0.0}
            assert await index(it) == [("m", "r1", "READY", True)]
            assert (await it.data.post(INFER, json=json_request([ROW]))).status_code == 200

    run(scenario)


def test_loading_a_loaded_release_again_does_nothing() -> None:
    async def scenario() -> None:
        async with harness() as it:
            it.loader.networks["r1"] = FakeNetwork()
            first, second = await asyncio.gather(load(it, "r1"), load(it, "r1"))
            assert first.json()["load_ms"] == second.json()["load_ms"]
            assert it.loader.loads == ["r1"]

    run(scenario)


def test_a_load_can_activate_at_once_and_a_swap_names_what_it_replaced() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            await it.serve("m", FakeNetwork(bias=1.0), version="2", release="r2")
            answer = (await it.data.post(INFER, json=json_request([ROW]))).json()
            assert answer["model_version"] == "2"
            assert (await it.data.get("/v2/models/m/versions/1")).status_code == 404
            assert (await it.change("m", "activate", release="r1")).json()["previous"] == "r2"
            assert (await it.data.post(INFER, json=json_request([ROW]))).json()["model_version"] == "1"

    run(scenario)


def test_a_version_answers_while_it_is_active_and_is_unknown_before_and_after() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork(bias=1.0), version="1", release="r1")
            await it.serve("m", FakeNetwork(bias=2.0), version="2", release="r2")
            await load(it, "r1", "1", activate=True)  # back again
            await it.change("m", "unload", release="r2")
            for version, status in (("1", 200), ("2", 404), ("3", 404), ("", 404), ("1%2f..%2f1", 404)):
                for path in ("", "/ready", "/config", "/stats"):
                    reply = await it.data.get(f"/v2/models/m/versions/{version}{path}")
                    assert reply.status_code == status, (version, path)
                reply = await it.data.post(f"/v2/models/m/versions/{version}/infer", json=json_request([ROW]))
                assert reply.status_code == status, version

    run(scenario)


def test_while_a_release_loads_the_old_one_answers_and_readiness_stays() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            it.loader.networks["r2"] = FakeNetwork(bias=1.0)
            it.loader.entered.clear()
            it.loader.gate.clear()
            loading = asyncio.create_task(load(it, "r2", "2"))
            await until(it.loader.entered.is_set)
            assert await index(it) == [("m", "r1", "READY", True), ("m", "r2", "LOADING", False)]
            assert (await it.data.get("/v2/health/ready")).status_code == 200
            assert (await it.data.post(INFER, json=json_request([ROW]))).json()["model_version"] == "1"
            it.loader.gate.set()
            assert (await loading).status_code == 200

    run(scenario)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LoadFailedError("bad_artifact", "cut short"), 400),
        (LoadFailedError("insufficient_memory", "NvMap"), 507),
        (LoadFailedError("internal", "?"), 500),
    ],
)
def test_a_failed_load_leaves_the_old_release_answering_and_says_why(error: LoadFailedError, status: int) -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            it.loader.failures["r2"] = error
            reply = await load(it, "r2", "2")
            assert (reply.status_code, reply.json()) == (status, {"error": str(error), "code": error.code})
            assert await index(it) == [("m", "r1", "READY", True), ("m", "r2", "UNAVAILABLE", False)]
            assert (await it.control.post("/v2/repository/index", json={"ready": True})).json()[0]["version"] == "1"
            assert (await it.data.post(INFER, json=json_request([ROW]))).status_code == 200

    run(scenario)


def test_a_release_that_cannot_compute_is_not_loaded() -> None:
    class Broken(FakeNetwork):
        def warm_up(self, rows: int) -> int:  # noqa: ARG002 - of the protocol
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    async def scenario() -> None:
        async with harness() as it:
            it.loader.networks["r1"] = Broken()
            reply = await load(it, "r1")
            assert (reply.status_code, reply.json()["code"]) == (400, "bad_artifact")
            assert "cannot be multiplied" in reply.json()["error"]
            assert await index(it) == [("m", "r1", "UNAVAILABLE", False)]

    run(scenario)


def test_a_request_is_answered_by_the_release_that_it_was_given() -> None:
    async def scenario() -> None:
        old = FakeNetwork()
        async with harness() as it:
            await it.serve("m", old)
            old.gate.clear()
            asked = asyncio.create_task(it.data.post(INFER, json=json_request([ROW])))
            await until(old.entered.is_set)
            queued = asyncio.create_task(it.data.post(INFER, json=json_request([ROW])))
            await until(lambda: len(it.plane.models.get("m").batcher) == 1)
            await it.serve("m", FakeNetwork(bias=100.0), version="2", release="r2")
            unloading = asyncio.create_task(it.change("m", "unload", release="r1"))
            later = asyncio.create_task(it.data.post(INFER, json=json_request([ROW])))
            await until(lambda: len(it.plane.models.get("m").batcher) == 2)
            assert not unloading.done()
            old.gate.set()
            answers = [(await task).json() for task in (asked, queued, later)]
            assert (await unloading).json()["unloaded"] == ["r1"]
        plain = (np.array(ROW, "<f4") @ WEIGHTS).tolist()
        assert [answer["model_version"] for answer in answers] == ["1", "1", "2"]
        assert [answer["outputs"][0]["data"] for answer in answers] == [plain, plain, [x + 100 for x in plain]]

    run(scenario)


def test_unloading_measures_memory_and_forgets_a_model_without_releases() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            it.loader.networks["r2"] = FakeNetwork()
            await load(it, "r2", "2")
            reply = (await it.change("m", "unload")).json()
            assert reply["unloaded"] == ["r1", "r2"]
            assert min(reply["rss_bytes_before"], reply["rss_bytes_after"]) > 1_000_000
            assert it.loader.events[-1] == "release memory of r1, r2"
            assert await index(it) == []
            assert (await it.data.get("/v2/health/ready")).status_code == 503
            assert (await it.data.post(INFER, json=json_request([ROW]))).status_code == 404
            assert 'model="m"' not in (await it.data.get("/metrics")).text
            await it.serve("m", FakeNetwork())
            assert (await it.data.post(INFER, json=json_request([ROW]))).status_code == 200

    run(scenario)


def test_counters_of_what_is_loaded_outlive_models_that_come_and_go() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            counted = it.plane.models.ledger.entries()
            for number in range(KEPT + 2):
                await it.serve(f"n{number}", FakeNetwork())
                await it.change(f"n{number}", "unload")
            left = it.plane.models.ledger.entries()
            assert {key: left[key] for key in counted} == counted
            assert ("n0", "1", "r1") not in left

    run(scenario)


async def unload_while_it_answers(it: Harness) -> tuple[FakeNetwork, asyncio.Task[Any], asyncio.Task[Any]]:
    """Return a model whose unload waits for its answer, which waits for its gate; and the tasks of both."""
    network = FakeNetwork()
    await it.serve("m", network)
    network.gate.clear()
    asked = asyncio.create_task(it.data.post(INFER, json=json_request([ROW])))
    await until(network.entered.is_set)
    unloading = asyncio.create_task(it.change("m", "unload"))
    await until(lambda: it.plane.models.get("m").active is None)
    return network, asked, unloading


def test_a_load_that_waited_for_an_unload_of_the_whole_model_still_answers() -> None:
    async def scenario() -> None:
        async with harness() as it:
            network, asked, unloading = await unload_while_it_answers(it)
            it.loader.networks["r2"] = FakeNetwork()
            loading = asyncio.create_task(load(it, "r2", "2", activate=True))
            network.gate.set()
            assert [(await task).status_code for task in (asked, unloading, loading)] == [200, 200, 200]
            assert (await it.data.post(INFER, json=json_request([ROW]))).json()["model_version"] == "2"

    run(scenario)


def test_an_unload_that_waited_for_another_leaves_what_was_loaded_in_between() -> None:
    async def scenario() -> None:
        async with harness() as it:
            network, asked, first = await unload_while_it_answers(it)
            second = asyncio.create_task(it.change("m", "unload"))
            await until(lambda: bool(it.plane.models.get("m").changes._waiters))
            network.gate.set()
            assert [(await task).status_code for task in (asked, first, second)] == [200, 200, 404]
            await it.serve("m", FakeNetwork(), version="2", release="r2")
            assert (await it.data.post(INFER, json=json_request([ROW]))).json()["model_version"] == "2"

    run(scenario)


def test_threads_and_releases_do_not_grow_over_many_swaps() -> None:
    async def scenario() -> None:
        import threading  # noqa: PLC0415 - only this test counts threads

        async with harness() as it:
            await it.serve("m", FakeNetwork(), release="r0")
            before = threading.active_count()
            for number in range(1, 30):
                await it.serve("m", FakeNetwork(), version=str(number), release=f"r{number}")
                await it.change("m", "unload", release=f"r{number - 1}")
            assert threading.active_count() <= before + 1
            assert await index(it) == [("m", "r29", "READY", True)]

    run(scenario)


def gate_file(folder: Path, rows: int = 20, **changes: Any) -> Path:
    inputs = np.random.default_rng(0).integers(0, 9, (rows, 4)).astype(np.float32)
    expected = np.argmax(inputs @ WEIGHTS, axis=-1)
    tensors = {"inputs": inputs, "expected": expected, **changes}
    path = folder / "gate.safetensors"
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    return path


# A unit matrix is answered with the weights, of which 0 and 1 are nearest to each other, and so are 2 and 3. Here the
# last is nearest to 1.
UNLIKE_WEIGHTS = np.array([[1, 0, 0], [1, 0.1, 0], [0, 0, 1], [1, 0.5, 0.5]], np.float32)


def vectors_file(folder: Path, **changes: Any) -> Path:
    return gate_file(folder, **{"inputs": np.eye(4, dtype=np.float32), "expected": WEIGHTS, **changes})


class TestCanary:
    def test_it_measures_a_staged_release_without_counting_as_traffic(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                it.loader.networks["r2"] = staged = FakeNetwork()
                await load(it, "r2", "2")
                gate = gate_file(tmp_path, labels=np.zeros(20, np.int64))
                measured = (await it.change("m", "canary", release="r2", gate=str(gate))).json()
                assert (measured["rows"], measured["agreement"], measured["non_finite"]) == (20, 1.0, 0)
                assert measured["accuracy"] == 0.0
                assert 0 < measured["latency_ms"]["p50"] <= measured["latency_ms"]["p99"]
                assert staged.calls == [8, 8, 4] + [1] * 20
                assert 'release="r2",outcome="ok"} 0' in (await it.data.get("/metrics")).text
                assert 'executions_total{model="m",version="2",release="r2"} 0' in (await it.data.get("/metrics")).text

        run(scenario)

    def test_a_model_that_answers_otherwise_disagrees_in_proportion(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                gate = gate_file(tmp_path)
                expected = np.array([2] * 15 + [0] * 5)
                gate = gate_file(tmp_path, inputs=np.ones((20, 4), np.float32), expected=expected)
                measured = (await it.change("m", "canary", release="r1", gate=str(gate))).json()
                assert (measured["agreement"], measured["accuracy"]) == (0.75, None)

        run(scenario)

    def test_answers_that_are_not_finite_are_counted_and_agree_with_nothing(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork(bias=float("inf")))
                gate = gate_file(tmp_path, expected=np.zeros(20, np.int64))
                measured = (await it.change("m", "canary", release="r1", gate=str(gate))).json()
                assert (measured["non_finite"], measured["agreement"]) == (20, 0.0)

        run(scenario)

    def test_rows_that_influence_each_other_are_asked_one_by_one(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            network = FakeNetwork(is_batchable=False)
            async with harness() as it:
                await it.serve("m", network)
                await it.change("m", "canary", release="r1", gate=str(gate_file(tmp_path, rows=3)))
                assert network.calls == [1] * 6

        run(scenario)

    def test_vectors_agree_by_their_nearest_neighbours_and_their_labels_are_not_read(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                for vectors, agreement in ((WEIGHTS, 1.0), (UNLIKE_WEIGHTS, 0.75)):
                    gate = vectors_file(tmp_path, expected=vectors, labels=np.zeros((4, 2), np.int64))
                    measured = (await it.change("m", "canary", release="r1", gate=str(gate))).json()
                    assert (measured["answer"], measured["agreement"]) == ("embedding", agreement)
                    assert (measured["rows"], measured["accuracy"], measured["non_finite"]) == (4, None, 0)

        run(scenario)

    def test_vectors_that_are_not_finite_agree_with_nothing(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork(bias=float("inf")))
                measured = (await it.change("m", "canary", release="r1", gate=str(vectors_file(tmp_path)))).json()
                assert (measured["non_finite"], measured["agreement"]) == (4, 0.0)

        run(scenario)

    def test_two_vectors_are_too_few_to_agree_or_disagree(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                gate = gate_file(tmp_path, rows=2, expected=np.ones((2, 3), np.float32))
                measured = (await it.change("m", "canary", release="r1", gate=str(gate))).json()
                assert (measured["rows"], measured["agreement"]) == (2, None)

        run(scenario)

    def test_measuring_imports_no_torch(self) -> None:
        told = "import sys, agent.serving.canary; print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == "False"

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"expected": None}, "has nothing as 'expected', 20 classes are needed"),
            ({"expected": np.zeros(19, np.int64)}, "has [19] as 'expected'"),
            ({"expected": np.zeros((19, 3), np.float32)}, "has [19, 3] as 'expected', vectors of shape [20, 3]"),
            ({"expected": np.zeros((20, 4), np.float32)}, "has [20, 4] as 'expected', vectors of shape [20, 3]"),
            ({"expected": np.zeros((20, 3), np.int64)}, "has [20, 3] as 'expected', 20 classes are needed"),
            ({"inputs": None}, "lacks input"),
            ({"inputs": np.zeros((20, 5), np.float32)}, "has shape [20, 5]"),
            ({"labels": np.zeros((20, 2), np.int64)}, "has [20, 2] as 'labels'"),
        ],
    )
    def test_a_gate_file_that_does_not_fit_is_refused(
        self, tmp_path: Path, changes: dict[str, Any], complaint: str
    ) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                reply = await it.change("m", "canary", release="r1", gate=str(gate_file(tmp_path, **changes)))
                assert reply.status_code == 400
                assert complaint in reply.json()["error"]

        run(scenario)

    def test_a_gate_file_that_is_missing_or_damaged_is_refused(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            (tmp_path / "bad").write_bytes(b"not safetensors")
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                for name in ("absent", "bad"):
                    reply = await it.change("m", "canary", release="r1", gate=str(tmp_path / name))
                    assert (reply.status_code, "cannot be read" in reply.json()["error"]) == (400, True)

        run(scenario)

    def test_a_model_that_raises_on_the_gate_fails_the_canary(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                gate = gate_file(tmp_path, inputs=np.full((20, 4), POISON, np.float32))
                reply = await it.change("m", "canary", release="r1", gate=str(gate))
                assert reply.status_code == 500
                assert "RuntimeError: poisoned" in reply.json()["error"]

        run(scenario)


def test_status_names_what_answers_and_what_it_has_done() -> None:
    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork(), version="7", release="r7")
            for rows in ([ROW], [[POISON] * 4], [[1.0]]):
                await it.data.post(INFER, json=json_request(rows))
            status = (await it.control.get("/v2/control/status")).json()
            assert status["rss_bytes"] > 1_000_000
            assert status["draining"] is False
            assert status["uptime_s"] >= 0
            model = status["models"]["m"]
            assert (model["release"], model["version"], model["method"]) == ("r7", "7", "nf4")
            # A client's mistake is a request, but no failure of the model.
            assert (model["requests"], model["failures"], model["in_flight"], model["queue"]) == (3, 1, 0, 0)
            assert model["latency_ms"]["p50"] > 0

    run(scenario)


RELEASE_X = {"parameters": {"release": "x"}}
LOAD_X = {"release": "x", "version": "1", "artifact": "/store/x"}
BIG_X = {"parameters": {**LOAD_X, "terms": {"residency": "big"}}}
TEXT_X = {"parameters": {**LOAD_X, "terms": "auto"}}
REFUSALS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "unknown action": ("POST", "/v2/repository/models/m/explode", {}, 404),
    "unknown group": ("GET", "/v2/control/explode", {}, 404),
    "status by POST": ("POST", "/v2/control/status", {}, 405),
    "load by GET": ("GET", "/v2/repository/models/m/load", {}, 405),
    "index with a list": ("POST", "/v2/repository/index", {"json": []}, 400),
    "index of what is ready, by a word": ("POST", "/v2/repository/index", {"json": {"ready": "yes"}}, 400),
    "cut JSON": ("POST", "/v2/repository/models/m/load", {"content": b"{"}, 400),
    "load without artifact": ("POST", "/v2/repository/models/m/load", {"json": {}}, 400),
    "parameters as list": ("POST", "/v2/repository/models/m/load", {"json": {"parameters": [1]}}, 400),
    "unknown residency": ("POST", "/v2/repository/models/m/load", {"json": BIG_X}, 400),
    "terms as text": ("POST", "/v2/repository/models/m/load", {"json": TEXT_X}, 400),
    "release as number": ("POST", "/v2/repository/models/m/activate", {"json": {"parameters": {"release": 1}}}, 400),
    "unknown release": ("POST", "/v2/repository/models/m/activate", {"json": RELEASE_X}, 404),
    "unload of an unknown model": ("POST", "/v2/repository/models/x/unload", {}, 404),
    "unload of an unknown release": ("POST", "/v2/repository/models/m/unload", {"json": RELEASE_X}, 404),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_control_request_that_makes_no_sense_is_refused_and_changes_nothing(case: str) -> None:
    async def scenario() -> None:
        method, path, arguments, status = REFUSALS[case]
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            reply = await it.control.request(method, path, **arguments)
            assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
            assert reply.json()["error"]
            assert await index(it) == [("m", "r1", "READY", True)]

    run(scenario)
