"""Which counters are exposed, and under which names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.serving.exposition import Family, Labels, expose
from agent.serving.generation.stats import families
from agent.serving.memory import rss_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.serving.dataplane import DataPlane
    from agent.serving.slots import Slot
    from agent.serving.stats import Histogram
    from agent.serving.waiting import WaitingRoom

PREFIX = "nibbled_inference"


def render(plane: DataPlane, responses: Mapping[int, int]) -> bytes:
    """Return the metrics of the whole process; ``responses`` counts HTTP replies by status."""
    slots = {_labels(slot): slot for _model, slot in plane.models.slots()}

    def each(
        name: str, kind: str, text: str, read: Callable[[Slot], float | Histogram], prefix: str = PREFIX
    ) -> Family:
        return Family(f"{prefix}_{name}", kind, text, {labels: read(slot) for labels, slot in slots.items()})

    rooms: dict[Labels, WaitingRoom] = {(("model", model.name),): model.room for model in plane.models}

    def of_rooms(name: str, kind: str, text: str, read: Callable[[WaitingRoom], float]) -> Family:
        return Family(f"{PREFIX}_{name}", kind, text, {labels: read(room) for labels, room in rooms.items()})

    outcomes = {
        (*labels, ("outcome", outcome)): count
        for labels, slot in slots.items()
        for outcome, count in slot.stats.outcomes.items()
    }
    return expose(
        [
            Family(f"{PREFIX}_requests_total", "counter", "Requests by how they ended.", outcomes),
            each("rows_total", "counter", "Rows answered.", lambda slot: slot.stats.inferences),
            each("executions_total", "counter", "Forward passes.", lambda slot: slot.stats.executions),
            each("non_finite_total", "counter", "Answers with NaN or infinity.", lambda slot: slot.stats.non_finite),
            each("request_duration_seconds", "histogram", "From arrival to answer.", lambda slot: slot.stats.request),
            each("queue_duration_seconds", "histogram", "Waiting for the model.", lambda slot: slot.stats.queue),
            each("compute_duration_seconds", "histogram", "Computing the batch.", lambda slot: slot.stats.compute),
            each("compute_input_seconds_total", "counter", "Joining inputs.", lambda slot: slot.stats.input_s),
            each("compute_infer_seconds_total", "counter", "Forward passes.", lambda slot: slot.stats.infer_s),
            each("compute_output_seconds_total", "counter", "Splitting outputs.", lambda slot: slot.stats.output_s),
            each("batch_rows", "histogram", "Rows of each forward pass.", lambda slot: slot.stats.batch_rows),
            each("in_flight", "gauge", "Requests that hold the release.", lambda slot: slot.in_flight),
            each("resident_bytes", "gauge", "Weights.", lambda slot: slot.network.resident_bytes, "nibbled_model"),
            *families({labels: slot.generated for labels, slot in slots.items() if slot.network.text is not None}),
            each(
                "unpacked_bytes", "gauge", "Kept unpacked.", lambda slot: slot.network.unpacked_bytes, "nibbled_model"
            ),
            Family("nibbled_model_active", "gauge", "Whether the release answers.", _active(plane)),
            Family("nibbled_inference_queue_length", "gauge", "Requests that wait.", _queues(plane)),
            of_rooms("waiting", "gauge", "Requests that wait for a switch.", len),
            of_rooms("held_total", "counter", "Requests that have waited for a switch.", lambda room: room.held),
            of_rooms("held_expired_total", "counter", "Those that waited too long.", lambda room: room.expired),
            of_rooms("held_canceled_total", "counter", "Those whose client left.", lambda room: room.canceled),
            of_rooms("shed_total", "counter", "Requests refused as too many waited.", lambda room: room.shed),
            Family("nibbled_model_gap_seconds", "gauge", "Last or running time without an answer.", _gaps(plane)),
            Family("nibbled_http_responses_total", "counter", "HTTP replies by status.", _statuses(responses)),
            Family("nibbled_grpc_responses_total", "counter", "gRPC calls by status.", _codes(plane)),
            Family("nibbled_server_resident_memory_bytes", "gauge", "Resident set of the server.", {(): rss_bytes()}),
        ]
    )


def _labels(slot: Slot) -> Labels:
    return (("model", slot.model), ("version", slot.version), ("release", slot.release))


def _active(plane: DataPlane) -> dict[Labels, float]:
    return {_labels(slot): int(slot is model.active) for model, slot in plane.models.slots()}


def _queues(plane: DataPlane) -> dict[Labels, float]:
    return {(("model", model.name),): len(model.batcher) for model in plane.models}


def _gaps(plane: DataPlane) -> dict[Labels, float]:
    gaps = {model.name: model.room.gap_ms or model.room.last_gap_ms for model in plane.models}
    return {(("model", name),): gap_ms / 1e3 for name, gap_ms in gaps.items() if gap_ms is not None}


def _statuses(responses: Mapping[int, int]) -> dict[Labels, float]:
    return {(("code", str(status)),): count for status, count in sorted(responses.items())}


def _codes(plane: DataPlane) -> dict[Labels, float]:
    return {(("code", code),): count for code, count in sorted(plane.rpc_codes.items())}
