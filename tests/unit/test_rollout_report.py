"""The report of a rollout: its numbers, its lines, and a page that nothing can break out of."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from agent.fleet.rollout.events import Heard, Present, Purpose, Ticked, Told
from agent.fleet.rollout.machine import advance
from agent.fleet.rollout.page import html
from agent.fleet.rollout.plan import Plan
from agent.fleet.rollout.report import build, lines
from agent.fleet.rollout.state import begin

if TYPE_CHECKING:
    from agent.fleet.rollout.events import Event

EVIL = """</title><script>alert(1)</script><img src=x onerror='alert("2")'>"""
FIRST = 1_795_003_200.0


def plan() -> Plan:
    return Plan.model_validate(
        {
            "schema": 1,
            "id": "r",
            "command": {"name": "set_method", "model": "kanji", "method": "nf4"},
            "waves": [{"name": "first", "percent": 50}, {"name": "second", "percent": 100}],
            "on_abort": {"rollback": True},
            "errors": {"percent": 0, "min_devices": 2},
        }
    )


def reported() -> dict[str, Any]:
    """Return the report of a rollout with a success, a failure, and two devices that nobody touched."""
    rollout, now = begin((("a", "b"), ("c", "d"))), FIRST
    history = [(now, rollout)]
    events: tuple[Event, ...] = (
        Heard(tuple(Present(device, is_online=True) for device in "abcd")),
        Heard((Told("a", Purpose.DO, "succeeded"),)),
        Heard((Told("b", Purpose.DO, "failed", EVIL),)),
        Heard((Told("a", Purpose.UNDO, "succeeded"),)),
        Ticked(),
    )
    for event in events:
        now += 10
        rollout, _ = advance(plan(), rollout, event, now)
        history.append((now, rollout))
    return build(plan(), history)


def test_the_report_counts_waves_and_says_what_became_of_each_device() -> None:
    report = reported()
    assert (report["status"], report["reason"]) == ("aborted", "wave first: 1 of 2 devices failed, 0 % may")
    first, second = report["waves"]
    assert (first["succeeded"], first["failed"], first["pending"]) == (1, 1, 0)
    assert (second["pending"], second["begun"]) == (2, None)
    devices = {device["device"]: device for device in report["devices"]}
    assert (devices["a"]["outcome"], devices["a"]["undo"], devices["a"]["took_s"]) == ("succeeded", "done", 10.0)
    assert (devices["b"]["outcome"], devices["b"]["took_s"], devices["b"]["detail"]) == ("failed", 20.0, EVIL)
    assert (devices["c"]["stage"], devices["c"]["began"]) == ("waiting", None)
    events = [entry["event"] for entry in report["timeline"]]
    assert events == [
        "wave_begun",
        *["device_started"] * 2,
        "device_succeeded",
        "device_failed",
        "rollout_aborting",
        "undo_sent",
        "undo_done",
        "rollout_aborted",
    ]


def test_the_lines_name_who_did_not_simply_succeed() -> None:
    told = [*lines(reported())]
    assert told[0] == "rollout r (set_method of kanji) is aborted"
    assert told[3:5] == ["wave first: 2 devices, 1 succeeded, 1 failed", "wave second: 2 devices, 2 pending"]
    assert told[5] == "a (first): succeeded; taking back: done"
    assert told[6].startswith("b (first): failed: ")
    assert len(told) == 7


def test_the_report_of_a_rollout_outside_of_its_windows_says_what_it_waits_for() -> None:
    late = Plan.model_validate({**plan().model_dump(by_alias=True), "windows": [{"from": "03:00", "to": "04:00"}]})
    first = begin((("a", "b"), ("c", "d")))
    rollout, _ = advance(late, first, Heard((Present("a", is_online=True),)), FIRST)
    report = build(late, [(FIRST, first), (FIRST, rollout)])
    text = "rollout r waits for the window, opens Thu 03:00 UTC"
    assert (report["opens"], report["waits"]) == ("2026-11-19T03:00:00.000Z", text)
    assert (report["timeline"][-1]["event"], report["timeline"][-1]["text"]) == ("window_awaited", text)
    assert f"  {text}" in lines(report)
    assert text in html(report)
    assert reported()["waits"] is None


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_the_page_fetches_nothing_runs_nothing_and_shows_what_devices_say_as_text() -> None:
    page = html(reported())
    found = _Tags()
    found.feed(page)
    assert found.tags.isdisjoint({"script", "img", "link", "iframe", "object", "a", "form"})
    assert not {name for name in found.attributes if name.startswith("on") or name in ("src", "href", "style")}
    assert "default-src 'none'" in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<rect") == 4, "two parts of a wave, two devices that were begun with"
