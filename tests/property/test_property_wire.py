"""What crosses the wire or the disk: nothing is lost on the way, and nothing that arrives can break the agent."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.adapters.journal_rows import dump_operation, load_operation
from agent.contract import commands
from agent.contract.commands import COMMANDS
from agent.contract.errors import RefusalError
from agent.contract.manifest import PAYLOAD_TYPE, Envelope, Manifest, pae
from agent.contract.topics import MAX_SLASHES, Topics, is_id
from agent.contract.wire import MAX_PAYLOAD_BYTES, dump, parse_object
from agent.deployment.intake import CommandMessage
from agent.deployment.models import Served
from agent.deployment.reporting import Reporting
from tests.fakes.clock import FakeClock
from tests.fakes.strategies import digests, ids, json_objects, json_values, served_items, written_operations

if TYPE_CHECKING:
    from agent.deployment.machine import Operation

prefixes = st.lists(ids, min_size=1, max_size=4).map("/".join)
TOPICS = Topics("edge/v1", "box-1")
known_fields = st.sampled_from(
    ["schema", "id", "model", "method", "artifact", "manifest", "gate", "expires_at", "priority", "operation",
     "response_topic", "correlation_id", "version", "model_type", "expected_generation"]
)  # fmt: skip
almost_commands = st.dictionaries(known_fields, json_values | st.just(1) | ids, max_size=8)
nasty = st.sampled_from(
    [b"[" * 60_000, b'{"a":' * 9000, b'{"id":' + b"1" * 5000 + b"}", b'{"id":1e999}', b'{"id":"\\ud800"}', b"\xff", b""]
)


@given(prefixes, ids, st.sampled_from(sorted(COMMANDS)) | ids)
def test_a_command_s_name_is_read_back_from_its_topic(prefix: str, device: str, name: str) -> None:
    topics = Topics(prefix, device)
    assert topics.command_name(topics.command(name)) == name
    assert topics.command(name).count("/") <= MAX_SLASHES
    assert topics.command_name(topics.operation(name)) is None
    assert topics.command_name(f"{topics.command(name)}/more") is None


@given(st.text(max_size=70))
def test_no_id_can_leave_its_topic_level(text: str) -> None:
    assert not is_id(text) or not set(text) & set("/+#$ \n\0")


@given(json_objects)
def test_json_survives_the_wire(value: dict[str, Any]) -> None:
    assert parse_object(dump(value)) == value


@given(st.binary(max_size=200) | nasty, st.sampled_from([*sorted(COMMANDS), "nonsense", ""]), st.booleans())
def test_any_bytes_are_parsed_or_refused(payload: bytes, name: str, retained: bool) -> None:  # noqa: FBT001 - drawn
    judge(name, payload, retained=retained)


@given(almost_commands, st.sampled_from(sorted(COMMANDS)))
def test_any_object_is_parsed_or_refused(body: dict[str, Any], name: str) -> None:
    judge(name, json.dumps({"schema": 1, **body}).encode(), retained=False)


def judge(name: str, payload: bytes, *, retained: bool) -> None:
    """Parse, and when it is refused also build the report of it: that must not fail either."""
    try:
        command = commands.parse(name, payload, retained=retained)
        digest = commands.fingerprint(name, payload)
    except RefusalError as refusal:
        reporting = Reporting(TOPICS, FakeClock(), boot_id="b", agent="0", facts=lambda _served: {})
        for report in reporting.refused(CommandMessage(name, payload), refusal):
            assert len(report.payload) <= MAX_PAYLOAD_BYTES
    else:
        assert command.name == name
        assert len(digest) == 64


@given(json_objects, st.randoms())
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(body: dict[str, Any], random: Any) -> None:
    keys = list(body)
    random.shuffle(keys)
    shuffled = json.dumps({key: body[key] for key in keys}, indent=2).encode()
    assert commands.fingerprint("deploy", shuffled) == commands.fingerprint("deploy", json.dumps(body).encode())


@given(json_objects, json_objects)
def test_what_was_asked_differently_has_another_fingerprint(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = dump(one) == dump(other) or parse_object(dump(one)) == parse_object(dump(other))
    prints = [commands.fingerprint("deploy", dump(body)) for body in (one, other)]
    if not same:
        assert prints[0] != prints[1]


@settings(max_examples=25)  # large records, slow to draw
@given(written_operations())
def test_a_record_survives_the_journal(operation: Operation) -> None:
    assert load_operation(dump_operation(operation)) == operation


@settings(max_examples=25)  # large records, slow to draw
@given(served_items)
def test_what_is_served_survives_the_journal(item: Served) -> None:
    assert Served.from_json(json.loads(json.dumps(item.to_json()))) == item


@settings(max_examples=25)  # large records, slow to draw
@given(written_operations(), json_objects)
def test_every_record_can_be_reported(operation: Operation, decision: dict[str, Any]) -> None:
    reporting = Reporting(TOPICS, FakeClock(), boot_id="b", agent="0", facts=lambda _served: {})
    for report in reporting.changed(operation, operation):
        assert json.loads(report.payload)["schema"] == 1
    body = json.loads(dump({**decision, "x": float("nan")}))
    assert body["x"] is None


files = st.builds(
    lambda name, sha, size: {"name": name, "url": f"https://h.example/{name}", "sha256": sha, "size": size},
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    digests,
    st.integers(1, 2**53),
)
manifests = st.builds(
    lambda model, sequence, items, devices: {
        "model": model, "version": "v1", "sequence": sequence, "files": items, "audience": {"devices": devices},
        "expires": "2027-01-01T00:00:00Z",
    },
    ids, st.integers(0, 2**53 - 1), st.lists(files, min_size=1, max_size=3), st.lists(ids, max_size=2),
)  # fmt: skip


@given(manifests)
def test_a_manifest_survives_its_envelope(body: dict[str, Any]) -> None:
    payload = base64.b64encode(json.dumps(body).encode()).decode()
    envelope = Envelope.model_validate({"payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": [{"sig": ""}]})
    found = envelope.manifest()
    assert found == Manifest.model_validate(body)
    assert Manifest.model_validate_json(found.model_dump_json()) == found
    assert Envelope.model_validate_json(envelope.model_dump_json()) == envelope


@given(st.text(max_size=20), st.binary(max_size=40), st.text(max_size=20), st.binary(max_size=40))
def test_two_different_messages_never_have_the_same_signed_bytes(a: str, x: bytes, b: str, y: bytes) -> None:
    assert (pae(a, x) == pae(b, y)) == ((a, x) == (b, y))
