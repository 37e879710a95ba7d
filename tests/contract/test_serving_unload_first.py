"""A switch for which there is no room: the old release goes first, and requests wait. In-process, with fakes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from agent.serving import loading, memory
from agent.serving.errors import LoadFailedError
from tests.fakes.serving import WEIGHTS, FakeNetwork, Harness, harness, json_request, run, until

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from agent.serving.waiting import WaitingRoom

    Reply = asyncio.Task[httpx.Response]

ROW = [1.0, 2.0, 3.0, 4.0]
PLAIN = (np.array(ROW, "<f4") @ WEIGHTS).tolist()
INFER = "/v2/models/m/infer"
BIAS = 100.0


def room_of(it: Harness) -> WaitingRoom:
    return it.plane.models.get("m").room


async def load(it: Harness, release: str, version: str, **extra: Any) -> httpx.Response:
    return await it.change("m", "load", artifact=f"/store/{release}", version=version, release=release, **extra)


async def switch(it: Harness, network: FakeNetwork | None = None) -> httpx.Response:
    """Load release r2, version 2, in the place of r1, version 1, which is served first; nothing is activated."""
    await it.serve("m", FakeNetwork())
    it.loader.networks["r2"] = network or FakeNetwork(bias=BIAS)
    reply = await load(it, "r2", "2", unload_first=True)
    assert reply.status_code == 200, reply.text
    return reply


def ask(it: Harness, path: str = INFER, **arguments: Any) -> Reply:
    return asyncio.create_task(it.data.post(path, **(arguments or {"json": json_request([ROW])})))


async def held(it: Harness, count: int = 1, **arguments: Any) -> list[Reply]:
    """Send requests and return once they wait."""
    before = len(room_of(it))
    tasks = [ask(it, **arguments) for _ in range(count)]
    await until(lambda: len(room_of(it)) == before + count)
    return tasks


async def metric(it: Harness, name: str) -> float:
    lines = (await it.data.get("/metrics")).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f'nibbled_{name}{{model="m"}}'))


def is_unavailable(reply: httpx.Response) -> bool:
    return (reply.status_code, reply.headers.get("retry-after")) == (503, "1")


def binary(*, is_raw: bool) -> dict[str, Any]:
    data = np.array([ROW], "<f4")
    if is_raw:
        return {"content": data.tobytes(), "headers": {"Inference-Header-Content-Length": "0"}}
    entry = {"name": "input", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": data.nbytes}}
    header = json.dumps({"inputs": [entry]}).encode()
    return {"content": header + data.tobytes(), "headers": {"Inference-Header-Content-Length": str(len(header))}}


class TestOrder:
    def test_the_old_release_answers_what_it_has_is_freed_and_only_then_is_the_new_one_loaded(self) -> None:
        async def scenario() -> None:
            old = FakeNetwork()
            async with harness() as it:
                await it.serve("m", old)
                it.loader.networks["r2"] = FakeNetwork(bias=BIAS)
                it.loader.events.clear()
                old.gate.clear()
                first = ask(it)
                await until(old.entered.is_set)
                queued = ask(it)
                await until(lambda: len(it.plane.models.get("m").batcher) == 1)
                loading = asyncio.create_task(load(it, "r2", "2", unload_first=True, activate=True))
                await until(lambda: room_of(it).is_open)
                waiting = await held(it)
                assert it.loader.events == []
                old.gate.set()
                assert (await loading).status_code == 200
                answers = [(await task).json() for task in (first, queued, *waiting)]
                assert it.loader.events == ["release memory of r1", "reset peak", "load r2"]
                assert list(it.plane.models.get("m").slots) == ["r2"]
            assert [answer["model_version"] for answer in answers] == ["1", "1", "2"]
            assert answers[0]["outputs"][0]["data"] == PLAIN
            assert answers[2]["outputs"][0]["data"] == [value + BIAS for value in PLAIN]

        run(scenario)

    def test_what_answers_goes_on_while_another_model_is_being_loaded(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                it.loader.networks |= {"r2": FakeNetwork(bias=BIAS), "other": FakeNetwork()}
                it.loader.entered.clear()
                it.loader.gate.clear()
                parameters = {"artifact": "/store/other", "version": "1", "release": "other"}
                busy = asyncio.create_task(it.change("n", "load", **parameters))
                await until(it.loader.entered.is_set)
                loading = asyncio.create_task(load(it, "r2", "2", unload_first=True))
                await until(lambda: it.plane.models.get("m").loading is not None)
                assert (await ask(it)).json()["model_version"] == "1"
                assert not room_of(it).is_open
                it.loader.gate.set()
                assert [(await task).status_code for task in (busy, loading)] == [200, 200]

        run(scenario)

    def test_an_artifact_that_can_be_told_to_be_bad_costs_no_gap(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                it.loader.bad["r2"] = LoadFailedError("bad_artifact", "cut short")
                assert (await load(it, "r2", "2", unload_first=True)).status_code == 400
                assert (await ask(it)).json()["model_version"] == "1"
                assert room_of(it).to_json()["gap_ms"] is None

        run(scenario)

    def test_a_release_that_is_loaded_already_drives_nothing_out(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                it.loader.networks["r2"] = FakeNetwork()
                await load(it, "r2", "2")
                assert (await load(it, "r2", "2", unload_first=True)).json()["gap_ms"] == 0.0
                assert (await ask(it)).json()["model_version"] == "1"

        run(scenario)

    def test_a_model_that_nothing_answered_for_has_no_gap(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                it.loader.networks["r1"] = FakeNetwork()
                assert (await load(it, "r1", "1", unload_first=True)).json()["gap_ms"] == 0.0
                assert is_unavailable(await ask(it))
                assert (await it.change("m", "activate", release="r1")).json()["gap_ms"] == 0.0
                assert (await ask(it)).status_code == 200

        run(scenario)

    def test_a_flag_that_is_no_boolean_is_refused(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                reply = await load(it, "r2", "2", unload_first="no")
                assert (reply.status_code, reply.json()["error"]) == (
                    400, "parameter 'unload_first' must be true or false",
                )  # fmt: skip

        run(scenario)


class TestWaiting:
    @pytest.mark.parametrize(
        "arguments",
        [{"json": json_request([ROW])}, binary(is_raw=False), binary(is_raw=True)],
        ids=["json", "binary", "raw"],
    )
    @pytest.mark.parametrize("path", [INFER, "/v2/models/m/versions/2/infer"], ids=["any", "new"])
    def test_a_request_that_comes_in_the_gap_is_answered_by_what_becomes_active(
        self, path: str, arguments: dict[str, Any]
    ) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                (waiting,) = await held(it, path=path, **arguments)
                await it.change("m", "activate", release="r2")
                reply = await waiting
                assert reply.status_code == 200, reply.text
                assert b'"model_version":"2"' in reply.content
                assert room_of(it).to_json() | {"gap_ms": None} == {
                    "is_open": False, "gap_ms": None, "waiting": 0, "held": 1, "expired": 0, "canceled": 0, "shed": 0,
                }  # fmt: skip

        run(scenario)

    def test_the_version_that_a_client_names_is_compared_with_what_becomes_active(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                (waiting,) = await held(it, path="/v2/models/m/versions/1/infer")
                await it.change("m", "activate", release="r2")
                reply = await waiting
                assert (reply.status_code, "'2', not '1'" in reply.json()["error"]) == (404, True)

        run(scenario)

    def test_who_came_first_is_answered_first(self) -> None:
        async def scenario() -> None:
            network = FakeNetwork(is_batchable=False)
            async with harness() as it:
                await switch(it, network)
                done: list[int] = []

                async def note(number: int, waiting: Reply) -> None:
                    await waiting
                    done.append(number)

                noting = [asyncio.create_task(note(number, *await held(it))) for number in range(5)]
                await it.change("m", "activate", release="r2")
                await asyncio.gather(*noting)
                assert done == [0, 1, 2, 3, 4]

        run(scenario)

    def test_nothing_else_waits_and_readiness_tells_the_truth(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                waiting = await held(it)
                assert (await it.data.get("/v2/health/live")).status_code == 200
                for path in ("/v2/health/ready", "/v2/models/m/ready", "/v2/models/m", "/v2/models/m/config"):
                    assert is_unavailable(await it.data.get(path)), path
                assert await metric(it, "inference_waiting") == 1
                await it.serve("n", FakeNetwork(), release="other")
                assert (await ask(it, path="/v2/models/n/infer")).status_code == 200
                assert not waiting[0].done()
                await it.change("m", "activate", release="r2")
                assert (await it.data.get("/v2/models/m/ready")).status_code == 200
                assert (await waiting[0]).status_code == 200

        run(scenario)

    def test_a_canary_runs_while_requests_wait(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            inputs = np.array([ROW, ROW[::-1]], np.float32)
            gate = tmp_path / "gate.safetensors"
            save_file({"inputs": inputs, "expected": np.argmax(inputs @ WEIGHTS, axis=-1)}, gate)
            async with harness() as it:
                await switch(it)
                (waiting,) = await held(it)
                measured = (await it.change("m", "canary", release="r2", gate=str(gate))).json()
                assert (measured["rows"], measured["agreement"], waiting.done()) == (2, 1.0, False)
                await it.change("m", "activate", release="r2")
                assert (await waiting).status_code == 200

        run(scenario)

    def test_after_a_load_that_failed_requests_wait_on_for_the_old_release(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                it.loader.failures["r2"] = LoadFailedError("insufficient_memory", "out of memory")
                assert (await load(it, "r2", "2", unload_first=True)).status_code == 507
                (waiting,) = await held(it)
                assert (await load(it, "r1", "1", unload_first=True)).json()["gap_ms"] > 0
                assert (await it.change("m", "activate", release="r1")).json()["gap_ms"] > 0
                assert (await waiting).json()["outputs"][0]["data"] == PLAIN

        run(scenario)

    def test_a_new_release_that_disappoints_gives_way_to_the_old_one(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                (waiting,) = await held(it)
                await load(it, "r1", "1", unload_first=True)
                assert list(it.plane.models.get("m").slots) == ["r1"]
                await it.change("m", "activate", release="r1")
                assert (await waiting).json()["model_version"] == "1"

        run(scenario)


class TestBounds:
    def test_a_request_waits_for_so_long_and_is_told_the_numbers(self) -> None:
        async def scenario() -> None:
            async with harness(hold_s=0.02) as it:
                await it.serve("m", FakeNetwork())
                it.loader.networks["r2"] = FakeNetwork()
                it.loader.gate.clear()
                loading = asyncio.create_task(load(it, "r2", "2", unload_first=True, activate=True))
                await until(lambda: room_of(it).is_open)
                reply = await ask(it)
                assert is_unavailable(reply)
                assert "waited 0.02 s, nothing has answered for 0." in reply.json()["error"]
                it.loader.gate.set()
                assert (await loading).status_code == 200
                assert (await ask(it)).json()["model_version"] == "2"
                assert await metric(it, "inference_held_expired_total") == 1

        run(scenario)

    def test_a_request_never_waits_longer_than_its_own_timeout(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                reply = await ask(it, json=json_request([ROW], parameters={"timeout": 1000}))
                assert is_unavailable(reply)
                assert "waited 0.001 s" in reply.json()["error"]

        run(scenario)

    def test_one_request_too_many_is_refused_at_once_and_those_that_wait_are_not(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                room_of(it).max_waiting = 2
                waiting = await held(it, 2)
                reply = await ask(it)
                assert is_unavailable(reply)
                assert "2 requests with" in reply.json()["error"]
                assert await metric(it, "inference_shed_total") == 1
                await it.change("m", "activate", release="r2")
                assert [(await task).status_code for task in waiting] == [200, 200]

        run(scenario)

    def test_bodies_that_wait_are_bounded_together(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                room_of(it).max_bytes = 300
                waiting = await held(it)
                assert is_unavailable(await ask(it, json=json_request([ROW] * 20)))
                assert room_of(it).shed == 1
                await it.change("m", "activate", release="r2")
                assert (await waiting[0]).status_code == 200

        run(scenario)

    def test_a_request_that_makes_no_sense_is_refused_without_waiting(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                assert (await ask(it, content=b"{")).status_code == 400
                assert (await ask(it, path="/v2/models/x/infer")).status_code == 404
                assert room_of(it).held == 0

        run(scenario)

    def test_a_client_that_leaves_gives_up_its_place(self) -> None:
        async def scenario() -> None:
            left = asyncio.Event()
            messages = [{"type": "http.request", "body": json.dumps(json_request([ROW])).encode(), "more_body": False}]
            sent: list[Any] = []

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop()
                await left.wait()
                return {"type": "http.disconnect"}

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)

            async with harness() as it:
                network = FakeNetwork()
                await switch(it, network)
                scope = {"type": "http", "method": "POST", "path": INFER, "raw_path": INFER.encode(), "headers": []}
                leaving = asyncio.ensure_future(it.app(scope, receive, send))
                await until(lambda: len(room_of(it)) == 1)
                left.set()
                await leaving
                assert (len(room_of(it)), room_of(it).canceled, sent) == (0, 1, [])
                await it.change("m", "activate", release="r2")
                assert network.calls == []

        run(scenario)

    def test_a_gap_that_nobody_tends_any_more_is_not_waited_for(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                room_of(it).hold_s = 0.0
                reply = await ask(it)
                assert is_unavailable(reply)
                assert "no release of it is active" in reply.json()["error"]
                assert room_of(it).held == 0

        run(scenario)

    def test_a_model_that_is_unloaded_in_the_gap_turns_away_what_waits(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                (waiting,) = await held(it)
                assert (await it.change("m", "unload")).status_code == 200
                assert is_unavailable(await waiting)
                assert (await ask(it)).status_code == 404

        run(scenario)

    def test_a_server_that_ends_answers_what_waits(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await switch(it)
                (waiting,) = await held(it)
                it.plane.drain()
                reply = await waiting
                assert (is_unavailable(reply), reply.headers["connection"]) == (True, "close")
                assert is_unavailable(await ask(it))

        run(scenario)


class TestFigures:
    def test_the_gap_is_measured_to_the_activation_and_told_everywhere(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                so_far = (await switch(it)).json()["gap_ms"]
                status = (await it.control.get("/v2/control/status")).json()
                assert (status["models"], status["gaps"]["m"]["is_open"]) == ({}, True)
                gap_ms = (await it.change("m", "activate", release="r2")).json()["gap_ms"]
                assert 0 < so_far < gap_ms
                status = (await it.control.get("/v2/control/status")).json()
                assert status["gaps"]["m"]["is_open"] is False
                assert status["gaps"]["m"]["gap_ms"] >= gap_ms
                assert await metric(it, "model_gap_seconds") == status["gaps"]["m"]["gap_ms"] / 1e3

        run(scenario)

    def test_a_load_tells_what_it_took_of_the_memory(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                it.loader.device = {"allocated_bytes": 7}
                network = FakeNetwork()
                figures = (await switch(it, network)).json()
                assert min(figures["rss_before_bytes"], figures["rss_after_bytes"]) > 1_000_000
                assert figures["peak_rss_bytes"] >= figures["rss_after_bytes"] * 0.9
                assert figures["is_peak_exact"] in (True, False)
                assert figures["device"] == {"allocated_bytes": 7}
                assert (figures["max_batch_rows"], figures["warm_up_rows"], network.warm_up_rows) == (32, 32, 32)

        run(scenario)

    @pytest.mark.parametrize(("after", "is_exact"), [(10, False), (11, True)], ids=["as before", "risen"])
    def test_a_peak_that_cannot_be_reset_is_exact_only_when_it_rose(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int, *, is_exact: bool
    ) -> None:
        async def scenario() -> None:
            async with harness() as it:
                await it.serve("m", FakeNetwork())
                peaks = iter((10, after))
                monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
                monkeypatch.setattr(loading, "peak_rss_bytes", lambda: next(peaks))
                it.loader.networks["r2"] = FakeNetwork()
                figures = (await load(it, "r2", "2")).json()
                assert (figures["peak_rss_bytes"], figures["is_peak_exact"]) == (after, is_exact)

        run(scenario)

    def test_rows_that_influence_each_other_make_batches_of_one(self) -> None:
        async def scenario() -> None:
            async with harness() as it:
                figures = (await switch(it, FakeNetwork(is_batchable=False))).json()
                assert (figures["max_batch_rows"], figures["warm_up_rows"]) == (1, 1)
                await it.change("m", "activate", release="r2")
                status = (await it.control.get("/v2/control/status")).json()
                assert status["models"]["m"]["max_batch_rows"] == 1

        run(scenario)
