"""What ``deploy/pki/pki.sh`` makes: openssl's own judgement of it, and a real mosquitto's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.e2e.harness.secure_broker import Listener, SecureBroker, fresh_text
from tests.e2e.harness.tools import require

pytestmark = [pytest.mark.e2e]

SCRIPT = Path(__file__).parents[2] / "deploy" / "pki" / "pki.sh"
DEVICE = "edge/v1/box-a"


def test_without_a_command_its_use_is_told_and_nothing_of_its_code() -> None:
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "PKI_DAYS (365), PKI_CA_DAYS (3650) and PKI_CRL_DAYS (30) are lives in days."


class Pki:
    """The script, on a directory of its own; to ``SecureBroker`` it is an authority like any other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run("ca")

    @property
    def file(self) -> Path:
        return self.directory / "ca.pem"

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        require("openssl")
        return subprocess.run(
            [str(SCRIPT), "--dir", str(self.directory), *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def made(self, name: str) -> tuple[Path, Path]:
        issued = self.directory / "issued"
        return issued / f"{name}.pem", issued / f"{name}.key"

    def issue(self, common_name: str, *, stem: str | None = None) -> tuple[Path, Path]:
        """Return certificate and key, the broker's beside the authority's own under the name that is asked for."""
        kind = ("server", common_name, "127.0.0.1") if stem == "broker" else ("device", common_name)
        self.run(*kind)
        if stem != "broker":
            return self.made(common_name)
        for source, suffix in zip(self.made(common_name), ("pem", "key"), strict=True):
            shutil.copy(source, self.directory / f"broker.{suffix}")
        return self.directory / "broker.pem", self.directory / "broker.key"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def read(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def everything(directory: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_certificates_have_one_purpose_a_modern_key_and_the_names_that_clients_look_for(pki: Pki) -> None:
    for arguments in (("server", "broker.example.com", "10.0.0.7"), ("device", "box-a"), ("operator", "anna")):
        assert pki.run(*arguments).returncode == 0
    authority, server = read(pki.file), read(pki.made("broker.example.com")[0])
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert usages(server) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example.com"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    for name in ("box-a", "anna"):
        certificate = read(pki.made(name)[0])
        certificate.verify_directly_issued_by(authority)
        assert [each.value for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
        assert usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        assert 364 <= (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days <= 366
    for secret in (pki.directory / "ca.key", pki.made("box-a")[1]):
        assert oct(secret.stat().st_mode & 0o777) == "0o600"


def test_a_second_run_changes_nothing_and_says_so(pki: Pki) -> None:
    calls = (("ca",), ("server", "broker.example.com"), ("device", "box-a"), ("operator", "anna"))
    for call in calls:
        assert pki.run(*call).returncode == 0
    before = {name: text for name, text in everything(pki.directory).items() if not name.endswith(".cnf")}
    for call in calls:
        done = pki.run(*call)
        assert done.returncode == 0
        assert "kept" in done.stdout
        assert "wrote" not in done.stdout
    assert {name: text for name, text in everything(pki.directory).items() if not name.endswith(".cnf")} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("device", "anna"), "anna is one of the operators already"),
        (("device", "box/17"), "expected 1 to 64 of"),
        (("device", "../box"), "expected 1 to 64 of"),
        (("server", "a b"), "is no host name"),
        (("device",), "device takes one name"),
        (("renew", "nobody"), "nothing was issued for nobody"),
        (("revoke", "nobody"), "nothing was issued for nobody"),
        (("device", "box-a", "--csr", "absent.csr"), "no file absent.csr"),
        (("renew", "../ca"), "nothing was issued for ../ca"),
        (("renew", "anna", "10.0.0.7"), "renew takes one name, and --csr FILE"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(pki: Pki, arguments: tuple[str, ...], says: str) -> None:
    pki.run("operator", "anna")
    done = pki.run(*arguments)
    assert (done.returncode, says in done.stderr) == (1, True), done.stderr


def test_without_an_authority_nothing_is_issued_and_the_next_step_is_named(tmp_path: Path) -> None:
    command = [str(SCRIPT), "--dir", str(tmp_path), "device", "box-a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"make one: {SCRIPT} --dir {tmp_path} ca" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_request_gets_the_name_and_the_purpose_of_the_command_whatever_it_asks_for(pki: Pki, tmp_path: Path) -> None:
    key, request = tmp_path / "own.key", tmp_path / "own.csr"
    wants = ["-addext", "basicConstraints=CA:true", "-addext", "subjectAltName=DNS:broker.example.com"]
    made = [
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=root",
        *wants,
    ]
    command = [require("openssl"), *made, "-keyout", str(key), "-out", str(request)]
    subprocess.run(command, check=True, capture_output=True)
    assert pki.run("device", "box-c", "--csr", str(request)).returncode == 0
    certificate = read(pki.made("box-c")[0])
    assert certificate.subject.rfc4514_string() == "CN=box-c,OU=devices"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert [each.oid.dotted_string for each in certificate.extensions].count("2.5.29.17") == 0
    assert not pki.made("box-c")[1].exists()
    assert "give a new request" in pki.run("renew", "box-c").stderr
    assert pki.run("renew", "box-c", "--csr", str(request)).returncode == 0


def request_of(directory: Path, name: str) -> Path:
    """Return a request for a certificate, with a key of its own beside it."""
    key, request = directory / f"{name}.key", directory / f"{name}.csr"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=any"]
    command = [require("openssl"), "req", "-new", *options, "-keyout", str(key), "-out", str(request)]
    subprocess.run(command, check=True, capture_output=True)
    return request


def test_a_request_of_another_key_is_not_answered_with_the_certificate_of_the_first(pki: Pki, tmp_path: Path) -> None:
    first, second = request_of(tmp_path, "first"), request_of(tmp_path, "second")
    assert pki.run("device", "box-c", "--csr", str(first)).returncode == 0
    assert "kept" in pki.run("device", "box-c", "--csr", str(first)).stdout
    done = pki.run("device", "box-c", "--csr", str(second))
    assert (done.returncode, "is of another key than" in done.stderr) == (1, True), done.stderr


def test_a_key_that_was_made_here_does_not_stay_beside_a_certificate_of_another(pki: Pki, tmp_path: Path) -> None:
    pki.run("device", "box-a")
    assert pki.run("renew", "box-a", "--csr", str(request_of(tmp_path, "own"))).returncode == 0
    assert not pki.made("box-a")[1].exists()


@pytest.mark.parametrize("name", ["_box", "box-", "-"])
def test_whatever_a_device_may_be_called_it_can_be_renewed_and_revoked(pki: Pki, name: str) -> None:
    assert pki.run("device", name).returncode == 0
    assert pki.run("renew", name).returncode == 0
    assert pki.run("revoke", name).stdout.count(f"revoked {name},") == 2


def test_what_was_issued_at_the_same_time_is_all_known_and_can_be_revoked(pki: Pki) -> None:
    names = [f"box-{number}" for number in range(8)]
    command = [require("xargs"), "-P", "8", "-n", "1", str(SCRIPT), "--dir", str(pki.directory), "device"]
    subprocess.run(command, input="\n".join(names), text=True, check=True, capture_output=True, timeout=60)
    assert pki.run("list").stdout.count(" valid, ") == len(names)


def test_an_authority_that_was_half_made_is_finished_and_one_that_was_damaged_is_not_made_anew(pki: Pki) -> None:
    (pki.directory / "crl.pem").unlink()
    assert "wrote" in pki.run("ca").stdout
    assert (pki.directory / "crl.pem").exists()
    pki.run("device", "box-a")
    key = (pki.directory / "ca.key").read_bytes()
    pki.file.unlink()
    assert "put it back from a copy" in pki.run("ca").stderr
    assert (pki.directory / "ca.key").read_bytes() == key


def test_a_renewed_certificate_keeps_its_names_and_has_a_new_key(pki: Pki) -> None:
    pki.run("server", "broker.example.com", "10.0.0.7")
    first = read(pki.made("broker.example.com")[0])
    assert pki.run("renew", "broker.example.com", PKI_DAYS="30").returncode == 0
    second = read(pki.made("broker.example.com")[0])
    kind = x509.SubjectAlternativeName
    assert second.extensions.get_extension_for_class(kind) == first.extensions.get_extension_for_class(kind)
    assert second.public_key() != first.public_key()
    assert 29 <= (second.not_valid_after_utc - second.not_valid_before_utc).days <= 31
    assert second.subject == first.subject
    assert pki.run("renew", "broker.example.com", "mqtt.example.com").returncode == 0
    names = read(pki.made("broker.example.com")[0]).extensions.get_extension_for_class(kind).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example.com", "mqtt.example.com"]


def test_the_broker_lets_devices_in_and_neither_strangers_nor_what_was_revoked(
    pki: Pki, tmp_path_factory: pytest.TempPathFactory
) -> None:
    crl = tmp_path_factory.mktemp("crl") / "crl.pem"
    shutil.copy(pki.directory / "crl.pem", crl)
    replacing = {"# crlfile /etc/mosquitto/nibbled/revoked.pem": f"crlfile {crl}"}
    broker = SecureBroker(tmp_path_factory.mktemp("mosquitto"), pki, replacing)
    broker.start()
    try:
        listener = Listener(broker, "auditor", "edge/v1/#", retained=f"{DEVICE}/desired")
        try:
            assert _arrives(broker, listener, "box-a", f"{DEVICE}/event")
            stranger = Pki(tmp_path_factory.mktemp("other"))
            cert, key = stranger.issue("box-a")
            assert not _arrives(broker, listener, "box-a", f"{DEVICE}/event", "--cert", str(cert), "--key", str(key))
            old = [Path(shutil.copy(file, file.with_suffix(f".old{file.suffix}"))) for file in pki.made("box-a")]
            pki.run("renew", "box-a")
            assert pki.run("revoke", "box-a").stdout.count("revoked box-a") == 2
            shutil.copy(pki.directory / "crl.pem", crl)
            broker.reload()
            assert not _arrives(broker, listener, "box-a", f"{DEVICE}/event")
            certificate_before = ["--cert", str(old[0]), "--key", str(old[1])]
            assert not _arrives(broker, listener, "box-a", f"{DEVICE}/event", *certificate_before)
            assert _arrives(broker, listener, "box-b", "edge/v1/box-b/event")
            assert "was revoked or has ended" in pki.run("device", "box-a").stderr
            pki.run("renew", "box-a")
            assert _arrives(broker, listener, "box-a", f"{DEVICE}/event"), "renewed"

            ended = ["-crl_lastupdate", "20200101000000Z", "-crl_nextupdate", "20200201000000Z", "-out", str(crl)]
            command = [require("openssl"), "ca", "-config", str(pki.directory / "openssl.cnf"), "-gencrl", *ended]
            subprocess.run(command, check=True, capture_output=True)
            broker.reload()
            assert not _arrives(broker, listener, "box-b", "edge/v1/box-b/event"), "the list has ended"
            pki.run("crl")
            shutil.copy(pki.directory / "crl.pem", crl)
            broker.reload()
            assert _arrives(broker, listener, "box-b", "edge/v1/box-b/event")
        finally:
            listener.close()
    finally:
        broker.stop()


def _arrives(broker: SecureBroker, listener: Listener, who: str, topic: str, *more: str) -> bool:
    """Publish as a device, then as an operator who may, and return whether the first came through."""
    text, after = fresh_text(), fresh_text()
    broker.publish(who, topic, text, *more)
    broker.publish("operator", f"{DEVICE}/cmd/status", after)
    listener.wait(after)
    return text in listener.texts()
