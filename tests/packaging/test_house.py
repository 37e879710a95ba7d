"""The rules of the house: who may import whom, how large a file may be, and what a wheel has to contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from agent.contract.errors import ErrorCode
from agent.quantization.errors import ALL

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "agent").rglob("*.py"))
MAX_LINES = 400
HEAVY = ("torch", "bitsandbytes", "numpy")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_import_contracts_hold() -> None:
    done = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
    assert "Contracts: 0 kept" not in done.stdout


@pytest.mark.parametrize(
    "module", ["agent", "agent.supervisor", "agent.cli", "agent.fleet.client", "agent.planning.plan", "agent.contract"]
)
def test_the_supervisor_s_side_imports_nothing_heavy(module: str) -> None:
    done = run("-c", f"import {module}, sys; print(sorted(set({HEAVY}) & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["agent.planning.plan", "agent.deployment.machine"])
def test_the_pure_core_needs_no_disk_network_or_database(module: str) -> None:
    foreign = ("paho", "pynvml", "sqlite3", "urllib3", "structlog", "agent.adapters", "agent.devices")
    done = run("-c", f"import {module}, sys; print(sorted(set({foreign}) & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_error_code_of_the_contract_is_raised_somewhere() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    named = set(re.findall(r"\bErrorCode\.([A-Z_]+)\b", sources))
    raised = {error.code for error in ALL if re.search(rf"\braise {error.__name__}\(", sources)}
    assert [code.value for code in ErrorCode if code.name not in named and code.value not in raised] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_stays_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert (ast.get_docstring(ast.parse(text)) or "").strip()
    assert len(text.splitlines()) <= MAX_LINES


def test_the_page_s_files_are_in_the_package() -> None:
    page = resources.files("agent.health") / "page"
    texts = {item.name: item.read_text(encoding="utf-8") for item in page.iterdir()}
    named = re.findall(r'(?:src|href)="([\w-]+\.(?:js|css|svg))"', texts["index.html"])
    imported = [
        name for text in texts.values() for name in re.findall(r'^import .* from "\./(.+)";$', text, re.MULTILINE)
    ]
    assert {"index.html", *named, *imported} == set(texts)


@pytest.mark.parametrize("path", sorted((ROOT / "agent" / "health" / "page").iterdir()), ids=lambda path: path.name)
def test_a_file_of_the_page_stays_small_and_can_make_no_markup_of_what_it_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|srcdoc", text)


@pytest.mark.parametrize("folder", ["unit", "property", "flow"])
def test_tests_of_the_core_do_not_sleep(folder: str) -> None:
    users = [path.name for path in (ROOT / "tests" / folder).glob("test_*.py") if "sleep(" in path.read_text()]
    assert users == []
