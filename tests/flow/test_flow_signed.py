"""Commands and wanted states with a signature of their own: always verified, and demanded where that is configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.adapters.signatures import KeyDirectory
from agent.fleet import keys
from agent.health.acting import Acting
from agent.settings import Deployment, Mqtt, Settings, Trust
from tests.fakes.box import CONTENT, TOPICS, URL, Box
from tests.fakes.device import sha256
from tests.fakes.server import DAMAGED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.contract.wire import JsonObject

SOON = "2026-11-23T10:41:00Z"
FILE = {"name": "kanji.pt", "url": URL, "sha256": sha256(CONTENT), "size": len(CONTENT)}
STATUS: JsonObject = {"schema": 1, "id": "q-1"}
BOX = {"device": "box-1"}


@pytest.fixture
def box(tmp_path: Path, trust: Path) -> Iterator[Box]:
    """A device that takes unsigned commands."""
    box = Box(tmp_path, KeyDirectory(trust))
    yield box
    box.journal.close()


@pytest.fixture
def strict(box: Box) -> Box:
    """A device that takes signed commands only."""
    box.settings = Settings(
        trust=Trust(require_command_signature=True),
        mqtt=Mqtt(groups=("lab",)),
        deployment=Deployment(soak_s=0.0),
    )
    box.reboot()
    box.settle()
    return box


def limit(trust: Path, line: str) -> None:
    path = trust / "fleet.pub"
    path.write_text(f"{line}\n{path.read_text()}")


def send(box: Box, name: str, body: JsonObject, private: Path | None = None, **recipient: str) -> JsonObject:
    """Send a command, signed if a key is given; return the last report on it."""
    whole = {"schema": 1, **body}
    box.send(name, keys.sign_message(recipient or BOX, name, whole, private) if private else whole)
    box.settle()
    report: JsonObject = box.report(body["id"])
    return report


def code(report: JsonObject) -> str | None:
    return (report["error"] or {}).get("code")


def deploy(box: Box, private: Path, operation_id: str = "d-1", model: str = "kanji", **fields: Any) -> JsonObject:
    manifest = keys.sign({"model": model, "version": "v1", "sequence": 1, "files": [FILE]}, private)
    return send(box, "deploy", {"id": operation_id, "model": model, "manifest": manifest, **fields}, private)


def events(box: Box, name: str) -> list[Any]:
    return [body for body in box.broker.bodies(TOPICS.event) if body["event"] == name]


def test_signed_commands_do_what_unsigned_ones_do(strict: Box, private: Path) -> None:
    assert deploy(strict, private, method="fp4")["state"] == "succeeded"
    switch = {"id": "s-1", "model": "kanji", "method": "nf4"}
    assert send(strict, "set_method", switch, private)["state"] == "succeeded"
    assert send(strict, "rollback", {"id": "r-1", "model": "kanji"}, private)["state"] == "succeeded"
    assert (strict.serving() or "").endswith("-fp4")
    config = {"id": "c-1", "config": {"health": {"interval_s": 5}}}
    assert send(strict, "set_config", config, private)["state"] == "succeeded"


@pytest.mark.parametrize("name", ["status", "cancel", "set_config", "collect_logs", "self_test", "rollback", "deploy"])
def test_where_a_signature_is_required_a_command_without_one_is_refused_with_what_signs_it(
    strict: Box, private: Path, name: str
) -> None:
    manifest = keys.sign({"model": "kanji", "version": "v1", "sequence": 1, "files": [FILE]}, private)
    body = {"id": "x-1", "model": "kanji", "operation": "x", "config": {}, "manifest": manifest}
    report = send(strict, name, body)
    assert (report["state"], code(report)) == ("rejected", "untrusted_key")
    assert "trust.require_command_signature" in report["error"]["detail"]
    assert "nibblectl --sign-key" in report["error"]["hint"]
    assert strict.sources.fetched == []


@pytest.mark.parametrize("is_required", [False, True])
def test_a_signature_that_is_there_is_verified_whether_it_is_required_or_not(
    box: Box, private: Path, tmp_path: Path, *, is_required: bool
) -> None:
    box.settings = Settings(trust=Trust(require_command_signature=is_required))
    box.reboot()
    stranger, _ = keys.generate(tmp_path, "stranger")
    assert code(send(box, "status", {"id": "q-1"}, stranger)) == "untrusted_key"
    assert code(send(box, "status", {"id": "q-2"}, private, device="box-2")) == "bad_signature"
    forged = keys.sign_message(BOX, "status", {**STATUS, "id": "q-3"}, private)
    forged["signature"]["signatures"][0]["sig"] = forged["signature"]["signatures"][0]["sig"][::-1].strip("=") + "=="
    box.send("status", forged)
    box.settle()
    assert code(box.report("q-3")) == "bad_signature"
    assert send(box, "status", {"id": "q-4"}, private)["state"] == "succeeded"
    assert box.statuses == 1 + 1  # the reboot, which connects, and the one that was good


def test_a_signed_command_that_was_changed_on_its_way_is_refused_by_the_field(box: Box, private: Path) -> None:
    signed = keys.sign_message(BOX, "rollback", {"schema": 1, "id": "r-1", "model": "kanji"}, private)
    box.send("rollback", {**signed, "model": "kana"})
    box.settle()
    error = box.report("r-1")["error"]
    assert (error["code"], error["detail"]) == ("bad_signature", "'model' is not what was signed")


def test_a_signed_command_is_good_for_its_own_name_only(box: Box, private: Path) -> None:
    signed = keys.sign_message(BOX, "rollback", {"schema": 1, "id": "r-1", "model": "kanji"}, private)
    box.send("undeploy", signed)
    box.settle()
    assert "for command 'rollback', this is command 'undeploy'" in box.report("r-1")["error"]["detail"]


def test_a_signed_command_that_is_played_again_is_done_once(strict: Box, private: Path) -> None:
    signed = keys.sign_message(BOX, "status", STATUS, private)
    before = strict.statuses
    for _ in range(3):
        strict.send("status", signed)
        strict.settle()
    assert strict.statuses == before + 1


def test_a_key_for_some_models_signs_commands_for_those_and_none_for_the_device(
    strict: Box, private: Path, trust: Path
) -> None:
    limit(trust, "models: kanji")
    assert deploy(strict, private)["state"] == "succeeded"
    assert code(deploy(strict, private, "d-2", "kana")) == "untrusted_key"
    config = send(strict, "set_config", {"id": "c-1", "config": {"health": {"interval_s": 5}}}, private)
    assert code(config) == "untrusted_key"
    assert "key fleet may sign for kanji, not for what is for no single model" in config["error"]["detail"]


def test_a_key_for_some_models_cancels_their_operations_and_no_others(
    strict: Box, private: Path, trust: Path, tmp_path: Path
) -> None:
    other, _ = keys.generate(tmp_path, "other")
    (trust / "other.pub").write_text("models: kana\n" + (tmp_path / "other.pub").read_text())
    limit(trust, "models: kanji")
    strict.clock.synchronised = False
    deploy(strict, private, expires_at=SOON)
    assert strict.report("d-1")["state"] == "accepted"
    assert code(send(strict, "cancel", {"id": "x-1", "operation": "d-1"}, other)) == "untrusted_key"
    assert send(strict, "cancel", {"id": "x-2", "operation": "d-1"}, private)["state"] == "succeeded"
    assert strict.report("d-1")["state"] == "canceled"


def test_a_command_that_waits_for_the_clock_is_judged_again_with_its_key(
    strict: Box, private: Path, trust: Path
) -> None:
    release_key, _ = keys.generate(trust, "release")
    manifest = keys.sign({"model": "kanji", "version": "v1", "sequence": 1, "files": [FILE]}, release_key)
    strict.clock.synchronised = False
    body = {"id": "d-1", "model": "kanji", "manifest": manifest, "expires_at": SOON}
    assert send(strict, "deploy", body, private)["detail"].startswith("deferred")
    (trust / "fleet.pub").unlink()
    strict.clock.synchronised = True
    strict.engine.turn(wait_s=0)
    strict.settle()
    assert (code(strict.report("d-1")), strict.sources.fetched) == ("untrusted_key", [])


def test_the_end_of_the_key_that_signed_a_command_waits_for_the_clock(strict: Box, private: Path, trust: Path) -> None:
    deploy(strict, private)
    limit(trust, f"not_after: {SOON}")
    strict.clock.synchronised = False
    told = send(strict, "replan", {"id": "p-1", "model": "kanji"}, private)
    assert (told["state"], "not_after of key fleet" in told["detail"]) == ("accepted", True)
    strict.clock.synchronised = True
    strict.engine.turn(wait_s=0)
    strict.settle()
    assert strict.report("p-1")["state"] == "succeeded"


def test_what_a_person_with_a_token_does_at_the_page_needs_no_signature(strict: Box, private: Path) -> None:
    deploy(strict, private, method="fp4")
    page = Acting(strict.engine.post)
    operation = page.command("set_method", json.dumps({"model": "kanji", "method": "nf4"}).encode())
    strict.settle()
    assert strict.report(operation)["state"] == "succeeded"


def test_what_the_device_begins_by_itself_needs_no_signature(strict: Box, private: Path) -> None:
    deploy(strict, private)
    Path(strict.journal.served()["kanji"].current.artifact).write_bytes(DAMAGED)
    strict.reboot()
    strict.settle()
    kept = [json.loads(payload) for name, payload in strict.broker.retained_operations(TOPICS) if "repair-" in name]
    assert [each["state"] for each in kept] == ["succeeded"]


def want(box: Box, generation: int, private: Path | None, recipient: JsonObject, **document: Any) -> None:
    body = {"schema": 1, "generation": generation, **document}
    sealed = keys.sign_message(recipient, "desired", body, private) if private else body
    source = recipient.get("group", "")
    box.want(generation, source, **{key: value for key, value in sealed.items() if key not in ("schema", "generation")})
    box.settle()


def test_a_signed_wanted_state_is_reached_by_operations_without_a_signature(strict: Box, private: Path) -> None:
    manifest = keys.sign({"model": "kanji", "version": "v1", "sequence": 1, "files": [FILE]}, private)
    config = {"health": {"interval_s": 5}}
    want(strict, 1, private, BOX, models={"kanji": {"manifest": manifest}}, config=config)
    assert strict.report("gen1-kanji")["state"] == "succeeded"
    assert strict.broker.retained(TOPICS.reported)["generation"] == 1

    strict.reboot()
    want(strict, 2, private, {"group": "lab"}, models={"kanji": {"manifest": manifest}})
    assert [event["source"] for event in events(strict, "desired_accepted")] == ["own", "lab"]


def test_where_a_signature_is_required_a_wanted_state_without_one_is_rejected(strict: Box, private: Path) -> None:
    want(strict, 1, None, BOX, models={})
    want(strict, 1, None, {"group": "lab"}, models={})
    told = events(strict, "desired_rejected")
    assert [(event["source"], event["error"]["code"]) for event in told] == [
        ("own", "untrusted_key"),
        ("lab", "untrusted_key"),
    ]
    assert "nibblectl sign-command desired" in told[0]["error"]["hint"]
    want(strict, 1, private, BOX, models={})
    assert len(events(strict, "desired_accepted")) == 1


def test_a_signed_wanted_state_is_good_for_its_device_or_group_only(
    strict: Box, private: Path, trust: Path, tmp_path: Path
) -> None:
    signed = keys.sign_message({"group": "lab"}, "desired", {"schema": 1, "generation": 1, "models": {}}, private)
    strict.want(1, models={}, signature=signed["signature"])
    stranger, _ = keys.generate(tmp_path, "stranger")
    want(strict, 1, stranger, BOX, models={})
    limit(trust, "models: kanji")
    want(strict, 1, private, BOX, models={})
    codes = [event["error"]["code"] for event in events(strict, "desired_rejected")]
    assert codes == ["bad_signature", "untrusted_key", "untrusted_key"]


def test_an_entry_of_a_wanted_state_with_a_signature_of_its_own_is_taken_for_what_it_is(
    box: Box, private: Path
) -> None:
    manifest = keys.sign({"model": "kanji", "version": "v1", "sequence": 1, "files": [FILE]}, private)
    want(box, 1, None, BOX, models={"kanji": {"manifest": manifest, "signature": manifest}})
    assert box.report("gen1-kanji")["state"] == "succeeded"
