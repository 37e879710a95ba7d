"""What a sidecar holds, as one definition: the JSON Schema (2020-12) beside this file is printed from it.

    python -m agent.quantization.schema > agent/quantization/sidecar.schema.json

Rules:
- It describes a finished artifact, gate included; keys that it does not name are refused, so that it cannot lag behind
  what the builder writes without a test failing.
- What follows from the method (bits, codebook, blocks) is taken from the method table.
- It is a description for others' programs. Loading does not run through it: an artifact is checked against its model.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from agent.planning.methods import BLOCKSIZES, METHODS, Method

DIALECT = "https://json-schema.org/draft/2020-12/schema"
IDENTITY = "urn:nibbled:sidecar:1"

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(min_length=1)]
MethodName = Annotated[str, Field(json_schema_extra={"enum": list(METHODS)})]
Blocksize = Annotated[int, Field(json_schema_extra={"enum": list(BLOCKSIZES)})]


def _rules_of_methods(schema: dict[str, Any]) -> None:
    """Add, for each method, what the other fields then are."""
    schema["allOf"] = [
        {
            "if": {"properties": {"method": {"const": method.name}}, "required": ["method"]},
            "then": {"properties": _implied(method)},
        }
        for method in METHODS.values()
    ]


def _implied(method: Method) -> dict[str, JsonValue]:
    return {
        "bits": {"const": method.bits},
        "quant_type": {"const": method.quant_type},
        "double_quant": {"const": method.double_quant},
        "blocksize": {"type": "integer" if method.is_blockwise else "null"},
    }


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Tensor(_Closed):
    """An input or output in the terms of the Open Inference Protocol."""

    name: Text
    """The tensor's name."""
    datatype: Literal["BOOL", "FP16", "FP32", "FP64", "INT32", "INT64"]
    """Its element type."""
    shape: list[Annotated[int, Field(ge=-1)]]
    """Batch first; -1 stands for any size."""
    minimum: int | None
    """Smallest value that the model accepts, null without a bound."""
    maximum: int | None
    """Largest value that the model accepts, null without a bound."""


class ComputeDtype(_Closed):
    """The float type that unpacked weights are multiplied in, per kind of device."""

    cpu: Text
    """On a CPU."""
    cuda: Text
    """On an NVIDIA GPU; which of two, its generation decides."""


class Versions(_Closed):
    """The versions that wrote the artifact."""

    nibbled: Text
    """This product."""
    python: Text
    """The interpreter."""
    torch: Text
    """PyTorch."""
    bitsandbytes: Text | None
    """bitsandbytes, null where torch alone made the codes."""


class SkippedWeight(_Closed):
    """A weight that stayed as it was."""

    name: Text
    """Its name in the checkpoint."""
    numel: Count
    """Its number of elements."""
    reason: Text
    """Why it was not packed."""


class Latency(_Closed):
    """Time of one row in milliseconds, nearest rank."""

    p50: Milliseconds
    """Half of the calls were as fast."""
    p99: Milliseconds
    """99 of 100 calls were as fast."""


class Gate(_Closed):
    """The artifact measured against its source on the same rows."""

    rows: Annotated[int, Field(ge=1)]
    """How many rows."""
    inputs: Literal["dataset", "synthetic"]
    """Whether they were given or made."""
    answer: Literal["classes", "embedding"] = "classes"
    """What a row of logits is; it decides what agreement means."""
    agreement: Share | None
    """Share of rows with the same top class, of embeddings the same nearest row; null for fewer than 3 of those."""
    cosine: Annotated[float, Field(ge=-1.001, le=1.001)] | None
    """Mean cosine between rows of logits, rounding included; null if no row is finite on both sides."""
    kl: Annotated[float, Field(ge=0)] | None
    """Mean divergence KL(source || artifact) in nats; null as above, and for embeddings."""
    accuracy_source: Share | None
    """Share of right answers at source precision, null without labels and for embeddings."""
    accuracy: Share | None
    """Share of right answers of the artifact, null without labels and for embeddings."""
    non_finite: Count
    """Rows in which the artifact answered NaN or infinity."""
    latency_ms: Latency
    """Of the artifact."""
    source_latency_ms: Latency
    """Of the source precision."""


class Sidecar(_Closed):
    """The JSON beside a nibbled artifact: what it is, how it was made, and how it measured against its source."""

    model_config = ConfigDict(json_schema_extra=_rules_of_methods)

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """Version of this description."""
    model_type: Text
    """Name of the model type, which `agent.architectures.build` takes."""
    num_classes: Annotated[int, Field(ge=1)]
    """Rows of the last layer."""
    options: dict[str, JsonValue]
    """Options of the model type."""
    unused: list[Text]
    """Tensors of the checkpoint that the forward pass never reads; the artifact leaves them out."""
    batchable: bool
    """Whether a row's answer is independent of the other rows of its batch."""
    inputs: Annotated[list[Tensor], Field(min_length=1)]
    """In the order that the model takes them."""
    outputs: Annotated[list[Tensor], Field(min_length=1)]
    """The first is the logits."""
    method: MethodName
    """How weights are stored."""
    quant_type: Literal["nf4", "fp4"] | None
    """The 4-bit codebook, null for other methods."""
    bits: Literal[4, 8, 16, 32]
    """Bits of one stored code or float."""
    blocksize: Blocksize | None
    """Weights that share a scale, null for float methods."""
    double_quant: bool
    """Whether the scales are quantized too."""
    compute_dtype: ComputeDtype
    """What unpacked weights are multiplied in."""
    versions: Versions
    """What wrote the artifact."""
    source_sha256: Sha256
    """Digest of the checkpoint file."""
    source_bytes: Count
    """Bytes of the checkpoint file."""
    source_tensor_bytes: Count
    """Bytes of the used tensors as the checkpoint holds them."""
    artifact_bytes: Count
    """Bytes of the artifact file."""
    coverage: Share
    """Share of the float parameters and buffers that is packed."""
    skipped: list[SkippedWeight]
    """The largest weights that stayed as they were."""
    skipped_count: Count
    """How many stayed, listed or not."""
    notes: list[Text]
    """What was assumed, undone or lost."""
    resident_bytes: Count
    """Bytes of weights and buffers that the loaded model keeps in memory."""
    working_bytes: Count | None = None
    """What a full batch took on top for a moment; null where the system does not tell."""
    gate: Gate
    """What was measured."""
    decision: dict[str, JsonValue] | None = None
    """Why the device built it: scenario, rule, budget and candidates of the plan; null where nobody planned."""


def json_schema() -> dict[str, Any]:
    """Return the schema as JSON Schema, dialect 2020-12."""
    return {"$schema": DIALECT, "$id": IDENTITY, **Sidecar.model_json_schema()}


def text() -> str:
    """Return the schema as the published file has it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201 - this module's command line prints the file
