"""The data plane over gRPC: every method, every refusal, deadlines, streams, health, the end. In-process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")

from agent.serving.grpc import health_pb2 as hp  # noqa: E402 - only with the extra
from agent.serving.grpc import inference_pb2 as pb  # noqa: E402
from agent.serving.grpc.methods import HEALTH, INFERENCE  # noqa: E402
from agent.serving.tensors import TensorSpec  # noqa: E402
from tests.fakes.grpc_client import GrpcHarness, grpc_harness, raw_request, typed_request  # noqa: E402
from tests.fakes.serving import POISON, WEIGHTS, FakeNetwork, json_request, run, until  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROW = [1.0, 2.0, 3.0, 4.0]
ANSWER = np.array(ROW, "<f4") @ WEIGHTS
Code = grpc.StatusCode


async def code_of(call: Any) -> tuple[Any, str]:
    """Return the status and the text with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def test_raw_and_typed_inputs_get_the_same_raw_answer_with_id_version_and_parameters(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", FakeNetwork(bias=0.1), version="7")
            raw = await it.infer(raw_request([ROW], id="a:1"))
            typed = await it.infer(typed_request([ROW], id="a:1", model_version="7"))
            nameless = await it.infer(raw_request([ROW]))
            plain = (await it.base.data.post("/v2/models/m/infer", json=json_request([ROW]))).json()
        assert raw == typed
        assert (raw.model_name, raw.model_version, raw.id, nameless.id) == ("m", "7", "a:1", "")
        assert {name: each.string_param for name, each in raw.parameters.items()} == {"method": "nf4", "release": "r1"}
        assert [(each.name, each.datatype, list(each.shape)) for each in raw.outputs] == [("logits", "FP32", [1, 3])]
        assert raw.raw_output_contents[0] == np.array(plain["outputs"][0]["data"], "<f4").tobytes()

    run(scenario)


def test_outputs_come_in_the_order_in_which_they_are_asked_for(tmp_path: Path) -> None:
    class Twins(FakeNetwork):
        def run(self, arrays: Any) -> Any:
            return [arrays[0], arrays[0] + 1]

    async def scenario() -> None:
        specs = (TensorSpec("same", "FP32", (-1, 4)), TensorSpec("more", "FP32", (-1, 4)))
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", Twins(outputs=specs))
            request = raw_request([ROW])
            request.outputs.add(name="more")
            request.outputs.add(name="same")
            both = await it.infer(request)
            del request.outputs[1]
            one = await it.infer(request)
        values = [np.frombuffer(each, "<f4").tolist() for each in both.raw_output_contents]
        assert [each.name for each in both.outputs] == ["more", "same"]
        assert values == [[2.0, 3.0, 4.0, 5.0], ROW]
        assert [each.name for each in one.outputs] == ["more"]

    run(scenario)


def changed(change: Callable[[pb.ModelInferRequest], Any], base: Any = raw_request) -> pb.ModelInferRequest:
    request: pb.ModelInferRequest = base([ROW])
    change(request)
    return request


def set_contents(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.extend(ROW)


def move_contents(request: pb.ModelInferRequest) -> None:
    del request.inputs[0].contents.fp32_contents[:]
    request.inputs[0].contents.fp64_contents.extend(ROW)


def set_parameter(where: Any, name: str, **value: Any) -> None:
    for field, each in value.items():
        setattr(where.parameters[name], field, each)


REFUSALS: dict[str, tuple[pb.ModelInferRequest, Any]] = {
    "unknown model": (raw_request([ROW], model="x"), Code.NOT_FOUND),
    "no model": (raw_request([ROW], model=""), Code.NOT_FOUND),
    "unknown version": (raw_request([ROW], model_version="2"), Code.NOT_FOUND),
    "both forms": (changed(set_contents), Code.INVALID_ARGUMENT),
    "too many raw": (changed(lambda it: it.raw_input_contents.append(b"")), Code.INVALID_ARGUMENT),
    "short raw": (changed(lambda it: it.raw_input_contents.__setitem__(0, b"abc")), Code.INVALID_ARGUMENT),
    "neither form": (changed(lambda it: it.raw_input_contents.pop()), Code.INVALID_ARGUMENT),
    "wrong field": (changed(move_contents, typed_request), Code.INVALID_ARGUMENT),
    "too few typed": (
        changed(lambda it: it.inputs[0].contents.fp32_contents.pop(), typed_request),
        Code.INVALID_ARGUMENT,
    ),
    "no input": (pb.ModelInferRequest(model_name="m"), Code.INVALID_ARGUMENT),
    "input twice": (changed(lambda it: it.inputs.add(name="input"), typed_request), Code.INVALID_ARGUMENT),
    "unknown datatype": (changed(lambda it: setattr(it.inputs[0], "datatype", "BYTES")), Code.INVALID_ARGUMENT),
    "typed FP16": (changed(lambda it: setattr(it.inputs[0], "datatype", "FP16"), typed_request), Code.INVALID_ARGUMENT),
    "other datatype": (changed(lambda it: setattr(it.inputs[0], "datatype", "INT32")), Code.INVALID_ARGUMENT),
    "negative shape": (changed(lambda it: it.inputs[0].shape.__setitem__(0, -1)), Code.INVALID_ARGUMENT),
    "endless shape": (changed(lambda it: it.inputs[0].shape.__setitem__(0, 2**62)), Code.INVALID_ARGUMENT),
    "17 dimensions": (changed(lambda it: it.inputs[0].shape.extend([1] * 15)), Code.INVALID_ARGUMENT),
    "empty": (raw_request(np.zeros((0, 4))), Code.INVALID_ARGUMENT),
    "unknown output": (changed(lambda it: it.outputs.add(name="x")), Code.INVALID_ARGUMENT),
    "output twice": (changed(lambda it: [it.outputs.add(name="logits") for _ in "12"]), Code.INVALID_ARGUMENT),
    "classification": (
        changed(lambda it: set_parameter(it.outputs.add(name="logits"), "classification", int64_param=1)),
        Code.INVALID_ARGUMENT,
    ),
    "shared memory": (
        changed(lambda it: set_parameter(it.inputs[0], "shared_memory_region", string_param="x")),
        Code.INVALID_ARGUMENT,
    ),
    "timeout as text": (changed(lambda it: set_parameter(it, "timeout", string_param="1")), Code.INVALID_ARGUMENT),
    "parameter without a value": (changed(lambda it: it.parameters["x"].SetInParent()), Code.INVALID_ARGUMENT),
    "model fails": (raw_request([[POISON] * 4]), Code.INTERNAL),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_has_its_code_and_says_why_also_to_a_client_with_a_deadline(case: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        request, code = REFUSALS[case]
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", FakeNetwork())
            found, detail = await code_of(it.infer(request))
            assert (found, bool(detail)) == (code, True)
            assert (await code_of(it.infer(request, timeout=20)))[0] == code
            assert (await it.infer(raw_request([ROW]))).outputs

    run(scenario)


def test_a_model_without_a_release_is_unavailable_and_not_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            assert not (await it.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready
            assert (await it.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
            it.base.loader.networks["r1"] = FakeNetwork()
            await it.base.change("m", "load", artifact="/store/r1", version="1", release="r1")
            assert (await code_of(it.infer(raw_request([ROW]))))[0] == Code.UNAVAILABLE
            assert (
                await code_of(it.call("ModelMetadata", pb.ModelMetadataRequest(name="m"), pb.ModelMetadataResponse))
            )[0] == Code.UNAVAILABLE
            await it.base.change("m", "activate", release="r1")
            assert (await it.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready
            for name, version, ready in (("m", "", True), ("m", "1", True), ("m", "2", False), ("x", "", False)):
                request = pb.ModelReadyRequest(name=name, version=version)
                assert (await it.call("ModelReady", request, pb.ModelReadyResponse)).ready is ready

    run(scenario)


def test_server_and_model_describe_themselves_as_over_http(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", FakeNetwork())
            await it.infer(raw_request([ROW, ROW]))
            server = await it.call("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
            model = await it.call("ModelMetadata", pb.ModelMetadataRequest(name="m"), pb.ModelMetadataResponse)
            config = await it.call("ModelConfig", pb.ModelConfigRequest(name="m"), pb.ModelConfigResponse)
            stats = await it.call("ModelStatistics", pb.ModelStatisticsRequest(), pb.ModelStatisticsResponse)
            http = (await it.base.data.get("/v2/models/m")).json()
            http_stats = (await it.base.data.get("/v2/models/m/stats")).json()["model_stats"][0]
            metrics = (await it.base.data.get("/metrics")).text
        assert list(server.extensions) == ["parameters", "model_configuration", "statistics"]
        assert (model.name, model.platform, list(model.versions)) == ("m", http["platform"], http["versions"])
        assert dict(model.properties) == http["properties"]
        assert list(model.inputs[0].shape) == [-1, 4]
        assert (config.config.max_batch_size, config.config.input[0].data_type) == (32, pb.TYPE_FP32)
        assert list(config.config.output[0].dims) == [3]
        assert (stats.model_stats[0].inference_count, http_stats["inference_count"]) == (2, 2)
        assert stats.model_stats[0].inference_stats.success.ns == http_stats["inference_stats"]["success"]["ns"]
        by_rpc = [
            (it.batch_size, it.compute_infer.count, it.compute_infer.ns) for it in stats.model_stats[0].batch_stats
        ]
        parts = [(each["batch_size"], each["compute_infer"]) for each in http_stats["batch_stats"]]
        assert by_rpc == [(rows, part["count"], part["ns"]) for rows, part in parts]
        assert by_rpc
        assert 'nibbled_inference_requests_total{model="m",version="1",release="r1",outcome="ok"} 1' in metrics
        assert 'nibbled_grpc_responses_total{code="OK"} 5' in metrics

    run(scenario)


def test_whoever_asks_for_an_unknown_model_is_told_which_ones_answer_in_the_words_of_http(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", FakeNetwork())
            by_http = (await it.base.data.get("/v2/models/x")).json()["error"]
            asked = it.call("ModelMetadata", pb.ModelMetadataRequest(name="x"), pb.ModelMetadataResponse)
            assert await code_of(asked) == (Code.NOT_FOUND, by_http)
            assert await code_of(it.infer(raw_request([ROW], model="x"))) == (Code.NOT_FOUND, by_http)
            assert by_http.endswith("only 'm' answers")

    run(scenario)


def test_the_repository_can_be_seen_and_not_changed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", FakeNetwork())
            index = await it.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True), pb.RepositoryIndexResponse)
            assert [(each.name, each.version, each.state) for each in index.models] == [("m", "1", "READY")]
            load = pb.RepositoryModelLoadRequest(model_name="m")
            await it.call("RepositoryModelLoad", load, pb.RepositoryModelLoadResponse)
            load.parameters["config"].string_param = "{}"
            unload = pb.RepositoryModelUnloadRequest(model_name="m")
            for method, request in (("Load", load), ("Unload", unload)):
                call = it.call(f"RepositoryModel{method}", request, pb.RepositoryModelLoadResponse)
                assert (await code_of(call))[0] == Code.PERMISSION_DENIED
            assert it.base.loader.loads == ["r1"]
            shared = it.call("SystemSharedMemoryStatus", pb.ServerLiveRequest(), pb.ServerLiveResponse)
            assert (await code_of(shared))[0] == Code.UNIMPLEMENTED

    run(scenario)


def test_bytes_that_are_no_message_are_the_clients_mistake(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            for method in ("ModelInfer", "ModelReady"):
                call = it.channel.unary_unary(INFERENCE + method)(b"\xff\xff\xff")
                assert (await code_of(call))[0] == Code.INVALID_ARGUMENT

    run(scenario)


DATATYPE_VALUES: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "UINT16": ("uint_contents", [0, 65535]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.1, float("nan")]),
    "FP64": ("fp64_contents", [0.1, float("inf")]),
}


@pytest.mark.parametrize("datatype", [*DATATYPE_VALUES, "FP16", "BF16"])
def test_every_datatype_goes_through_unchanged_raw_and_typed_where_it_has_a_typed_form(
    datatype: str, tmp_path: Path
) -> None:
    class Same(FakeNetwork):
        def run(self, arrays: Any) -> Any:
            return list(arrays)

        def warm_up(self, rows: int) -> int:
            return rows

    spec = TensorSpec("input", datatype, (-1, 2))
    types = {"BOOL": "?", "INT8": "i1", "UINT16": "<u2", "INT64": "<i8", "UINT64": "<u8", "FP32": "<f4", "FP64": "<f8"}

    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", Same(inputs=(spec,), outputs=(spec,)))
            request = pb.ModelInferRequest(model_name="m")
            request.inputs.add(name="input", datatype=datatype, shape=[1, 2])
            field, values = DATATYPE_VALUES.get(datatype, ("", [1.5, 2.5]))
            raw = np.array(values, types[datatype]).tobytes() if field else b"\x00\x3e\x40\x7f"
            request.raw_input_contents.append(raw)
            assert (await it.infer(request)).raw_output_contents[0] == raw
            if not field:
                return
            del request.raw_input_contents[:]
            getattr(request.inputs[0].contents, field).extend(values)
            assert (await it.infer(request)).raw_output_contents[0] == raw

    run(scenario)


@pytest.mark.parametrize("value", [-129, 128])
def test_a_typed_integer_that_its_datatype_does_not_have_is_refused(value: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        spec = TensorSpec("input", "INT8", (-1, 1))
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", FakeNetwork(inputs=(spec,), error=ValueError("none")))
            request = pb.ModelInferRequest(model_name="m")
            request.inputs.add(name="input", datatype="INT8", shape=[1, 1]).contents.int_contents.append(value)
            told = f"input 'input' holds {value} at [0, 0]: INT8 reaches from -128 to 127"
            assert await code_of(it.infer(request)) == (Code.INVALID_ARGUMENT, told)

    run(scenario)


async def busy(it: GrpcHarness, network: FakeNetwork) -> Any:
    """Hold the model inside a forward pass; return the call that waits for it."""
    await it.base.serve("m", network)
    network.gate.clear()
    call = asyncio.ensure_future(it.infer(raw_request([ROW])))
    await until(network.entered.is_set)
    return call


def outcomes(it: GrpcHarness) -> dict[str, int]:
    return next(slot.stats.outcomes for _, slot in it.base.plane.models.slots())


@pytest.mark.parametrize("limit", ["deadline", "parameter"])
def test_what_waited_beyond_its_limit_is_deadline_exceeded_and_never_computed(limit: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            network = FakeNetwork()
            first = await busy(it, network)
            request = raw_request([ROW])
            if limit == "parameter":
                request.parameters["timeout"].int64_param = 20_000
            batcher = it.base.plane.models.get("m").batcher
            late = asyncio.ensure_future(it.infer(request, timeout=2 if limit == "deadline" else 20))
            if limit == "deadline":  # which a busy machine must not reach before the queue does
                await until(lambda: len(batcher) == 1)
            assert (await code_of(late))[0] == Code.DEADLINE_EXCEEDED
            await until(lambda: outcomes(it)["expired"] == 1)
            network.gate.set()
            assert np.frombuffer((await first).raw_output_contents[0], "<f4").tolist() == ANSWER.tolist()
            await it.infer(raw_request([ROW]))
            assert network.calls == [1, 1]

    run(scenario)


def test_a_call_that_its_client_cancels_leaves_the_queue(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            network = FakeNetwork()
            first = await busy(it, network)
            batcher = it.base.plane.models.get("m").batcher
            second = it.infer(raw_request([ROW]))
            await until(lambda: len(batcher) == 1)
            second.cancel()
            await until(lambda: len(batcher) == 0)
            network.gate.set()
            await first
            await until(lambda: outcomes(it)["canceled"] == 1)
            assert network.calls == [1]
            assert it.base.plane.rpc_codes["CANCELLED"] == 1

    run(scenario)


def test_a_full_queue_and_too_many_open_calls_are_unavailable_while_health_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path, max_open=2) as it:
            network = FakeNetwork()
            first = await busy(it, network)
            batcher = it.base.plane.models.get("m").batcher
            batcher.max_queue = 0
            assert "queue" in (await code_of(it.infer(raw_request([ROW]))))[1]
            batcher.max_queue = 9
            second = asyncio.ensure_future(it.infer(raw_request([ROW])))
            await until(lambda: len(batcher) == 1)
            code, detail = await code_of(it.infer(raw_request([ROW])))
            assert (code, "2 calls are open" in detail) == (Code.UNAVAILABLE, True)
            health = await it.call(HEALTH + "Check", hp.HealthCheckRequest(), hp.HealthCheckResponse)
            assert health.status == hp.HealthCheckResponse.SERVING
            network.gate.set()
            await first
            await second
            assert (await it.infer(raw_request([ROW]))).outputs

    run(scenario)


def test_calls_wait_for_the_end_of_a_switch_and_are_unavailable_when_it_takes_too_long(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", FakeNetwork())
            model = it.base.plane.models.get("m")
            active, model.active = model.active, None
            model.room.open()
            model.room.touch()
            waiting = asyncio.ensure_future(it.infer(raw_request([ROW])))
            await until(lambda: len(model.room) == 1)
            assert (await code_of(it.infer(raw_request([ROW]), timeout=0.1)))[0] == Code.DEADLINE_EXCEEDED
            model.room.hold_s = 0.05
            async with model.changes:  # somebody is tending the switch
                assert (await code_of(it.infer(raw_request([ROW]), timeout=20)))[0] == Code.UNAVAILABLE
            assert active is not None
            model.activate(active.release)
            assert (await waiting).model_version == "1"

    run(scenario)


def test_a_stream_is_answered_in_order_side_by_side_and_goes_on_after_errors(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            network = FakeNetwork()
            await it.base.serve("m", network)
            requests = [raw_request([[number] * 4], id=str(number)) for number in range(8)]
            requests[2].model_name = "x"
            requests[3].raw_input_contents[0] = b""
            set_parameter(requests[4], "triton_enable_empty_final_response", bool_param=True)
            network.gate.clear()
            stream = it.stream(requests)
            # What the model took first is being computed, and the others that can be wait together.
            await until(lambda: it.base.plane.models.active("m").in_flight == 6)
            network.gate.set()
            answers = [answer async for answer in stream]
        assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(8)]
        assert [bool(answer.error_message) for answer in answers] == [number in (2, 3) for number in range(8)]
        for number in (0, 1, 4, 5, 6, 7):
            expected = np.full(4, number, "<f4") @ WEIGHTS
            assert answers[number].infer_response.raw_output_contents[0] == expected.tobytes()
        assert answers[4].infer_response.parameters["triton_final_response"].bool_param
        assert "triton_final_response" not in answers[5].infer_response.parameters
        assert sum(network.calls) == 6
        assert len(network.calls) <= 2, "those that waited were computed together"

    run(scenario)


def test_a_cancelled_stream_takes_its_questions_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            network = FakeNetwork()
            first = await busy(it, network)
            batcher = it.base.plane.models.get("m").batcher
            stream = it.stream([raw_request([ROW]) for _ in range(3)])
            await until(lambda: len(batcher) == 3)
            stream.cancel()
            await until(lambda: len(batcher) == 0)
            network.gate.set()
            await first

    run(scenario)


def test_messages_beyond_grpcs_own_limit_pass_and_those_beyond_the_configured_one_do_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path, max_body_bytes=6 * 2**20) as it:
            await it.base.serve("m", FakeNetwork(is_batchable=False))
            rows = np.zeros((5 * 2**16, 4), "<f4")
            assert len((await it.infer(raw_request(rows))).raw_output_contents[0]) == rows.nbytes // 4 * 3
            for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
                large = raw_request(np.zeros((2**20, 4)))
                code, _ = await code_of(it.infer(large, compression=compression))
                assert code == Code.RESOURCE_EXHAUSTED

    run(scenario)


def test_health_tells_of_the_whole_of_each_model_and_of_what_is_unknown(tmp_path: Path) -> None:
    async def scenario() -> None:
        status = hp.HealthCheckResponse.ServingStatus
        async with grpc_harness(tmp_path) as it:

            async def check(service: str) -> Any:
                request = hp.HealthCheckRequest(service=service)
                return (await it.call(HEALTH + "Check", request, hp.HealthCheckResponse)).status

            watched = it.watch(hp.HealthCheckRequest(service="m"), hp.HealthCheckResponse)
            assert (await watched.read()).status == status.SERVICE_UNKNOWN
            assert await check("") == status.NOT_SERVING
            assert (await code_of(check("m")))[0] == Code.NOT_FOUND
            await it.base.serve("m", FakeNetwork())
            told = (await watched.read()).status
            if told == status.NOT_SERVING:  # seen while the model was loading: who watches is told every state
                told = (await watched.read()).status
            assert told == status.SERVING
            assert await check("") == await check("m") == await check(INFERENCE.strip("/")) == status.SERVING
            it.base.plane.drain()
            assert (await watched.read()).status == status.NOT_SERVING
            watched.cancel()

    run(scenario)


def test_the_end_lets_what_was_asked_finish_ends_streams_and_tells_those_who_watch(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            network = FakeNetwork()
            first = await busy(it, network)
            watched = it.watch(hp.HealthCheckRequest(), hp.HealthCheckResponse)
            await watched.read()
            stream = it.stream()
            await stream.write(raw_request([ROW], id="last"))
            batcher = it.base.plane.models.get("m").batcher
            await until(lambda: len(batcher) == 1)
            it.base.plane.drain()
            stopping = asyncio.ensure_future(it.server.stop(20))
            assert (await watched.read()).status == hp.HealthCheckResponse.NOT_SERVING
            assert await watched.read() == grpc.aio.EOF
            assert not stopping.done()
            network.gate.set()
            assert (await first).outputs
            assert (await stream.read()).infer_response.id == "last"
            assert (await code_of(stream.read()))[0] == Code.UNAVAILABLE
            await stopping

    run(scenario)
