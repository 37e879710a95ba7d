"""What many devices said, put together: the view, its rows, and what is sorted to the top."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from rich.console import Console

from agent.contract.topics import FleetTopics
from agent.fleet.fitting import cut, fitted
from agent.fleet.rows import HEAD, described, rows, summary, table
from agent.fleet.screen import Screen, coloured, lines_of, lost_line
from agent.fleet.view import STALE_S, Device, FleetView
from agent.fleet.words import health_lines, status_lines
from tests.fakes import fleet

NOW_S = 1000.0


def seen(**devices: dict[str, Any]) -> FleetView:
    view = FleetView(fleet.PREFIX)
    for name, kinds in devices.items():
        for topic, payload in fleet.said(name, kinds):
            view.take(topic, payload, NOW_S)
    return view


def one(**kinds: Any) -> Device:
    return seen(box=kinds).device("box")


@pytest.mark.parametrize(
    ("topic", "parsed"),
    [
        ("edge/v1/box-1/presence", ("box-1", "presence")),
        ("edge/v1/box-1/op/d-1", ("box-1", "op/d-1")),
        ("edge/v1/_group/lab/desired", None),
        ("edge/v1/box-1", None),
        ("edge/v1/a b/presence", None),
        ("other/v1/box-1/presence", None),
        ("edge/v10/box-1/presence", None),
    ],
)
def test_a_topic_tells_whose_it_is(topic: str, parsed: tuple[str, str] | None) -> None:
    assert FleetTopics("edge/v1").parse(topic) == parsed
    assert FleetTopics("edge/v1").every("op/+") == FleetTopics("edge/v1").operations == "edge/v1/+/op/+"


def test_a_prefix_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 1-4 non-empty levels"):
        FleetTopics("edge/#")


def test_a_device_that_talks_nonsense_is_counted_and_hides_nothing() -> None:
    view = seen(good={"presence": fleet.presence(), "reported": fleet.reported()}, bad={"presence": fleet.presence()})
    deep = b'{"schema": 1, "a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    half = b'{"schema": 1, "a": "\\ud800"}'  # what nobody could pass on as UTF-8
    for payload in (b"{", b"[1]", b'{"schema": 2}', b"\xff", deep, half):
        view.take("edge/v1/bad/reported", payload, NOW_S)
    assert view.device("bad").unreadable == 6
    assert [row.cells()[:3] for device in view for row in rows(device, NOW_S)] == [
        ("bad", "online", "-"),
        ("good", "online", "kanji"),
    ]
    view.take("edge/v1/bad/reported", b'{"schema": 1, "models": [1], "memory": 3}', NOW_S)
    assert [row.model for row in rows(view.device("bad"), NOW_S)] == [None]


def test_a_cleared_topic_takes_back_what_was_said() -> None:
    view = seen(box={"presence": fleet.presence(), "op/d-1": {"schema": 1, "id": "d-1", "state": "running"}})
    assert set(view.device("box").operations) == {"d-1"}
    view.take("edge/v1/box/op/d-1", b"", NOW_S)
    view.take("edge/v1/box/presence", b"", NOW_S)
    assert (view.device("box").presence, view.device("box").operations) == ("unknown", {})
    assert view.gaps(["presence", "reported"]) == [("box", "presence"), ("box", "reported")]


def test_health_counts_until_it_is_old_and_of_nobody_who_is_away() -> None:
    device = one(presence=fleet.presence(), health=fleet.health("degraded"))
    assert (device.health(NOW_S + STALE_S - 1) or {})["status"] == "degraded"
    assert device.health(NOW_S + STALE_S) is None
    assert one(presence=fleet.presence("offline"), health=fleet.health()).health(NOW_S) is None


def test_the_rows_are_the_models_by_name_with_what_they_take() -> None:
    models = {"kanji": fleet.model(), "digits": fleet.model(method="int8", agreement=None, resident_bytes=None)}
    device = one(presence=fleet.presence(), reported=fleet.reported(models), health=fleet.health())
    assert [row.cells() for row in rows(device, NOW_S)] == [
        ("box", "online", "digits", "1", "int8", "-", "3.0 GiB", "-", "ok", ""),
        ("box", "online", "kanji", "1", "nf4", "2.0 MiB", "3.0 GiB", "99.0%", "ok", ""),
    ]


@pytest.mark.parametrize(
    ("kinds", "what"),
    [
        ({"presence": fleet.presence("offline")}, "it was cut off"),
        ({"presence": fleet.presence("offline", reason="shutdown")}, "shutdown"),
        ({"health": fleet.health("failing", reasons=["kanji: no answer", "clock"])}, "kanji: no answer"),
        ({"health": fleet.health(operations=[{"id": "d-1", "state": "running", "phase": "building"}])}, "d-1 building"),
        ({"presence": b"nonsense"}, "1 unreadable messages"),
        ({"health": fleet.health("degraded", reasons=["\x1b[2Jgone\n"])}, "\ufffd[2Jgone\ufffd"),
    ],
)
def test_a_row_says_the_most_telling_thing_and_no_control_characters(kinds: dict[str, Any], what: str) -> None:
    assert rows(one(**kinds), NOW_S)[0].cells()[-1] == what


def test_programs_get_one_object_per_device() -> None:
    device = one(presence=fleet.presence(), reported=fleet.reported(generation=7), health=fleet.health())
    told = json.loads(json.dumps(described(device, NOW_S)))
    assert told["models"]["kanji"]["method"] == "nf4"
    assert "decision" not in told["models"]["kanji"]
    assert (told["presence"], told["generation"], told["health"]) == ("online", 7, {"status": "ok", "reasons": []})
    assert described(Device("never"), NOW_S)["health"] is None


FLEET: dict[str, dict[str, Any]] = {
    "a": {"presence": fleet.presence(), "reported": fleet.reported(), "health": fleet.health()},
    "b": {"presence": fleet.presence("offline"), "reported": fleet.reported()},
    "c": {"presence": fleet.presence(), "health": fleet.health("failing", reasons=["no model"])},
    "d": {"presence": fleet.presence(), "health": fleet.health("degraded", reasons=["[red]clock"])},
    "e": {"presence": fleet.presence()},
    "f": {"reported": fleet.reported({"kanji": fleet.model(method="int8")})},
}


def test_the_summary_counts_what_there_is() -> None:
    assert summary(seen(**FLEET), NOW_S) == (
        "6 devices: 4 online, 1 offline, 1 unknown, 1 failing, 1 degraded, health of 1 not heard; "
        "models by method: 1 int8, 2 nf4"
    )
    assert summary([], NOW_S) == "0 devices: none"
    assert summary([one(presence=fleet.presence("offline"))], NOW_S) == "1 device: 1 offline"


def standing(state: str, reached: int | None = 19, **groups: Any) -> dict[str, Any]:
    """Return a report of a device whose group wants generation 20, and where its goal stands."""
    desired = {
        "generations": {"own": 3, "lab": 20},
        "reached": {"own": 3, **({} if reached is None else {"lab": reached})},
        "missing": {"kanji": {"operation": "gen3-lab-20-kanji", "state": state}},
        "changed_since": [],
        "groups": groups,
    }
    return fleet.reported(generation=3, desired=desired)


@pytest.mark.parametrize("reached", [19, None])
def test_a_wanted_state_that_was_missed_is_told_by_its_document(reached: int | None) -> None:
    view = seen(
        box={"presence": fleet.presence(), "reported": standing("rejected", reached), "health": fleet.health()},
        good={"presence": fleet.presence(), "reported": fleet.reported(), "health": fleet.health()},
    )
    row = rows(view.device("box"), NOW_S)[0]
    assert row.cells()[-1] == "lab: generation 20 missed (kanji: rejected)"
    assert row.urgency < rows(view.device("good"), NOW_S)[0].urgency
    assert summary(view, NOW_S).startswith("2 devices: 2 online, 1 missed what it is to serve; ")
    told = described(view.device("box"), NOW_S)["desired"]
    assert (told["generations"], told["missing"]["kanji"]["state"]) == ({"own": 3, "lab": 20}, "rejected")
    assert described(view.device("good"), NOW_S)["desired"] == {"generations": {}, "reached": {}, "missing": {}}


def test_what_is_on_its_way_was_not_missed_and_nonsense_neither() -> None:
    assert one(reported=standing("pending")).missed is None
    assert rows(one(presence=fleet.presence(), reported=standing("pending")), NOW_S)[0].cells()[-1] == ""
    nonsense: Any
    for nonsense in (3, [], {"missing": [1]}, {"missing": {"kanji": 1}, "generations": 2}):
        device = one(presence=fleet.presence(), reported=fleet.reported(desired=nonsense))
        assert (device.missed, rows(device, NOW_S)[0].what) == (None, "")


def test_a_device_that_is_shown_names_the_operation_that_missed_and_its_error() -> None:
    operations = {"gen3-lab-20-kanji": {"error": {"code": "untrusted_key", "detail": "signed by old"}}}
    told = {"presence": fleet.presence(), "reported": standing("rejected"), "capabilities": fleet.capabilities()}
    lines = list(status_lines("box", told, operations))
    at = lines.index("lab: generation 20 missed; it is not tried again before the next generation")
    assert lines[at + 1] == "  kanji: rejected, operation gen3-lab-20-kanji, untrusted_key: signed by old"
    assert "  kanji: rejected, operation gen3-lab-20-kanji" in list(status_lines("box", told))


def drawn(screen: Screen, view: FleetView, lost: str = "") -> list[str]:
    console = Console(width=110, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(screen.render(view, NOW_S, "broker:1883", lost))
    return captured.get().splitlines()


def test_the_screen_shows_first_what_needs_a_look_and_scrolls_to_the_rest() -> None:
    screen, view = Screen(height=7, width=110), seen(**FLEET)
    shown = drawn(screen, view)
    assert [line.split()[0] for line in shown[2:-1]] == ["c", "b", "d"]
    assert "[red]clock" in shown[4]
    assert shown[-1].startswith("rows 1-3 of 6; broker:1883; q ends")
    screen.scroll(lines_of(b" "))
    shown = drawn(screen, view)
    assert [line.split()[0] for line in shown[2:-1]] == ["f", "a", "e"]
    screen.scroll(lines_of(b"k"))
    assert drawn(screen, view)[-1].startswith("rows 3-5 of 6")
    screen.scroll(lines_of(b"x"))
    assert drawn(screen, view)[-1].startswith("rows 3-5 of 6")


def on_a_terminal(width: int) -> list[str]:
    """Return the table of two devices whose ids differ in their last character, drawn on a terminal."""
    names = ("assembly-line-3-station-1", "assembly-line-3-station-2")
    sick = fleet.health("degraded", reasons=["kanji: the last five answers took longer than what was agreed upon"])
    kinds = {"presence": fleet.presence(), "reported": fleet.reported(), "health": sick}
    view = seen(**dict.fromkeys(names, kinds))
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(coloured([row for device in view for row in rows(device, NOW_S)], width))
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize(
    ("width", "left"),
    [
        (200, list(HEAD)),
        (110, [name for name in HEAD if name != "room"]),
        (100, [name for name in HEAD if name not in ("room", "takes")]),
        (80, ["device", "presence", "model", "health", "what"]),
        (40, ["device", "presence"]),
        (25, ["device"]),
    ],
)
def test_a_narrow_terminal_costs_the_end_of_words_and_columns_but_no_id(width: int, left: list[str]) -> None:
    head, *lines = on_a_terminal(width)
    assert head.split() == left
    assert [line.split()[0][-9:] for line in lines] == ["station-1", "station-2"]
    assert all(len(line) <= width for line in lines)


def test_an_id_alone_that_is_wider_than_the_terminal_is_cut_inside() -> None:
    assert on_a_terminal(12) == ["device", "assemb…ion-1", "assemb…ion-2"]


def test_wide_characters_count_twice() -> None:
    assert fitted(("device", "what"), [("a", "漢" * 30)], 40) == {"device": 6, "what": 32}
    assert cut("漢字漢字", 6) == "漢字…"


def test_while_the_broker_is_lost_its_line_is_first_and_within_the_height() -> None:
    lost = lost_line("broker:1883", datetime(2026, 11, 30, 12, 40, 35, tzinfo=timezone.utc), 30.2)
    assert lost == "broker broker:1883 lost since 12:40:04 (30 s); what is below is of before"
    shown = drawn(Screen(height=7, width=110), seen(**FLEET), lost)
    assert (shown[0], len(shown)) == (lost, 6)
    assert shown[-1].startswith("rows 1-2 of 6")


def test_a_fleet_of_nobody_is_drawn() -> None:
    assert drawn(Screen(height=3, width=110), FleetView("edge/v1"))[-1].startswith("nothing yet; broker:1883")


def test_the_columns_of_a_plain_table_are_as_wide_as_what_is_in_them() -> None:
    assert table(("a", "long"), [("xxx", "1"), ("y", "")]) == ["a    long", "xxx  1", "y"]
    assert len(HEAD) == len(rows(one(), NOW_S)[0].cells())


def test_how_a_device_is_comes_with_its_answers_and_its_newest_operations() -> None:
    states: list[dict[str, Any]] = [
        {"id": f"d-{number}", "state": "succeeded", "phase": None, "error": None, "at": f"2026-11-29T08:0{number}"}
        for number in range(7)
    ]
    states[6] |= {"state": "failed", "error": {"code": "gate_failed"}}
    found = list(health_lines(fleet.health("degraded", reasons=["clock"]), states))
    assert found[:4] == [
        f"health: degraded, as of {fleet.AT}",
        "  ! clock",
        "  kanji: 12 requests, 1 failed, p50 4.0 ms",
        "2026-11-29T08:06 d-6 failed gate_failed",
    ]
    assert [line.split()[1] for line in found[4:]] == ["d-5", "d-4", "d-3", "d-2"]
    assert list(health_lines(None, [])) == ["health: not heard; devices tell it every 30 s: --listen 40"]
