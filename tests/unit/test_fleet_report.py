"""What many devices measured, aggregated: every number checked against figures that were given."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.fleet.figures import FIGURES, Spread, by_method, by_row, csv_rows, samples, spread
from agent.fleet.report import WIDTH, lines, plot, to_json
from agent.fleet.view import Device, FleetView
from tests.fakes import fleet

KIB = 1024
ORIN, THOR = "NVIDIA Jetson Orin Nano", "NVIDIA Jetson AGX Thor"


def decision(scenario: str, planned: str, p50: float | None, weights: float | None, peak: float) -> dict[str, Any]:
    canary = {"latency_ms": {"p50": p50}} if p50 is not None else None
    errors = {"weights": weights, "process_peak": peak}
    return {"scenario": scenario, "planned": planned, "measured": {"canary": canary}, "estimate_error": errors}


def box(hardware: str | None, method: str, agreement: float, kib: int, told: dict[str, Any] | None, **more: Any) -> Any:
    served = fleet.model(method=method, agreement=agreement, resident_bytes=kib * KIB, decision=told, **more)
    capabilities = fleet.capabilities(hardware=hardware)
    return {"presence": fleet.presence(), "reported": fleet.reported({"kanji": served}), "capabilities": capabilities}


BOXES = {
    "o-1": box(ORIN, "nf4", 0.98, 600, decision("edge", "nf4", 4.0, 0.01, 0.10)),
    "o-2": box(ORIN, "nf4", 0.96, 600, decision("edge", "nf4", 6.0, 0.03, -0.05)),
    "o-3": box(ORIN, "nf4", 1.00, 600, decision("edge", "nf4", 5.0, None, 0.0)),
    "o-4": box(ORIN, "int8", 0.99, 1200, decision("edge", "nf4", 9.0, 0.0, 0.2)),
    "t-1": box(THOR, "nf4", 0.94, 600, decision("quality", "nf4", 1.0, 0.0, 0.0)),
    "t-2": box(THOR, "fp16", 1.00, 2400, decision("quality", "fp16", 2.0, 0.0, 0.0), chosen_by="operator"),
    "x-1": box(None, "nf4", 0.90, 600, None),
}


def devices(boxes: dict[str, Any] = BOXES) -> list[Device]:
    view = FleetView(fleet.PREFIX)
    for name, kinds in boxes.items():
        for topic, payload in fleet.said(name, kinds):
            view.take(topic, payload, 0.0)
    return list(view)


def test_a_figure_is_spread_over_those_who_have_it() -> None:
    assert spread([0.98, None, 0.96, 1.0]) == Spread(3, 0.96, 0.98, 1.0)
    assert spread([4.0, 6.0]) == Spread(2, 4.0, 5.0, 6.0)
    assert spread([None]) is None


def test_what_was_measured_is_aggregated_by_hardware_type_and_method() -> None:
    groups = {tuple(group.key.values()): group for group in by_method(samples(devices()))}
    assert list(groups) == [
        (THOR, "cnn", "fp16"),
        (THOR, "cnn", "nf4"),
        (ORIN, "cnn", "int8"),
        (ORIN, "cnn", "nf4"),
        ("unknown", "cnn", "nf4"),
    ]
    orin = groups[ORIN, "cnn", "nf4"]
    assert (orin.devices, orin.models, orin.kept, orin.overruled) == (3, 3, 3, 0)
    assert orin.figures == {
        "agreement": Spread(3, 0.96, 0.98, 1.0),
        "accuracy": Spread(3, 0.97, 0.97, 0.97),
        "latency_p50_ms": Spread(3, 4.0, 5.0, 6.0),
        "resident_bytes": Spread(3, 600 * KIB, 600 * KIB, 600 * KIB),
        "weights_error": Spread(2, 0.01, 0.02, 0.03),
        "peak_error": Spread(3, -0.05, 0.0, 0.10),
    }
    assert set(groups["unknown", "cnn", "nf4"].figures) == {"agreement", "accuracy", "resident_bytes"}


def test_a_row_of_the_matrix_holds_where_measurement_kept_what_it_asked_for() -> None:
    rows = [(group.key, group.models, group.kept, group.overruled) for group in by_row(samples(devices()))]
    assert rows == [
        ({"scenario": "edge", "planned": "nf4"}, 4, 3, 1),
        ({"scenario": "quality", "planned": "nf4"}, 1, 1, 0),  # what the operator chose is no word on the row
    ]


def test_programs_get_every_figure_of_every_group() -> None:
    told = json.loads(json.dumps(to_json(devices())))
    assert (told["devices"], told["models"], told["without_record"]) == (7, 7, 1)
    assert told["by_method"][2] == {
        "hardware": ORIN, "model_type": "cnn", "method": "int8", "devices": 1, "models": 1, "kept": 0, "overruled": 1,
        "figures": {
            "agreement": {"count": 1, "min": 0.99, "median": 0.99, "max": 0.99},
            "accuracy": {"count": 1, "min": 0.97, "median": 0.97, "max": 0.97},
            "latency_p50_ms": {"count": 1, "min": 9.0, "median": 9.0, "max": 9.0},
            "resident_bytes": {"count": 1, "min": 1200 * KIB, "median": 1200 * KIB, "max": 1200 * KIB},
            "weights_error": {"count": 1, "min": 0.0, "median": 0.0, "max": 0.0},
            "peak_error": {"count": 1, "min": 0.2, "median": 0.2, "max": 0.2},
        },
    }  # fmt: skip
    assert told["by_method"][4]["figures"]["latency_p50_ms"] is None
    assert [row["scenario"] for row in told["by_row"]] == ["edge", "quality"]


def test_people_get_two_tables() -> None:
    found = [" ".join(line.split()) for line in lines(devices())]
    assert found[0] == "7 devices, 7 models, 1 of them without a decision record; median (least … most)"
    assert (
        f"{ORIN} cnn nf4 3 98.0% (96.0% … 100.0%) 97.0% 5.0 ms (4.0 ms … 6.0 ms) 600 KiB "
        "+2.0% (+1.0% … +3.0%) +0.0% (-5.0% … +10.0%)"
    ) in found
    assert "unknown cnn nf4 1 90.0% 97.0% - 600 KiB - -" in found
    assert (
        "edge nf4 3 1 75% 98.5% (96.0% … 100.0%) 97.0% 5.5 ms (4.0 ms … 9.0 ms) 600 KiB (600 KiB … 1.2 MiB) "
        "+1.0% (+0.0% … +3.0%) +5.0% (-5.0% … +20.0%)"
    ) in found


def test_a_plot_has_all_groups_on_one_scale() -> None:
    head, thor_fp16, thor_nf4, orin_int8, orin_nf4 = plot(by_method(samples(devices())), "latency_p50_ms")
    assert head == "p50, 1.0 ms to 9.0 ms"
    for line, label in ((thor_nf4, f"{THOR} cnn nf4"), (orin_int8, f"{ORIN} cnn int8"), (thor_fp16, "fp16")):
        assert label in line
    begin = thor_nf4.index("●")
    bars = [line[begin : begin + WIDTH] for line in (thor_nf4, thor_fp16, orin_nf4, orin_int8)]
    assert [bar.index("●") for bar in bars] == [0, 6, 24, 47]  # (value - 1) / 8 of 47
    assert bars[2].strip() == "─" * 6 + "●" + "─" * 5
    assert orin_nf4.endswith("  5.0 ms, 3")
    assert list(plot([], "agreement")) == ["agreement: nobody measured it"]


def test_what_differs_in_digits_that_are_not_shown_is_drawn_at_one_place() -> None:
    close = {
        "a": box(ORIN, "nf4", 0.98, 600, decision("edge", "nf4", 2.68, 0.0, 0.0)),
        "b": box(ORIN, "int8", 0.98, 600, decision("edge", "nf4", 2.73, 0.0, 0.0)),
    }
    head, *bars = plot(by_method(samples(devices(close))), "latency_p50_ms")
    assert head == "p50, 2.7 ms to 2.7 ms"
    assert len({bar.index("●") for bar in bars}) == 1


def test_a_terminal_of_80_columns_gets_lines_that_fit() -> None:
    assert max(map(len, lines(devices(), tuple(FIGURES)))) > 80
    found = list(lines(devices(), tuple(FIGURES), 80))
    assert max(map(len, found)) <= 80
    at = found.index(f"hardware {ORIN}, type cnn, method nf4")
    assert found[at + 1 : at + 5] == [
        "  devices              3",
        "  agreement            98.0% (96.0% … 100.0%)",
        "  accuracy             97.0%",
        "  p50                  5.0 ms (4.0 ms … 6.0 ms)",
    ]
    assert found[found.index("row edge, planned nf4") + 3] == "  holds                75%"
    narrow = list(plot(by_method(samples(devices())), "latency_p50_ms", 40))
    assert (f"{ORIN} cnn nf4" in narrow, max(map(len, narrow))) == (True, 40)


def test_every_sample_is_a_line_of_the_file() -> None:
    head, first, *others = csv_rows(samples(devices()))
    assert (len(others), set(map(len, others))) == (6, {len(head)})
    assert dict(zip(head, first, strict=True))["latency_p50_ms"] == "4.0"
    assert dict(zip(head, others[-1], strict=True))["scenario"] == ""
    assert set(FIGURES) < set(head)


@pytest.mark.parametrize(
    "nonsense", [3, "text", [], {"measured": 1, "estimate_error": [2]}, {"measured": {"canary": 1}}]
)
def test_a_record_that_is_none_leaves_its_figures_out(nonsense: Any) -> None:
    (found,) = samples(devices({"box": box(None, "nf4", 0.5, 1, nonsense)}))
    assert (found.latency_p50_ms, found.weights_error, found.agreement) == (None, None, 0.5)


def test_the_gpu_or_the_board_in_health_names_the_hardware_of_an_agent_that_does_not() -> None:
    told = box(None, "nf4", 0.5, 1, None)
    gpu = {**told, "capabilities": fleet.capabilities(versions={"cuda": {"name": "NVIDIA L4"}})}
    assert samples(devices({"box": gpu}))[0].hardware == "NVIDIA L4"
    board = {**gpu, "health": fleet.health(device={"board": {"model": ORIN}})}
    assert samples(devices({"box": board}))[0].hardware == ORIN


def test_a_fleet_that_serves_nothing_is_a_line() -> None:
    assert list(lines(devices({"box": {"presence": fleet.presence()}}))) == [
        "1 device, 0 models; median (least … most)"
    ]
