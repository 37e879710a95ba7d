"""``nibblectl --sign-key`` and ``sign-command``: what is signed is what a device takes, and what cannot be is told."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from agent.adapters.signatures import KeyDirectory
from agent.contract import commands, desired, signed
from agent.contract.topics import Topics
from agent.contract.wire import MAX_PAYLOAD_BYTES, parse_object
from agent.fleet import keys
from agent.fleet.cli import main
from agent.fleet.client import FleetClient
from agent.fleet.sealing import seal

if TYPE_CHECKING:
    from pathlib import Path

    from agent.contract.wire import JsonObject

ROLLBACK: JsonObject = {"schema": 1, "id": "r-1", "model": "kanji", "note": "ä"}
NOW = datetime.now(timezone.utc)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return keys.generate(tmp_path, "operator")[0]


def invoke(*arguments: str | Path, stdin: str | None = None, status: int = 0) -> str:
    done = CliRunner().invoke(main, [str(each) for each in arguments], input=stdin, prog_name="nibblectl")
    assert done.exit_code == status, done.output
    return done.stderr if status else done.stdout


def check(payload: bytes, name: str, directory: Path, **recipient: str) -> None:
    """Judge a message as a device does that trusts the keys in ``directory``."""
    parse: Any = desired.parse if name == "desired" else lambda body: commands.parse(name, body)
    envelope = parse(payload).signature
    signed.check(envelope, recipient, name, parse_object(payload))
    assert KeyDirectory(directory).verify(envelope, "", NOW).key_id == "operator"


class Sent:
    """What was published."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes) -> None:
        self.messages.append((topic, payload))


def test_what_is_sent_with_a_key_is_signed_and_ends(private: Path, tmp_path: Path) -> None:
    sent: Any = Sent()
    client = FleetClient(
        sent, Topics("edge/v1", "box-1"), lambda name, body: seal("box-1", name, body, (private,), 60.0)
    )
    operation = client.send("rollback", model="kanji")
    ((topic, payload),) = sent.messages
    check(payload, "rollback", tmp_path, device="box-1")
    command = commands.parse("rollback", payload)
    assert (topic, command.id) == ("edge/v1/box-1/cmd/rollback", operation)
    assert NOW < (command.expires_at or NOW) <= datetime.now(timezone.utc) + timedelta(seconds=60)


def test_without_a_key_a_command_is_sent_as_it_is_and_without_an_end_for_ever(private: Path) -> None:
    assert seal("box-1", "rollback", ROLLBACK, (), 60.0) == ROLLBACK
    assert set(seal("box-1", "rollback", ROLLBACK, (private,), 0.0)) == {*ROLLBACK, "signature"}


def test_a_command_in_a_file_is_printed_with_its_signature(private: Path, tmp_path: Path) -> None:
    file = tmp_path / "rollback.json"
    file.write_text(json.dumps(ROLLBACK, indent=2))
    told = invoke("sign-command", "rollback", file, "--key", private, "--for-device", "box-1")
    check(told.encode(), "rollback", tmp_path, device="box-1")
    again = invoke("--device", "box-1", "sign-command", "rollback", "-", "--key", private, stdin=json.dumps(ROLLBACK))
    assert again == told
    assert {key: value for key, value in json.loads(told).items() if key != "signature"} == ROLLBACK


@pytest.mark.parametrize(
    ("option", "recipient"), [("--for-device", {"device": "box-1"}), ("--for-group", {"group": "box-1"})]
)
def test_a_wanted_state_is_signed_for_a_device_or_a_group(
    private: Path, tmp_path: Path, option: str, recipient: dict[str, str]
) -> None:
    document = json.dumps({"schema": 1, "generation": 3, "models": {}})
    told = invoke("sign-command", "desired", "-", "--key", private, option, "box-1", stdin=document)
    check(told.encode(), "desired", tmp_path, **recipient)


def test_two_keys_sign_while_they_are_rotated(private: Path, tmp_path: Path) -> None:
    newer, _ = keys.generate(tmp_path / "..", f"newer-{tmp_path.name}")
    envelope = seal("box-1", "rollback", ROLLBACK, (newer, private), 0.0)["signature"]
    assert [each["keyid"] for each in envelope["signatures"]] == [newer.stem, "operator"]


@pytest.mark.parametrize(
    ("name", "body", "options", "words"),
    [
        ("rollback", ROLLBACK, (), "for whom? give --for-device, or --for-group"),
        ("rollback", ROLLBACK, ("--for-group", "lab"), "--for-group is for desired and halt only: groups take"),
        ("rollback", ROLLBACK, ("--for-device", "a/b"), "'a/b' must match"),
        ("rollback", {"schema": 1, "id": "r-1"}, ("--for-device", "box-1"), "-: rollback: model: Field required"),
        ("desired", {"schema": 1}, ("--for-device", "box-1"), "-: desired: generation: Field required"),
        ("halt", {"schema": 1, "generation": 1}, ("--for-device", "box-1"), "a halt is for a group: give --for-group"),
        ("halt", {"schema": 1, "reason": "x"}, ("--for-group", "lab"), "-: a signed halt says up to which generation"),
        ("halt", {"generation": 1}, ("--for-group", "lab"), "a halt that cannot be read: schema"),
        ("frob", ROLLBACK, ("--for-device", "box-1"), "'frob' is not one of 'deploy'"),
    ],
)
def test_what_no_device_would_take_is_not_signed(
    private: Path, name: str, body: JsonObject, options: tuple[str, ...], words: str
) -> None:
    told = invoke("sign-command", name, "-", "--key", private, *options, stdin=json.dumps(body), status=2)
    assert words in told


def test_a_key_that_cannot_sign_and_a_command_that_grew_too_large_are_told(private: Path, tmp_path: Path) -> None:
    arguments = ("sign-command", "rollback", "-", "--for-device", "box-1", "--key")
    public = tmp_path / "operator.pub"
    assert f"{public}: " in invoke(*arguments, public, stdin=json.dumps(ROLLBACK), status=2)
    large = json.dumps({**ROLLBACK, "note": "x" * (MAX_PAYLOAD_BYTES // 2)})
    assert f"at most {MAX_PAYLOAD_BYTES} are sent" in invoke(*arguments, private, stdin=large, status=2)
