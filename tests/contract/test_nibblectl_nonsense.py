"""``nibblectl`` where a device, or another program on its topics, talks nonsense: a sentence, and status 4."""

from __future__ import annotations

import contextlib
import io
import json
import queue
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from paho.mqtt.client import topic_matches_sub
from rich.console import Console

from agent.adapters.mqtt_operator import Heard
from agent.fleet import gather
from agent.fleet.cli import main
from agent.fleet.progress import Watching
from agent.fleet.target import Target
from tests.fakes import fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

ROOT = "edge/v1/box"
OPERATION = {"schema": 1, "id": "d-1", "state": "running", "phase": "building", "detail": None, "error": None}
CHUNK = {"schema": 1, "id": "l-1", "sequence": 0, "last": True, "cut": False, "entries": []}
NOT_JSON = "the payload is not JSON: Expecting property name enclosed in double quotes at line 1 column 2"


class Broker:
    """Hands over what is kept; what answers a command comes right after it.

    Attributes:
        kept: messages of a topic below the device's, in order.
        answers: kind, ``log`` or ``op``, and body of each message that follows a command, with its id.
    """

    def __init__(self) -> None:
        self.kept: dict[str, list[Any]] = {"presence": [fleet.presence()]}
        self.answers: list[tuple[str, Any]] = []
        self._heard: list[tuple[tuple[str, ...], queue.SimpleQueue[Heard]]] = []

    def __enter__(self) -> Broker:  # noqa: PYI034 - as the real one
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    @contextlib.contextmanager
    def listen(self, topic: str) -> Iterator[queue.SimpleQueue[bytes]]:
        inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        for body in self.kept.get(topic.removeprefix(f"{ROOT}/"), []):
            inbox.put(payload(body))
        yield inbox

    @contextlib.contextmanager
    def hear(self, *filters: str) -> Iterator[queue.SimpleQueue[Heard]]:
        inbox: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        for kind, bodies in self.kept.items():
            for body in bodies if any(topic_matches_sub(each, f"{ROOT}/{kind}") for each in filters) else []:
                inbox.put(Heard(f"{ROOT}/{kind}", payload(body), is_retained=True))
        self._heard.append((filters, inbox))
        yield inbox

    def publish(self, _topic: str, sent: bytes) -> None:
        for kind, body in self.answers:
            topic = f"{ROOT}/{kind}/{json.loads(sent)['id']}"
            for filters, inbox in self._heard:
                if topic in filters:
                    inbox.put(Heard(topic, payload(body), is_retained=False))


def payload(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(Target, "messages", lambda _target: broker)
    monkeypatch.setattr(gather, "FIRST_S", 0.05)
    monkeypatch.setattr(gather, "QUIET_S", 0.05)
    return broker


def run(*arguments: str, status: int) -> Result:
    done = CliRunner().invoke(main, ["--device", "box", "--wait", "0.2", *arguments], prog_name="nibblectl")
    assert done.exit_code == status, done.output
    return done


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"{nonsense", NOT_JSON),
        ([1], "the payload is a JSON array, expected an object"),
        ({**OPERATION, "schema": 2}, "schema: Input should be 1"),
        ({"schema": 1, "id": "d-1"}, "state: Field required"),
        ({**OPERATION, "state": ["running"]}, "state: Input should be a valid string"),
        ({**OPERATION, "progress": "half"}, "progress: Input should be a valid dictionary or instance of Progress"),
        ({**OPERATION, "progress": {"done": "half"}}, "progress.done: Input should be a valid number"),
        ({**OPERATION, "progress": {"done": 1, "total": 10**400}}, "progress.total: Input should be a valid number"),
        (
            {**OPERATION, "state": "failed", "error": "broken"},
            "error: Input should be a valid dictionary or instance of Error",
        ),
        ({**OPERATION, "decision": {"compare": [{}]}}, "decision.compare.0.method: Field required"),
    ],
)
def test_a_state_that_is_none_ends_the_look_with_the_topic_and_what_is_wrong(
    broker: Broker, body: Any, what: str
) -> None:
    broker.kept["op/d-1"] = [body]
    done = run("follow", "d-1", status=4)
    first, second = done.stderr.splitlines()
    assert first == f"nibblectl: what came on {ROOT}/op/d-1 cannot be read: {what}"
    assert "nibblectl follow d-1" in second


def test_a_state_that_nobody_knows_yet_is_one_that_goes_on(broker: Broker) -> None:
    newer = {"schema": 1, "id": "d-1", "state": "resting", "mood": "good"}
    broker.kept["op/d-1"] = [newer, {**newer, "state": "succeeded"}]
    assert run("follow", "d-1", status=0).stdout == "d-1 resting\nd-1 succeeded\n"
    broker.kept["op/d-1"] = [newer]
    assert "no word on operation d-1 for 0 s; the last one: resting" in run("follow", "d-1", status=4).stderr


def test_a_state_that_nobody_knows_yet_keeps_the_bar() -> None:
    console = Console(force_terminal=True, width=100, file=io.StringIO(), color_system=None)
    with Watching(as_json=False, console=console) as watching:
        watching.show({"id": "d-1", "state": "resting", "phase": None})
        assert watching._task is not None


@pytest.mark.parametrize(
    ("arguments", "kind", "body", "what"),
    [
        (("undeploy", "kanji"), "presence", b"{nonsense", NOT_JSON),
        (("undeploy", "kanji"), "presence", {"schema": 1, "state": None}, "state: Input should be a valid string"),
        (("config",), "reported", {"schema": 1, "config": [1]}, "config: Input should be a valid dictionary"),
        (("show",), "presence", {"schema": 1}, "state: Field required"),
        (
            ("show",),
            "reported",
            {**fleet.reported(), "models": {"kanji": 3}},
            "models.kanji: Input should be a valid dictionary",
        ),
        (("show",), "reported", fleet.reported(desired={"groups": {"lab": 1}}), "desired.groups.lab: Input should be"),
        (("show",), "capabilities", fleet.capabilities(methods={"nf4": {}}), "methods.nf4.ok: Field required"),
    ],
)
def test_what_a_device_says_of_itself_is_judged_before_it_is_shown(
    broker: Broker, arguments: tuple[str, ...], kind: str, body: Any, what: str
) -> None:
    broker.kept |= {"reported": [fleet.reported()], "capabilities": [fleet.capabilities()], kind: [body]}
    told = run(*arguments, status=4).stderr
    assert told.startswith(f"nibblectl: what came on {ROOT}/{kind} cannot be read: {what}"), told


def test_a_device_whose_words_are_no_objects_is_not_called_unknown(broker: Broker) -> None:
    broker.kept["presence"] = [b"{nonsense"]
    told = run("show", status=4).stderr
    assert told == "nibblectl: messages of box cannot be read: its presence is not known\n"


def test_an_operation_that_cannot_be_read_hides_no_device_and_no_other_operation(broker: Broker) -> None:
    good = {**OPERATION, "id": "d-2", "at": "2"}
    bad = {"schema": 1, "error": "broken", "at": 1}
    broker.kept |= {"reported": [fleet.reported()], "capabilities": [fleet.capabilities()]}
    broker.kept |= {"op/d-1": [bad], "op/d-2": [good]}
    assert "2 d-2 running building\n" in run("show", status=0).stdout


@pytest.mark.parametrize(
    ("kind", "body", "what"),
    [
        ("log", b"{nonsense", NOT_JSON),
        ("log", {key: value for key, value in CHUNK.items() if key != "sequence"}, "sequence: Field required"),
        ("log", {key: value for key, value in CHUNK.items() if key != "last"}, "last: Field required"),
        ("log", {**CHUNK, "entries": ["a line"]}, "entries.0: Input should be a valid dictionary"),
        ("op", {"schema": 1, "id": "l-1"}, "state: Field required"),
    ],
)
def test_a_log_that_is_none_is_told_with_its_topic(broker: Broker, kind: str, body: Any, what: str) -> None:
    broker.answers = [(kind, body)]
    told = run("logs", status=4).stderr
    assert told.startswith(f"nibblectl: what came on {ROOT}/{kind}/collect-logs-"), told
    assert f"cannot be read: {what}" in told


def test_a_log_is_waited_for_over_states_that_nobody_knows_yet(broker: Broker) -> None:
    broker.answers = [("op", {**OPERATION, "state": "resting"}), ("log", {**CHUNK, "entries": [{"event": "command"}]})]
    assert "command" in run("logs", status=0).stdout
    broker.answers = [("op", {**OPERATION, "state": "canceled"})]
    assert run("logs", status=1).stderr == "nibblectl: no log: canceled\n"
