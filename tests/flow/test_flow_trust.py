"""Trust over the life of a device: a clock that is not set yet, keys that come and go, bundles beside manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.adapters.signatures import KeyDirectory
from agent.fleet import keys
from tests.fakes.box import CONTENT, URL, Box
from tests.fakes.device import sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.contract.wire import JsonObject

OMS = Path(__file__).parents[1] / "data" / "oms"
PAST, SOON = "2026-11-23T10:39:59Z", "2026-11-23T10:41:00Z"
FILE = {"name": "kanji.pt", "url": URL, "sha256": sha256(CONTENT), "size": len(CONTENT)}


@pytest.fixture
def box(tmp_path: Path, trust: Path) -> Iterator[Box]:
    box = Box(tmp_path, KeyDirectory(trust))
    yield box
    box.journal.close()


def signed(private: Path, sequence: int = 1, **changes: Any) -> JsonObject:
    body = {"model": "kanji", "version": f"v{sequence}", "sequence": sequence, "files": [FILE], **changes}
    return keys.sign(body, private)


def send(box: Box, operation_id: str, manifest: JsonObject, **fields: Any) -> JsonObject:
    box.send("deploy", {"id": operation_id, "model": "kanji", "manifest": manifest, **fields})
    box.settle()
    report: JsonObject = box.report(operation_id)
    return report


def pass_time(box: Box, seconds: float = 0.0) -> None:
    box.clock.advance(seconds)
    box.engine.turn(wait_s=0)
    box.settle()


@pytest.mark.parametrize(
    ("manifest", "command", "word"),
    [
        ({"expires": SOON}, {}, "expires 2026-11-23T10:41:00.000Z"),
        ({"not_before": PAST}, {}, "not_before 2026"),
        ({}, {"expires_at": SOON}, "expires_at 2026"),
    ],
)
def test_what_has_a_date_waits_for_the_clock_and_then_goes_on(
    box: Box, private: Path, manifest: JsonObject, command: JsonObject, word: str
) -> None:
    box.clock.synchronised = False
    waiting = send(box, "d-1", signed(private, **manifest), **command)
    assert (waiting["state"], waiting["phase"], waiting["error"]) == ("accepted", "queued", None)
    assert waiting["detail"].startswith("deferred: the clock is not synchronised")
    assert word in waiting["detail"]

    pass_time(box, 3600.0 if not command and "expires" not in manifest else 1.0)
    assert box.report("d-1")["state"] == "accepted"
    box.clock.synchronised = True
    pass_time(box)
    assert (box.report("d-1")["state"], box.report("d-1")["detail"]) == ("succeeded", None)


def test_a_key_with_an_end_lets_a_manifest_without_a_date_wait_too(box: Box, private: Path, trust: Path) -> None:
    path = trust / "fleet.pub"
    path.write_text(f"not_after: {SOON}\n{path.read_text()}")
    box.clock.synchronised = False
    assert "not_after of key fleet" in send(box, "d-1", signed(private))["detail"]

    box.clock.synchronised = True
    pass_time(box, 120.0)
    assert (box.report("d-1")["state"], box.report("d-1")["error"]["code"]) == ("rejected", "untrusted_key")


@pytest.mark.parametrize(("manifest", "command"), [({"expires": PAST}, {}), ({}, {"expires_at": PAST})])
def test_what_turns_out_to_be_too_late_expires(
    box: Box, private: Path, manifest: JsonObject, command: JsonObject
) -> None:
    box.clock.synchronised = False
    assert send(box, "d-1", signed(private, **manifest), **command)["state"] == "accepted"
    box.clock.synchronised = True
    pass_time(box)
    assert (box.report("d-1")["state"], box.report("d-1")["error"]["code"]) == ("expired", "expired")
    assert box.sources.fetched == []


def test_without_a_date_nothing_waits_for_a_clock(box: Box, private: Path) -> None:
    box.clock.synchronised = False
    assert send(box, "d-1", signed(private))["state"] == "succeeded"


def test_the_sequence_is_judged_whatever_the_clock_says(box: Box, private: Path) -> None:
    box.clock.synchronised = False
    assert send(box, "d-2", signed(private, 2))["state"] == "succeeded"
    error = send(box, "d-1", signed(private, 1, expires=SOON))["error"]
    assert error["code"] == "stale_sequence"


def test_what_waited_is_refused_if_something_newer_went_ahead(box: Box, private: Path) -> None:
    box.clock.synchronised = False
    send(box, "d-1", signed(private, 1, expires=SOON))
    assert send(box, "d-2", signed(private, 2))["state"] == "succeeded"
    box.clock.synchronised = True
    pass_time(box)
    assert (box.report("d-1")["state"], box.report("d-1")["error"]["code"]) == ("rejected", "stale_sequence")
    assert (box.serving() or "").startswith("v2-")


def test_what_waits_survives_a_restart_and_can_be_canceled(box: Box, private: Path) -> None:
    box.clock.synchronised = False
    for name in ("d-1", "d-2"):
        send(box, name, signed(private, expires="2026-11-24T00:00:00Z"))
    box.reboot()
    box.settle()
    assert box.report("d-1")["detail"].startswith("deferred")

    box.send("cancel", {"id": "stop", "operation": "d-1"})
    box.settle()
    box.clock.synchronised = True
    pass_time(box)
    assert [box.report(name)["state"] for name in ("d-1", "d-2")] == ["canceled", "succeeded"]


def test_a_key_that_is_removed_while_something_waits_is_trusted_no_longer(box: Box, private: Path, trust: Path) -> None:
    box.clock.synchronised = False
    send(box, "d-1", signed(private, expires=SOON))
    (trust / "fleet.pub").unlink()
    box.clock.synchronised = True
    pass_time(box)
    assert box.report("d-1")["error"]["code"] == "untrusted_key"


def test_keys_are_rotated_without_a_restart_and_without_a_gap(box: Box, private: Path, trust: Path) -> None:
    newer, _ = keys.generate(trust.parent, "fleet-2027")
    both = keys.sign({"model": "kanji", "version": "v1", "sequence": 1, "files": [FILE]}, private, newer)
    assert send(box, "old-key-only", both)["state"] == "succeeded"

    (trust / "fleet-2027.pub").write_bytes((trust.parent / "fleet-2027.pub").read_bytes())
    assert send(box, "both-keys", both)["state"] == "succeeded"
    (trust / "fleet.pub").unlink()
    assert send(box, "new-key-only", both)["state"] == "succeeded"
    assert send(box, "signed-by-the-old", signed(private, 2))["error"]["code"] == "untrusted_key"


def oms(name: str = "p256") -> JsonObject:
    bundle: JsonObject = json.loads((OMS / f"{name}.sig").read_bytes())
    return bundle


@pytest.fixture
def release(box: Box, trust: Path) -> JsonObject:
    """What the bundles of the test data vouch for, on offer at an address, and their key trusted here."""
    (trust / "maker.pub").write_bytes((OMS / "p256.pub").read_bytes())
    content = (OMS / "model" / "model.safetensors").read_bytes()
    box.sources.files[URL] = content
    return {"url": URL, "sha256": sha256(content), "size": len(content)}


def test_a_bundle_of_openssf_model_signing_is_a_signature(box: Box, release: JsonObject) -> None:
    body = {"model": "kanji", "artifact": release, "oms": oms()}
    box.send("deploy", {"id": "d-1", **body})
    box.send("deploy", {"id": "d-2", **body, "oms": oms("p384")})
    box.send("deploy", {"id": "d-3", **body, "artifact": {**release, "sha256": "0" * 64}})
    box.settle()
    assert box.report("d-1")["state"] == "succeeded"
    assert box.report("d-2")["error"]["code"] == "untrusted_key"
    assert box.report("d-3")["error"]["code"] == "checksum_mismatch"


def test_a_bundle_alone_brings_nothing_older_than_what_a_manifest_brought(
    box: Box, release: JsonObject, private: Path
) -> None:
    assert send(box, "d-1", signed(private, files=[{"name": "x", **release}]), oms=oms())["state"] == "succeeded"
    box.send("deploy", {"id": "d-2", "model": "kanji", "artifact": release, "oms": oms()})
    box.settle()
    assert box.report("d-2")["error"]["code"] == "stale_sequence"


def test_a_bundle_beside_a_manifest_has_to_hold_as_well(box: Box, release: JsonObject, private: Path) -> None:
    assert send(box, "other-file", signed(private), oms=oms())["error"]["code"] == "checksum_mismatch"
    changed = oms()
    changed["dsseEnvelope"]["payload"] = oms("p384")["dsseEnvelope"]["payload"][:-8] + "fQo="
    error = send(box, "changed", signed(private, files=[{"name": "x", **release}]), oms=changed)["error"]
    assert error["code"] == "bad_signature"
