"""What the signature of a message has to say, and what counts as a difference."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.contract import commands, desired
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import PAYLOAD_TYPE as MANIFEST_TYPE
from agent.contract.manifest import Envelope
from agent.contract.secrets import forgotten
from agent.contract.signed import PAYLOAD_TYPE, check, statement

if TYPE_CHECKING:
    from agent.contract.wire import JsonObject

BOX = {"device": "box-1"}
BODY: JsonObject = {
    "schema": 1,
    "id": "s-1",
    "model": "kanji",
    "method": "nf4",
    "gate": {"soak_s": 2, "min_agreement": 0.9},
}


def envelope(said: Any, kind: str = PAYLOAD_TYPE) -> Envelope:
    payload = base64.b64encode(said if isinstance(said, bytes) else json.dumps(said).encode()).decode()
    return Envelope.model_validate({"payloadType": kind, "payload": payload, "signatures": [{"sig": ""}]})


def refused(said: Any, body: JsonObject = BODY, kind: str = PAYLOAD_TYPE) -> tuple[ErrorCode, str]:
    with pytest.raises(RefusalError) as caught:
        check(envelope(said, kind), BOX, "set_method", body)
    return caught.value.code, caught.value.detail


def test_what_was_signed_is_what_is_sent_whatever_the_order_of_keys_and_the_spacing() -> None:
    said = statement(BOX, "set_method", {**BODY, "signature": {"payload": "…"}})
    assert said == {**BODY, "device": "box-1", "command": "set_method"}
    gate = {"min_agreement": 0.9, "soak_s": 2}
    shuffled = json.dumps({**dict(reversed(said.items())), "gate": gate}, indent=3).encode()
    check(envelope(shuffled), BOX, "set_method", {"signature": {}, **BODY})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "box-2"}, "the signature is for device 'box-2', this is device 'box-1'"),
        ({"command": "rollback"}, "the signature is for command 'rollback', this is command 'set_method'"),
        ({"device": "box-2", "command": "rollback"}, "the signature is for device"),
        ({"id": "s-2"}, "'id' is not what was signed"),
        ({"model": "kana", "method": "int8"}, "'model' is not what was signed"),
        ({"schema": 1.0}, "'schema' is not what was signed"),
        ({"schema": True}, "'schema' is not what was signed"),
        ({"gate": {"soak_s": 2, "min_agreement": 0.1}}, "'gate' is not what was signed"),
        ({"expires_at": "2999-01-01T00:00:00Z"}, "the signature covers 'expires_at', which was not sent"),
        ({"device": ["box-1"]}, "the signature is for device \"['box-1']\""),
    ],
)
def test_a_difference_is_told_by_the_first_field_that_differs(change: JsonObject, words: str) -> None:
    code, detail = refused({**statement(BOX, "set_method", BODY), **change})
    assert code is ErrorCode.BAD_SIGNATURE
    assert words in detail


@pytest.mark.parametrize("field", ["device", "command", "id", "gate"])
def test_what_is_not_signed_may_not_be_sent(field: str) -> None:
    said = statement(BOX, "set_method", BODY)
    del said[field]
    assert refused(said) == (ErrorCode.BAD_SIGNATURE, f"the signature does not cover '{field}', which was sent")


def test_a_field_that_nobody_knows_is_covered_as_well() -> None:
    code, detail = refused(statement(BOX, "set_method", BODY), {**BODY, "note": 1})
    assert (code, "'note'" in detail) == (ErrorCode.BAD_SIGNATURE, True)


def test_what_the_values_are_is_not_told() -> None:
    secret = {"url": "https://h.example/?token=abc"}
    _, detail = refused({**statement(BOX, "set_method", BODY), "model": secret}, {**BODY, "model": {"url": "b"}})
    assert "token" not in detail


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (statement(BOX, "set_method", BODY), MANIFEST_TYPE, f"is not {PAYLOAD_TYPE}"),
        (b"[]", PAYLOAD_TYPE, "expected an object"),
        (b'{"id":1,"id":2}', PAYLOAD_TYPE, "occurs twice"),
    ],
)
def test_what_is_no_signature_of_a_command_is_a_bad_request(said: Any, kind: str, words: str) -> None:
    code, detail = refused(said, kind=kind)
    assert code is ErrorCode.BAD_REQUEST
    assert words in detail


def test_a_payload_that_is_no_base64_is_named() -> None:
    broken = Envelope.model_validate({"payloadType": PAYLOAD_TYPE, "payload": "%", "signatures": [{"sig": ""}]})
    with pytest.raises(RefusalError, match=r"signature\.payload is not base64"):
        check(broken, BOX, "set_method", BODY)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_carries_a_signature(name: str) -> None:
    more: dict[str, JsonObject] = {
        "deploy": {"artifact": {"url": "u", "sha256": "a" * 64, "size": 1}},
        "set_config": {"config": {}},
    }
    fields: JsonObject = {
        "schema": 1,
        "id": "x",
        "model": "kanji",
        "method": "nf4",
        "operation": "y",
        **more.get(name, {}),
    }
    said = envelope(statement(BOX, name, fields))
    command = commands.parse(name, json.dumps({**fields, "signature": said.model_dump()}).encode())
    assert command.signature == said
    assert commands.parse(name, json.dumps(fields).encode()).signature is None
    with pytest.raises(RefusalError, match="signature"):
        commands.parse(name, json.dumps({**fields, "signature": "yes"}).encode())


def test_a_wanted_state_carries_a_signature_through_the_journal() -> None:
    said = envelope({})
    document = desired.parse(json.dumps({"schema": 1, "generation": 1, "signature": said.model_dump()}).encode())
    assert desired.Desired.model_validate(document.to_json()).signature == said


def test_what_was_signed_is_forgotten_with_the_operation_since_addresses_are_in_it() -> None:
    assert forgotten({"id": "d-1", "signature": {"payload": "…"}}) == {"id": "d-1", "signature": None}
