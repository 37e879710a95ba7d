"""The manifest: the order of its checks, and each refusal."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import PAYLOAD_TYPE, Envelope, Identity, Manifest, decode_base64, pae

NOW = datetime(2026, 11, 23, 10, tzinfo=timezone.utc)
BOX = Identity("box-1", frozenset({"north"}), "NVIDIA Jetson Orin Nano Developer Kit")
BODY: dict[str, Any] = {
    "model": "kanji",
    "version": "v1",
    "sequence": 5,
    "files": [{"name": "kanji.pt", "url": "https://h.example/kanji.pt", "sha256": "a" * 64, "size": 9}],
}
EXPIRED: dict[str, Any] = {"expires": "2026-11-23T10:00:00Z"}
EARLY: dict[str, Any] = {"not_before": "2026-11-23T10:00:01Z"}
FOREIGN: dict[str, Any] = {"audience": {"devices": ["box-2"]}}
STALE: dict[str, Any] = {"sequence": 4}


def check(highest: int | None = 5, now: datetime | None = NOW, **changes: Any) -> None:
    Manifest.model_validate({**BODY, **changes}).check(BOX, now=now, highest_sequence=highest)


def refuse(**changes: Any) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        check(**changes)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (EXPIRED, ErrorCode.EXPIRED, "2026-11-23T10:00:00"),
        (EARLY, ErrorCode.NOT_YET_VALID, "valid from 2026-11-23T10:00:01"),
        (STALE, ErrorCode.STALE_SEQUENCE, "sequence 4 of kanji is older than 5"),
        (FOREIGN, ErrorCode.WRONG_AUDIENCE, "box-1"),
    ],
)
def test_a_manifest_that_may_not_be_acted_on_is_refused(changes: dict[str, Any], code: ErrorCode, words: str) -> None:
    error = refuse(**changes)
    assert error.code is code
    assert words in error.detail


def test_the_checks_are_made_in_the_contract_s_order() -> None:
    seen = []
    remaining = {"expires": EXPIRED, "not_before": EARLY, "sequence": STALE, "audience": FOREIGN}
    while remaining:
        merged = {key: value for part in remaining.values() for key, value in part.items()}
        seen.append(refuse(**merged).code)
        remaining.pop(next(iter(remaining)))
    assert seen == [
        ErrorCode.EXPIRED, ErrorCode.NOT_YET_VALID, ErrorCode.STALE_SEQUENCE, ErrorCode.WRONG_AUDIENCE,
    ]  # fmt: skip


def test_a_clock_that_is_not_set_judges_no_date_but_every_sequence() -> None:
    check(now=None, **EXPIRED)
    check(now=None, **EARLY)
    assert refuse(now=None, **STALE).code is ErrorCode.STALE_SEQUENCE


def test_dates_hold_to_the_second() -> None:
    check(now=NOW - timedelta(microseconds=1), **EXPIRED)
    check(now=NOW + timedelta(seconds=1), **EARLY)


def test_the_same_sequence_may_come_again_and_an_older_one_with_leave() -> None:
    check(highest=5)
    check(highest=None, sequence=0)
    check(highest=5, sequence=4, allow_downgrade=True)


def test_who_is_not_meant_is_told_whom_the_manifest_names_and_who_the_device_is() -> None:
    manifest = Manifest.model_validate(
        {**BODY, "audience": {"devices": [f"box-{n}" for n in range(2, 9)], "groups": ["south"], "hardware": ["Orin"]}}
    )
    with pytest.raises(RefusalError) as caught:
        manifest.check(Identity("box-1", frozenset({"west", "north"})), now=None, highest_sequence=None)
    names = "device box-2 or box-3 or box-4 or box-5 or box-6 and 2 more, group south, hardware Orin"
    who = "device box-1, in group north or west, hardware unknown"
    assert caught.value.detail == f"the manifest is for {names}; this is {who}"
    assert "sign one whose audience names this one" in str(caught.value.hint)


@pytest.mark.parametrize(
    "audience",
    [
        {},
        {"devices": ["box-1"]},
        {"devices": ["box-2"], "groups": ["south", "north"]},
        {"hardware": ["NVIDIA Jetson Orin Nano Developer Kit"]},
    ],
)
def test_an_audience_is_met_by_device_group_or_hardware(audience: dict[str, Any]) -> None:
    check(audience=audience)


def test_hardware_that_is_not_known_is_nobody_s() -> None:
    manifest = Manifest.model_validate({**BODY, "audience": {"hardware": ["x"]}})
    assert not manifest.audience.includes(Identity("box-1"))


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": -1},
        {"sequence": 2**53},
        {"files": []},
        {"files": BODY["files"] * 65},
        {"files": [{**BODY["files"][0], "name": "../x"}]},
        {"files": [{**BODY["files"][0], "size": 0}]},
        {"version": "a/b"},
        {"model": ""},
        {"expires": "2026-11-23T10:00:00"},
    ],
)
def test_a_manifest_of_another_shape_is_refused(changes: dict[str, Any]) -> None:
    error = unpack({**BODY, **changes})
    assert error.code is ErrorCode.BAD_REQUEST
    assert next(iter(changes)) in error.detail


def unpack(body: Any, **changes: Any) -> RefusalError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(raw).decode(), "signatures": [{"sig": "x"}]}
    with pytest.raises(RefusalError) as caught:
        Envelope.model_validate({**envelope, **changes}).manifest()
    return caught.value


def test_an_envelope_of_something_else_is_refused() -> None:
    assert "text/plain" in unpack(BODY, payloadType="text/plain").detail
    assert "manifest.payload is not base64" in unpack(BODY, payload="%%%").detail
    assert "occurs twice" in unpack(b'{"model":"a","model":"b"}').detail


@pytest.mark.parametrize("signatures", [[], [{"sig": "x"}] * 9])
def test_an_envelope_has_one_to_eight_signatures(signatures: list[Any]) -> None:
    with pytest.raises(ValueError, match="signatures"):
        Envelope.model_validate({"payloadType": PAYLOAD_TYPE, "payload": "", "signatures": signatures})


def test_both_alphabets_of_base64_are_read() -> None:
    raw = bytes(range(240, 256))
    assert decode_base64(base64.b64encode(raw).decode(), "x") == raw
    assert decode_base64(base64.urlsafe_b64encode(raw).decode(), "x") == raw


def test_the_signed_bytes_are_those_of_the_specification() -> None:
    # the example of DSSE's protocol.md
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
