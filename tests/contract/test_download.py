"""Downloads from a real server on loopback: what is resumed, what is refused, and how many bytes travel."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import socket
import sys
import time
from dataclasses import replace
from email.utils import formatdate
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from agent.adapters.download import part as partial
from agent.adapters.download import retrying, transfer
from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy, redact
from agent.contract.errors import ErrorCode
from agent.deployment.ports import InterruptedStepError, StepError
from agent.deployment.runner import WorkWatch
from tests.fakes.device import FakeSources
from tests.fakes.files import FileServer, Reply, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.deployment.ports import Sources

CONTENT = bytes(range(256)) * 4096
SIZE = len(CONTENT)
LOOPBACK = Policy(schemes=frozenset({"http", "file"}), hosts=frozenset({"127.0.0.1"}), stall_s=5.0)


class EagerWatch(WorkWatch):
    """Waits no longer than asked to wait, which is not at all, and remembers the pauses."""

    def __init__(self) -> None:
        super().__init__(lambda _done, _total, _unit: None)
        self.pauses: list[float] = []

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        super().wait(0.0)


@pytest.fixture
def watch() -> EagerWatch:
    return EagerWatch()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(CONTENT) as files:
        yield files


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "kanji.part"


def fetch(url: str, part: Path, watch: WorkWatch, *, size: int | None = SIZE, policy: Policy = LOOPBACK) -> None:
    Downloader(policy, boot="this run").fetch(url, part, size, watch)


def refuse(url: str, part: Path, watch: WorkWatch, *, size: int | None = SIZE, policy: Policy = LOOPBACK) -> StepError:
    with pytest.raises(StepError) as caught:
        fetch(url, part, watch, size=size, policy=policy)
    return caught.value


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_file_arrives_whole(server: FileServer, part: Path, watch: EagerWatch, size: int | None) -> None:
    fetch(server.url, part, watch, size=size)

    assert part.read_bytes() == CONTENT
    assert server.requests[0]["Accept-Encoding"] == "identity"
    assert "Range" not in server.requests[0]


def test_a_cut_connection_is_resumed_where_it_stopped(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(cut_after=300_000), Reply(cut_after=200_001)]
    fetch(server.url, part, watch)

    assert part.read_bytes() == CONTENT
    assert [request.get("Range") for request in server.requests] == [None, "bytes=300000-", "bytes=500001-"]
    assert [request.get("If-Range") for request in server.requests] == [None, '"one"', '"one"']
    assert server.sent_bytes == SIZE
    assert len(watch.pauses) == 2


def test_a_download_goes_on_in_the_next_process(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(cut_after=700_000), *[Reply(status=503)] * retrying.MAX_TRIES]
    error = refuse(server.url, part, watch)
    assert "700000 bytes so far" in error.detail
    server.replies = []
    fetch(server.url, part, watch)

    assert part.read_bytes() == CONTENT
    assert server.sent_bytes == SIZE


def test_a_file_that_changed_is_fetched_from_the_start(server: FileServer, part: Path, watch: EagerWatch) -> None:
    newer = CONTENT[::-1]

    def change(number: int) -> None:
        if number == 2:
            server.content, server.etag = newer, '"two"'

    server.before = change
    server.replies = [Reply(cut_after=300_000)]
    fetch(server.url, part, watch)
    assert part.read_bytes() == newer


def test_a_server_without_ranges_sends_everything_again(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.has_ranges = False
    server.replies = [Reply(cut_after=300_000)]
    fetch(server.url, part, watch)

    assert part.read_bytes() == CONTENT
    assert server.sent_bytes == SIZE + 300_000


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_tag_nothing_is_resumed(
    server: FileServer, part: Path, watch: EagerWatch, etag: str | None
) -> None:
    server.etag = etag
    server.replies = [Reply(cut_after=300_000)]
    fetch(server.url, part, watch)

    assert part.read_bytes() == CONTENT
    assert all("Range" not in request for request in server.requests)


def test_a_whole_file_of_unknown_size_is_not_stuck_behind_its_own_end(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    fetch(server.url, part, watch, size=None)
    fetch(server.url, part, watch, size=None)
    assert part.read_bytes() == CONTENT


def test_a_file_that_is_there_already_is_not_asked_for_again(server: FileServer, part: Path, watch: EagerWatch) -> None:
    fetch(server.url, part, watch)
    fetch(server.url, part, watch)
    assert len(server.requests) == 1


def test_a_part_of_something_else_is_not_gone_on_with(server: FileServer, part: Path, watch: EagerWatch) -> None:
    part.write_bytes(b"other")
    part.with_name(part.name + ".meta").write_text(json.dumps({"url": "http://127.0.0.1/other", "etag": '"one"'}))
    fetch(server.url, part, watch)
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_client_error_is_final(server: FileServer, part: Path, watch: EagerWatch, status: int) -> None:
    server.replies = [Reply(status=status)]
    error = refuse(server.url, part, watch)

    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, False)
    assert f"HTTP {status}" in error.detail
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again_when_it_says_so(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(status=503, headers={"Retry-After": "7"}), Reply(status=429, headers={"Retry-After": "x"})]
    fetch(server.url, part, watch)

    assert part.read_bytes() == CONTENT
    assert watch.pauses[0] == 7.0
    assert 0.0 < watch.pauses[1] < 7.0


def test_a_server_that_stays_broken_is_given_up_with_the_number_of_tries(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    server.replies = [Reply(status=500)] * retrying.MAX_TRIES
    error = refuse(server.url, part, watch)

    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, True)
    assert f"{retrying.MAX_TRIES} tries" in error.detail
    assert len(server.requests) == retrying.MAX_TRIES


def test_a_host_where_nobody_listens_is_a_failed_download(part: Path, watch: EagerWatch) -> None:
    with serve(b"") as gone:
        url = gone.url
    assert refuse(url, part, watch).code is ErrorCode.DOWNLOAD_FAILED


def test_a_body_without_an_end_is_cut_at_the_announced_size(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(endless=True)]
    error = refuse(server.url, part, watch, size=SIZE + 100)

    assert f"{SIZE + 100} were announced" in error.detail
    assert part.stat().st_size <= SIZE + 100


def test_a_file_of_another_size_than_announced_is_refused_before_it_is_read(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    error = refuse(server.url, part, watch, size=SIZE - 1)
    assert f"has {SIZE} bytes or more, {SIZE - 1} were announced" in error.detail
    assert not part.exists()


def test_a_server_that_stalls_is_left_and_asked_again(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(stalls=True)]
    fetch(server.url, part, watch, policy=Policy(LOOPBACK.schemes, LOOPBACK.hosts, stall_s=0.2))

    assert part.read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_download_stops_when_asked_and_keeps_what_it_has(server: FileServer, part: Path) -> None:
    impatient: WorkWatch = WorkWatch(lambda _done, _total, _unit: impatient.interrupt())
    with pytest.raises(InterruptedStepError):
        fetch(server.url, part, impatient)
    assert 0 < part.stat().st_size < SIZE

    have = part.stat().st_size
    fetch(server.url, part, EagerWatch())
    assert part.read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == f"bytes={have}-"


def test_an_allowed_redirect_is_followed(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(status=302, headers={"Location": "/elsewhere?token=1"})]
    fetch(server.url, part, watch)

    assert part.read_bytes() == CONTENT
    assert server.requests[1][":path"] == "/elsewhere?token=1"


@pytest.mark.parametrize(
    "location", ["http://10.0.0.7/x", "http://localhost/x", "https://127.0.0.1/x", "file:///etc/passwd"]
)
def test_a_redirect_to_what_is_not_allowed_is_refused(
    server: FileServer, part: Path, watch: EagerWatch, location: str
) -> None:
    server.replies = [Reply(status=302, headers={"Location": location})]
    policy = Policy(frozenset({"http"}), LOOPBACK.hosts)
    assert refuse(server.url, part, watch, policy=policy).code is ErrorCode.FORBIDDEN_SOURCE
    assert not part.exists()


def test_redirects_in_a_circle_end(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(status=302, headers={"Location": "/again"})] * 20
    assert f"more than {transfer.MAX_REDIRECTS} redirects" in refuse(server.url, part, watch).detail


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (
            "http://169.254.169.254/latest?X-Amz-Signature=canary",
            "host '169.254.169.254' of http://169.254.169.254/latest",
        ),
        ("ftp://me:canary@files.lan/x", "scheme 'ftp' of ftp://files.lan/x"),
        ("http://[::1/x?canary", "not a usable URL"),
    ],
)
def test_of_a_chain_of_redirects_the_refused_one_is_named_without_secrets(
    server: FileServer, part: Path, watch: EagerWatch, location: str, words: str
) -> None:
    server.replies = [Reply(status=302, headers={"Location": each}) for each in ("/next?canary", location)]
    error = refuse(server.url + "?canary", part, watch)
    assert error.code is ErrorCode.FORBIDDEN_SOURCE
    assert error.detail.startswith(f"redirect 2 of {server.url}: {words}")
    assert "canary" not in f"{error.detail} {error.hint}"


@pytest.mark.parametrize(
    ("url", "policy", "words"),
    [
        ("http://example.com/x", Policy(), "scheme 'http'"),
        ("file:///etc/passwd", Policy(), "scheme 'file'"),
        ("ftp://example.com/x", Policy(), "scheme 'ftp'"),
        ("https://evil.example/x", Policy(hosts=frozenset({"good.example"})), "good.example"),
        ("https:///x", Policy(), "host None"),
        ("https://[::1/x", Policy(), "not a usable URL"),
        ("https://example.com:99999/x", Policy(), "not a usable URL"),
        (f"https://{'a' * 70}.example/x", Policy(), "not a usable URL"),
        ("https://b\u00fccher.example/x", Policy(), "not a usable URL"),
        ("https://127.0.0.1/x", Policy(), "private address 127.0.0.1"),
        ("https://localhost/x", Policy(), "private address"),
        ("https://169.254.169.254/latest/meta-data", Policy(), "meta-data has the link-local or metadata address"),
        ("https://[::ffff:10.0.0.1]/x", Policy(), "private address"),
    ],
)
def test_a_source_that_is_not_allowed_is_refused_before_a_connection(
    part: Path, watch: EagerWatch, url: str, policy: Policy, words: str
) -> None:
    error = refuse(url, part, watch, policy=policy)
    assert error.code is ErrorCode.FORBIDDEN_SOURCE
    assert words in error.detail
    assert watch.pauses == []


def test_the_secret_part_of_a_url_is_in_no_error(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(status=404)]
    url = server.url.replace("http://", "http://user:hunter2@") + "?X-Amz-Signature=canary#frag"
    error = refuse(url, part, watch)

    assert server.requests[0][":path"].endswith("?X-Amz-Signature=canary")
    assert "hunter2" not in server.requests[0]["Host"]
    for secret in ("hunter2", "canary", "frag", "user"):
        assert secret not in error.detail
    assert redact(url) == server.url


def test_a_file_url_is_copied(tmp_path: Path, part: Path, watch: EagerWatch) -> None:
    source = tmp_path / "a file.pt"
    source.write_bytes(CONTENT)
    fetch(source.as_uri(), part, watch)
    assert part.read_bytes() == CONTENT
    assert "1048576 bytes or more, 5 were announced" in refuse(source.as_uri(), part, watch, size=5).detail
    source.unlink()
    assert refuse(source.as_uri(), part, watch).code is ErrorCode.DOWNLOAD_FAILED


def test_a_renewed_presigned_address_goes_on_where_the_old_one_stopped(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    server.replies = [Reply(cut_after=700_000), Reply(status=403)]
    refuse(server.url + "?X-Amz-Signature=canary-1", part, watch)
    fetch(server.url + "?X-Amz-Signature=canary-2", part, watch)

    assert part.read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == "bytes=700000-"
    assert server.sent_bytes == SIZE


def test_nothing_of_an_address_is_kept_beside_a_part(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(cut_after=700_000), Reply(status=403)]
    refuse(server.url.replace("http://", "http://user:canary@") + "?sig=canary", part, watch)
    notes = part.with_name(part.name + ".meta").read_text()
    assert json.loads(notes)["validator"] == '"one"'
    assert "canary" not in notes
    assert "127.0.0.1" not in notes


def test_after_a_power_cut_only_what_was_synchronised_is_gone_on_with(
    server: FileServer, part: Path, watch: EagerWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "MARK_EVERY", 290_000)
    server.replies = [Reply(cut_after=560_000), Reply(status=403)]
    with monkeypatch.context() as patch:
        patch.setattr(partial.Part, "keep", _only_while_writing(partial.Part.keep))
        refuse(server.url, part, watch)
    mark = json.loads(part.with_name(part.name + ".meta").read_text())["mark"]["length"]
    assert 290_000 <= mark < 560_000
    Downloader(LOOPBACK, boot="the next run").fetch(server.url, part, SIZE, watch)

    assert part.read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == f"bytes={mark}-"


def _only_while_writing(keep: Callable[[partial.Part], None]) -> Callable[[partial.Part], None]:
    """Return ``keep`` without its call at the end of a try, which a power cut prevents."""

    def kept(self: partial.Part) -> None:
        if sys._getframe(1).f_code.co_name == "write":
            keep(self)

    return kept


def test_a_prefix_that_rotted_is_fetched_again(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(cut_after=700_000), Reply(status=403)]
    refuse(server.url, part, watch)
    with part.open("r+b") as file:
        file.seek(1000)
        file.write(b"rot")
    fetch(server.url, part, watch)

    assert part.read_bytes() == CONTENT
    assert "Range" not in server.requests[-1]


def test_a_file_says_whether_it_came_in_pieces(server: FileServer, part: Path, watch: EagerWatch) -> None:
    downloader = Downloader(LOOPBACK)
    assert not downloader.fetch(server.url, part, SIZE, watch)
    part.unlink()
    server.replies = [Reply(cut_after=700_000)]
    assert downloader.fetch(server.url, part, SIZE, watch)
    assert downloader.fetch(server.url, part, SIZE, watch)  # it is whole: nothing is fetched, and that is known still
    assert len(server.requests) == 3


def test_a_server_that_sends_the_rest_of_another_file_is_not_believed(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    newer = CONTENT[::-1]

    def change(number: int) -> None:
        if number == 2:
            server.content, server.etag, server.has_if_range = newer, '"two"', False

    server.before = change
    server.replies = [Reply(cut_after=300_000)]
    fetch(server.url, part, watch)
    assert part.read_bytes() == newer


@pytest.mark.parametrize("place", ["bytes 0-1048575/1048576", "bytes 299999-1048575/1048576", "nonsense"])
def test_another_range_than_was_asked_for_is_not_written(
    server: FileServer, part: Path, watch: EagerWatch, place: str
) -> None:
    server.replies = [Reply(cut_after=300_000), Reply(headers={"Content-Range": place})]
    fetch(server.url, part, watch)
    assert part.read_bytes() == CONTENT


def test_a_range_that_cannot_be_satisfied_leads_to_one_fresh_start(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    server.replies = [Reply(cut_after=300_000), Reply(status=416)]
    fetch(server.url, part, watch)
    assert part.read_bytes() == CONTENT
    assert len(server.requests) == 3

    part.unlink()
    server.replies = [Reply(status=416)] * 5
    assert "HTTP 416" in refuse(server.url, part, watch).detail
    assert len(server.requests) == 4


def test_a_bad_line_may_cut_a_large_file_as_often_as_it_likes(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    server.content = CONTENT * 4
    server.replies = [Reply(cut_after=retrying.PIECE)] * 15
    fetch(server.url, part, watch, size=4 * SIZE)
    assert part.read_bytes() == server.content
    assert server.sent_bytes == 4 * SIZE


def test_a_server_without_ranges_that_always_cuts_is_given_up(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    server.has_ranges = False
    server.replies = [Reply(cut_after=700_000)] * 50
    assert f"{retrying.MAX_TRIES} tries" in refuse(server.url, part, watch).detail


def test_a_length_that_is_never_reached_is_given_up(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(headers={"Content-Length": str(SIZE + 7)})] * 50
    server.content = CONTENT
    error = refuse(server.url, part, watch, size=SIZE + 7)
    assert (error.code, error.retryable) == (ErrorCode.DOWNLOAD_FAILED, True)


def test_a_file_that_is_sent_compressed_is_refused_with_that_word(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    server.replies = [Reply(headers={"Content-Encoding": "gzip", "Content-Length": "70"})]
    assert "sent as gzip" in refuse(server.url, part, watch).detail
    assert len(server.requests) == 1


def test_a_trickle_is_left_though_it_never_stalls(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(every_s=0.01)] * retrying.MAX_TRIES
    policy = replace(LOOPBACK, slow_s=0.05, min_bytes_per_s=100_000)
    error = refuse(server.url, part, watch, policy=policy)
    assert "100000 are the least" in error.detail
    assert error.retryable
    assert len(server.requests) == retrying.MAX_TRIES


def test_headers_that_trickle_are_left_too(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(head_every_s=0.01)]
    fetch(server.url, part, watch, policy=replace(LOOPBACK, head_s=0.1))
    assert part.read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("reply", [Reply(stalls=True), Reply(head_every_s=0.01)], ids=["body", "head"])
def test_who_stops_a_download_does_not_wait_for_the_server(server: FileServer, part: Path, reply: Reply) -> None:
    impatient = EagerWatch()
    server.before = lambda _number: impatient.interrupt()
    server.replies = [reply]
    began = time.monotonic()
    with pytest.raises(InterruptedStepError):
        fetch(server.url, part, impatient, policy=replace(LOOPBACK, stall_s=30.0, head_s=30.0))
    assert time.monotonic() - began < 10.0


def test_a_server_that_names_a_date_is_not_asked_before(server: FileServer, part: Path, watch: EagerWatch) -> None:
    at = formatdate(time.time() + 600, usegmt=True)
    server.replies = [Reply(status=429, headers={"Retry-After": at})]
    fetch(server.url, part, watch)
    assert 590.0 <= watch.pauses[0] <= 601.0


def test_a_server_that_wants_days_is_not_waited_for(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(status=503, headers={"Retry-After": "86400"})]
    error = refuse(server.url, part, watch)
    assert "not to be asked for 86400 s" in error.detail
    assert error.retryable
    assert watch.pauses == []


def test_a_cap_is_kept_by_waiting_and_can_be_changed_meanwhile(
    server: FileServer, part: Path, watch: EagerWatch
) -> None:
    now = itertools.chain.from_iterable(itertools.repeat([5.0]))
    Downloader(LOOPBACK, rate=lambda: SIZE // 4, monotonic=lambda: next(now)).fetch(server.url, part, SIZE, watch)
    assert 0.0 < max(watch.pauses) <= 4.0  # time stands still, so the debt only grows: at most the whole file's
    assert watch.pauses[-1] == pytest.approx(4.0)


def test_a_file_that_does_not_fit_beside_the_reserve_is_refused_before_it_is_read(
    server: FileServer, part: Path, watch: EagerWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, lambda: 500_000)
    error = refuse(server.url, part, watch, size=None, policy=replace(LOOPBACK, reserve_bytes=100_000))
    assert (error.code, error.retryable) == (ErrorCode.INSUFFICIENT_DISK, True)
    assert f"needs {SIZE} bytes more" in error.detail
    assert "500000 bytes were free and 100000 of them are reserved" in error.detail
    assert not part.exists()


def test_a_disk_that_others_fill_stops_a_download_which_gives_back_what_the_reserve_lacks(
    server: FileServer, part: Path, watch: EagerWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = iter([0] * 4)
    most = SIZE + 150_000

    def free() -> int:
        return most - (part.stat().st_size if part.exists() else 0) - next(others, 600_000)

    disk(monkeypatch, free)
    policy = replace(LOOPBACK, reserve_bytes=100_000)
    error = refuse(server.url, part, watch, policy=policy)
    assert error.code is ErrorCode.INSUFFICIENT_DISK
    kept = part.stat().st_size
    assert 0 < kept <= most - 600_000 - 100_000
    assert f"beside {kept} of {SIZE} that are kept" in error.detail

    disk(monkeypatch, lambda: 2**40)
    fetch(server.url, part, watch, policy=policy)
    assert part.read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == f"bytes={kept}-"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_finds_the_disk_full_says_so(
    server: FileServer, part: Path, watch: EagerWatch, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == SIZE:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    error = refuse(server.url, part, watch)
    assert (error.code, error.retryable) == (ErrorCode.INSUFFICIENT_DISK, True)
    assert part.stat().st_size == SIZE


def test_no_file_is_larger_than_the_operator_allows(server: FileServer, part: Path, watch: EagerWatch) -> None:
    policy = replace(LOOPBACK, max_bytes=SIZE - 1)
    assert "downloads.max_size allows" in refuse(server.url, part, watch, size=None, policy=policy).detail
    server.replies = [Reply(endless=True)]
    assert "downloads.max_size allows" in refuse(server.url, part, watch, size=None, policy=policy).detail
    assert part.stat().st_size < SIZE
    requests = len(server.requests)
    assert "downloads.max_size allows" in refuse(server.url, part, watch, policy=policy).detail
    assert len(server.requests) == requests


@pytest.mark.parametrize("url", ["file:///dev/zero", "file:///dev", "file://elsewhere/etc/hostname"])
def test_only_plain_files_of_this_machine_are_copied(part: Path, watch: EagerWatch, url: str) -> None:
    assert refuse(url, part, watch, size=None).code is ErrorCode.DOWNLOAD_FAILED


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::1]", "169.254.169.254"])
def test_an_address_in_a_url_is_judged_without_asking_anybody(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = socket.getaddrinfo

    def numeric(host: str, *arguments: Any, **options: Any) -> Any:
        if not options.get("flags", 0) & socket.AI_NUMERICHOST:
            asked.append(host)
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", numeric)
    downloader = Downloader(Policy())
    with pytest.raises(StepError, match="forbidden_source"):
        downloader.judge(f"https://{host}/x")
    downloader.judge("https://93.184.216.34/x")
    downloader.judge("https://localhost/x")  # a name is judged when it is resolved to be connected to
    assert asked == []


def test_a_redirect_never_leads_to_a_file(server: FileServer, part: Path, watch: EagerWatch) -> None:
    server.replies = [Reply(status=302, headers={"Location": "file:///etc/hostname"})]
    assert refuse(server.url, part, watch).code is ErrorCode.FORBIDDEN_SOURCE


def disk(monkeypatch: pytest.MonkeyPatch, free: Callable[[], int]) -> None:
    """Let a disk have as many free bytes as ``free`` returns at each look."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free()))


@pytest.fixture(params=["fake", "real"])
def sources(request: pytest.FixtureRequest, server: FileServer) -> Sources:
    if request.param == "real":
        return Downloader(LOOPBACK)
    fake = FakeSources()
    fake.files[server.url] = server.content
    fake.scheme = "http"
    return fake


def test_every_source_judges_an_address_by_itself(sources: Sources, server: FileServer) -> None:
    sources.judge(server.url)
    with pytest.raises(StepError) as caught:
        sources.judge("ftp://127.0.0.1/kanji.pt")
    assert caught.value.code is ErrorCode.FORBIDDEN_SOURCE
    assert server.requests == []


def test_every_source_writes_what_it_fetches(sources: Sources, server: FileServer, part: Path) -> None:
    seen: list[int] = []
    sources.fetch(server.url, part, SIZE, WorkWatch(lambda done, _total, _unit: seen.append(done)))
    assert part.read_bytes() == CONTENT
    assert seen[-1] == SIZE


def test_every_source_refuses_another_size(sources: Sources, server: FileServer, part: Path, watch: EagerWatch) -> None:
    with pytest.raises(StepError) as caught:
        sources.fetch(server.url, part, 7, watch)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED


def test_every_source_stops_when_asked(sources: Sources, server: FileServer, part: Path, watch: EagerWatch) -> None:
    watch.interrupt()
    with pytest.raises(InterruptedStepError):
        sources.fetch(server.url, part, SIZE, watch)


def test_every_source_says_that_it_cannot_reach_a_host(sources: Sources, part: Path, watch: EagerWatch) -> None:
    with serve(b"") as gone:
        url = gone.url
    with pytest.raises(StepError) as caught:
        sources.fetch(url, part, SIZE, watch)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.DOWNLOAD_FAILED, True)
