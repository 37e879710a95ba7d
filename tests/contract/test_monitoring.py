"""What is shipped for Prometheus and Grafana: rules that fire, expressions that parse, metrics that exist."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from agent.health.exposition import exposition
from agent.serving import metrics
from tests.contract.test_metrics_lint import HEALTH
from tests.e2e.harness.telegraf import Config
from tests.e2e.harness.tools import require
from tests.fakes.serving import FakeNetwork, harness, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.serving.exposition import Family

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$model": ".*"}
"""What Grafana puts in the place of its own variables."""


def promtool(*arguments: str, cwd: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [require("promtool"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield where an expression stands, and the expression as Prometheus gets it."""
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            yield f"{panel['title']} {target['refId']}", text


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What the server, the agent and Telegraf print: names with their kinds, by running what prints them."""
    seen: list[Family] = []

    def expose(families: Sequence[Family]) -> bytes:
        seen.extend(families)
        return b""

    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(metrics, "expose", expose)
                metrics.render(it.plane, {})

    run(scenario)
    names = {family.name + suffix: family.kind for family in seen for suffix in SUFFIXES.get(family.kind, ("",))}
    names |= dict.fromkeys(re.findall(r"^(nibbled_\w+) ", exposition(HEALTH), re.MULTILINE), "gauge")
    return names | dict.fromkeys(Config.shipped().names(), "gauge")


def named(text: str) -> set[str]:
    return set(re.findall(r"\bnibbled_\w+", text))


def test_the_configuration_and_the_rules_are_what_prometheus_takes() -> None:
    for arguments in (("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml")):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_where_it_should_and_only_there() -> None:
    done = promtool("test", "rules", "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("comparison", ["< -1", ">= -1"], ids=["never", "always"])
def test_an_alert_that_fires_never_or_always_is_noticed(comparison: str, tmp_path: Path) -> None:
    rules = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
    for rule in (each for group in rules["groups"] for each in group["rules"]):
        threshold = re.search(r" (==|<|>=|>) [^<>=]+$", rule["expr"].strip())
        assert threshold, rule["expr"]
        rule["expr"] = f"({rule['expr'].strip()[: threshold.start()]}) {comparison}"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(PROMETHEUS / "rules_test.yml", tmp_path)
    done = promtool("test", "rules", "rules_test.yml", cwd=tmp_path)
    assert done.returncode != 0
    noticed = set(re.findall(r"alertname: ?(\w+)", done.stdout + done.stderr))
    assert {rule["alert"] for rule in RULES} - noticed == set()


def test_every_metric_of_rules_and_dashboard_is_one_that_is_printed(printed: dict[str, str]) -> None:
    for where, text in (*((rule["alert"], rule["expr"]) for rule in RULES), *expressions()):
        assert named(text) <= set(printed), where
        counters = set(re.findall(r"(?:rate|increase|resets)\((nibbled_\w+)", text))
        of_telegraf = {name for name in counters if name.startswith("nibbled_fleet_")}
        assert {printed[name] for name in counters - of_telegraf} <= {"counter", "histogram"}, where
        assert not {name for name in named(text) - counters if printed[name] in ("counter", "histogram")}, where


def test_the_metrics_of_the_unit_tests_are_those_of_the_rules() -> None:
    tests = named((PROMETHEUS / "rules_test.yml").read_text())
    assert tests == {name for rule in RULES for name in named(rule["expr"])}


def test_prometheus_can_parse_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    records = [{"record": f"panel:{index}", "expr": text} for index, (_, text) in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    done = promtool("check", "rules", "panels.yml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(records)} rules found" in done.stdout


def test_panels_have_ids_of_their_own_lie_beside_each_other_and_say_what_they_show() -> None:
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = set(itertools.product(columns, lines))
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["title"] and panel["description"] for panel in panels())
    assert [panel["title"] for panel in panels() if not panel["targets"]] == []


def test_every_variable_that_is_used_is_defined_and_every_panel_asks_the_chosen_source(printed: dict[str, str]) -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"}
    assert used == set(variables)
    assert variables["datasource"]["type"] == "datasource"
    asked = [panel["datasource"] for panel in panels()]
    asked += [target["datasource"] for panel in panels() for target in panel["targets"]]
    assert {each["uid"] for each in asked} == {"${datasource}"}
    assert all(named(each.get("definition", "")) <= set(printed) for each in variables.values())


def test_what_is_provisioned_is_yaml_with_a_source_and_a_folder() -> None:
    (source,) = (DEPLOY / "grafana" / "provisioning" / "datasources").iterdir()
    assert [each["type"] for each in yaml.safe_load(source.read_text())["datasources"]] == ["prometheus"]
    (provider,) = (DEPLOY / "grafana" / "provisioning" / "dashboards").iterdir()
    assert [each["type"] for each in yaml.safe_load(provider.read_text())["providers"]] == ["file"]
