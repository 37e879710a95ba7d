"""A gRPC server in this process, with its relay and sockets, and a client of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from agent.adapters.sockets import listen_tcp
from agent.serving.grpc import inference_pb2 as pb
from agent.serving.grpc.methods import HEALTH, INFERENCE
from agent.serving.grpc.server import GrpcServer
from tests.fakes.serving import harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from tests.fakes.serving import Harness


@dataclass
class GrpcHarness:
    """A server with a channel; ``base`` has the models and the HTTP side of it."""

    base: Harness
    server: GrpcServer
    channel: Any
    port: int

    def call(self, method: str, request: Any, answer: Any, **options: Any) -> Any:
        """Begin a call; await it for its answer."""
        path = method if method.startswith("/") else INFERENCE + method
        return self.channel.unary_unary(path, type(request).SerializeToString, answer.FromString)(request, **options)

    def infer(self, request: pb.ModelInferRequest, **options: Any) -> Any:
        return self.call("ModelInfer", request, pb.ModelInferResponse, **options)

    def stream(self, requests: Iterable[pb.ModelInferRequest] | None = None) -> Any:
        method = self.channel.stream_stream(
            INFERENCE + "ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )
        return method(requests)

    def watch(self, request: Any, answer: Any) -> Any:
        return self.channel.unary_stream(HEALTH + "Watch", type(request).SerializeToString, answer.FromString)(request)


@asynccontextmanager
async def grpc_harness(
    folder: Path,
    *,
    max_body_bytes: int = 2**26,
    hold_s: float = 30.0,
    store: Path | None = None,
    trusted: bytes | None = None,
    **given: Any,
) -> AsyncIterator[GrpcHarness]:
    """Yield a server with no model, and a client of it; with ``trusted`` certificates, one that speaks TLS."""
    listener = listen_tcp("127.0.0.1", 0)
    async with harness(hold_s=hold_s, store=store) as base:
        path = folder / "grpc.sock"
        server = GrpcServer(base.plane, listener, path, max_body_bytes, repository=base.repository, **given)
        await server.start()
        try:
            async with channel_to(f"127.0.0.1:{listener.getsockname()[1]}", trusted) as channel:
                yield GrpcHarness(base, server, channel, listener.getsockname()[1])
        finally:
            await server.stop(0)
            listener.close()


def channel_to(address: str, trusted: bytes | None = None) -> Any:
    """Return a channel with a connection of its own."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    options.append(("grpc.use_local_subchannel_pool", 1))
    if trusted is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(trusted), options)


def raw_request(rows: Any, model: str = "m", **fields: Any) -> pb.ModelInferRequest:
    """Return a request with one raw input of floats."""
    data = np.asarray(rows, "<f4")
    request = pb.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name="input", datatype="FP32", shape=data.shape)
    request.raw_input_contents.append(data.tobytes())
    return request


def typed_request(rows: Any, model: str = "m", **fields: Any) -> pb.ModelInferRequest:
    """Return the same request with typed contents."""
    data = np.asarray(rows, "<f4")
    request = pb.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name="input", datatype="FP32", shape=data.shape).contents.fp32_contents.extend(data.ravel())
    return request
