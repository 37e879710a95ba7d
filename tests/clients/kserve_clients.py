"""KServe's own Python clients, HTTP and gRPC: ``python tests/clients/kserve_clients.py HTTP GRPC MODEL``.

For an environment of its own (`make clients`): the package brings half a gigabyte. Prints a line for each check, then
as JSON the answers that every way gave for one input; status 1 when a check fails.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Checks:
    """Runs checks, prints what became of them and remembers."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    async def run(self, name: str, check: Callable[[], Awaitable[Any]]) -> Any:
        """Run one check; its value must be true."""
        try:
            value = await check()
        except Exception as error:  # noqa: BLE001 - whatever a client raises is the outcome
            value, told = None, f"{type(error).__name__}: {error}"
        else:
            told = repr(value)[:100]
        print("ok  " if value else "FAIL", name, told)
        if not value:
            self.failed.append(name)
        return value

    async def refused(self, name: str, call: Callable[[], Awaitable[Any]], text: str) -> None:
        """Run a check that a call is refused with ``text`` in what the client raises."""

        async def check() -> bool:
            try:
                await call()
            except Exception as error:  # noqa: BLE001 - as above
                return text in f"{error!r} {error}"
            return False

        await self.run(name, check)


def hexed(response: Any) -> str:
    """Return the first output's bytes."""
    return np.ascontiguousarray(response.outputs[0].as_numpy()).tobytes().hex()


def question(model: str, name: str, given: Any, *, is_binary: bool) -> InferRequest:
    """Return a request in the client's form."""
    entry = InferInput(name=name, shape=list(given.shape), datatype="FP32")
    entry.set_data_from_numpy(given, binary_data=is_binary)
    return InferRequest(model_name=model, request_id="42", infer_inputs=[entry])


async def walk(http: str, grpc: str, model: str, given: Any, name: str) -> int:
    """Run everything; return the exit status."""
    checks, url = Checks(), f"http://{http}"
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    await checks.run("rest live", lambda: client.is_server_live(url))
    await checks.run("rest ready", lambda: client.is_server_ready(url))
    await checks.run("rest model ready", lambda: client.is_model_ready(url, model))
    answers: dict[str, Any] = {}
    for way, is_binary in (("json", False), ("binary", True)):

        async def by_rest(*, is_binary: bool = is_binary) -> str:
            reply = await client.infer(url, question(model, name, given, is_binary=is_binary), model_name=model)
            assert reply.id == "42"
            return hexed(reply)

        answers[f"rest {way}"] = await checks.run(f"rest infer {way}", by_rest)
    asked = question("nope", name, given, is_binary=False)
    await checks.refused("rest unknown model", lambda: client.infer(url, asked, model_name="nope"), "404")
    await client.close()
    async with InferenceGRPCClient(grpc) as caller:
        await checks.run("grpc live", caller.is_server_live)
        await checks.run("grpc ready", caller.is_server_ready)
        await checks.run("grpc model ready", lambda: caller.is_model_ready(model))
        for way, is_binary in (("typed", False), ("raw", True)):

            async def by_grpc(*, is_binary: bool = is_binary) -> str:
                reply = await caller.infer(question(model, name, given, is_binary=is_binary))
                assert reply.id == "42"
                return hexed(reply)

            answers[f"grpc {way}"] = await checks.run(f"grpc infer {way}", by_grpc)
        await checks.refused("grpc unknown model", lambda: caller.infer(asked), "NOT_FOUND")

    async def alike() -> bool:
        return len(set(answers.values())) == 1

    await checks.run("every way gives the same bits", alike)
    print(json.dumps(answers))
    return 1 if checks.failed else 0


def main(http: str, grpc: str, model: str) -> int:
    """Ask for the model's input with what the environment has at hand, then run the checks."""
    import httpx  # noqa: PLC0415 - a dependency of the client

    entry = httpx.get(f"http://{http}/v2/models/{model}").json()["inputs"][0]
    shape = [2 if axis == 0 else max(size, 1) for axis, size in enumerate(entry["shape"])]
    given = np.random.default_rng(0).integers(-8, 8, shape).astype(np.float32)  # sums are exact in any order
    return asyncio.run(walk(http, grpc, model, given, entry["name"]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
