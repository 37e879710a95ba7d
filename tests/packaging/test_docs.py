"""What the documents list is what the code has."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from agent.contract.commands import COMMANDS
from agent.contract.errors import ErrorCode
from agent.deployment.phases import LINES, RULES, OnFailure, Phase
from agent.serving.openapi import REPOSITORY, ROUTES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md"), *ROOT.glob("deploy/*/README.md"))
ATTACKS = "tests/contract/test_attacks.py"


def test_the_contract_lists_every_error_code_and_no_other() -> None:
    section = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8").partition("## Error codes")[2]
    listed = re.findall(r"`([a-z_]+)`", section.partition("\n\n")[2].partition("\n\n")[2])
    assert sorted(listed) == sorted(str(code) for code in ErrorCode)


def test_the_readme_lists_every_command_that_the_agent_knows() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Commands")[2].partition("## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)) == set(COMMANDS)


def test_what_to_do_is_said_of_every_error_code() -> None:
    section = DOCS.joinpath("fleet.md").read_text(encoding="utf-8").partition("## What an error means")[2]
    assert re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE) == [str(code) for code in ErrorCode]


def test_every_link_in_the_documents_leads_to_a_file_and_a_heading_in_it() -> None:
    for page in PAGES:
        for path, _, heading in re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", page.read_text(encoding="utf-8")):
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {path}"
            assert not heading or heading in anchors(target), f"{page.name}: {path}#{heading}"


def anchors(page: Path) -> list[str]:
    """Return the anchors that a page's headings get where it is rendered."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in DOCS.glob("*.md")} - set(re.findall(r"\(([\w-]+\.md)", index)) == {"README.md"}


def test_every_attack_that_is_played_stands_on_the_page_of_security_and_every_test_there_exists() -> None:
    table = (DOCS / "security.md").read_text(encoding="utf-8").partition("## Attacks")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if re.match(r"\| \d+ \|", line)]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row[3])]
    played = re.findall(r'^    Attack\(\s*"([^"]+)"', (ROOT / ATTACKS).read_text(encoding="utf-8"), re.MULTILINE)
    assert [row[0] for row in rows] == [str(number) for number in range(1, 22)]
    assert {name for name in named if not name.startswith("tests/")} == set(played)
    for test in (name for name in named if name.startswith("tests/")):
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") if name else (ROOT / file).is_file(), test


def test_the_page_of_architecture_names_every_room_and_only_files_that_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = {f"agent/{path.parent.name}" for path in (ROOT / "agent").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(agent/\w+)` \|", text, re.MULTILINE)) == rooms
    for path in re.findall(r"`((?:agent|configs|deploy|systemd)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    threads = re.findall(r"`([a-z-]+)`", text.partition("## Threads")[2])
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "agent").rglob("*.py"))
    assert [name for name in threads if f'name="{name}"' not in code] == []


def test_the_drawing_of_a_deploy_is_the_table_of_phases() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8").partition("stateDiagram-v2")[2].partition("```")[0]
    drawn = re.findall(r"(\S+) --> (\S+)", text)
    line = ["[*]", *map(str, LINES["deploy"]), "[*]"]
    back = [phase for phase in LINES["deploy"] if RULES[phase].on_failure is OnFailure.ROLL_BACK]
    aside = [(str(phase), str(Phase.ROLLING_BACK)) for phase in back]
    assert drawn == [*itertools.pairwise(line), *aside, (str(Phase.ROLLING_BACK), "[*]")]


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
