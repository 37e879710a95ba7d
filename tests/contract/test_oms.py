"""Bundles that the real ``model_signing`` made, and the same bundles changed, against a directory of trusted keys."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.adapters.signatures import KeyDirectory
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import pae
from agent.contract.oms import PAYLOAD_TYPE, Bundle, read_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parents[1] / "data" / "oms"
DIGESTS = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (DATA / "model").iterdir()}
CURVES = ("p256", "p384", "p521")


def read(name: str) -> Bundle:
    return read_bundle((DATA / f"{name}.sig").read_bytes())


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    for name in CURVES:
        (tmp_path / f"{name}.pub").write_bytes((DATA / f"{name}.pub").read_bytes())
    return tmp_path


@pytest.mark.parametrize("curve", CURVES)
def test_a_bundle_of_the_real_tool_verifies_and_tells_its_files(trust: Path, curve: str) -> None:
    bundle = read(curve)
    assert KeyDirectory(trust).verify_bundle(bundle, "kanji", None).key_id == curve
    model = bundle.signed_model()
    assert (model.name, model.files) == ("model", DIGESTS)
    model.require(DIGESTS)


def test_a_bundle_of_one_file_names_that_file(trust: Path) -> None:
    bundle = read("file")
    assert KeyDirectory(trust).verify_bundle(bundle, "kanji", None).key_id == "p256"
    assert bundle.signed_model().files == {"model.safetensors": DIGESTS["model.safetensors"]}


def test_a_file_that_was_not_signed_is_a_mismatch() -> None:
    with pytest.raises(RefusalError, match="none of the 2 files") as caught:
        read("p256").signed_model().require({"config.json": "0" * 64})
    assert caught.value.code is ErrorCode.CHECKSUM_MISMATCH


def test_the_key_has_to_be_trusted_for_the_model(trust: Path) -> None:
    path = trust / "p256.pub"
    path.write_text(f"models: digits-*\n{path.read_text()}")
    directory = KeyDirectory(trust)
    assert directory.verify_bundle(read("p256"), "digits-1", None).key_id == "p256"
    with pytest.raises(RefusalError, match="not for kanji"):
        directory.verify_bundle(read("p256"), "kanji", None)

    path.unlink()
    with pytest.raises(RefusalError, match="signed by unnamed") as caught:
        directory.verify_bundle(read("p256"), "digits-1", None)
    assert caught.value.code is ErrorCode.UNTRUSTED_KEY


def test_a_manifest_is_not_verified_by_a_bundle_s_key(trust: Path) -> None:
    with pytest.raises(RefusalError, match="trusted here: none"):
        KeyDirectory(trust).verify(read("p256").dsseEnvelope, "kanji", None)


class Forge:
    """Signs any statement with a key of its own, as a maker of bundles could."""

    def __init__(self, trust: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (trust / "forge.pub").write_bytes(public)

    def bundle(self, change: Callable[[dict[str, Any]], object]) -> Bundle:
        statement = json.loads(read("p256").dsseEnvelope.body())
        change(statement)
        return self.seal(json.dumps(statement).encode())

    def seal(self, body: bytes, payload_type: str = PAYLOAD_TYPE) -> Bundle:
        signature = self._key.sign(pae(payload_type, body), ec.ECDSA(hashes.SHA256()))
        envelope = {
            "payloadType": payload_type,
            "payload": base64.b64encode(body).decode(),
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        }
        return Bundle.model_validate({"verificationMaterial": {"publicKey": {}}, "dsseEnvelope": envelope})


def resources(statement: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = statement["predicate"]["resources"]
    return found


def rehashed(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[dict[str, Any]], None]:
    """Change the files, and the subject's digest with them, so that only one thing is wrong."""

    def apply(statement: dict[str, Any]) -> None:
        change(resources(statement))
        digests = b"".join(bytes.fromhex(each["digest"]) for each in resources(statement))
        statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(digests).hexdigest()

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told: resources(told)[0].update(digest="0" * 64), "its files hash to"),
        (lambda told: told.update(predicateType="https://model_signing/Digests/v0.1"), "predicateType"),
        (lambda told: told.update(_type="x"), "_type"),
        (lambda told: told["subject"].append(told["subject"][0]), "subject"),
        (lambda told: told["predicate"]["serialization"].update(method="shards"), "method"),
        (rehashed(lambda files: files[0].update(algorithm="blake2b")), "algorithm"),
        (rehashed(lambda files: files.append(files[0])), "listed twice"),
        (rehashed(lambda files: files[0].update(name="../x")), "points outside"),
        (rehashed(lambda files: files[0].update(name="/etc/passwd")), "points outside"),
        (rehashed(list.clear), "resources"),
    ],
)
def test_a_statement_that_is_signed_but_wrong_is_refused(
    trust: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    bundle = Forge(trust).bundle(change)
    assert KeyDirectory(trust).verify_bundle(bundle, "kanji", None).key_id == "forge"
    with pytest.raises(RefusalError, match=words) as caught:
        bundle.signed_model()
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_another_payload_is_no_statement(trust: Path) -> None:
    with pytest.raises(RefusalError, match="payloadType"):
        Forge(trust).seal(b"{}", "text/plain").signed_model()
    with pytest.raises(RefusalError, match="not JSON"):
        Forge(trust).seal(b"{").signed_model()


def test_a_changed_bundle_has_a_bad_signature(trust: Path) -> None:
    bundle = read("p256")
    other = bundle.dsseEnvelope.model_copy(update={"payload": read("p384").dsseEnvelope.payload[:-4] + "fQo="})
    with pytest.raises(RefusalError) as caught:
        KeyDirectory(trust).verify_bundle(bundle.model_copy(update={"dsseEnvelope": other}), "kanji", None)
    assert caught.value.code is ErrorCode.BAD_SIGNATURE


@pytest.mark.parametrize("content", [b"{}", b"[]", b"no", b'{"dsseEnvelope":{}}'])
def test_a_file_that_is_no_bundle_says_what_is_missing(content: bytes) -> None:
    with pytest.raises(RefusalError) as caught:
        read_bundle(content)
    assert caught.value.code is ErrorCode.BAD_REQUEST
