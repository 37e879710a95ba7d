"""The broker files that are shipped, on a real mosquitto: what every role may do, seen by what arrives.

A grant or an acknowledgement proves nothing (mosquitto grants subscriptions that it never serves): a forbidden message
is followed by an allowed one on the same listener's way, and only the second may arrive.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from agent.fleet.cli import main as nibblectl
from tests.e2e.harness.device import ROOT
from tests.e2e.harness.secure_broker import PASSWORD, Listener, SecureBroker, fresh_text
from tests.fakes.authority import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e]

DEVICE_TOPICS = ("op/d-1", "reported", "presence", "capabilities", "health", "telemetry", "event", "log/l-1")
PEOPLE_TOPICS = ("cmd/status", "desired")
A, B = "edge/v1/box-a", "edge/v1/box-b"
GROUP, HALT = "edge/v1/_group/north/desired", "edge/v1/_group/north/halt"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    broker = SecureBroker(tmp_path_factory.mktemp("mosquitto"), Authority(tmp_path_factory.mktemp("authority")))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def everything(broker: SecureBroker) -> Iterator[Listener]:
    """What an auditor sees: the shipped role reads everything."""
    listener = Listener(broker, "auditor", "edge/v1/#", retained=f"{A}/desired")
    yield listener
    listener.close()


def arrives(broker: SecureBroker, listener: Listener, who: str, topic: str) -> bool:
    """Publish as ``who``, then as somebody who may, and return whether the first came through."""
    text, after = fresh_text(), fresh_text()
    broker.publish(who, topic, text)
    broker.publish("operator", f"{A}/cmd/status", after)
    listener.wait(after)
    return text in listener.texts()


WRITES = {
    "box-a": [f"{A}/{name}" for name in DEVICE_TOPICS],
    "operator": [f"{root}/{name}" for root in (A, B) for name in PEOPLE_TOPICS],
    "fleet": [*(f"{root}/{name}" for root in (A, B) for name in PEOPLE_TOPICS), GROUP, HALT],
    "auditor": [],
}
TOPICS = [*(f"{root}/{name}" for root in (A, B) for name in (*DEVICE_TOPICS, *PEOPLE_TOPICS))]
TOPICS += [GROUP, HALT, "edge/v1", "x"]


@pytest.mark.parametrize("who", WRITES)
@pytest.mark.parametrize("topic", TOPICS)
def test_a_role_writes_its_own_topics_and_no_others(
    broker: SecureBroker, everything: Listener, who: str, topic: str
) -> None:
    assert arrives(broker, everything, who, topic) == (topic in WRITES[who])


READS = [f"{A}/cmd/status", f"{A}/desired", GROUP, HALT]
FORBIDDEN = [f"{B}/cmd/status", f"{B}/desired"]


def test_a_device_reads_what_it_is_told_and_nothing_that_others_are_told(broker: SecureBroker) -> None:
    own, foreign = fresh_text(), fresh_text()
    for who, root, text in (("box-a", A, own), ("box-b", B, foreign)):
        broker.publish(who, f"{root}/op/d-1", text, "-r")  # before: it would take the listener's place on the broker
    listener = Listener(
        broker, "box-a", f"{A}/#", f"{B}/#", "edge/v1/+/cmd/+", "edge/v1/#", "#", GROUP, HALT, retained=f"{A}/desired"
    )
    try:
        texts = {topic: fresh_text() for topic in (*FORBIDDEN, *READS)}
        for topic, text in texts.items():
            broker.publish("fleet", topic, text)
        broker.publish("box-b", f"{B}/event", foreign)
        last = fresh_text()
        broker.publish("operator", f"{A}/cmd/status", last)
        listener.wait(last)
        came = set(listener.texts())
    finally:
        listener.close()
    assert came == {texts[topic] for topic in READS} | {own, last}


def test_the_auditor_reads_what_devices_and_operators_say(broker: SecureBroker, everything: Listener) -> None:
    for who, topic in (("box-b", f"{B}/reported"), ("operator", f"{B}/cmd/status"), ("fleet", GROUP)):
        text = fresh_text()
        broker.publish(who, topic, text)
        assert everything.wait(text).topic == topic


def test_a_device_cannot_take_another_s_place_by_its_client_id(broker: SecureBroker) -> None:
    broker.publish("box-a", f"{A}/health", fresh_text(), "-i", "box-c")
    assert " as box-a " in broker.seen("u'box-a'")
    assert broker.log is not None
    assert not any(" as box-c " in line for line in broker.log.since(0))


@pytest.mark.parametrize("change", ["no certificate", "wrong password", "unknown user", "a foreign authority"])
def test_nobody_gets_in_without_proof_of_who_he_is(
    broker: SecureBroker, everything: Listener, change: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text, after = fresh_text(), fresh_text()
    who = "operator" if change in ("wrong password", "unknown user") else "box-a"
    more: dict[str, tuple[str, ...]] = {
        "no certificate": (),
        "wrong password": ("-P", "guess"),
        "unknown user": ("-u", "nobody"),
        "a foreign authority": tuple(_foreign(tmp_path_factory)),
    }
    if change == "no certificate":
        broker.publish_anonymously(f"{A}/event", text)
    else:
        broker.publish(who, f"{A}/cmd/status" if who == "operator" else f"{A}/event", text, *more[change])
    broker.publish("operator", f"{A}/cmd/status", after)
    everything.wait(after)
    assert text not in everything.texts()


def _foreign(factory: pytest.TempPathFactory) -> list[str]:
    certificate, key = Authority(factory.mktemp("foreign")).issue("box-a")
    return ["--cert", str(certificate), "--key", str(key)]


@pytest.mark.parametrize(
    ("who", "told"),
    [
        (
            "fleet",
            {"commands": "ok", "groups": "may write their wanted state, and", "roles": "ok", "encryption": "ok"},
        ),
        (
            "operator",
            {
                "commands": "ok",
                "groups": "may not write",
                "roles": "ok",
                "encryption": "ok",
            },
        ),
        (
            "auditor",
            {
                "commands": "warning",
                "groups": "may not write",
                "roles": "ok",
                "encryption": "ok",
            },
        ),
    ],
)
def test_nibblectl_s_doctor_tells_what_a_login_may_do(broker: SecureBroker, who: str, told: dict[str, str]) -> None:
    login = ["--host", "localhost", "--port", str(broker.people_port), "--ca-file", str(broker.ca_file)]
    done = CliRunner().invoke(nibblectl, [*login, "--username", who, "--password", PASSWORD, "--json", "doctor"])
    assert done.exit_code == 0, done.output
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name, words in told.items():
        assert found[name]["state"] == words or found[name]["detail"].startswith(words), found[name]


def test_nibblectl_s_doctor_says_that_the_broker_lets_nobody_in(broker: SecureBroker) -> None:
    login = ["--host", "localhost", "--port", str(broker.people_port), "--ca-file", str(broker.ca_file)]
    done = CliRunner().invoke(nibblectl, [*login, "--username", "nobody", "--password", "guess", "doctor"])
    assert done.exit_code == 4
    assert re.search(r"^failed +broker +broker localhost:\d+: Not authorized$", done.stdout, re.MULTILINE)


def test_nibblectl_says_that_the_broker_refuses_a_command(broker: SecureBroker) -> None:
    online = '{"schema":1,"state":"online","agent":"0","at":"2026-11-29T08:00:00Z","reason":null}'
    broker.publish("box-a", f"{A}/presence", online, "-r")
    login = ["--host", "localhost", "--port", str(broker.people_port), "--ca-file", str(broker.ca_file)]
    command = [sys.executable, "-m", "agent.fleet.cli", *login, "--username", "auditor", "--device", "box-a"]
    done = subprocess.run(
        [*command, "rollback", "kanji"],
        cwd=ROOT,
        env={**os.environ, "NIBBLECTL_PASSWORD": PASSWORD},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (4, "")
    where = f"localhost:{broker.people_port}"
    assert done.stderr.startswith(f"nibblectl: broker {where} refuses a message on {A}/cmd/rollback: Not authorized\n")
