"""``nibblectl desired`` on a real broker: what it retains is what a device would take."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from agent.adapters.mqtt_operator import Messages
from agent.contract import desired, halt, signed
from agent.contract.wire import rfc3339
from agent.fleet import keys
from agent.fleet.cli import main
from tests.e2e.harness.mqtt import HOST, Broker
from tests.fakes import fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

pytestmark = [pytest.mark.e2e]

ARTIFACT = {"url": "https://files.example/kanji.pt", "sha256": "a" * 64, "size": 9}
DOCUMENT: dict[str, Any] = {"models": {"kanji": {"artifact": ARTIFACT, "method": "nf4"}}}
SEE = "  who follows it, and who missed it: nibblectl devices"
GROUP = "edge/v1/_group/lab"


class Site:
    """A broker, and a document in a file."""

    def __init__(self, directory: Path) -> None:
        self.broker = Broker(directory)
        self.broker.start()
        self.file = directory / "desired.json"
        self.file.write_text(json.dumps(DOCUMENT))

    def run(self, *arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(main, ["--port", str(self.broker.port), *arguments], prog_name="nibblectl")
        assert done.exit_code == status, done.output
        return done

    def set(self, *arguments: str, status: int = 0) -> str:
        done = self.run("desired", "set", str(self.file), "--group", "lab", *arguments, status=status)
        return done.stdout if status == 0 else done.stderr

    def retained(self, topic: str) -> bytes:
        """Return what a newcomer would get; nothing where nothing is kept."""
        last = f"harness/{topic}"
        with Messages(HOST, self.broker.port) as messages, messages.hear(topic, last) as inbox:
            messages.publish(last, b"last")
            heard = inbox.get(timeout=10)
            return b"" if heard.topic == last else heard.payload

    def body(self, kind: str = "desired") -> Any:
        return json.loads(self.retained(f"{GROUP}/{kind}"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.broker.stop()


def test_a_document_gets_the_next_generation_and_stays_retained(site: Site) -> None:
    assert site.set() == f"lab: generation 1 is wanted\n{SEE}\n"
    assert site.body() == {"models": DOCUMENT["models"], "schema": 1, "generation": 1}
    site.set()
    assert site.body()["generation"] == 2
    site.set("--generation", "7")
    assert site.body()["generation"] == 7
    told = site.set("--generation", "7", status=2)
    assert told == "nibblectl: --generation: generation 7 is not newer than 7, which is out\n  --generation 8\n"


def test_a_generation_in_the_file_counts(site: Site) -> None:
    site.file.write_text(json.dumps({**DOCUMENT, "generation": 3}))
    site.set()
    assert site.body()["generation"] == 3
    assert f"{site.file}: generation 3 is not newer than 3" in site.set(status=2)


def test_a_document_of_one_device_goes_to_its_own_topic(site: Site) -> None:
    site.run("-d", "box-1", "desired", "set", str(site.file))
    assert json.loads(site.retained("edge/v1/box-1/desired"))["generation"] == 1
    told = site.run("-d", "box-1", "desired", "set", str(site.file), "--percent", "5", status=2)
    assert "are for a --group" in told.stderr
    site.file.write_text(json.dumps({**DOCUMENT, "rollout": {"id": "r", "percent": 5}}))
    told = site.run("-d", "box-1", "desired", "set", str(site.file), status=2)
    assert "of one device there is no percentage" in told.stderr


def test_what_has_no_digest_is_measured_where_it_is_asked_for(site: Site, tmp_path: Path) -> None:
    content = tmp_path / "model.pt"
    content.write_bytes(b"weights")
    artifact = {"url": content.as_uri()}
    site.file.write_text(json.dumps({"models": {"kanji": {"artifact": artifact}, "old": None}}))
    site.set("--measure")
    told = {**artifact, "sha256": hashlib.sha256(b"weights").hexdigest(), "size": 7}
    assert site.body()["models"] == {"kanji": {"artifact": told}, "old": None}


def test_stages_are_counted_from_now_and_a_higher_percentage_goes_on_under_the_same_id(site: Site) -> None:
    told = site.set("--stages", "5%@0,25%@1h,100%@4h", "--spread", "10m")
    rollout = site.body()["rollout"]
    assert desired.parse(site.retained(f"{GROUP}/desired")).rollout is not None
    assert (rollout["id"], rollout["spread_s"]) == ("lab-1", 600)
    assert [(each["percent"], each["after_s"]) for each in rollout["stages"]] == [(5, 0), (25, 3600), (100, 14_400)]
    assert told.splitlines()[1:] == [
        "  rollout lab-1, spread over 600 s",
        *(f"  {percent} % from {at} on" for percent, at in zip((5, 25, 100), _times(rollout["start"]), strict=True)),
        SEE,
    ]
    assert "25 % of the devices" in site.set("--percent", "25", "--rollout", "lab-1")
    assert site.body()["rollout"] == {"id": "lab-1", "percent": 25.0}
    site.set("--spread", "60", "--start", "2027-01-01T00:00:00Z")
    assert site.body()["rollout"] == {
        "id": "lab-3", "percent": 100.0, "spread_s": 60.0, "start": "2027-01-01T00:00:00Z"
    }  # fmt: skip


def _times(start: str) -> list[str]:
    begin = datetime.fromisoformat(start.replace("Z", "+00:00"))
    return [rfc3339(begin + timedelta(seconds=each)) for each in (0, 3600, 14_400)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stages", "5%@soon"), "'soon': expected such as 90s"),
        (("--stages", "25%@0,5%@1h"), "goes back"),
        (("--stages", "5%@0", "--percent", "5"), "either percent or stages"),
        (("--spread", "much"), "'much': expected such as"),
        (("--start", "noon"), "rollout.start"),
        (("--rollout", "a/b"), "rollout.id"),
    ],
)
def test_what_no_device_would_take_is_not_published(site: Site, arguments: tuple[str, ...], words: str) -> None:
    assert words in site.set(*arguments, status=2)
    assert site.retained(f"{GROUP}/desired") == b""


def test_a_halt_is_retained_until_it_is_lifted(site: Site) -> None:
    told = site.run("desired", "halt", "lab", "--reason", "wrong labels").stdout
    assert told.splitlines() == [
        "lab: halted; what has begun goes on to its end",
        "  lift it: nibblectl desired resume lab",
    ]
    assert site.body("halt") == {"schema": 1, "reason": "wrong labels"}
    assert site.run("desired", "resume", "lab").stdout == "lab: goes on; was: wrong labels\n"
    assert site.retained(f"{GROUP}/halt") == b""
    assert site.run("desired", "resume", "lab", status=1).stderr == "nibblectl: lab is not halted\n"
    site.run("desired", "halt", "lab", "--reason", "x", "--generation", "4")
    assert site.body("halt") == {"schema": 1, "reason": "x", "generation": 4}


def test_what_is_signed_is_what_a_device_takes(site: Site, tmp_path: Path) -> None:
    private, _ = keys.generate(tmp_path, "operator")
    key = ("--sign-key", str(private))
    told = site.run(*key, "desired", "halt", "lab", "--reason", "x", status=2).stderr
    assert "a signed halt is for a generation" in told
    site.run(*key, "desired", "set", str(site.file), "--group", "lab", "--percent", "5")
    payload = site.retained(f"{GROUP}/desired")
    document = desired.parse(payload)
    assert document.signature is not None
    signed.check(document.signature, {"group": "lab"}, "desired", json.loads(payload))
    told = site.run(*key, "desired", "halt", "lab", "--reason", "x").stdout
    assert "go on with a higher generation: nibblectl desired set FILE --group lab" in told
    payload = site.retained(f"{GROUP}/halt")
    found = halt.parse(payload)
    assert found is not None
    assert found.generation == 1
    assert found.signature is not None
    signed.check(found.signature, {"group": "lab"}, "halt", json.loads(payload))
    told = site.run("desired", "resume", "lab", status=1).stderr
    assert "devices keep to it up to generation 1" in told
    assert site.retained(f"{GROUP}/halt") == payload


def test_programs_get_what_was_published(site: Site) -> None:
    told = json.loads(site.run("--json", "desired", "set", str(site.file), "--group", "lab").stdout)
    assert (told["topic"], told["generation"]) == (f"{GROUP}/desired", 1)
    told = json.loads(site.run("--json", "desired", "halt", "lab", "--reason", "x").stdout)
    assert told == {"topic": f"{GROUP}/halt", "schema": 1, "reason": "x", "devices_in_group": 0}
    assert json.loads(site.run("--json", "desired", "resume", "lab").stdout) == {"topic": f"{GROUP}/halt"}


def lab(generation: int, waiting: int | None = None) -> dict[str, Any]:
    """Return the ``desired`` of a device that follows a generation of ``lab``, while another one waits."""
    groups = {} if waiting is None else {"lab": {"generation": waiting, "state": "waiting"}}
    return {"generations": {"lab": generation}, "reached": {}, "missing": {}, "changed_since": [], "groups": groups}


def tell(site: Site, **devices: dict[str, Any]) -> None:
    """Let devices have said ``desired`` and the groups that they are in."""
    for name, told in devices.items():
        kinds: dict[str, Any] = {
            "reported": fleet.reported(desired=told.get("desired"), generation=told.get("generation")),
            "capabilities": fleet.capabilities(groups=told.get("groups", [])),
        }
        fleet.publish(site.broker.port, fleet.said(name, kinds))


def test_a_number_that_devices_have_is_not_given_again_when_the_broker_forgot(site: Site) -> None:
    tell(site, a={"desired": lab(18), "groups": ["lab"]}, b={"desired": lab(3, waiting=20), "groups": ["lab"]})
    assert site.set().splitlines() == [
        "lab: generation 21 is wanted",
        "  one above 20, which b has; the broker keeps none",
        SEE,
    ]
    assert site.body()["generation"] == 21
    assert site.set().splitlines() == ["lab: generation 22 is wanted", SEE]
    told = json.loads(site.run("--json", "desired", "set", str(site.file), "--group", "lab").stdout)
    assert told["known"] == {"broker": 22, "newest_of_devices": {"generation": 20, "device": "b"}}


def test_a_number_that_was_said_is_published_and_who_ignores_it_is_told(site: Site) -> None:
    tell(site, a={"desired": lab(20), "groups": ["lab"]})
    done = site.run("desired", "set", str(site.file), "--group", "lab", "--generation", "7")
    assert "generation 7 is not newer than 20, which a has and keeps to\n  --generation 21\n" in done.stderr
    assert site.body()["generation"] == 7


def test_a_device_that_lies_takes_no_number_away_that_is_said(site: Site) -> None:
    tell(site, liar={"desired": lab(2**53 - 1), "groups": ["lab"]})
    assert "; liar has 9007199254740991" in site.set(status=2)
    assert site.retained(f"{GROUP}/desired") == b""
    site.set("--generation", "2")
    assert site.body()["generation"] == 2


def test_of_one_device_its_own_generation_counts(site: Site) -> None:
    own = {**lab(50), "generations": {"own": 8, "lab": 50}}
    devices: dict[str, Any] = {"box-1": {"desired": own, "generation": 6}, "other": {"generation": 70}}
    tell(site, **devices)
    told = site.run("-d", "box-1", "desired", "set", str(site.file))
    assert told.stdout.splitlines() == [
        "box-1: generation 9 is wanted",
        "  one above 8, which box-1 has; the broker keeps none",
        "  what becomes of it: nibblectl show box-1",
    ]
    assert told.stderr == ""


def test_a_document_that_cannot_be_read_is_not_taken_for_none(site: Site) -> None:
    fleet.publish(site.broker.port, [(f"{GROUP}/desired", b'{"schema": 2, "generation": 40}')])
    told = site.set(status=2)
    assert "which generation of lab is out is not known: what the broker keeps cannot be read: desired: schema" in told
    assert "say which this one is: --generation" in told
    key = ("--sign-key", str(keys.generate(site.file.parent, "operator")[0]))
    told = site.run(*key, "desired", "halt", "lab", "--reason", "x", status=2).stderr
    assert "what the broker keeps cannot be read" in told
    site.set("--generation", "41")
    assert site.body()["generation"] == 41


NOBODY_THERE = (
    "nibblectl: no device says that it is in group nosuch (2 devices are in: lab, site-a)\n"
    "  who is to follow it has it in mqtt.groups, and will as soon as that is so\n"
)


def test_a_group_that_no_device_has_is_told_and_published_all_the_same(site: Site) -> None:
    tell(site, a={"groups": ["lab"]}, b={"groups": ["lab", "site-a"]}, c={})
    for command in (("set", str(site.file), "--group", "nosuch"), ("halt", "nosuch", "--reason", "x")):
        done = site.run("desired", *command)
        assert done.stderr == NOBODY_THERE
        told = site.run("desired", *command, "--json")
        assert told.stderr == NOBODY_THERE
        assert [json.loads(line)["devices_in_group"] for line in told.stdout.splitlines()] == [0]
    assert json.loads(site.retained("edge/v1/_group/nosuch/desired"))["generation"] == 2
    assert json.loads(site.retained("edge/v1/_group/nosuch/halt"))["reason"] == "x"
    done = site.run("desired", "halt", "lab", "--reason", "x", "--json")
    assert (done.stderr, json.loads(done.stdout)["devices_in_group"]) == ("", 2)


def test_a_halt_is_out_before_anything_is_looked_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(what: str) -> Any:
        real = getattr(Messages, what)

        def call(messages: Messages, topic: str, *rest: Any, **more: Any) -> Any:
            done.append(f"{what} {topic}")
            return real(messages, topic, *rest, **more)

        return call

    for what in ("publish", "hear"):
        monkeypatch.setattr(Messages, what, noted(what))
    site.run("desired", "halt", "lab", "--reason", "x")
    assert done[:2] == [f"publish {GROUP}/halt", "hear edge/v1/+/capabilities"]


def test_programs_read_one_object_a_line_whatever_is_told_beside_it(site: Site) -> None:
    for place in ("before", "behind"):
        for command in (
            ("set", str(site.file), "--group", "lab", "--stages", "5%@0,100%@1h"),
            ("halt", "lab", "--reason", "x"),
            ("resume", "lab"),
        ):
            words = ("--json", "desired", *command) if place == "before" else ("desired", *command, "--json")
            (line,) = site.run(*words).stdout.splitlines()
            assert json.loads(line)["topic"].startswith(GROUP)
        assert site.run("--json", "desired", "resume", "lab", status=1).stdout == ""


def test_a_document_that_was_signed_elsewhere_is_published_as_it_is(site: Site, tmp_path: Path) -> None:
    private, _ = keys.generate(tmp_path, "operator")
    site.file.write_text(json.dumps({"schema": 1, "generation": 4, **DOCUMENT}))
    command = ("sign-command", "desired", str(site.file), "--key", str(private), "--for-group", "lab")
    site.file.write_text(site.run(*command).stdout)
    for changed in (("--generation", "5"), ("--percent", "5"), ("--group", "other")):
        assert "sign exactly what is sent" in site.set(*changed, status=2)
    site.set()
    payload = site.retained(f"{GROUP}/desired")
    document = desired.parse(payload)
    assert document.signature is not None
    signed.check(document.signature, {"group": "lab"}, "desired", json.loads(payload))


STATES = {
    "waiting": "lab waiting",
    "halted": "lab halted: wrong labels",
    "joined": "",
}


@pytest.mark.parametrize("state", STATES)
def test_devices_and_show_say_in_a_word_where_a_device_stands(site: Site, state: str) -> None:
    halted = {"generation": None, "reason": "wrong labels"} if state == "halted" else None
    told = {
        "generation": 8, "state": state, "rollout": "lab-8", "percent": 25, "position": 37.2,
        "joins_at": "2026-11-29T16:00:00.000Z", "halt": halted,
    }  # fmt: skip
    wanted = {"generations": {"lab": 7}, "reached": {"lab": 7}, "missing": {}, "changed_since": []}
    kinds = {
        "presence": fleet.presence(),
        "reported": fleet.reported(desired={**wanted, "groups": {"lab": told}}),
        "capabilities": fleet.capabilities(),
    }
    fleet.publish(site.broker.port, fleet.said("box-1", kinds))
    row = site.run("devices").stdout.splitlines()[1]
    assert row.endswith(STATES[state] or "-")
    assert json.loads(site.run("--json", "devices").stdout)["groups"] == {"lab": told}
    lines = site.run("show", "box-1").stdout.splitlines()
    (line,) = [each for each in lines if each.startswith("group lab: ")]
    assert (
        line
        == {
            "waiting": "group lab: generation 8 waits until 2026-11-29T16:00:00.000Z; its place is 37.2 %, "
            "25 % were in when it said so",
            "halted": "group lab: generation 8 halted: wrong labels",
            "joined": "group lab: generation 8 joined",
        }[state]
    )
