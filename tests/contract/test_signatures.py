"""Signatures made by stock OpenSSL and by nibblectl's own code, against a directory of trusted keys."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from agent.adapters.signatures import KeyDirectory
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import PAYLOAD_TYPE, Envelope, pae
from agent.fleet import keys

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 23, tzinfo=timezone.utc)
MANIFEST = {
    "model": "kanji",
    "version": "v1",
    "sequence": 1,
    "files": [{"name": "kanji.pt", "url": "https://h.example/kanji.pt", "sha256": "a" * 64, "size": 9}],
}


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    directory = tmp_path / "trust.d"
    directory.mkdir()
    return directory


@pytest.fixture
def openssl() -> str:
    found = shutil.which("openssl")
    if found is None and os.environ.get("CI"):
        pytest.fail("openssl is not on the PATH: CI has to prove that stock tools make valid signatures")
    return found or pytest.skip("openssl is not on the PATH")


@pytest.fixture
def private(trust: Path) -> Path:
    return keys.generate(trust, "fleet")[0]


def envelope(private: Path, **changes: Any) -> Envelope:
    return Envelope.model_validate(keys.sign({**MANIFEST, **changes}, private))


def refuse(trust: Path, signed: Envelope, model: str = "kanji", now: datetime | None = NOW) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        KeyDirectory(trust).verify(signed, model, now)
    return caught.value


def limit(trust: Path, text: str, name: str = "fleet") -> None:
    path = trust / f"{name}.pub"
    path.write_text(text + path.read_text())


def test_a_key_and_signature_of_the_openssl_command_verify(trust: Path, tmp_path: Path, openssl: str) -> None:
    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], check=True, capture_output=True, cwd=tmp_path)

    run("genpkey", "-algorithm", "ed25519", "-out", "ops.key")
    run("pkey", "-in", "ops.key", "-pubout", "-out", "trust.d/ops.pub")
    body = json.dumps(MANIFEST).encode()
    (tmp_path / "message").write_bytes(pae(PAYLOAD_TYPE, body))
    run("pkeyutl", "-sign", "-inkey", "ops.key", "-rawin", "-in", "message", "-out", "signature")
    signed = Envelope.model_validate(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(body).decode(),
            "signatures": [{"keyid": "ops", "sig": base64.b64encode((tmp_path / "signature").read_bytes()).decode()}],
        }
    )

    assert KeyDirectory(trust).verify(signed, "kanji", NOW).key_id == "ops"
    assert signed.manifest().model == "kanji"


def test_openssl_verifies_what_nibblectl_signs(trust: Path, private: Path, tmp_path: Path, openssl: str) -> None:
    signed = envelope(private)
    (tmp_path / "message").write_bytes(pae(PAYLOAD_TYPE, signed.body()))
    (tmp_path / "signature").write_bytes(base64.b64decode(signed.signatures[0].sig))
    arguments = ["-verify", "-pubin", "-inkey", str(trust / "fleet.pub"), "-rawin", "-in", "message"]
    subprocess.run(
        [openssl, "pkeyutl", *arguments, "-sigfile", "signature"], check=True, capture_output=True, cwd=tmp_path
    )


def test_a_trusted_key_is_named(trust: Path, private: Path) -> None:
    assert KeyDirectory(trust).verify(envelope(private), "kanji", NOW).key_id == "fleet"


def test_a_key_id_is_only_a_hint(trust: Path, private: Path) -> None:
    signed = envelope(private)
    renamed = signed.model_copy(update={"signatures": (signed.signatures[0].model_copy(update={"keyid": ""}),)})
    assert KeyDirectory(trust).verify(renamed, "kanji", NOW).key_id == "fleet"


def test_the_signature_of_an_unknown_key_is_not_trusted(trust: Path, private: Path, tmp_path: Path) -> None:
    stranger, _ = keys.generate(tmp_path, "stranger")
    error = refuse(trust, envelope(stranger))
    assert error.code is ErrorCode.UNTRUSTED_KEY
    assert error.detail == "signed by stranger; trusted here: fleet"
    assert error.hint == (
        f"sign with a key that is trusted here; or, if whoever signed it is to be trusted, copy stranger.pub to {trust}"
    )
    assert private.name == "fleet.key"


@pytest.mark.parametrize("key_id", ["", "../../etc/x", "a b; rm"])
def test_a_name_that_is_no_key_s_is_in_no_advice(trust: Path, private: Path, tmp_path: Path, key_id: str) -> None:
    del private
    signed = envelope(keys.generate(tmp_path, "stranger")[0])
    renamed = signed.model_copy(update={"signatures": (signed.signatures[0].model_copy(update={"keyid": key_id}),)})
    assert (refuse(trust, renamed).hint or "").endswith(f"copy their .pub to {trust}")


def test_a_stranger_who_calls_himself_like_a_trusted_key_has_a_bad_signature(
    trust: Path, private: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    impostor, _ = keys.generate(tmp_path / "elsewhere", private.stem)
    assert refuse(trust, envelope(impostor)).code is ErrorCode.BAD_SIGNATURE


@pytest.mark.parametrize("field", ["payload", "payloadType"])
def test_a_changed_envelope_has_a_bad_signature(trust: Path, private: Path, field: str) -> None:
    body = base64.b64encode(json.dumps({**MANIFEST, "sequence": 2}).encode()).decode()
    changed = {"payload": body, "payloadType": "application/json"}[field]
    signed = envelope(private).model_copy(update={field: changed})
    assert refuse(trust, signed).code is ErrorCode.BAD_SIGNATURE


def test_without_any_key_the_hint_says_how_to_make_one(trust: Path, tmp_path: Path) -> None:
    stranger, _ = keys.generate(tmp_path, "stranger")
    for directory in (trust, tmp_path / "missing"):
        error = refuse(directory, envelope(stranger))
        assert error.code is ErrorCode.UNTRUSTED_KEY
        assert "trusted here: none" in error.detail
        assert f"copy stranger.pub to {directory}; a key of your own: nibblectl keygen NAME" in (error.hint or "")


def test_a_key_is_trusted_until_its_date_only(trust: Path, private: Path) -> None:
    limit(trust, "not_after: 2026-11-23T00:00:00Z\n")
    signed = envelope(private)

    assert KeyDirectory(trust).verify(signed, "kanji", NOW - timedelta(seconds=1)).key_id == "fleet"
    error = refuse(trust, signed)
    assert error.code is ErrorCode.UNTRUSTED_KEY
    assert "2026-11-23" in error.detail
    assert error.hint == f"sign with a key that may, or change the lines before the key in its file in {trust}"
    unjudged = KeyDirectory(trust).verify(signed, "kanji", None)  # a clock that is not set judges no date
    assert unjudged.not_after == NOW  # and whoever asked learns that there is one


def test_a_key_signs_only_for_its_models(trust: Path, private: Path) -> None:
    limit(trust, "# the shop floor\nmodels: kanji, digits-*\n")
    signed = envelope(private)

    assert KeyDirectory(trust).verify(signed, "digits-7", NOW).key_id == "fleet"
    error = refuse(trust, signed, model="faces")
    assert error.code is ErrorCode.UNTRUSTED_KEY
    assert "not for faces" in error.detail


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "fleet.pub"),
        ("model: kanji\n{pem}", "unknown limit 'model'; known: not_after, models"),
        ("Not_After: 2020-01-01T00:00:00Z\n{pem}", "unknown limit 'Not_After'"),
        ("not_after: tomorrow\n{pem}", "tomorrow"),
        ("not_after: 2027-01-01T00:00:00\n{pem}", "time zone"),
        ("-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----\n", "fleet.pub"),
    ],
)
def test_a_broken_key_file_trusts_nobody_and_is_named(trust: Path, private: Path, text: str, words: str) -> None:
    path = trust / "fleet.pub"
    path.write_text(text.replace("{pem}", path.read_text()))

    assert refuse(trust, envelope(private)).code is ErrorCode.UNTRUSTED_KEY
    (problem,) = KeyDirectory(trust).problems()
    assert words in problem


def test_bytes_that_are_no_text_are_a_problem_and_not_a_crash(trust: Path, private: Path) -> None:
    (trust / "fleet.pub").write_bytes(b"\xff\xfe\x00")
    assert refuse(trust, envelope(private)).code is ErrorCode.UNTRUSTED_KEY
    assert len(KeyDirectory(trust).problems()) == 1


@pytest.mark.parametrize(("curve", "words"), [("secp256k1", "curve secp256k1; known"), ("secp112r1", "other.pub")])
def test_a_key_of_another_kind_is_named_as_such(
    trust: Path, private: Path, tmp_path: Path, openssl: str, *, curve: str, words: str
) -> None:
    command = [openssl, "ecparam", "-name", curve, "-genkey", "-noout", "-out", "other.key"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    command = [openssl, "pkey", "-in", "other.key", "-pubout", "-out", "trust.d/other.pub"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)

    assert words in KeyDirectory(trust).problems()[0]
    assert KeyDirectory(trust).verify(envelope(private), "kanji", NOW).key_id == "fleet"


def test_two_keys_make_a_rotation_and_a_removed_one_is_forgotten_at_once(trust: Path, private: Path) -> None:
    newer, _ = keys.generate(trust, "fleet-2027")
    directory = KeyDirectory(trust)
    signers = [directory.verify(envelope(key), "kanji", NOW) for key in (private, newer)]
    assert [signer.key_id for signer in signers] == ["fleet", "fleet-2027"]

    (trust / "fleet.pub").unlink()
    assert refuse(trust, envelope(private)).code is ErrorCode.UNTRUSTED_KEY
    assert directory.verify(envelope(newer), "kanji", NOW).key_id == "fleet-2027"


def test_a_signature_that_is_no_base64_is_a_bad_request(trust: Path, private: Path) -> None:
    signed = envelope(private)
    broken = signed.model_copy(update={"signatures": (signed.signatures[0].model_copy(update={"sig": "%%"}),)})
    assert refuse(trust, broken).code is ErrorCode.BAD_REQUEST


def test_a_private_key_is_for_its_owner_and_never_overwritten(trust: Path, private: Path) -> None:
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes()
    with pytest.raises(FileExistsError):
        keys.generate(trust, "fleet")
    (trust / "fleet.pub").unlink()
    with pytest.raises(FileExistsError):
        keys.generate(trust, "fleet")
    assert private.read_bytes() == before


def test_what_no_device_would_accept_is_not_signed(private: Path) -> None:
    with pytest.raises(ValueError, match="sha256"):
        keys.sign({**MANIFEST, "files": [{"name": "x", "url": "u", "sha256": "A", "size": 1}]}, private)


def test_a_file_is_described_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "kanji.pt"
    path.write_bytes(b"abc")
    assert keys.describe_file(path, "https://h/x") == {
        "name": "kanji.pt",
        "url": "https://h/x",
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "size": 3,
    }
