"""What the documents list is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from agent.contract.commands import COMMANDS
from agent.contract.errors import ErrorCode
from agent.serving.openapi import REPOSITORY, ROUTES

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


def test_every_test_that_the_table_for_sceptics_names_exists_and_every_scenario_has_a_verdict() -> None:
    section = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").partition("## What a sceptic will try")[2]
    rows = [line.split("|")[1:5] for line in section.splitlines() if line.startswith("|")][2:]
    assert sorted({int(number) for number, *_ in rows if number.strip()}) == list(range(1, 27))
    for _, scenario, verdict, tests in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert verdict.strip() in ("pass", "partly", "not shown"), scenario
        assert bool(named) == (verdict.strip() != "not shown"), scenario
        for file, function in named:
            (path,) = (ROOT / "tests").rglob(file)
            assert re.search(rf"def {function}\(", path.read_text(encoding="utf-8")), f"{file}: {function}"


def test_the_document_of_the_inference_port_lists_every_route() -> None:
    section = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").partition("## What a refusal is")[0]
    for route in (*ROUTES, *REPOSITORY):
        last = route.path.replace("{model}", "M").replace("/versions/{version}", "").replace("/v2/repository", "")
        assert last in section or last.rpartition("/")[2] in section, route.path
