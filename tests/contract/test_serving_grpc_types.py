"""One input, every protocol and form: the same bits, for every built-in model type."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from agent import architectures
from agent.serving.network import TorchNetwork

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")

from agent.serving.grpc import inference_pb2 as pb  # noqa: E402 - only with the extra
from agent.serving.grpc.codec import CONTENTS  # noqa: E402
from agent.serving.tensors import DATATYPES  # noqa: E402
from tests.fakes.grpc_client import grpc_harness  # noqa: E402
from tests.fakes.serving import run  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 3


def network_of(model_type: str) -> tuple[TorchNetwork, dict[str, Any]]:
    """Return a randomly initialised model of a type, and its inputs."""
    torch.manual_seed(0)
    inputs = architectures.input_specs(model_type, {})
    examples = architectures.synthetic_inputs(model_type, {}, ROWS, 0)
    arrays = {spec.name: examples[spec.name].numpy() for spec in inputs}
    sidecar = {
        "model_type": model_type,
        "method": "fp32",
        "inputs": [asdict(spec) for spec in inputs],
        "outputs": [asdict(spec) for spec in architectures.output_specs(model_type, 7)],
        "batchable": architectures.is_batchable(model_type),
    }
    return TorchNetwork(architectures.build(model_type, 7), sidecar, 0, list(arrays.values())), arrays


@pytest.mark.parametrize("model_type", architectures.names())
def test_json_binary_and_grpc_raw_and_typed_give_the_same_bits(model_type: str, tmp_path: Path) -> None:
    network, arrays = network_of(model_type)
    entries = [
        {"name": spec.name, "datatype": spec.datatype, "shape": list(arrays[spec.name].shape)}
        for spec in network.inputs
    ]
    raws = [arrays[spec.name].astype(DATATYPES[spec.datatype]) for spec in network.inputs]

    async def scenario() -> None:
        async with grpc_harness(tmp_path) as it:
            await it.base.serve("m", network)
            plain = {
                "inputs": [{**entry, "data": raw.ravel().tolist()} for entry, raw in zip(entries, raws, strict=True)]
            }
            by_json = (await it.base.data.post("/v2/models/m/infer", json=plain)).json()["outputs"]
            header = json.dumps(
                {
                    "parameters": {"binary_data_output": True},
                    "inputs": [
                        {**entry, "parameters": {"binary_data_size": raw.nbytes}}
                        for entry, raw in zip(entries, raws, strict=True)
                    ],
                }
            ).encode()
            reply = await it.base.data.post(
                "/v2/models/m/infer",
                content=b"".join([header, *(raw.tobytes() for raw in raws)]),
                headers={"Inference-Header-Content-Length": str(len(header))},
            )
            raw_request, typed_request = (pb.ModelInferRequest(model_name="m") for _ in "12")
            for entry, raw in zip(entries, raws, strict=True):
                raw_request.inputs.add(**entry)
                raw_request.raw_input_contents.append(raw.tobytes())
                contents = typed_request.inputs.add(**entry).contents
                getattr(contents, CONTENTS[str(entry["datatype"])]).extend(raw.ravel().tolist())
            by_raw, by_typed = await it.infer(raw_request), await it.infer(typed_request)
        bits = b"".join(by_raw.raw_output_contents)
        assert b"".join(by_typed.raw_output_contents) == bits
        assert reply.content[int(reply.headers["inference-header-content-length"]) :] == bits
        from_json = [np.array(each["data"], DATATYPES[each["datatype"]]).tobytes() for each in by_json]
        assert b"".join(from_json) == bits

    run(scenario)
