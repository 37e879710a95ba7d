"""The rules of downloads by themselves: when to ask again, how fast, what an answer is, what a part is worth."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.download.notes import Mark, Notes, trusted_length
from agent.adapters.download.pace import CHUNK, Bucket, Speed, read_size
from agent.adapters.download.policy import Policy, allow, judge_addresses, origin, redact
from agent.adapters.download.resume import Asked, Body, begin, place_of
from agent.adapters.download.retrying import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MAX_TRIES,
    PIECE,
    TransientError,
    Tries,
    retry_after,
)
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

URL = "https://files.example.com/kanji.pt?sig=canary"
DATE = "Wed, 25 Nov 2026 12:00:00 GMT"
HALF = Asked(500, '"one"')


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        (None, DATE, 0.0),
        ("7", None, 7.0),
        (" 120 ", None, 120.0),
        ("Wed, 25 Nov 2026 12:02:30 GMT", DATE, 150.0),
        ("Wed, 25 Nov 2026 11:00:00 GMT", DATE, 0.0),
        ("Wed, 25 Nov 2026 12:02:30 GMT", None, 0.0),
        ("-5", DATE, 0.0),
        ("soon", DATE, 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_and_as_a_date(value: str | None, date: str | None, seconds: float) -> None:
    assert retry_after(value, date) == seconds


def test_pauses_double_up_to_the_longest_and_differ_by_chance() -> None:
    tries = Tries()
    middle = []
    for _ in range(MAX_TRIES + 3):
        tries.failed(0)
        middle.append(tries.pause_s(0.5))
        assert tries.pause_s(0.0) == middle[-1] / 2
    assert middle[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert max(middle) == LONGEST_PAUSE_S


def test_tries_with_progress_do_not_count_and_those_without_do() -> None:
    tries = Tries()
    for number in range(1, 20):
        tries.failed(number * PIECE)
        assert not tries.is_over
    for _ in range(MAX_TRIES - 1):
        tries.failed(19 * PIECE)  # the same piece again: a server that has no ranges and cuts at the same place
    assert tries.is_over


@given(st.integers(1, 200), st.integers(1000, 10**8))
def test_a_bucket_never_lets_more_through_than_its_rate_and_a_quarter_second(reads: int, rate: int) -> None:
    bucket, now, taken = Bucket(0.0), 0.0, 0
    for _ in range(reads):
        taken += read_size(rate)
        now += bucket.take(read_size(rate), rate, now)
        assert taken <= rate * now + rate / 4 + 1


def test_without_a_rate_nobody_waits() -> None:
    bucket = Bucket(0.0)
    assert bucket.take(2**30, 0, 1.0) == 0.0
    assert read_size(0) == CHUNK


def test_a_trickle_is_too_slow_and_a_slow_line_is_not() -> None:
    speed = Speed(1000, 10.0)
    for _ in range(9):
        speed.note(1000, 1.0)
    speed.note(1000, 1.0)
    for _ in range(9):
        speed.note(999, 1.0)
    with pytest.raises(TransientError, match=r"999 bytes/s came over 10 s, 1000 are the least"):
        speed.note(999, 1.0)


def test_a_sender_is_not_blamed_for_the_cap() -> None:
    speed = Speed(1000, 10.0)
    speed.note(6000, 10.0, cap=1000)
    with pytest.raises(TransientError):
        speed.note(4000, 10.0, cap=1000)


@pytest.mark.parametrize(
    ("status", "headers", "asked", "body"),
    [
        (200, {"Content-Length": "1000", "ETag": '"one"'}, Asked(), Body(0, 1000, '"one"')),
        (200, {"ETag": '"two"'}, HALF, Body(0, 1000, '"two"')),
        (200, {"ETag": 'W/"weak"'}, Asked(), Body(0, 1000, None)),
        (200, {"ETag": 'W/"weak"', "Last-Modified": DATE}, Asked(), Body(0, 1000, DATE)),
        (206, {"Content-Range": "bytes 500-999/1000", "ETag": '"one"'}, HALF, Body(500, 1000, '"one"')),
        (206, {"Content-Range": "bytes 500-999/1000"}, HALF, Body(500, 1000, '"one"')),
        (206, {"Content-Range": "bytes 500-999/*"}, HALF, Body(500, 1000, '"one"')),
    ],
)
def test_an_answer_is_the_file_or_its_rest(status: int, headers: dict[str, str], asked: Asked, body: Body) -> None:
    assert begin(status, headers, asked, 1000, URL) == body


@pytest.mark.parametrize(
    ("status", "headers", "asked", "forget"),
    [
        (206, {"Content-Range": "bytes 400-999/1000"}, HALF, True),
        (206, {"Content-Range": "bytes 0-999/1000"}, HALF, True),
        (206, {}, HALF, True),
        (206, {"Content-Range": "bytes 0-999/1000"}, Asked(), True),
        (206, {"Content-Range": "bytes 500-999/1000", "ETag": '"two"'}, HALF, True),
        (416, {"Content-Range": "bytes */400"}, HALF, True),
        (429, {}, Asked(), False),
        (408, {}, Asked(), False),
        (503, {}, HALF, False),
    ],
)
def test_some_answers_are_worth_another_try(
    status: int, headers: dict[str, str], asked: Asked, *, forget: bool
) -> None:
    with pytest.raises(TransientError) as caught:
        begin(status, headers, asked, 1000, URL)
    assert caught.value.forget is forget


@pytest.mark.parametrize(
    ("status", "headers", "size", "words"),
    [
        *((status, {}, 1000, f"HTTP {status}") for status in (204, 304, 400, 401, 403, 404, 410, 416, 451)),
        (200, {"Content-Length": "999"}, 1000, "999 bytes or more, 1000 were announced"),
        (200, {"Content-Length": "1001"}, 1000, "1001 bytes or more, 1000 were announced"),
        (200, {"Content-Length": "70", "Content-Encoding": "gzip"}, 1000, "sent as gzip, which was not asked for"),
        (200, {"Content-Length": "70", "Content-Encoding": "gzip"}, None, "its size was not announced"),
    ],
)
def test_other_answers_are_final(status: int, headers: dict[str, str], size: int | None, words: str) -> None:
    with pytest.raises(StepError) as caught:
        begin(status, headers, Asked(), size, URL)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
    assert not caught.value.retryable
    assert words in caught.value.detail
    assert "canary" not in caught.value.detail


def test_a_file_that_is_kept_compressed_may_be_what_was_announced() -> None:
    assert begin(200, {"Content-Length": "70", "Content-Encoding": "gzip"}, Asked(), 70, URL) == Body(0, 70, None)


def test_a_range_is_asked_for_only_under_a_validator() -> None:
    assert HALF.headers() == {"Range": "bytes=500-", "If-Range": '"one"'}
    assert Asked(500, None).headers() == {}
    assert Asked(0, '"one"').headers() == {}


def test_a_place_is_the_same_for_a_renewed_signature_and_for_nothing_else() -> None:
    place = place_of("https://a.example/x.pt?X-Amz-Signature=1")
    assert place_of("https://A.example/x.pt?X-Amz-Signature=2#frag") == place
    assert place_of("https://user:password@a.example/x.pt") == place
    for other in (
        "http://a.example/x.pt",
        "https://b.example/x.pt",
        "https://a.example/X.pt",
        "https://a.example:1/x.pt",
    ):
        assert place_of(other) != place


NOTES = Notes("place", '"one"', "monday", Mark(300, "5" * 64))


@pytest.mark.parametrize(
    ("notes", "place", "boot", "length"),
    [
        (NOTES, "place", "monday", 500),
        (NOTES, "place", "tuesday", 300),
        (NOTES, "place", None, 300),
        (NOTES, "elsewhere", "monday", 0),
        (None, "place", "monday", 0),
        (Notes("place", '"one"', "monday"), "place", "tuesday", 0),
        (Notes("place", '"one"', "monday", Mark(501, "5" * 64)), "place", "tuesday", 0),
        (Notes("place", '"one"', None), "place", None, 0),
    ],
)
def test_a_part_is_trusted_as_far_as_the_disk_can_be(
    notes: Notes | None, place: str, boot: str | None, length: int
) -> None:
    assert trusted_length(notes, place, 500, boot) == length


def test_notes_survive_being_written_down_and_damage_is_no_note() -> None:
    assert Notes.from_json(NOTES.to_json()) == NOTES
    for text in ("", "{", "[]", "{}", '{"url": "https://a", "etag": "x"}', NOTES.to_json().replace("300", '"x"')):
        assert Notes.from_json(text) is None


def test_a_host_that_is_not_named_needs_addresses_that_are_all_public() -> None:
    policy = Policy(hosts=frozenset({"store.lan"}))
    judge_addresses(urlsplit(URL), ["93.184.216.34", "2606:2800:220:1::1"], policy)
    judge_addresses(urlsplit("https://store.lan/x"), ["10.0.0.1"], policy)
    for address in ("127.0.0.1", "::1", "::ffff:10.0.0.1", "2002:7f00:1::", "224.0.0.1"):
        with pytest.raises(StepError, match="must be named") as caught:
            judge_addresses(urlsplit(URL), ["93.184.216.34", address], policy)
        assert caught.value.detail.startswith(f"https://files.example.com/kanji.pt has the private address {address}")
        assert caught.value.hint == 'add "files.example.com" to downloads.allowed_hosts, if it is meant'


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fe80::1%eth0", "::ffff:169.254.1.1", "2002:a9fe:a9fe::", "fd00:ec2::254", "100.100.100.200"],
)
def test_nobody_is_advised_to_allow_where_machines_keep_credentials(address: str) -> None:
    hosts = frozenset({"store.lan"})
    found = []
    with pytest.raises(StepError) as caught:
        judge_addresses(urlsplit(URL), ["10.0.0.1", address], Policy())
    assert f"address {address}" in caught.value.detail
    found.append(caught.value)
    literal = f"[{address}]" if ":" in address else address
    for host in (literal, "metadata.google.internal"):
        with pytest.raises(StepError) as caught:
            allow(f"https://{host}/x", Policy(hosts=hosts))
        found.append(caught.value)
    for error in found:
        assert error.code is ErrorCode.FORBIDDEN_SOURCE
        assert "named" not in error.detail
        assert error.hint == "serve the file from another host; nothing is to be fetched from there"


def test_what_is_shown_of_an_address_has_no_secret() -> None:
    assert redact("https://me:pw@a.example/x.pt?sig=1#f") == "https://a.example/x.pt"
    assert origin(allow("https://A.example:443/x", Policy())) == "a.example"
    assert origin(allow("https://a.example:8443/x", Policy())) == "a.example:8443"
