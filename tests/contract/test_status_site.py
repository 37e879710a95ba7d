"""The agent's own port, asked over real HTTP."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from agent.health.web import StatusSite

if TYPE_CHECKING:
    from collections.abc import Iterator

HEALTH = {
    "status": "ok",
    "device": {"memory": {"available_bytes": 10, "total_bytes": 20}},
    "models": {"kanji": {"requests": 3, "failures": 1}},
    "supervisor_rss_bytes": 60,
    "server_rss_bytes": None,
    "disk": {"free_bytes": 7},
    "operations": [{}, {}],
    "relaxations": ["trust.require_signature is off"],
}


@pytest.fixture
def health() -> dict[str, Any]:
    return dict(HEALTH)


@pytest.fixture
def site(health: dict[str, Any]) -> Iterator[StatusSite]:
    site = StatusSite("127.0.0.1", 0, lambda: {"device_id": "box", "health": health, "models": {}, "operations": []})
    site.start()
    yield site
    site.stop()


def get(site: StatusSite, path: str) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(f"{site.url}{path}", timeout=5) as response:  # noqa: S310 - loopback
            return response.status, response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def test_the_page_is_whole_by_itself_and_may_load_nothing_from_elsewhere(site: StatusSite) -> None:
    status, page, headers = get(site, "")
    assert status == 200
    assert "http" not in page.lower()
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for name in re.findall(r'(?:src|href)="([\w.-]+)"', page):
        assert get(site, name)[0] == 200, name


def test_the_same_facts_come_as_json(site: StatusSite) -> None:
    status, body, _ = get(site, "status.json")
    assert status == 200
    assert json.loads(body)["device_id"] == "box"


def test_metrics_are_gauges_with_units_and_leave_out_what_is_not_known(site: StatusSite) -> None:
    status, text, headers = get(site, "metrics")
    lines = text.splitlines()
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "nibbled_supervisor_rss_bytes 60" in lines
    assert "nibbled_requests 3" in lines
    assert "nibbled_open_operations 2" in lines
    assert "nibbled_relaxations 1" in lines
    assert "nibbled_ok 1" in lines
    assert "server_rss" not in text


@pytest.mark.parametrize(("state", "code"), [("ok", 200), ("degraded", 200), ("failing", 503), ("starting", 503)])
def test_healthz_is_503_only_when_something_ought_to_be_done(
    site: StatusSite, health: dict[str, Any], state: str, code: int
) -> None:
    health["status"] = state
    status, body, _ = get(site, "healthz")
    assert (status, json.loads(body)) == (code, {"status": state})


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "../web.py", "nothing.js", "style.css/", "%2e%2e/web.py", "a..js"]
)
def test_an_unknown_path_is_404_with_a_json_body(site: StatusSite, path: str) -> None:
    status, body, _ = get(site, path)
    assert status == 404
    assert json.loads(body) == {"error": "no such page"}


def test_a_head_is_told_what_a_look_would_bring(site: StatusSite) -> None:
    with urllib.request.urlopen(urllib.request.Request(f"{site.url}status.json", method="HEAD"), timeout=5) as response:  # noqa: S310 - loopback
        assert int(response.headers["Content-Length"]) > 0
        assert response.read() == b""
