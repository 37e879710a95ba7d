"""The policies for brokers that cannot be run here allow what the ACL for mosquitto allows, as their documents say.

mosquitto's own files are read by a real mosquitto in ``tests/e2e/test_broker_roles.py``, for the same roles and topics.
"""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
A, B = "edge/v1/box-a", "edge/v1/box-b"
GROUP = {f"edge/v1/_group/north/{name}" for name in ("desired", "halt")}
SAYS = ("op/d-1", "reported", "presence", "capabilities", "health", "telemetry", "event", "log/l-1")
HEARS = ("cmd/status", "desired")
READS = ("cmd/status", "desired", "presence", "op/d-1")
TOPICS = [
    *(f"{root}/{name}" for root in (A, B) for name in (*SAYS, *HEARS)),
    *sorted(GROUP),
    "edge/v1",
    "edge/v1/box-a",
    "x",
]
ALL = [topic for topic in TOPICS if topic != "x"]
WRITES = {
    "box-a": {f"{A}/{name}" for name in SAYS},
    "operator": {f"{root}/{name}" for root in (A, B) for name in HEARS},
    "fleet": {*(f"{root}/{name}" for root in (A, B) for name in HEARS), *GROUP},
    "auditor": set(),
}
HEARD = {
    "box-a": {*(f"{A}/{name}" for name in READS), *GROUP},
    **{who: set(ALL) for who in ("operator", "fleet", "auditor")},
}


def matches(pattern: str, topic: str) -> bool:
    """Return whether a filter of MQTT covers a topic."""
    levels, parts = pattern.split("/"), topic.split("/")
    for index, level in enumerate(levels):
        if level == "#":
            return True
        if index >= len(parts) or level not in ("+", parts[index]):
            return False
    return len(levels) == len(parts)


class Emqx:
    """The rules of ``acl.conf``; raises where one is written in a way that is not understood here."""

    def __init__(self, text: str) -> None:
        self.rules = []
        text = re.sub(r"^%%.*$", "", text, flags=re.MULTILINE)
        for rule in filter(None, (part.strip() for part in re.split(r"\}\.\s*(?:\n|$)", text))):
            found = re.fullmatch(
                r"\{(allow|deny), (all|\{username, (?:\"([^\"]+)\"|\{re, \"([^\"]+)\"\})\})"
                r"(?:, (publish|subscribe|all), \[([^\]]+)\])?",
                rule,
            )
            assert found, rule
            permission, _, name, pattern, action, topics = found.groups()
            self.rules.append((permission, name, pattern, action or "all", re.findall(r'"([^"]+)"', topics or '"#"')))

    def allows(self, who: str, action: str, topic: str) -> bool:
        """Return what the first rule that matches says."""
        for permission, name, pattern, about, topics in self.rules:
            is_meant = (name in (None, who)) and (pattern is None or re.search(pattern, who))
            filters = (each.replace("${username}", who) for each in topics)
            if is_meant and about in (action, "all") and any(matches(each, topic) for each in filters):
                return bool(permission == "allow")
        raise AssertionError("no rule matched; the last one has to deny")


@pytest.mark.parametrize("who", WRITES)
@pytest.mark.parametrize("topic", TOPICS)
def test_emqx_s_rules_allow_what_mosquitto_s_allow(who: str, topic: str) -> None:
    acl = Emqx((DEPLOY / "emqx" / "acl.conf").read_text())
    assert acl.allows(who, "publish", topic) == (topic in WRITES[who])
    assert acl.allows(who, "subscribe", topic) == (topic in HEARD[who])


def aws(action: str, kind: str, name: str) -> bool:
    """Return whether the policy allows it to the thing ``box-a``."""
    text = (DEPLOY / "aws-iot" / "policy.json").read_text().replace("${iot:Connection.Thing.ThingName}", "box-a")
    wanted = f"arn:aws:iot:REGION:ACCOUNT:{kind}/{name}"
    for statement in json.loads(text)["Statement"]:
        actions, resources = (
            [value] if isinstance(value, str) else value for value in (statement["Action"], statement["Resource"])
        )
        assert statement["Effect"] == "Allow"
        if f"iot:{action}" in actions and any(fnmatch.fnmatchcase(wanted, each) for each in resources):
            return True
    return False


@pytest.mark.parametrize("topic", TOPICS)
def test_the_policy_for_aws_lets_a_thing_write_its_own_topics_and_read_no_other_s(topic: str) -> None:
    assert aws("Publish", "topic", topic) == (topic in WRITES["box-a"])
    assert aws("RetainPublish", "topic", topic) == (
        topic in {f"{A}/{name}" for name in ("op/d-1", "reported", "presence", "capabilities")}
    )
    assert aws("Receive", "topic", topic) == (topic.startswith(f"{A}/") or topic in GROUP)
    assert aws("Subscribe", "topicfilter", topic) == (topic in HEARD["box-a"] - {f"{A}/cmd/status", f"{A}/op/d-1"})


def test_the_policy_for_aws_allows_what_a_device_subscribes_to_and_fits() -> None:
    for name in (f"{A}/cmd/+", f"{A}/desired", f"{A}/presence", f"{A}/op/+", *GROUP):
        assert aws("Subscribe", "topicfilter", name)
    for name in ("#", "edge/v1/#", "edge/v1/+/cmd/+", f"{A}/#", f"{B}/cmd/+"):
        assert not aws("Subscribe", "topicfilter", name)
    assert aws("Connect", "client", "box-a")
    assert not aws("Connect", "client", "box-b")
    policy = json.dumps(json.loads((DEPLOY / "aws-iot" / "policy.json").read_text()), separators=(",", ":"))
    assert len(policy.replace("REGION", "ap-southeast-2").replace("ACCOUNT", "123456789012")) <= 2048


def test_the_broker_of_a_site_may_do_in_the_cloud_what_its_bridge_does_and_no_more() -> None:
    acl = (DEPLOY / "mosquitto" / "sites.acl").read_text()
    bridge = (DEPLOY / "mosquitto" / "bridge.conf").read_text()
    rights = {kind: set(re.findall(rf"^topic {kind} (\S+)$", acl, re.MULTILINE)) for kind in ("read", "write")}
    carried = {way: set(re.findall(rf"^topic (\S+) {way} [01]$", bridge, re.MULTILINE)) for way in ("in", "out")}
    (link,) = re.findall(r"^notification_topic (\S+)$", bridge, re.MULTILINE)
    assert rights == {"read": carried["in"], "write": carried["out"] | {link}}
    assert re.findall(r"^user (\S+)$", acl, re.MULTILINE) == re.findall(
        r"^remote_clientid (\S+)$", bridge, re.MULTILINE
    )
