"""``nibblectl desired`` on lines that are slow or silent, and with what no device would take."""

from __future__ import annotations

import contextlib
import json
import queue
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from paho.mqtt.client import topic_matches_sub

from agent.adapters.mqtt_operator import Heard, RefusedMessageError
from agent.contract import desired, wanted
from agent.contract.errors import RefusalError
from agent.fleet import retained
from agent.fleet.cli import main
from agent.fleet.retained import UnprovenError, every, one
from agent.fleet.target import Target
from tests.e2e.harness.mqtt import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

TOPIC, HALT = "edge/v1/_group/lab/desired", "edge/v1/_group/lab/halt"
ECHO = "edge/v1/_group/nibblectl-doctor/desired"
ENTRY = {"artifact": {"url": "https://files.example/kanji.pt", "sha256": "a" * 64, "size": 9}}
DOCUMENT = {"models": {"kanji": ENTRY}}


class Line:
    """A broker at the end of a slow line: nothing comes before something was published.

    Args:
        kept: what the broker keeps, by topic.
        is_silent: whether what is published does not come back.
        refuses: whether what is published for nobody is refused.
    """

    def __init__(self, kept: dict[str, bytes], *, is_silent: bool = False, refuses: bool = False) -> None:
        self._kept = kept
        self._is_silent = is_silent
        self._refuses = refuses
        self._heard: list[tuple[tuple[str, ...], queue.SimpleQueue[Heard]]] = []
        self.published: dict[str, bytes] = {}

    @contextlib.contextmanager
    def hear(self, *filters: str) -> Iterator[queue.SimpleQueue[Heard]]:
        inbox: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._heard.append((filters, inbox))
        yield inbox
        self._heard.pop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if retain:
            self.published[topic] = payload
            return
        for filters, inbox in [] if self._is_silent else self._heard:
            for each, kept in self._kept.items():
                if any(topic_matches_sub(one, each) for one in filters):
                    inbox.put(Heard(each, kept, is_retained=True))
            if not self._refuses:
                inbox.put(Heard(topic, payload, is_retained=False))
        if self._refuses:
            raise RefusedMessageError(f"broker refuses a message on {topic}: Not authorized")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUIET_S", "FIRST_S", "ANSWER_S"):
        monkeypatch.setattr(retained, name, 0.02)


def run(monkeypatch: pytest.MonkeyPatch, line: Line, *arguments: str, body: Any = DOCUMENT) -> Result:
    monkeypatch.setattr(Target, "connection", lambda _self: contextlib.nullcontext(line))
    return CliRunner().invoke(main, ["desired", *arguments], input=json.dumps(body), prog_name="nibblectl")


SET = ("set", "-", "--group", "lab")


def test_what_comes_late_on_a_slow_line_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line({TOPIC: b'{"schema": 1, "generation": 40}', HALT: b'{"schema": 1, "reason": "x"}'})
    assert run(monkeypatch, line, *SET).stdout.startswith("lab: generation 41 is wanted\n")
    assert json.loads(line.published[TOPIC])["generation"] == 41
    assert run(monkeypatch, line, "resume", "lab").stdout == "lab: goes on; was: x\n"
    assert line.published[HALT] == b""


@pytest.mark.parametrize("fault", ["is_silent", "refuses"])
def test_where_nothing_proves_that_there_is_nothing_no_number_is_made_up(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    line = Line({}, **{fault: True})
    done = run(monkeypatch, line, *SET)
    assert (done.exit_code, done.stdout, line.published) == (2, "", {})
    assert "which generation of lab is out is not known: " in done.stderr
    assert "say which this one is: --generation" in done.stderr
    done = run(monkeypatch, line, "resume", "lab")
    assert (done.exit_code, done.stdout, line.published) == (4, "", {})
    assert "whether lab is halted is not known: " in done.stderr
    assert run(monkeypatch, line, *SET, "--generation", "3").exit_code == 0
    assert json.loads(line.published[TOPIC])["generation"] == 3
    done = run(monkeypatch, line, "halt", "lab", "--reason", "x")
    assert done.exit_code == 0
    assert json.loads(line.published[HALT])["reason"] == "x"
    assert "who is in lab could not be heard: " in done.stderr


def test_what_is_kept_is_heard_though_the_end_of_it_is_not_told() -> None:
    line: Any = Line({TOPIC: b"kept"}, refuses=True)
    assert one(line, TOPIC, ECHO) == b"kept"
    found = every(line, ECHO, TOPIC)
    assert next(found).payload == b"kept"
    with pytest.raises(UnprovenError, match="Not authorized"):
        next(found)


def test_of_an_empty_topic_it_is_certain_that_nothing_is_kept() -> None:
    line: Any = Line({"edge/v1/_group/lab/other": b"kept"})
    assert one(line, TOPIC, ECHO) is None


SIGNED = {"payload": "e30=", "payloadType": "application/vnd.nibbled.manifest+json", "signatures": []}
WRONG = {
    "a misspelt key": ({"modles": {"kanji": ENTRY}}, "no device knows modles (did you mean models?)"),
    "a manifest": (SIGNED, "a signed manifest, no wanted state\n  an entry of models has it as its manifest"),
    "a gate": ({"dataset": {}, "min_agreement": 0.9}, "no device knows dataset, min_agreement\n  known: schema, gen"),
    "nothing": ({}, "it says neither models nor config\n  such as "),
    "nothing but a rollout": ({"rollout": {"id": "r", "percent": 5}}, "it says neither models nor config"),
    "an unknown method": ({"models": {"kanji": {**ENTRY, "method": "nf9"}}}, "models.kanji: unknown method 'nf9'"),
    "a misspelt method": (
        {"models": {"kanji": {**ENTRY, "metod": "nf4"}}},
        "models.kanji.metod (did you mean method?)",
    ),
    "an entry without a file": ({"models": {"kanji": {"method": "nf4"}}}, "neither manifest nor artifact says what"),
    "a share above one": ({"models": {"kanji": {**ENTRY, "gate": {"min_agreement": 2}}}}, "gate.min_agreement"),
    "a misspelt share": (
        {"models": {"kanji": {**ENTRY, "gate": {"min_agreemnt": 0.9}}}},
        "no device knows models.kanji.gate.min_agreemnt (did you mean min_agreement?)",
    ),
    "a misspelt stage": (
        {**DOCUMENT, "rollout": {"id": "r", "start": "2027-01-01T00:00:00Z", "stages": [{"percents": 5}]}},
        "no device knows rollout.stages.percents (did you mean percent?)",
    ),
    "an unknown setting": ({"config": {"health": {"intervall_s": 5}}}, "health.intervall_s cannot be changed"),
    "a wrong setting": ({"config": {"health": {"interval_s": "often"}}}, "health.interval_s: Input should be a valid"),
    "another schema": ({**DOCUMENT, "schema": 2}, "desired: schema: Input should be 1"),
    "a name that is none": ({"models": {"a/b": None}}, "desired: models.a/b"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_no_device_would_take_or_heed_is_refused_before_the_broker_is_asked(case: str) -> None:
    body, words = WRONG[case]
    command = ["--port", str(free_port()), "desired", "set", "-", "--group", "lab"]
    done = CliRunner().invoke(main, command, input=json.dumps(body), prog_name="nibblectl")
    assert (done.exit_code, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("nibblectl: -: ")
    assert words in done.stderr


ENVELOPE = {"payload": "e30=", "payloadType": "x", "signatures": [{"keyid": "k", "sig": "AA==", "more": 1}], "more": 1}
RIGHT: dict[str, dict[str, Any]] = {
    "what empties a device": {"models": {}},
    "what takes a model away": {"models": {"kanji": None}},
    "settings that go back": {"config": {}},
    "a setting alone": {"config": {"health": {"interval_s": 5}}, "models": None},
    "all fields": {
        "models": {"kanji": {**ENTRY, "method": "auto", "gate": {"min_agreement": 0.9}, "priority": 3, "version": "1"}},
        "rollout": {"id": "r", "start": "2027-01-01T00:00:00Z", "stages": [{"percent": 5, "after_s": 0}]},
    },
    "a signature with fields of others": {"models": {"kanji": {"manifest": ENVELOPE}}},
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_devices_take_is_taken_as_they_do(case: str) -> None:
    body = {"schema": 1, "generation": 3, **RIGHT[case]}
    assert wanted.judge(body) == desired.parse(json.dumps(body).encode())


def test_what_devices_refuse_of_the_frame_is_refused_in_their_words() -> None:
    body = {"schema": 1, "generation": -1, **DOCUMENT}
    with pytest.raises(RefusalError) as theirs:
        desired.parse(json.dumps(body).encode())
    with pytest.raises(RefusalError) as ours:
        wanted.judge(body)
    assert ours.value.detail == theirs.value.detail
