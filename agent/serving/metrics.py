"""Which counters are exposed, and under which names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.serving.exposition import Family, Labels, expose
from agent.serving.generation.stats import families
from agent.serving.memory import rss_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.serving.dataplane import DataPlane
    from agent.serving.ledger import Entry
    from agent.serving.slots import Slot
    from agent.serving.stats import Histogram, Stats
    from agent.serving.waiting import WaitingRoom

PREFIX = "nibbled_inference"


def render(plane: DataPlane, responses: Mapping[int, int]) -> bytes:
    """Return the metrics of the whole process; ``responses`` counts HTTP replies by status."""
    slots = {_labels(slot): slot for _model, slot in plane.models.slots()}
    # Of a model that is gone nothing is told; should it come back, it goes on from there.
    counted = {
        (("model", model), ("version", version), ("release", release)): entry
        for (model, version, release), entry in plane.models.ledger.entries().items()
        if plane.models.find(model) is not None
    }

    def of_all(name: str, kind: str, text: str, read: Callable[[Stats], float | Histogram]) -> Family:
        return Family(f"{PREFIX}_{name}", kind, text, {labels: read(entry.stats) for labels, entry in counted.items()})

    def each(
        name: str, kind: str, text: str, read: Callable[[Slot], float | Histogram], prefix: str = PREFIX
    ) -> Family:
        return Family(f"{prefix}_{name}", kind, text, {labels: read(slot) for labels, slot in slots.items()})

    rooms: dict[Labels, WaitingRoom] = {(("model", model.name),): model.room for model in plane.models}

    def of_rooms(name: str, kind: str, text: str, read: Callable[[WaitingRoom], float]) -> Family:
        return Family(f"{PREFIX}_{name}", kind, text, {labels: read(room) for labels, room in rooms.items()})

    outcomes: dict[Labels, float] = {
        (*labels, ("outcome", outcome)): count
        for labels, entry in counted.items()
        for outcome, count in entry.stats.outcomes.items()
    }
    return expose(
        [
            Family(f"{PREFIX}_requests_total", "counter", "Requests by how they ended.", outcomes),
            of_all("rows_total", "counter", "Rows answered.", lambda stats: stats.inferences),
            of_all("executions_total", "counter", "Forward passes.", lambda stats: stats.executions),
            of_all("non_finite_total", "counter", "Answers with NaN or infinity.", lambda stats: stats.non_finite),
            of_all("request_duration_seconds", "histogram", "From arrival to answer.", lambda stats: stats.request),
            of_all("queue_duration_seconds", "histogram", "Waiting for the model.", lambda stats: stats.queue),
            of_all("compute_duration_seconds", "histogram", "Computing the batch.", lambda stats: stats.compute),
            of_all("compute_input_seconds_total", "counter", "Joining inputs.", lambda stats: stats.input_s),
            of_all("compute_infer_seconds_total", "counter", "Forward passes.", lambda stats: stats.infer_s),
            of_all("compute_output_seconds_total", "counter", "Splitting outputs.", lambda stats: stats.output_s),
            of_all("batch_rows", "histogram", "Rows of each forward pass.", lambda stats: stats.batch_rows),
            each("in_flight", "gauge", "Requests that hold the release.", lambda slot: slot.in_flight),
            each("resident_bytes", "gauge", "Weights.", lambda slot: slot.network.resident_bytes, "nibbled_model"),
            *families(
                {labels: entry.generated for labels, entry in counted.items() if _writes(slots.get(labels), entry)}
            ),
            each(
                "unpacked_bytes", "gauge", "Kept unpacked.", lambda slot: slot.network.unpacked_bytes, "nibbled_model"
            ),
            Family("nibbled_model_active", "gauge", "Whether the release answers.", _active(plane)),
            Family("nibbled_inference_queue_length", "gauge", "Requests that wait.", _queues(plane)),
            of_rooms("waiting", "gauge", "Requests that wait for a switch.", len),
            of_rooms("held_total", "counter", "Requests that have waited for a switch.", lambda room: room.held),
            of_rooms("held_expired_total", "counter", "Those that waited too long.", lambda room: room.expired),
            of_rooms("held_canceled_total", "counter", "Those whose client left.", lambda room: room.canceled),
            Family(
                f"{PREFIX}_shed_total",
                "counter",
                "Requests refused as too many waited, in the queue or for a switch.",
                {(("model", model.name),): model.batcher.shed + model.room.shed for model in plane.models},
            ),
            Family("nibbled_model_gap_seconds", "gauge", "Last or running time without an answer.", _gaps(plane)),
            Family("nibbled_http_responses_total", "counter", "HTTP replies by status.", _statuses(responses)),
            Family("nibbled_grpc_responses_total", "counter", "gRPC calls by status.", _codes(plane)),
            Family("nibbled_server_resident_memory_bytes", "gauge", "Resident set of the server.", {(): rss_bytes()}),
        ]
    )


def _writes(slot: Slot | None, entry: Entry) -> bool:
    """Return whether texts of a release are told: it makes some, or did before it was unloaded."""
    return entry.generated.steps > 0 if slot is None else slot.network.text is not None


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
