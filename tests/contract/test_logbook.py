"""The log that is kept: bounded in memory and on disk, whole after a crash, and without secrets."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import structlog

from agent import logs
from agent.logbook import MAX_LINE_BYTES, Logbook

if TYPE_CHECKING:
    from pathlib import Path

ALL = 1 << 30


def entry(number: int, text: str = "") -> dict[str, Any]:
    return {"timestamp": f"2026-11-25T11:00:00.{number:06}Z", "event": "e", "number": number, "text": text}


def numbers(book: Logbook) -> list[int]:
    return [each["number"] for each in book.recent(None, ALL)[0]]


def test_memory_holds_the_newest_lines_up_to_its_bound() -> None:
    book = Logbook(memory_bytes=2000)
    for number in range(500):
        book.write(entry(number))
    kept = numbers(book)
    assert kept == list(range(500 - len(kept), 500))
    assert 10 < len(kept) < 30


def test_what_a_run_wrote_is_there_in_the_next_one_before_its_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "agent.jsonl"
    first = Logbook()
    first.write(entry(1))
    first.keep_in(path)
    first.write(entry(2))
    first.close()

    second = Logbook()
    second.write(entry(3))
    second.keep_in(path)
    second.write(entry(4))
    assert numbers(second) == [1, 2, 3, 4]
    second.close()


def test_the_files_stay_within_their_bound(tmp_path: Path) -> None:
    path = tmp_path / "agent.jsonl"
    book = Logbook()
    book.keep_in(path, file_bytes=4000)
    for number in range(1000):
        book.write(entry(number))
    book.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) <= 8000

    again = Logbook()
    again.keep_in(path, file_bytes=4000)
    kept = numbers(again)
    assert kept == list(range(1000 - len(kept), 1000))
    assert len(kept) > 30
    again.close()


def test_lines_that_a_power_cut_spoilt_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "agent.jsonl"
    path.write_bytes(json.dumps(entry(1)).encode() + b"\n\x00\x00\xff\n[1]\n" + b'{"timestamp": "2026-1')
    book = Logbook()
    book.keep_in(path)
    assert numbers(book) == [1]
    book.close()


def test_a_place_that_cannot_be_written_costs_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    book = Logbook()
    book.keep_in(tmp_path / "logs" / "agent.jsonl")
    book.write(entry(1))
    assert numbers(book) == [1]


def test_a_huge_entry_keeps_its_beginning() -> None:
    book = Logbook()
    book.write(entry(1, "x" * 100_000))
    (kept,) = book.recent(None, ALL)[0]
    assert len(json.dumps(kept)) <= MAX_LINE_BYTES
    assert (kept["event"], kept["timestamp"]) == ("e", entry(1)["timestamp"])


def test_what_is_logged_is_kept_without_its_secrets() -> None:
    book, root = Logbook(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.set_up("info", "json", book=book, device="box-1")
        structlog.get_logger("x").info("fetching", url="https://u:canary@h.example/a?canary=1", password="canary")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
    (kept,) = book.recent(None, ALL)[0]
    assert "canary" not in json.dumps(kept)
    assert (kept["event"], kept["device"]) == ("fetching", "box-1")
