"""What guards the gRPC port is what guards HTTP's: tokens, certificates, the repository; and calls are traced alike."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")

from agent.serving.access import Access  # noqa: E402 - only with the extra
from agent.serving.grpc import health_pb2 as hp  # noqa: E402
from agent.serving.grpc import inference_pb2 as pb  # noqa: E402
from agent.serving.grpc.methods import HEALTH, INFERENCE  # noqa: E402
from agent.serving.tls import HTTP2, LOOK_AGAIN_S, RenewedContext  # noqa: E402
from agent.serving.tracing import Tracer  # noqa: E402
from agent.tokens import TokenFile  # noqa: E402
from tests.fakes.authority import Authority  # noqa: E402
from tests.fakes.collector import Collector  # noqa: E402
from tests.fakes.grpc_client import GrpcHarness, channel_to, grpc_harness, raw_request  # noqa: E402
from tests.fakes.serving import FakeNetwork, run  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER, ADMIN, OTHER = "user-" + "u" * 32, "admin-" + "a" * 32, "other-" + "o" * 32
NONE_SENT = "no token was sent; send Authorization: Bearer TOKEN, with a token of the device's serving.{}"
NO_BEARER = "the Authorization header is none of a bearer token; send Authorization: Bearer TOKEN, with a token of the "
UNKNOWN = "the token that was sent is not known here; send a token of the device's serving.{}"
ROW = [1.0, 2.0, 3.0, 4.0]
Code = grpc.StatusCode


def write(path: Path, text: str) -> TokenFile:
    path.write_text(text)
    path.chmod(0o600)
    return TokenFile(path)


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(write(tmp_path / "users", USER), write(tmp_path / "admins", ADMIN))


def bearer(token: str, scheme: str = "Bearer") -> tuple[tuple[str, str], ...]:
    return (("authorization", f"{scheme} {token}"),)


async def code_of(call: Any) -> tuple[Any, str]:
    """Return the status and the text with which a call ends."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return Code.OK, ""


METHODS = {
    "ServerMetadata": (pb.ServerMetadataRequest(), pb.ServerMetadataResponse),
    "ModelReady": (pb.ModelReadyRequest(name="m"), pb.ModelReadyResponse),
    "ModelMetadata": (pb.ModelMetadataRequest(name="m"), pb.ModelMetadataResponse),
    "ModelConfig": (pb.ModelConfigRequest(name="m"), pb.ModelConfigResponse),
    "ModelStatistics": (pb.ModelStatisticsRequest(name="m"), pb.ModelStatisticsResponse),
    "ModelInfer": (raw_request([ROW]), pb.ModelInferResponse),
    "RepositoryIndex": (pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse),
    "RepositoryModelLoad": (pb.RepositoryModelLoadRequest(model_name="m"), pb.RepositoryModelLoadResponse),
    "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest(model_name="m"), pb.RepositoryModelUnloadResponse),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_call_needs_the_token_that_its_route_over_http_needs(method: str, access: Access, tmp_path: Path) -> None:
    is_change = method.startswith("Repository")
    file = "admin_token_file" if is_change else "token_file"

    async def scenario() -> None:
        async with grpc_harness(tmp_path, access=access, store=tmp_path) as it:
            await it.base.serve("m", FakeNetwork())
            request, answer = METHODS[method]
            assert await code_of(it.call(method, request, answer)) == (Code.UNAUTHENTICATED, NONE_SENT.format(file))
            for scheme in ("Basic", ""):
                call = it.call(method, request, answer, metadata=bearer(USER, scheme))
                code, text = await code_of(call)
                assert (code, text[: len(NO_BEARER)]) == (Code.UNAUTHENTICATED, NO_BEARER)
            for wrong in (OTHER, USER[:-1], USER + "x"):
                call = it.call(method, request, answer, metadata=bearer(wrong))
                assert await code_of(call) == (Code.UNAUTHENTICATED, UNKNOWN.format(file))
            user = await code_of(it.call(method, request, answer, metadata=bearer(USER, "bearer")))
            assert user[0] == (Code.PERMISSION_DENIED if is_change else Code.OK)
            assert await code_of(it.call(method, request, answer, metadata=bearer(ADMIN))) == (Code.OK, "")
            assert it.base.plane.rpc_codes["UNAUTHENTICATED"] == 6

    run(scenario)


def test_a_stream_needs_a_token_before_anything_of_it_is_read(access: Access, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path, access=access) as it:
            network = FakeNetwork()
            await it.base.serve("m", network)
            assert (await code_of(it.stream([raw_request([ROW])]).read()))[0] == Code.UNAUTHENTICATED
            assert network.calls == []
            path = INFERENCE + "ModelStreamInfer"
            with_token = it.channel.stream_stream(path)([raw_request([ROW]).SerializeToString()], metadata=bearer(USER))
            answer = pb.ModelStreamInferResponse.FromString(await with_token.read())
            assert answer.infer_response.outputs

    run(scenario)


def test_the_health_of_the_whole_is_told_to_everyone_and_that_of_a_model_is_not(access: Access, tmp_path: Path) -> None:
    async def check(it: GrpcHarness, service: str, **options: Any) -> tuple[Any, str]:
        request = hp.HealthCheckRequest(service=service)
        return await code_of(it.call(HEALTH + "Check", request, hp.HealthCheckResponse, **options))

    async def scenario() -> None:
        async with grpc_harness(tmp_path, access=access) as it:
            await it.base.serve("m", FakeNetwork())
            assert (await it.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
            assert (await it.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready
            for service in ("", INFERENCE.strip("/")):
                assert await check(it, service) == (Code.OK, "")
            for service in ("m", "nobody"):
                assert await check(it, service) == (Code.UNAUTHENTICATED, NONE_SENT.format("token_file"))
            assert await check(it, "m", metadata=bearer(USER)) == (Code.OK, "")
            watched = it.watch(hp.HealthCheckRequest(), hp.HealthCheckResponse)
            assert (await watched.read()).status == hp.HealthCheckResponse.SERVING
            watched.cancel()
            watched = it.watch(hp.HealthCheckRequest(service="m"), hp.HealthCheckResponse)
            assert await code_of(watched.read()) == (Code.UNAUTHENTICATED, NONE_SENT.format("token_file"))

    run(scenario)


def test_an_administrator_loads_and_unloads_what_lies_in_the_store_and_nothing_else(
    access: Access, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with grpc_harness(tmp_path, access=access, store=tmp_path) as it:
            it.base.loader.networks["r1"] = FakeNetwork()

            def load(artifact: Path, **more: Any) -> Any:
                request = pb.RepositoryModelLoadRequest(model_name="m")
                for name, text in {"artifact": str(artifact), "release": "r1", "version": "1", **more}.items():
                    request.parameters[name].string_param = text
                request.parameters["activate"].bool_param = True
                answer = pb.RepositoryModelLoadResponse
                return it.call("RepositoryModelLoad", request, answer, metadata=bearer(ADMIN))

            assert (await code_of(load(tmp_path.parent / "r1")))[0] == Code.INVALID_ARGUMENT
            assert (await code_of(load(tmp_path / "r1")))[0] == Code.OK
            assert (await it.infer(raw_request([ROW]), metadata=bearer(USER))).model_version == "1"
            unload = pb.RepositoryModelUnloadRequest(model_name="m")
            unload.parameters["release"].bytes_param = b"r1"
            method, answer = "RepositoryModelUnload", pb.RepositoryModelUnloadResponse
            call = it.call(method, unload, answer, metadata=bearer(ADMIN))
            assert (await code_of(call))[0] == Code.INVALID_ARGUMENT
            del unload.parameters["release"]
            assert (await code_of(it.call(method, unload, answer, metadata=bearer(ADMIN))))[0] == Code.OK
            assert (await code_of(it.infer(raw_request([ROW]), metadata=bearer(USER))))[0] == Code.NOT_FOUND

    run(scenario)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def shown(port: int, authority: Authority) -> tuple[str, str | None]:
    """Return the serial number that the server's certificate shows, and the protocol that it agrees to."""
    client = ssl.create_default_context(cafile=str(authority.file))
    client.set_alpn_protocols([HTTP2])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
    subject = dict(part[0] for part in writer.get_extra_info("peercert")["subject"])
    spoken = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    return subject["serialNumber"], spoken


def test_connections_are_encrypted_with_the_certificate_as_it_is_now(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clock, authority = Clock(), Authority(tmp_path)
    renewed = RenewedContext(*authority.issue("localhost", number=1), HTTP2, clock)
    trusted, strange = authority.file.read_bytes(), Authority(tmp_path_factory.mktemp("x")).file.read_bytes()

    async def scenario() -> None:
        async with grpc_harness(tmp_path, tls=renewed.context, trusted=trusted) as it:
            await it.base.serve("m", FakeNetwork())
            assert (await it.infer(raw_request([ROW]))).outputs
            assert await shown(it.port, authority) == ("1", "h2")
            for known in (strange, None):
                async with channel_to(f"127.0.0.1:{it.port}", known) as channel:
                    call = channel.unary_unary(INFERENCE + "ServerLive")(b"", timeout=20)
                    assert (await code_of(call))[0] == Code.UNAVAILABLE
            authority.issue("localhost", number=2)
            clock.now += LOOK_AGAIN_S
            assert await shown(it.port, authority) == ("2", "h2")
            assert (await it.infer(raw_request([ROW]))).outputs, "what is connected stays so"

    run(scenario)


def test_large_messages_pass_encrypted_both_ways_as_they_do_in_plain(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    renewed = RenewedContext(*authority.issue("localhost"), HTTP2)

    async def scenario() -> None:
        async with grpc_harness(tmp_path, tls=renewed.context, trusted=authority.file.read_bytes()) as it:
            await it.base.serve("m", FakeNetwork(is_batchable=False))
            rows = [[float(number)] * 4 for number in range(2**16)]
            answers = await asyncio.gather(*(it.infer(raw_request(rows)) for _ in range(8)))
            assert {len(answer.raw_output_contents[0]) for answer in answers} == {2**16 * 3 * 4}

    run(scenario)


TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACED = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"), ("authorization", "Bearer canary-canary"))


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.mark.parametrize("way", ["call", "stream"])
def test_what_is_asked_is_a_span_of_the_clients_trace_with_queue_and_compute_inside(
    way: str, collector: Collector, tmp_path: Path
) -> None:
    tracer = Tracer(collector.url)

    async def scenario() -> None:
        async with grpc_harness(tmp_path, tracer=tracer) as it:
            await it.base.serve("m", FakeNetwork(), version="7")
            if way == "call":
                await it.infer(raw_request([ROW]), metadata=TRACED)
            else:
                stream = it.channel.stream_stream(INFERENCE + "ModelStreamInfer")
                await stream([raw_request([ROW]).SerializeToString()], metadata=TRACED).read()

    run(scenario)
    tracer.close(10)
    infer = collector.spans["infer"]
    assert infer.trace_id.hex() == collector.spans["compute"].trace_id.hex() == TRACE
    assert {each.key: each.value.string_value for each in infer.attributes} == {
        "nibbled.model": "m",
        "nibbled.version": "7",
    }
    assert b"canary" not in collector.raw, "no other metadata leaves the device"


def test_a_refusal_is_a_span_that_says_what_the_client_was_told(collector: Collector, tmp_path: Path) -> None:
    tracer = Tracer(collector.url)

    async def scenario() -> None:
        async with grpc_harness(tmp_path, tracer=tracer) as it:
            await it.base.serve("m", FakeNetwork())
            wrong = raw_request([ROW])
            wrong.outputs.add(name="nothing")
            code, text = await code_of(it.infer(wrong))
            told.append(text)
            assert code == Code.INVALID_ARGUMENT

    told: list[str] = []
    run(scenario)
    tracer.close(10)
    assert [collector.spans["infer"].status.message] == told
    assert "queue" not in collector.spans
