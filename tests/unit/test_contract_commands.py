"""Commands: what is accepted, and the code and words of every refusal."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from agent.contract import commands
from agent.contract.commands import COMMANDS, Deploy, Gate
from agent.contract.errors import MAX_TEXT, ErrorCode, ErrorInfo, RefusalError
from agent.contract.reports import Report
from agent.contract.topics import Topics
from agent.contract.wire import MAX_DEPTH, MAX_PAYLOAD_BYTES, parse_object, rfc3339
from agent.planning.methods import NAMES

ARTIFACT = {"url": "https://h.example/x.pt", "sha256": "a" * 64, "size": 9}
DEPLOY = {"schema": 1, "id": "d-1", "model": "kanji", "artifact": ARTIFACT}


def refuse(body: dict[str, Any] | bytes, name: str = "deploy", *, retained: bool = False) -> RefusalError:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RefusalError) as caught:
        commands.parse(name, payload, retained=retained)
    return caught.value


def test_a_deploy_of_the_fewest_words_has_safe_defaults() -> None:
    found = commands.parse("deploy", json.dumps(DEPLOY).encode())
    assert isinstance(found, Deploy)
    assert (found.method, found.model_type, found.gate) == ("auto", "auto", Gate())
    assert found.gate.min_agreement == 0.95


def test_unknown_fields_are_ignored() -> None:
    assert commands.parse("status", b'{"schema":1,"id":"s","future":{"x":[1]}}').id == "s"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"schema": 2}, ErrorCode.BAD_REQUEST, "schema"),
        ({"id": "a/b"}, ErrorCode.BAD_REQUEST, "id"),
        ({"id": "x" * 65}, ErrorCode.BAD_REQUEST, "id"),
        ({"id": ""}, ErrorCode.BAD_REQUEST, "id"),
        ({"id": "a\n"}, ErrorCode.BAD_REQUEST, "id"),
        ({"id": 7}, ErrorCode.BAD_REQUEST, "id"),
        ({"model": "+"}, ErrorCode.BAD_REQUEST, "model"),
        ({"method": "int3"}, ErrorCode.UNSUPPORTED_METHOD, "'int3'"),
        ({"method": 4}, ErrorCode.BAD_REQUEST, "method"),
        ({"artifact": None}, ErrorCode.BAD_REQUEST, "neither manifest nor artifact"),
        ({"artifact": {**ARTIFACT, "sha256": "A" * 64}}, ErrorCode.BAD_REQUEST, "artifact.sha256"),
        ({"artifact": {**ARTIFACT, "size": 0}}, ErrorCode.BAD_REQUEST, "artifact.size"),
        ({"gate": {"min_agreement": 1.1}}, ErrorCode.BAD_REQUEST, "gate.min_agreement"),
        ({"gate": {"soak_s": -1}}, ErrorCode.BAD_REQUEST, "gate.soak_s"),
        ({"expires_at": "2026-11-23T10:00:00"}, ErrorCode.BAD_REQUEST, "expires_at"),
        ({"expires_at": "soon"}, ErrorCode.BAD_REQUEST, "expires_at"),
        ({"expires_at": "0001-01-01T00:00:00+05:00"}, ErrorCode.BAD_REQUEST, "expires_at: a date outside of"),
        ({"response_topic": "answers/#"}, ErrorCode.BAD_REQUEST, "response_topic"),
        ({"response_topic": "answers/+/me"}, ErrorCode.BAD_REQUEST, "response_topic"),
        ({"version": "../v1"}, ErrorCode.BAD_REQUEST, "version"),
    ],
)
def test_a_field_that_cannot_be_meant_is_named(change: dict[str, Any], code: ErrorCode, words: str) -> None:
    error = refuse({**DEPLOY, **change})
    assert error.code is code
    assert words in error.detail


def test_at_most_five_complaints_are_made_and_the_rest_counted() -> None:
    detail = refuse({"id": "d", "model": "/", "artifact": {}, "gate": {"min_agreement": 2, "soak_s": -1}}).detail
    assert detail.count(": ") == 6
    assert "(and 2 more)" in detail


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "not JSON: Expecting value at line 1 column 1"),
        (b"[1]", "a JSON array, expected an object"),
        (b'"x"', "a JSON string"),
        (b"null", "the payload is JSON null, expected an object"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b'{"id":"a","id":"b"}', "key 'id' occurs twice"),
        (b'{"a":{"b":1,"b":1}}', "key 'b' occurs twice"),
        (b'{"a":[{"b":"\\ud83d"}]}', "half of a surrogate pair"),
        (b'{"\\udc00":1}', "half of a surrogate pair"),
        (b'{"priority":NaN}', "NaN is no JSON number"),
        (b'{"priority":-Infinity}', "-Infinity is no JSON number"),
        (b'{"priority":' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"a":' * MAX_DEPTH + b"{}" + b"}" * MAX_DEPTH, f"deeper than {MAX_DEPTH}"),
        (b'{"a":' * 10_000, f"deeper than {MAX_DEPTH}"),
        (b"{" + b" " * MAX_PAYLOAD_BYTES + b"}", f"{MAX_PAYLOAD_BYTES + 2} bytes, at most {MAX_PAYLOAD_BYTES}"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_no_strict_json_object_is_refused(payload: bytes, words: str) -> None:
    error = refuse(payload)
    assert error.code is ErrorCode.BAD_REQUEST
    assert words in error.detail
    assert error.operation_id is None


def test_the_largest_and_deepest_object_is_accepted() -> None:
    body = json.dumps({**DEPLOY, "pad": ""}).encode()
    whole = body.replace(b'"pad": ""', b'"pad": "' + b"x" * (MAX_PAYLOAD_BYTES - len(body)) + b'"')
    assert len(whole) == MAX_PAYLOAD_BYTES
    assert commands.parse("deploy", whole).id == "d-1"
    deep = b'{"schema":1,"id":"s","a":' + b'{"a":' * (MAX_DEPTH - 2) + b"{}" + b"}" * (MAX_DEPTH - 1)
    assert commands.parse("status", deep).id == "s"


def test_a_character_outside_the_first_plane_is_accepted_as_a_pair() -> None:
    assert parse_object(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize("date", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_date_that_has_no_name_in_utc_is_refused(date: str) -> None:
    assert "outside of the years 1 to 9999" in refuse({**DEPLOY, "expires_at": date}).detail


def test_a_retained_command_is_refused_with_the_way_out() -> None:
    error = refuse(DEPLOY, retained=True)
    assert error.code is ErrorCode.RETAINED_COMMAND
    assert error.operation_id == "d-1"
    assert "without the retain flag" in (error.hint or "")


def test_an_unknown_command_answers_with_the_known_ones() -> None:
    error = refuse(DEPLOY, "reboot")
    assert error.code is ErrorCode.UNSUPPORTED_COMMAND
    assert all(name in (error.hint or "") for name in COMMANDS)


def test_a_refusal_carries_the_id_only_where_it_is_one() -> None:
    assert refuse({**DEPLOY, "model": "/"}).operation_id == "d-1"
    assert refuse({**DEPLOY, "id": "/"}).operation_id is None


def test_a_refusal_is_never_retryable_as_it_stands() -> None:
    info = refuse({**DEPLOY, "method": "int3"}).info()
    assert (info.code, info.retryable) == (ErrorCode.UNSUPPORTED_METHOD, False)
    assert all(name in (info.hint or "") for name in NAMES)


@pytest.mark.parametrize("method", ["auto", *NAMES])
def test_every_method_can_be_asked_for_by_its_name(method: str) -> None:
    command = commands.parse("deploy", json.dumps({**DEPLOY, "method": method}).encode())
    assert isinstance(command, Deploy)
    assert command.method == method


def test_a_long_text_is_clipped_before_it_is_reported() -> None:
    info = ErrorInfo(code=ErrorCode.INTERNAL, detail="x" * 100_000, hint="y" * MAX_TEXT)
    assert len(info.detail) == MAX_TEXT
    assert info.detail.endswith("x…")
    assert info.hint == "y" * MAX_TEXT


@pytest.mark.parametrize(("second", "is_expired"), [(59, False), (0, True)])
def test_a_command_expires_at_the_very_second(second: int, is_expired: bool) -> None:  # noqa: FBT001 - a table
    found = commands.parse("status", b'{"schema":1,"id":"s","expires_at":"2026-11-23T12:00:00+02:00"}')
    now = datetime(2026, 11, 23, 9 if second else 10, second, second, tzinfo=timezone.utc)
    assert found.is_expired(now) is is_expired


def test_a_time_is_told_in_utc_with_milliseconds() -> None:
    moment = datetime.fromisoformat("2026-11-23T12:00:00.123456+02:00")
    assert rfc3339(moment) == "2026-11-23T10:00:00.123Z"


def test_a_report_above_64_kib_is_refused_where_it_is_built() -> None:
    Report("t", b"x" * MAX_PAYLOAD_BYTES)
    with pytest.raises(ValueError, match="65537 bytes"):
        Report("t", b"x" * (MAX_PAYLOAD_BYTES + 1))


@pytest.mark.parametrize("prefix", ["", "/edge", "edge//v1", "edge/+", "edge/#", "a b", "$SYS", "a/b/c/d/e"])
def test_a_prefix_that_cannot_be_a_topic_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        Topics(prefix, "box")


def test_a_device_or_operation_id_that_leaves_its_level_is_refused() -> None:
    with pytest.raises(ValueError, match="device id"):
        Topics("edge/v1", "a/b")
    with pytest.raises(ValueError, match="operation id"):
        Topics("edge/v1", "box").operation("#")
