"""Plans: what they may say, and the file, key and expectation that a wrong one is refused with."""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from agent.contract.manifest import PAYLOAD_TYPE
from agent.fleet.rollout.membership import Known, members
from agent.fleet.rollout.plan import Plan, PlanError, Window, load, parse
from agent.fleet.rollout.windows import is_open, next_opening, opening

ROOT = Path(__file__).parents[2]
MINIMAL = """
schema = 1
id = "r-1"
[command]
name = "set_method"
model = "kanji"
method = "nf4"
[[waves]]
name = "all"
percent = 100
"""


def parsed(text: str) -> Plan:
    def read(key: str, name: str) -> dict[str, Any]:
        raise PlanError(f"{key}: {name}")

    return parse(text, "plan.toml", read)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def test_a_short_plan_is_careful() -> None:
    plan = parsed(MINIMAL)
    assert plan.command.fields == {"model": "kanji", "method": "nf4"}
    assert (plan.pace.max_in_flight, plan.pace.offline) == (10, "fail")
    assert (plan.errors.percent, plan.errors.min_devices, plan.errors.then) == (10.0, 5, "abort")
    assert (plan.success.percent, plan.success.then) == (90.0, "pause")
    assert not plan.on_abort.rollback


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("schema = 1", "schema = 2", "plan.toml: schema: expected 1, got 2"),
        ("schema = 1\n", "", "plan.toml: schema: missing, expected it in the plan"),
        ('id = "r-1"', 'id = "r 1"', "plan.toml: id: String should match pattern '^[A-Za-z0-9_-]{1,40}$', got \"r 1\""),
        ("percent = 100", "percent = 0", "plan.toml: waves[0].percent: expected greater than 0, got 0"),
        ("percent = 100", "", "waves[0]: expected one of devices, group, label and percent, got none"),
        ("percent = 100", 'group = "own"', "waves[0].group: no group can be called 'own'"),
        ("percent = 100", 'percent = 9\ngroup = "g"', "devices, group, label and percent, got group and percent"),
        ("percent = 100", "per_cent = 100", "plan.toml: waves[0].per_cent: unknown key, expected percent?"),
        ("percent = 100", "percent = 100\n[pace]\nsoak = 1", "plan.toml: pace.soak: unknown key, expected soak_s?"),
        (
            "percent = 100",
            "percent = 100\n[errors]\nthen = 'stop'",
            "errors.then: expected 'pause' or 'abort', got \"stop\"",
        ),
        (
            "percent = 100",
            "percent = 100\n[errors]\nmin_devices = 0",
            "errors.min_devices: expected greater than or equal to 1",
        ),
        (
            "[[waves]]",
            "[[waves]]\nname = 'a'\npercent = 100\n[[waves]]",
            "percent 100, 100: each counts what the waves before",
        ),
        ("[[waves]]", "[[waves]]\nname = 'all'\ngroup = 'g'\n[[waves]]", "waves: 'all' is the name of two"),
        ('"set_method"', '"cancel"', "plan.toml: command.name: expected 'deploy', 'set_method'"),
        ('"set_method"', '"deploy"', "plan.toml: command: deploy: neither manifest nor artifact says what to fetch"),
        ('method = "nf4"', 'method = "nf5"', "plan.toml: command: unknown method 'nf5'"),
        ('method = "nf4"', 'methode = "nf4"', "plan.toml: command.methode: unknown key, expected method?"),
        ('method = "nf4"', 'method = "nf4"\nid = "x"', "plan.toml: command.id: set by the rollout for each device"),
        ("schema = 1", "schema = ", "plan.toml: not TOML: "),
        (
            "percent = 100",
            "percent = 100\n[[windows]]\nfrom = 01:00:00\nto = 05:00:00\ntimezone = 'Mars/Olympus'",
            "windows[0].timezone: a name of the time zone database",
        ),
        (
            "percent = 100",
            "percent = 100\n[[windows]]\nfrom = 01:00:00\nto = 01:00:00",
            "windows[0]: from and to are the same",
        ),
    ],
)
def test_a_plan_that_cannot_be_used_is_told_with_file_key_and_what_was_expected(
    before: str, after: str, words: str
) -> None:
    assert before in MINIMAL
    with pytest.raises(PlanError) as refused:
        parsed(MINIMAL.replace(before, after))
    assert words in str(refused.value)
    assert str(refused.value).startswith("plan.toml: ")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("percent = 100", "", "waves[0]: expected one of devices, group, label and percent, got none"),
        ("percent = 100", "label = {}", "waves[0].label: expected at least 1, got none"),
        ("percent = 100", "percent = 100\n[devices]\nids = 'a'", 'devices.ids: expected an array, got "a"'),
        ("percent = 100", "label = 3", "waves[0].label: expected a table, got 3"),
        ("schema = 1", "schema = 1\npace = 3", "pace: expected a table, got 3"),
    ],
)
def test_one_mistake_is_one_line_in_the_words_of_a_plan(before: str, after: str, words: str) -> None:
    with pytest.raises(PlanError) as refused:
        parsed(MINIMAL.replace(before, after))
    assert str(refused.value) == f"plan.toml: {words}"


def test_a_plan_without_waves_is_told_so() -> None:
    with pytest.raises(PlanError) as refused:
        parsed("waves = []\n" + MINIMAL[: MINIMAL.index("[[waves]]")])
    assert str(refused.value) == "plan.toml: waves: expected at least 1, got none"


def test_what_has_no_way_back_needs_one_to_be_taken_back() -> None:
    text = MINIMAL.replace('name = "set_method"\nmodel = "kanji"\nmethod = "nf4"', 'name = "undeploy"\nmodel = "kanji"')
    with pytest.raises(PlanError, match=r"on_abort.rollback: undeploy has no way back of its own"):
        parsed(text + "[on_abort]\nrollback = true\n")
    undo = '[undo]\nname = "set_method"\nmodel = "kanji"\nmethod = "nf4"\n'
    assert parsed(text + "[on_abort]\nrollback = true\n" + undo).undo is not None


def test_a_file_that_a_plan_names_is_read_beside_it_or_told(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(MINIMAL.replace('method = "nf4"', 'method = "nf4"\ngate = "gate.json"'))
    with pytest.raises(PlanError, match=r"plan.toml: command.gate: .*gate.json: No such file"):
        load(plan)
    (tmp_path / "gate.json").write_text('{"min_agreement": 0.9}')
    assert load(plan).command.fields["gate"] == {"min_agreement": 0.9}


def test_the_digest_tells_plans_apart_by_what_they_say_and_not_by_how() -> None:
    assert parsed(MINIMAL).digest == parsed(MINIMAL.replace("percent = 100", "percent = 100.0  # all")).digest
    assert parsed(MINIMAL).digest != parsed(MINIMAL.replace('"nf4"', '"fp4"')).digest


NIGHT = Window.model_validate({"days": ["mon", "fri"], "from": "22:00", "to": "04:00", "timezone": "Europe/Berlin"})
NOON = Window.model_validate({"from": "12:00", "to": "13:00"})


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-11-23T21:00:00", True),  # a Monday, 22:00 in Berlin
        ("2026-11-23T20:59:59", False),
        ("2026-11-24T02:59:59", True),  # past midnight
        ("2026-11-24T03:00:00", False),
        ("2026-11-24T21:30:00", False),  # a Tuesday
        ("2026-07-06T20:00:00", True),  # summer time
        ("2026-11-25T12:30:00", False),
    ],
)
def test_a_window_is_open_between_its_local_times_on_its_days(moment: str, *, expected: bool) -> None:
    assert is_open([NIGHT], at(moment)) is expected


def test_one_of_several_windows_is_enough_and_without_any_it_is_always_open() -> None:
    assert is_open([NIGHT, NOON], at("2026-11-25T12:30:00"))
    assert is_open([], at("2026-11-25T03:30:00"))


def test_the_next_opening_is_the_nearest_of_all() -> None:
    assert next_opening([NIGHT, NOON], at("2026-11-24T14:00:00")) == at("2026-11-25T12:00:00")
    assert next_opening([NIGHT], at("2026-11-24T14:00:00")) == at("2026-11-27T21:00:00")
    assert next_opening([NOON], at("2026-11-24T12:10:00")) == at("2026-11-24T12:10:00")


def test_an_opening_is_told_in_the_local_time_of_its_window() -> None:
    assert opening([NOON, NIGHT], next_opening([NIGHT], at("2026-11-24T14:00:00"))) == "Fri 22:00 Europe/Berlin"
    assert opening([NIGHT, NOON], next_opening([NIGHT, NOON], at("2026-11-24T14:00:00"))) == "Wed 12:00 UTC"


FLEET = {
    **{f"n-{number}": Known(frozenset({"lab"}), {"site": "north"}) for number in range(4)},
    **{f"s-{number}": Known(frozenset(), {"site": "south"}) for number in range(6)},
}


def waves(text: str) -> str:
    return MINIMAL[: MINIMAL.index("[[waves]]")] + text


def test_each_wave_takes_whom_it_names_of_those_who_are_left() -> None:
    text = """
[[waves]]
name = "one"
devices = ["n-0", "gone"]
[[waves]]
name = "lab"
group = "lab"
[[waves]]
name = "some"
percent = 60
[[waves]]
name = "south"
label = { site = "south" }
"""
    found = members(parsed(waves(text)), FLEET)
    assert set(found.waves[0]) == {"n-0", "gone"}
    assert set(found.waves[1]) == {"n-1", "n-2", "n-3"}
    assert len(found.waves[2]) == 2  # seven of eleven, five of them before
    assert set(found.waves[2] + found.waves[3]) == {f"s-{number}" for number in range(6)}
    assert found.left_out == ()
    assert found.strangers == ("gone",)


def test_who_takes_part_meets_everything_that_is_asked_for_and_is_not_excluded() -> None:
    chosen = '[devices]\ngroups = ["lab"]\nlabels = { site = "north" }\nexclude = ["n-3"]\n'
    found = members(
        parsed(waves(chosen + '[[waves]]\nname = "all"\npercent = 50\n[[waves]]\nname = "x"\ndevices = ["s-1"]\n')),
        FLEET,
    )
    assert len(found.waves[0]) == 2
    assert found.waves[1] == ()
    assert found.outside == ("s-1",)
    assert {*found.waves[0], *found.left_out} == {"n-0", "n-1", "n-2"}


def test_a_share_is_rounded_up_so_that_a_small_fleet_has_a_first_device() -> None:
    text = '[[waves]]\nname = "few"\npercent = 1\n[[waves]]\nname = "all"\npercent = 100\n'
    found = members(parsed(waves(text)), FLEET)
    assert [len(wave) for wave in found.waves] == [1, 9]


def test_the_annotated_plan_loads_and_has_every_key(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "rollout.toml").read_text(encoding="utf-8")
    body = {
        "model": "kanji",
        "version": "8",
        "sequence": 8,
        "files": [{"name": "m.pt", "url": "https://h.example/m.pt", "sha256": "a" * 64, "size": 9}],
    }
    payload = base64.b64encode(json.dumps(body).encode()).decode()
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": [{"keyid": "k", "sig": "AA=="}]}
    (tmp_path / "manifest.json").write_text(json.dumps(envelope))
    (tmp_path / "rollout.toml").write_text(text)
    plan = load(tmp_path / "rollout.toml")
    assert plan.on_abort.rollback
    keys = set(re.findall(r"^(?:# )?\[*(\w+)(?: = |\])", text, re.MULTILINE))
    parts = (plan, plan.devices, plan.pace, plan.success, plan.errors, plan.on_abort, plan.waves[0], plan.windows[0])
    told = {field.alias or name for part in parts for name, field in type(part).model_fields.items()}
    assert told - keys == set()


def test_a_manifest_of_another_model_is_told_before_any_device_refuses_it(tmp_path: Path) -> None:
    body = {"model": "digits", "version": "8", "sequence": 8, "files": []}
    payload = base64.b64encode(json.dumps(body).encode()).decode()
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": [{"keyid": "k", "sig": "AA=="}]}
    (tmp_path / "m.json").write_text(json.dumps({"manifest": envelope}))
    text = MINIMAL.replace("set_method", "deploy").replace('method = "nf4"', 'manifest = "m.json"')
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(PlanError, match=r"plan.toml: command"):
        load(tmp_path / "plan.toml")
