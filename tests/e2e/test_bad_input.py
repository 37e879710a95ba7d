"""Whatever is sent, it ends in a state with a code and a sentence, and the model that was serving goes on serving."""

from __future__ import annotations

import base64
import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.e2e.harness.mqtt import free_port
from tests.e2e.harness.operator import MODEL, JsonObject
from tests.e2e.harness.world import SERVED_SEQUENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.harness.world import Device, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LONG_AGO = "2020-01-01T00:00:00Z"


@pytest.fixture
def device(serving_device: Device) -> Device:
    return serving_device


@pytest.fixture(autouse=True)
def _still_serves(device: Device, world: World) -> Iterator[None]:
    """After every test the same release answers as well as before it."""
    before = device.operator.served()
    accuracy = world.images.accuracy(device.agent.url, MODEL)
    yield
    assert device.agent.is_running
    assert device.operator.served() == before
    assert world.images.accuracy(device.agent.url, MODEL) == accuracy


def assert_ended(ended: JsonObject, state: str, code: str) -> JsonObject:
    """Check how an operation ended and that its error is a sentence; returns the error."""
    error: JsonObject = ended["error"]
    assert (ended["state"], error["code"]) == (state, code), error
    assert len(error["detail"].split()) > 2
    return error


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._canary}",)


def deploy_content(device: Device, world: World, name: str, content: bytes) -> JsonObject:
    file = world.files.host(name, content)
    manifest = device.operator.manifest(file, sequence=SERVED_SEQUENCE)
    return device.operator.result(device.operator.deploy(manifest, gate={}))


def test_a_wrong_checksum_fails_with_both_digests_and_leaves_no_file(device: Device, world: World) -> None:
    entry = {**world.checkpoint.reference(), "name": "checkpoint_best.pt", "sha256": "0" * 64}
    manifest = device.operator.manifest(world.checkpoint, files=[entry], sequence=SERVED_SEQUENCE)
    error = assert_ended(device.operator.result(device.operator.deploy(manifest)), "failed", "checksum_mismatch")
    assert "0" * 64 in error["detail"]
    assert world.checkpoint.reference()["sha256"] in error["detail"]
    assert error["kept"].startswith(f"{MODEL} good-")
    assert list(device.agent.directory.glob("state/downloads/*.part")) == []


def test_an_unreachable_source_fails_after_some_tries_and_may_be_retried(device: Device, world: World) -> None:
    url = f"http://127.0.0.1:{free_port()}/checkpoint_best.pt"
    entry = {**world.checkpoint.reference(), "name": "checkpoint_best.pt", "url": url, "sha256": "1" * 64}
    manifest = device.operator.manifest(world.checkpoint, files=[entry], sequence=SERVED_SEQUENCE)
    error = assert_ended(device.operator.result(device.operator.deploy(manifest)), "failed", "download_failed")
    assert url in error["detail"]
    assert "tries" in error["detail"]
    assert error["retryable"]


def test_a_broken_connection_is_taken_up_where_it_broke_and_the_whole_file_is_judged(
    device: Device, world: World
) -> None:
    file = world.files.host("noise.bin", b"no checkpoint at all" * 50_000)
    file.cut_at = len(file.content) // 2
    manifest = device.operator.manifest(file, sequence=SERVED_SEQUENCE)
    error = assert_ended(device.operator.result(device.operator.deploy(manifest)), "failed", "bad_checkpoint")
    assert error["phase"] == "verifying"
    broken, resumed = file.requests
    assert broken.sent == len(file.content) // 2
    assert 0 < resumed.start <= broken.sent
    assert resumed.start + resumed.sent == len(file.content)


@pytest.mark.parametrize("value", [[1, 2, 3], {"a": 1}], ids=["a list", "a dict of numbers"])
def test_a_pickle_without_a_state_dict_is_a_bad_checkpoint(device: Device, world: World, value: Any) -> None:
    ended = deploy_content(device, world, f"{type(value).__name__}.pt", pickled(value))
    assert assert_ended(ended, "failed", "bad_checkpoint")["phase"] == "planning"


def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(
    device: Device, world: World, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    weights = torch.zeros(64, 64)
    ended = deploy_content(device, world, "bomb.pt", pickled({"model_state_dict": {"w": weights}, "x": _Bomb(canary)}))
    error = assert_ended(ended, "failed", "unsafe_checkpoint")
    assert "system" in error["detail"]
    assert not canary.exists()


def test_an_unknown_model_type_is_rejected_with_the_known_ones(device: Device, world: World) -> None:
    manifest = device.operator.manifest(world.checkpoint, model_type="gpt-17", sequence=SERVED_SEQUENCE)
    error = assert_ended(device.operator.result(device.operator.deploy(manifest)), "rejected", "unknown_model_type")
    assert "gpt-17" in error["detail"]
    assert "cnn" in error["hint"]


def test_text_that_is_no_json_is_answered_on_the_audit_trail(device: Device) -> None:
    mark = device.operator.mark()
    device.operator.send_text("deploy", '{"schema": 1, "id": ')
    event = device.operator.event(lambda body: body["event"] == "command_rejected", since=mark)
    assert (event["id"], event["command"], event["error"]["code"]) == (None, "deploy", "bad_request")
    assert "not JSON" in event["error"]["detail"]


def test_a_command_with_an_id_and_a_wrong_field_is_rejected_under_its_id(device: Device) -> None:
    ended = device.operator.result(device.operator.send("set_method", model="a/b", method="nf4"))
    assert "model" in assert_ended(ended, "rejected", "bad_request")["detail"]


def test_the_same_command_twice_runs_once_and_is_answered_twice(device: Device) -> None:
    operator = device.operator
    mark = operator.mark()
    first = operator.result(operator.send("set_method", id="twice", model=MODEL, method="nf4"))
    again = operator.mark()
    operator.send("set_method", id="twice", model=MODEL, method="nf4")
    second = operator.result("twice", since=again)
    told = ("state", "decision", "error")
    assert first["state"] == "succeeded"
    assert [second[name] for name in told] == [first[name] for name in told]
    operator.result(operator.send("status"))
    events = [body for body in operator.subscriber.on(operator.topic("event"), since=mark) if body["id"] == "twice"]
    assert [body["event"] for body in events].count("command_accepted") == 1
    assert [body["event"] for body in events].count("operation_ended") == 1


def test_a_used_id_with_another_body_is_a_conflict_and_its_answer_stays(device: Device) -> None:
    operator = device.operator
    operator.result(operator.send("status", id="taken"))
    mark = operator.mark()
    operator.send("rollback", id="taken", model=MODEL)
    event = operator.event(lambda body: body["event"] == "command_rejected", since=mark)
    assert (event["id"], event["error"]["code"]) == ("taken", "id_conflict")
    operator.result(operator.send("status"))
    assert operator.subscriber.on(operator.topic("op/taken"), since=mark) == []


def test_a_retained_command_is_refused_the_moment_it_is_sent(device: Device) -> None:
    operator = device.operator
    ended = operator.result(operator.send("status", is_retained=True))
    operator.clear("status")
    assert "without the retain flag" in str(assert_ended(ended, "rejected", "retained_command")["hint"])


def test_taking_a_retained_command_back_as_the_hint_says_is_no_command(device: Device) -> None:
    operator, mark = device.operator, device.operator.mark()
    refused = operator.send("status", is_retained=True)
    operator.result(refused)
    operator.clear("status")
    after = operator.send("status")
    operator.event(lambda body: (body["event"], body["id"]) == ("command_accepted", after), since=mark)
    told = operator.subscriber.on(operator.topic("event"), since=mark)
    assert [body["id"] for body in told if body["event"] == "command_rejected"] == [refused]


def test_an_unsigned_deploy_is_rejected_where_signatures_are_required(device: Device, world: World) -> None:
    operation = device.operator.send("deploy", model=MODEL, version="x", artifact=world.checkpoint.reference())
    error = assert_ended(device.operator.result(operation), "rejected", "untrusted_key")
    assert "nibblectl" in error["hint"]


def test_a_manifest_changed_after_it_was_signed_is_a_bad_signature(device: Device, world: World) -> None:
    operator = device.operator
    envelope = world.signer.seal(operator.manifest(world.checkpoint, sequence=SERVED_SEQUENCE))
    changed = {**json.loads(base64.b64decode(envelope["payload"])), "version": "evil"}
    envelope["payload"] = base64.b64encode(json.dumps(changed).encode()).decode()
    ended = operator.result(operator.send("deploy", model=MODEL, manifest=envelope))
    assert_ended(ended, "rejected", "bad_signature")


@pytest.mark.parametrize(
    ("changes", "state", "code"),
    [
        ({"sequence": SERVED_SEQUENCE - 1}, "rejected", "stale_sequence"),
        ({"sequence": SERVED_SEQUENCE, "expires": LONG_AGO}, "expired", "expired"),
        ({"sequence": SERVED_SEQUENCE, "audience": {"devices": ["another"]}}, "rejected", "wrong_audience"),
    ],
    ids=["an older sequence", "past its expiry", "for another device"],
)
def test_a_well_signed_manifest_is_refused(
    device: Device, world: World, changes: JsonObject, state: str, code: str
) -> None:
    manifest = device.operator.manifest(world.checkpoint, **changes)
    assert_ended(device.operator.result(device.operator.deploy(manifest)), state, code)
