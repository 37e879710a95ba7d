"""The page of reliability names tests that exist, and all forty scenarios."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTION = "## The forty scenarios"
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def table() -> list[list[str]]:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = page.partition(SECTION)[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in row] for row in rows]


def test_all_forty_scenarios_have_a_row_with_a_result() -> None:
    rows = table()
    assert [row[0] for row in rows] == [str(number) for number in range(1, 41)]
    assert all(len(row) == 4 for row in rows)
    assert all(row[2].startswith(("pass", "in part", "not shown", "fails", "see ")) for row in rows)


def test_what_passes_names_a_test() -> None:
    unnamed = [row[0] for row in table() if row[2].startswith(("pass", "in part")) and not NAMED.search(row[3])]
    assert unnamed == []


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for file, name in NAMED.findall(page):
        assert (ROOT / file).is_file(), file
        assert not name or re.search(rf"^ *(?:async )?def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), (
            name
        )
