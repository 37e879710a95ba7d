"""What the documents list is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from agent.contract.commands import COMMANDS
from agent.contract.errors import ErrorCode

ROOT = Path(__file__).parents[2]


def test_the_contract_lists_every_error_code_and_no_other() -> None:
    section = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8").partition("## Error codes")[2]
    listed = re.findall(r"`([a-z_]+)`", section.partition("\n\n")[2].partition("\n\n")[2])
    assert sorted(listed) == sorted(str(code) for code in ErrorCode)


def test_the_readme_lists_every_command_that_the_agent_knows() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Commands")[2].partition("## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)) == set(COMMANDS)


def test_every_link_in_the_documents_leads_to_a_file() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
