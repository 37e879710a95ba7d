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
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from agent.planning.methods import BLOCKSIZES, FOUR_BIT, METHODS, MIXED, NAMES, Method

if TYPE_CHECKING:
    from collections.abc import Sequence

DIALECT = "https://json-schema.org/draft/2020-12/schema"
IDENTITY = "urn:nibbled:sidecar:1"

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(min_length=1)]
MethodName = Annotated[str, Field(json_schema_extra={"enum": list(NAMES)})]
UniformName = Annotated[str, Field(json_schema_extra={"enum": list(METHODS)})]
BaseName = Annotated[str, Field(json_schema_extra={"enum": list(FOUR_BIT)})]
Blocksize = Annotated[int, Field(json_schema_extra={"enum": list(BLOCKSIZES)})]


def _rules_of_methods(schema: dict[str, Any]) -> None:
    """Add, for each method, what the other fields then are; a mix is described by its base."""
    schema["allOf"] = [
        *(_rule("method", method.name, {**_implied(method), "mixed": {"type": "null"}}) for method in METHODS.values()),
        _rule("method", MIXED, {"mixed": {"type": "object"}}, required=["mixed"]),
        *(_rule("mixed", {"base": name}, _implied(METHODS[name])) for name in FOUR_BIT),
    ]


def _rule(
    key: str, value: str | dict[str, str], implied: dict[str, JsonValue], required: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the other fields are where ``key`` is ``value`` or an object with those fields."""
    condition: dict[str, Any] = {"const": value}
    if isinstance(value, dict):
        fields = {name: {"const": field} for name, field in value.items()}
        condition = {"type": "object", "properties": fields, "required": list(fields)}
    return {
        "if": {"properties": {key: condition}, "required": [key]},
        "then": {"properties": implied, "required": list(required)},
    }


def _implied(method: Method) -> dict[str, JsonValue]:
    return {
        "bits": {"const": method.bits},
        "quant_type": {"const": method.quant_type},
        "double_quant": {"const": method.double_quant},
        "blocksize": {"type": "integer" if method.is_blockwise else "null"},
    }


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Dimension(_Closed):
    """An axis of any size, of which more is known."""

    axis: Annotated[int, Field(ge=0)]
    """Which one; its size in the shape is -1."""
    name: Text
    """Axes of one name have one size in a request, whichever inputs they belong to."""
    maximum: Annotated[int, Field(ge=1)] | None
    """Largest size that the model accepts, null without a bound."""


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
    dimensions: list[Dimension] = []
    """What is known of its axes of any size; absent where nothing is."""


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


class Trial(_Closed):
    """A mix that was built and judged."""

    upgraded: Count
    """How many tensors were above the base."""
    resident_bytes: Count
    """Bytes of weights and buffers in memory."""
    agreement: Share | None
    """As the gate measured it."""
    passes: bool
    """Whether the gate accepted it."""


class Sensitivity(_Closed):
    """How far the answers diverge when these tensors alone are rounded: KL in nats, of embeddings 1 - cosine."""

    tensors: list[Text]
    """Their names; several where a model has very many."""
    base: Annotated[float, Field(ge=0)] | None
    """Under the base, null if some answers were not finite."""
    int8: Annotated[float, Field(ge=0)] | None
    """Under int8, null as above."""


class Mixed(_Closed):
    """How the tensors of an artifact by `mixed` are stored, and how that was found."""

    base: BaseName
    """The 4-bit method of the tensors that were not raised."""
    budget_bytes: Count | None
    """Most bytes of weights and buffers that were allowed, null without a bound."""
    counts: dict[UniformName, Count]
    """Packed tensors by method."""
    bytes: dict[UniformName, Count]
    """Their bytes by method."""
    bits_per_weight: Annotated[float, Field(ge=0)]
    """Stored bits of a packed weight, on average."""
    trials: Annotated[list[Trial], Field(min_length=1)]
    """In the order in which they were made."""
    rows: Count
    """Rows that sensitivity was measured on, 0 if the base passed at once."""
    notes: list[Text]
    """What was found or could not be had."""
    sensitivity: list[Sensitivity]
    """What the order of the upgrades follows."""
    table: dict[str, UniformName]
    """The method of every packed tensor, by the name that the checkpoint has for it."""


class Tokenizer(_Closed):
    """The tokenizer's file, which lies beside the artifact."""

    file: Text
    """Its name."""
    sha256: Sha256
    """Its digest."""
    bytes: Count
    """Its length."""


class Generation(_Closed):
    """What a language model makes texts with."""

    tokenizer: Tokenizer
    """Text to ids and back."""
    eos_token_ids: list[Count]
    """Ids that end a text."""
    chat_template: str | None
    """The checkpoint's template for conversations, in Jinja; null if it came with none."""
    special_tokens: dict[str, Text]
    """Tokens that the template asks for by name."""


class Sidecar(_Closed):
    """The JSON beside a nibbled artifact: what it is, how it was made, and how it measured against its source."""

    model_config = ConfigDict(json_schema_extra=_rules_of_methods)

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """Version of this description."""
    model_type: Text
    """Name of the model type, which `agent.architectures.build` takes."""
    num_classes: Annotated[int, Field(ge=1)]
    """Rows of the last layer."""
    labels: list[Text] | None = None
    """What the classes are called, in order; null where the checkpoint does not say, absent in older sidecars."""
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
    """How weights are stored. Of `mixed` the next four describe the base."""
    mixed: Mixed | None = None
    """Which tensors of `mixed` are stored how; null or absent for other methods."""
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
    artifact_sha256: Sha256 | None = None
    """Digest of the artifact file, checked at every load; absent in older sidecars."""
    coverage: Share
    """Share of the float parameters and buffers that is packed."""
    skipped: list[SkippedWeight]
    """The weights that stayed as they were, largest first."""
    skipped_count: Count
    """How many stayed."""
    notes: list[Text]
    """What was assumed, undone or lost."""
    resident_bytes: Count
    """Bytes of weights and buffers that the loaded model keeps in memory."""
    working_bytes: Count | None = None
    """What a full batch took on top for a moment; null where the system does not tell."""
    gate: Gate
    """What was measured."""
    generation: Generation | None = None
    """What a language model makes texts with; null for one without a usable tokenizer, absent for other types."""
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
