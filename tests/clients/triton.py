"""What Triton's own Python clients can ask of this server: ``python tests/clients/triton.py HTTP GRPC MODEL``.

The model takes one FP32 input. A process of its own: the client brings its own copy of the protocol's messages. Prints
a line for each check, then as JSON the answers that every way gave for one input; status 1 when a check fails.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as tg
import tritonclient.grpc.aio as tga
import tritonclient.http as th
import tritonclient.http.aio as tha
from tritonclient.utils import InferenceServerException

if TYPE_CHECKING:
    from collections.abc import Callable

# What the check of one way to ask returns: the bytes of the first output.
Answers = dict[str, str]


class Checks:
    """Runs checks, prints what became of them and remembers."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def run(self, name: str, check: Callable[[], Any]) -> Any:
        """Run one check; its value must be true."""
        try:
            value = check()
        except Exception as error:  # noqa: BLE001 - whatever a client raises is the outcome
            value, told = None, f"{type(error).__name__}: {error}"
        else:
            told = repr(value)[:100]
        print("ok  " if value else "FAIL", name, told)
        if not value:
            self.failed.append(name)
        return value

    def refused(self, name: str, call: Callable[[], Any], status: str) -> None:
        """Run a check that a call is refused with ``status``."""

        def check() -> bool:
            try:
                call()
            except InferenceServerException as error:
                return status in str(error.status()) and bool(error.message())
            return False

        self.run(name, check)


def hexed(result: Any, output: str) -> str:
    """Return an output's bytes; raises when the client decoded none."""
    return np.ascontiguousarray(result.as_numpy(output)).tobytes().hex()


def adds_up(statistics: dict[str, Any]) -> bool:
    """Return whether the batches by their size are all that were executed, with the time that they took."""
    (entry,) = statistics["model_stats"]
    batches = [(int(each["batch_size"]), each["compute_infer"]) for each in entry["batch_stats"]]
    rows = sum(size * int(infer["count"]) for size, infer in batches)
    executions = sum(int(infer["count"]) for _, infer in batches)
    is_timed = all(int(infer["ns"]) > 0 for _, infer in batches)
    return is_timed and (rows, executions) == (int(entry["inference_count"]), int(entry["execution_count"]))


def over_http(checks: Checks, address: str, model: str, given: Any, names: tuple[str, str]) -> Answers:
    """Walk the synchronous HTTP client."""
    client = th.InferenceServerClient(address, concurrency=2)
    name, output = names
    answers: Answers = {}

    def infer(*, is_binary_in: bool, is_binary_out: bool | None, **options: Any) -> str:
        entry = th.InferInput(name, list(given.shape), "FP32").set_data_from_numpy(given, binary_data=is_binary_in)
        outputs = None if is_binary_out is None else [th.InferRequestedOutput(output, binary_data=is_binary_out)]
        result = client.infer(model, [entry], outputs=outputs, request_id="42", **options)
        assert result.get_response()["id"] == "42"
        return hexed(result, output)

    checks.run("http live", client.is_server_live)
    checks.run("http ready", client.is_server_ready)
    checks.run("http model ready", lambda: client.is_model_ready(model))
    checks.run("http unknown model not ready", lambda: not client.is_model_ready("nope"))
    checks.run("http server metadata", client.get_server_metadata)
    checks.run("http model metadata", lambda: client.get_model_metadata(model)["inputs"])
    checks.run("http model config", lambda: client.get_model_config(model)["max_batch_size"])
    checks.run("http statistics", lambda: client.get_inference_statistics(model)["model_stats"])
    checks.run("http index", client.get_model_repository_index)
    checks.run("http load of what is loaded", lambda: client.load_model(model) is None)
    checks.refused("http unload", lambda: client.unload_model(model), "403")
    ways: dict[str, dict[str, Any]] = {
        "http json": {"is_binary_in": False, "is_binary_out": False},
        "http binary": {"is_binary_in": True, "is_binary_out": None},
        "http json, binary": {"is_binary_in": False, "is_binary_out": True},
        "http binary, json": {"is_binary_in": True, "is_binary_out": False},
    }
    for algorithm in ("gzip", "deflate"):
        compressed = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        ways[f"http {algorithm}"] = {"is_binary_in": True, "is_binary_out": None, **compressed}
    for way, options in ways.items():
        answers[way] = checks.run(way, partial(infer, **options))
    many = [th.InferInput(name, list(given.shape), "FP32").set_data_from_numpy(given)]
    running = [client.async_infer(model, many) for _ in range(8)]
    answers["http async"] = checks.run("http async", {hexed(each.get_result(), output) for each in running}.pop)
    checks.run("http batch statistics", lambda: adds_up(client.get_inference_statistics(model)))
    checks.refused("http unknown model", lambda: client.infer("nope", many), "404")
    client.close()
    return answers


def over_grpc(checks: Checks, address: str, model: str, given: Any, names: tuple[str, str]) -> Answers:
    """Walk the synchronous gRPC client, its callbacks and its stream included."""
    keepalive = tg.KeepAliveOptions(keepalive_time_ms=15_000, keepalive_permit_without_calls=True)
    client = tg.InferenceServerClient(address, keepalive_options=keepalive)
    name, output = names
    inputs = [tg.InferInput(name, list(given.shape), "FP32").set_data_from_numpy(given)]
    answers: Answers = {}

    def infer(**options: Any) -> str:
        result = client.infer(model, inputs, request_id="42", **options)
        assert result.get_response().id == "42"
        return hexed(result, output)

    checks.run("grpc live", client.is_server_live)
    checks.run("grpc ready", client.is_server_ready)
    checks.run("grpc model ready", lambda: client.is_model_ready(model))
    checks.run("grpc unknown model not ready", lambda: not client.is_model_ready("nope"))
    checks.run("grpc server metadata", lambda: client.get_server_metadata(as_json=True)["extensions"])
    checks.run("grpc model metadata", lambda: client.get_model_metadata(model, as_json=True)["inputs"])
    checks.run("grpc model config", lambda: client.get_model_config(model, as_json=True)["config"]["max_batch_size"])
    checks.run("grpc statistics", lambda: client.get_inference_statistics(model).model_stats)
    checks.run("grpc index", lambda: client.get_model_repository_index().models)
    checks.run("grpc load of what is loaded", lambda: client.load_model(model) is None)
    checks.refused("grpc unload", lambda: client.unload_model(model), "PERMISSION_DENIED")
    answers["grpc"] = checks.run("grpc infer", infer)
    wanted = [tg.InferRequestedOutput(output)]
    answers["grpc output"] = checks.run("grpc requested output", lambda: infer(outputs=wanted, client_timeout=30))
    for algorithm in ("gzip", "deflate"):
        way = f"grpc {algorithm}"
        answers[way] = checks.run(way, partial(infer, compression_algorithm=algorithm))
    answers["grpc callback"] = checks.run("grpc callback", lambda: _by_callback(client, model, inputs, output))
    answers["grpc stream"] = checks.run("grpc stream", lambda: _by_stream(client, model, inputs, output))
    checks.run("grpc batch statistics", lambda: adds_up(client.get_inference_statistics(model, as_json=True)))
    checks.refused("grpc unknown model", lambda: client.infer("nope", inputs), "NOT_FOUND")
    checks.refused("grpc version", lambda: client.infer(model, inputs, model_version="999"), "NOT_FOUND")
    client.close()
    return answers


def _by_callback(client: Any, model: str, inputs: Any, output: str) -> str:
    results: queue.Queue[Any] = queue.Queue()
    for _ in range(8):
        client.async_infer(model, inputs, callback=lambda result, error: results.put(error or result))
    return {hexed(results.get(timeout=30), output) for _ in range(8)}.pop()


def _by_stream(client: Any, model: str, inputs: Any, output: str) -> str:
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: results.put(error or result))
    for number in range(8):
        named = "nope" if number == 3 else model
        client.async_stream_infer(named, inputs, request_id=str(number), enable_empty_final_response=True)
    found = [results.get(timeout=30) for _ in range(8)]
    client.stop_stream()
    assert isinstance(found[3], InferenceServerException), found[3]
    rest = [each for each in found if not isinstance(each, InferenceServerException)]
    assert [each.get_response().id for each in rest] == ["0", "1", "2", "4", "5", "6", "7"]
    assert rest[-1].get_response().parameters["triton_final_response"].bool_param
    return {hexed(each, output) for each in rest}.pop()


async def over_aio(http: str, grpc: str, model: str, given: Any, names: tuple[str, str]) -> Answers:
    """Ask once more with both asyncio clients."""
    name, output = names
    async with tha.InferenceServerClient(http) as client:
        entry = th.InferInput(name, list(given.shape), "FP32").set_data_from_numpy(given)
        by_http = hexed(await client.infer(model, [entry]), output)
    async with tga.InferenceServerClient(grpc) as caller:
        inputs = [tg.InferInput(name, list(given.shape), "FP32").set_data_from_numpy(given)]
        by_grpc = hexed(await caller.infer(model, inputs), output)
    return {"http aio": by_http, "grpc aio": by_grpc}


def main(http: str, grpc: str, model: str) -> int:
    """Run everything; return the exit status."""
    checks = Checks()
    with th.InferenceServerClient(http) as client:
        metadata = client.get_model_metadata(model)
    (entry,), output = metadata["inputs"], metadata["outputs"][0]["name"]
    shape = [2 if axis == 0 else max(size, 1) for axis, size in enumerate(entry["shape"])]
    given = np.random.default_rng(0).integers(-8, 8, shape).astype(np.float32)  # sums are exact in any order
    names = (entry["name"], output)
    answers = over_http(checks, http, model, given, names) | over_grpc(checks, grpc, model, given, names)
    answers |= checks.run("asyncio clients", lambda: asyncio.run(over_aio(http, grpc, model, given, names))) or {}
    first, *others = (np.frombuffer(bytes.fromhex(answer), np.float32) for answer in answers.values())
    # Questions of a stream may be joined, and a joined row is the lone one up to rounding.
    checks.run("every way gives the same answer", lambda: all(np.allclose(it, first, 1e-4, 1e-5) for it in others))
    checks.run("no thread is left", lambda: threading.active_count() < 8)
    print(json.dumps(answers))
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
