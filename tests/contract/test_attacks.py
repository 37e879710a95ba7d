"""Attacks on a device, each refused by a guard of its own; and each gets through, or elsewhere, once the guard is gone.

The table at the end is the list. `make attacks` plays it and prints which guard catches what.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import warnings
import zipfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch

from agent import archives, logs
from agent.adapters import headers
from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy
from agent.adapters.signatures import KeyDirectory
from agent.contract import commands
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.halt import Halts
from agent.contract.manifest import PAYLOAD_TYPE, Envelope, Manifest
from agent.contract.topics import Topics
from agent.contract.wire import parse_object
from agent.deployment.ports import StepError
from agent.deployment.runner import WorkWatch
from agent.fleet import keys
from agent.quantization import checkpoint
from agent.quantization.errors import BadCheckpointError, UnsafeCheckpointError
from agent.quantization.huggingface_files import open_files
from agent.settings import Deployment, Mqtt, Settings, Trust
from tests.fakes.box import CONTENT, TOPICS, URL, Box
from tests.fakes.device import checkpoint as honest_archive
from tests.fakes.device import sha256
from tests.fakes.files import Reply, serve
from tests.fakes.guards import Guard, NoGuardError, Refusal, Substitute, Together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.contract.wire import JsonObject

WEIGHTS = {"w": torch.arange(4.0)}
FILE = {"name": "kanji.pt", "url": URL, "sha256": sha256(CONTENT), "size": len(CONTENT)}
OMS = Path(__file__).parents[1] / "data" / "oms"
PAST, FUTURE = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
CANARY = "canary-secret"


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        name: what it is.
        guard: what stops it.
        play: carries it out in an empty directory; raises AssertionError if it was not stopped by that guard.
        beyond: guards before it, taken out to see that this one holds alone.
    """

    name: str
    guard: Guard
    play: Callable[[Path], None]
    beyond: tuple[Guard, ...] = ()

    def carry_out(self, directory: Path) -> None:
        """Play it against the guard that is to hold."""
        with contextlib.ExitStack() as stack:
            for guard in self.beyond:
                stack.enter_context(guard.removed())
            self.play(directory)

    def carry_out_unguarded(self, directory: Path) -> None:
        """Play it with its guard taken out."""
        with self.guard.removed():
            self.carry_out(directory)


@contextlib.contextmanager
def refused(words: str, *codes: ErrorCode) -> Iterator[None]:
    """Check that the block ends in a refusal with these words, and with one of these codes if any are given."""
    try:
        yield
    except (RefusalError, StepError, BadCheckpointError, UnsafeCheckpointError, archives.ArchiveError) as error:
        code = getattr(error, "code", None)
        if words in str(error) and (not codes or code in codes):
            return
        raise AssertionError(f"stopped elsewhere: {error}") from error
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"stopped by accident: {error!r:.200}") from error
    raise AssertionError("it got through")


# --- Files that claim to be checkpoints, as the builder opens them


class Payload:
    """A pickle that makes a directory when it is opened, standing for anything else that it could do."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


def saved(directory: Path, content: Any, **options: Any) -> Path:
    torch.save(content, directory / "blob", **options)
    return directory / "blob"


def rezipped(
    directory: Path, change: Callable[[str, bytes], tuple[str, bytes]], method: int = zipfile.ZIP_STORED
) -> Path:
    """Write a valid checkpoint's entries again, changed, so that only one thing is wrong with it."""
    original = io.BytesIO()
    torch.save(WEIGHTS, original)
    path = directory / "blob"
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(path, "w", method) as target:
        for entry in source.infolist():
            target.writestr(*change(entry.filename, source.read(entry)))
    return path


def pickle_that_runs_code(directory: Path) -> None:
    path = saved(directory, {"model_state_dict": WEIGHTS, "extra": Payload(directory / "ran")})
    with refused("globals that can run code"):
        checkpoint.open_checkpoint(path)


def pickle_that_runs_code_past_the_list(directory: Path) -> None:
    path = saved(directory, {"model_state_dict": WEIGHTS, "extra": Payload(directory / "ran")})
    with contextlib.suppress(Exception):
        checkpoint.open_checkpoint(path)
    assert not (directory / "ran").exists(), "the pickle ran code"


def _load_anything(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def pickle_for_an_old_torch(directory: Path) -> None:
    path = saved(directory, WEIGHTS)
    with mock.patch.object(torch, "__version__", "2.9.1+cu126"), refused("2.10 is needed"):
        checkpoint.open_checkpoint(path)


def bare_pickle(directory: Path) -> None:
    path = directory / "blob"
    path.write_bytes(pickle.dumps(Payload(directory / "ran")))
    with refused("a bare pickle"):
        checkpoint.open_checkpoint(path)


def legacy_pickle(directory: Path) -> None:
    path = saved(directory, WEIGHTS, _use_new_zipfile_serialization=False)
    with refused("before 1.6"):
        checkpoint.open_checkpoint(path)


def torchscript(directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), directory / "blob")
    with refused("a TorchScript archive"):
        checkpoint.open_checkpoint(directory / "blob")


def zip_bomb(directory: Path) -> None:
    def inflate(name: str, data: bytes) -> tuple[str, bytes]:
        return name, bytes(64 << 20) if name.endswith("data/0") else data

    path = rezipped(directory, inflate, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with refused("torch.save never compresses"):
        checkpoint.open_checkpoint(path)


def stride_0_bomb(directory: Path) -> None:
    path = saved(directory, {"bomb": torch.zeros(1).expand(1_000_000, 1_000_000)})
    assert path.stat().st_size < 4096
    with refused("claims 4000000000000 bytes, its storage has 4"):
        checkpoint.open_checkpoint(path)


def sparse_bomb(directory: Path) -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([1.0]), (1 << 40,), check_invariants=True)
    path = saved(directory, {"w": sparse})
    with refused("not dense and in the file"):
        checkpoint.open_checkpoint(path)


def escaping_zip(directory: Path) -> None:
    path = rezipped(directory, lambda name, data: (name.replace("byteorder", "../../x"), data))
    with refused("points outside"):
        checkpoint.open_checkpoint(path)


def overlapping_zip(directory: Path) -> None:
    path = rezipped(directory, lambda name, data: (name, data))
    content = bytearray(path.read_bytes())
    record = content.rfind(b"PK\x01\x02", 0, content.rfind(b"PK\x01\x02"))
    struct.pack_into("<II", content, record + 20, 1 << 20, 1 << 20)
    path.write_bytes(content)
    with refused("entries claim"):
        checkpoint.open_checkpoint(path)


def safetensors(directory: Path, header: bytes, data: bytes = b"") -> Path:
    path = directory / "blob"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def empty_tensors(count: int) -> bytes:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join(f'"{number}":{entry}' for number in range(count)) + "}").encode()


_TWICE = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def million_tensors(directory: Path) -> None:
    path = safetensors(directory, empty_tensors(1_000_000))
    with refused("at most 8388608 are read"):
        checkpoint.open_checkpoint(path)


def many_tensors(directory: Path) -> None:
    path = safetensors(directory, empty_tensors(25_000))
    with refused("25000 tensors, at most"):
        checkpoint.open_checkpoint(path)


def duplicate_keys(directory: Path) -> None:
    path = safetensors(directory, _TWICE, bytes(4))
    with refused("twice"):
        checkpoint.open_checkpoint(path)


def escaping_index(directory: Path) -> None:
    (directory / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../secret.safetensors"}}')
    with refused("which is none of its directory"):
        open_files(directory)


# --- The same files, as the supervisor weighs them before any builder is started


def weighed(path: Path, words: str) -> None:
    with refused(words, ErrorCode.UNSAFE_CHECKPOINT, ErrorCode.BAD_CHECKPOINT):
        headers.numels(path)


def weighed_legacy_pickle(directory: Path) -> None:
    weighed(saved(directory, WEIGHTS, _use_new_zipfile_serialization=False), "neither a torch zip archive")


def weighed_torchscript(directory: Path) -> None:
    weighed(rezipped(directory, lambda name, data: (name.replace("byteorder", "code/x.py"), data)), "TorchScript")


def weighed_zip_bomb(directory: Path) -> None:
    weighed(rezipped(directory, lambda name, _data: (name, bytes(1 << 20)), zipfile.ZIP_DEFLATED), "compressed members")


def weighed_escaping_zip(directory: Path) -> None:
    weighed(rezipped(directory, lambda name, data: (name.replace("byteorder", "../../x"), data)), "leaves the archive")


def weighed_overlapping_zip(directory: Path) -> None:
    content = bytearray(honest_archive(100))
    record = content.rfind(b"PK\x01\x02")
    struct.pack_into("<II", content, record + 20, 1 << 30, 1 << 30)
    (directory / "blob").write_bytes(content)
    weighed(directory / "blob", "members of")


def weighed_million_tensors(directory: Path) -> None:
    weighed(safetensors(directory, empty_tensors(1_000_000)), "a safetensors header of")


def weighed_many_tensors(directory: Path) -> None:
    weighed(safetensors(directory, empty_tensors(25_000)), "25000 tensors, at most")


def weighed_duplicate_keys(directory: Path) -> None:
    weighed(safetensors(directory, _TWICE, bytes(4)), "a name occurs twice")


def weighed_shape_bomb(directory: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4]}}'
    weighed(safetensors(directory, header, bytes(4)), "claims 1000000000000 weights")


def escaping_tar(directory: Path) -> None:
    with tarfile.open(directory / "blob", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../etc/cron.d/x"))
    with refused("points outside"):
        archives.members(directory / "blob")


def linked_tar(directory: Path) -> None:
    link = tarfile.TarInfo("config.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
    with tarfile.open(directory / "blob", "w") as archive:
        archive.addfile(link)
    with refused("is a link or no plain file"):
        archives.members(directory / "blob")


# --- Addresses


@contextlib.contextmanager
def only_loopback() -> Iterator[list[str]]:
    """Let no connection leave this machine; yields where some were tried to."""
    tried: list[str] = []
    connect = socket.socket.connect

    def guarded(sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and address[0] != "127.0.0.1":
            tried.append(address[0])
            raise ConnectionRefusedError("no connection leaves a test")
        connect(sock, address)

    with mock.patch.object(socket.socket, "connect", guarded):
        yield tried


class Impatient(WorkWatch):
    """Waits for nothing, and lets no download grow beyond ``most_bytes``."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(lambda _done, _total, _unit: None)
        self._most_bytes = most_bytes

    def progress(self, done: int, total: int | None, unit: str) -> None:
        del total, unit
        if done > self._most_bytes:
            raise AssertionError(f"{done} bytes were written, {self._most_bytes} are more than enough")

    def wait(self, seconds: float) -> None:
        del seconds


def fetched(directory: Path, url: str, words: str, policy: Policy, size: int = 7) -> None:
    with only_loopback() as tried, refused(words):
        try:
            Downloader(policy).fetch(url, directory / "part", size, Impatient(1 << 22))
        finally:
            assert tried == [], f"it reached for {tried[0]}"


OPEN = Policy(schemes=frozenset({"http", "https"}))
NARROW = Policy(schemes=frozenset({"http"}), hosts=frozenset({"127.0.0.1"}), stall_s=5.0)


def link_local_address(directory: Path) -> None:
    fetched(directory, "http://169.254.169.254/latest/meta-data/iam", "link-local", OPEN)


def private_address(directory: Path) -> None:
    fetched(directory, "https://10.0.0.7/x", "must be named", OPEN)


def name_of_a_private_address(directory: Path) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 443))]
    with mock.patch.object(socket, "getaddrinfo", return_value=found):
        fetched(directory, "https://rebound.example/x", "link-local", OPEN)


def scheme_that_is_not_allowed(directory: Path) -> None:
    (directory / "secret").write_text("x" * 7)
    fetched(directory, (directory / "secret").as_uri(), "is not allowed here", OPEN)


def host_that_is_not_allowed(directory: Path) -> None:
    fetched(directory, "http://192.0.2.1/x", "is not in downloads.allowed_hosts", NARROW)


def redirected(directory: Path, words: str, *locations: str) -> None:
    with serve(b"content") as files:
        files.replies = [Reply(status=302, headers={"Location": location}) for location in locations]
        fetched(directory, files.url, words, NARROW)


def redirect_to_link_local(directory: Path) -> None:
    redirected(directory, "is not in downloads.allowed_hosts", "http://169.254.169.254/latest/meta-data")


def redirects_in_a_circle(directory: Path) -> None:
    redirected(directory, "redirects", *["/again"] * 20)


def endless_file(directory: Path) -> None:
    with serve(bytes(1 << 16)) as files:
        files.replies = [Reply(endless=True)] * 10
        fetched(directory, files.url, "were announced", NARROW, size=1 << 17)


# --- Messages


def command(**changes: Any) -> bytes:
    body = {
        "schema": 1,
        "id": "d-1",
        "model": "kanji",
        "artifact": {name: FILE[name] for name in ("url", "sha256", "size")},
    }
    return json.dumps({**body, **changes}).encode()


def oversize_payload(_directory: Path) -> None:
    with refused("at most 65536 are accepted", ErrorCode.BAD_REQUEST):
        commands.parse("deploy", command(padding="x" * 70_000))


def deep_payload(_directory: Path) -> None:
    for depth in (40, 20_000):
        nested = b'{"schema":1,"x":' + b"[" * depth + b"]" * depth + b"}"
        with refused("nested deeper", ErrorCode.BAD_REQUEST):
            parse_object(nested)


def ambiguous_payload(_directory: Path) -> None:
    with refused("occurs twice", ErrorCode.BAD_REQUEST):
        parse_object(b'{"model":"kanji","model":"faces"}')


def number_that_is_none(_directory: Path) -> None:
    with refused("no JSON number", ErrorCode.BAD_REQUEST):
        parse_object(b'{"min_agreement":NaN}')


def retained_command(_directory: Path) -> None:
    with refused("was retained", ErrorCode.RETAINED_COMMAND):
        commands.parse("deploy", command(), retained=True)


def wildcard_in_a_device_id(_directory: Path) -> None:
    try:
        Topics("edge/v1", "+")
    except ValueError:
        return
    raise AssertionError("it got through")


def path_in_a_manifest(_directory: Path) -> None:
    for change in ({"name": "../../etc/cron.d/x"}, {"sha256": "../../../etc/cron.d/x"}):
        body = {"model": "kanji", "version": "1", "sequence": 1, "files": [{**FILE, **change}]}
        payload = base64.b64encode(json.dumps(body).encode()).decode()
        envelope = {"payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": [{"sig": ""}]}
        with refused("String should match pattern", ErrorCode.BAD_REQUEST):
            Envelope.model_validate(envelope).manifest()


def _unchecked(envelope: Envelope) -> Manifest:
    return Manifest.model_construct(**json.loads(envelope.body()))


# --- Releases, on a whole device with the real journal and keys


class Stage:
    """A device that trusts the key ``fleet``."""

    def __init__(self, directory: Path) -> None:
        self.trust = directory / "trust.d"
        self.trust.mkdir()
        self.private, _ = keys.generate(directory, "fleet")
        (directory / "fleet.pub").rename(self.trust / "fleet.pub")
        self.box = Box(directory, KeyDirectory(self.trust))

    def signed(self, sequence: int = 1, private: Path | None = None, **changes: Any) -> JsonObject:
        body = {"model": "kanji", "version": f"v{sequence}", "sequence": sequence, "files": [FILE], **changes}
        return keys.sign(body, private or self.private)

    def deploy(self, operation_id: str, **fields: Any) -> tuple[str, str | None]:
        """Send a deploy and return what became of it: its state and its error's code."""
        return self.send("deploy", {"id": operation_id, "model": "kanji", **fields})

    def send(self, name: str, body: JsonObject) -> tuple[str, str | None]:
        """Send a command and return what became of it, as ``deploy`` does."""
        self.box.send(name, body)
        self.box.settle()
        report = self.box.report(body["id"])
        assert report is not None, "the device said nothing"
        return report["state"], (report["error"] or {}).get("code")


@contextlib.contextmanager
def stage(directory: Path) -> Iterator[Stage]:
    made = Stage(directory)
    try:
        yield made
    finally:
        made.box.journal.close()


def expect(found: tuple[str, str | None], state: str, code: str | None = None) -> None:
    assert found == (state, code), f"it ended as {found}"


def unsigned_release(directory: Path) -> None:
    with stage(directory) as on:
        expect(on.deploy("d-1", artifact=FILE), "rejected", "untrusted_key")


def release_of_a_stranger(directory: Path) -> None:
    with stage(directory) as on:
        stranger, _ = keys.generate(directory, "stranger")
        expect(on.deploy("d-1", manifest=on.signed(private=stranger)), "rejected", "untrusted_key")


def changed_release(directory: Path) -> None:
    with stage(directory) as on:
        manifest = on.signed()
        manifest["payload"] = on.signed(version="evil")["payload"]
        expect(on.deploy("d-1", manifest=manifest), "rejected", "bad_signature")


def release_of_a_key_past_its_end(directory: Path) -> None:
    with stage(directory) as on:
        path = on.trust / "fleet.pub"
        path.write_text(f"not_after: {PAST}\n{path.read_text()}")
        expect(on.deploy("d-1", manifest=on.signed()), "rejected", "untrusted_key")


def release_of_a_key_for_other_models(directory: Path) -> None:
    with stage(directory) as on:
        path = on.trust / "fleet.pub"
        path.write_text(f"models: digits-*\n{path.read_text()}")
        expect(on.deploy("d-1", manifest=on.signed()), "rejected", "untrusted_key")


def older_release(directory: Path) -> None:
    with stage(directory) as on:
        expect(on.deploy("d-2", manifest=on.signed(2)), "succeeded")
        expect(on.deploy("d-1", manifest=on.signed(1)), "rejected", "stale_sequence")


def release_past_its_end(directory: Path) -> None:
    with stage(directory) as on:
        expect(on.deploy("d-1", manifest=on.signed(expires=PAST)), "expired", "expired")


def release_past_its_end_on_a_clock_that_is_not_set(directory: Path) -> None:
    with stage(directory) as on:
        on.box.clock.synchronised = False
        expect(on.deploy("d-1", manifest=on.signed(expires=PAST)), "accepted")
        on.box.clock.synchronised = True
        on.box.engine.turn(wait_s=0)
        assert on.box.report("d-1")["state"] == "expired"


def release_for_another_device(directory: Path) -> None:
    with stage(directory) as on:
        found = on.deploy("d-1", manifest=on.signed(audience={"devices": ["box-2"]}))
        expect(found, "rejected", "wrong_audience")


def release_of_another_model(directory: Path) -> None:
    with stage(directory) as on:
        expect(on.deploy("d-1", manifest=on.signed(model="faces")), "rejected", "bad_request")


def late_command(directory: Path) -> None:
    with stage(directory) as on:
        expect(on.deploy("d-1", manifest=on.signed(), expires_at=PAST), "expired", "expired")


def replayed_command(directory: Path) -> None:
    with stage(directory) as on:
        manifest = on.signed()
        for _ in range(3):
            expect(on.deploy("d-1", manifest=manifest), "succeeded")
        events = [body["event"] for body in on.box.broker.bodies(TOPICS.event)]
        count = events.count("command_accepted")
        assert count == 1, f"it was accepted {count} times"


def signed_command(on: Stage, name: str = "status", device: str = "box-1", **fields: Any) -> JsonObject:
    return keys.sign_message({"device": device}, name, {"schema": 1, "id": "c-1", **fields}, on.private)


def unsigned_command(directory: Path) -> None:
    with stage(directory) as on:
        on.box.settings = Settings(trust=Trust(require_command_signature=True))
        on.box.reboot()
        expect(on.send("status", {"schema": 1, "id": "c-1"}), "rejected", "untrusted_key")


def unsigned_wanted_state(directory: Path) -> None:
    with stage(directory) as on:
        on.box.settings = Settings(trust=Trust(require_command_signature=True))
        on.box.reboot()
        on.box.want(1, models={})
        on.box.settle()
        events = [body["event"] for body in on.box.broker.bodies(TOPICS.event)]
        assert "desired_rejected" in events, "it was adopted"


def lifted_halt(directory: Path) -> None:
    """Whoever may publish puts another halt in the place of the one that an operator signed, and takes that back."""
    with stage(directory) as on:
        strict, soon = Trust(require_command_signature=True), Deployment(soak_s=0.0)
        on.box.settings = Settings(trust=strict, mqtt=Mqtt(groups=("lab",)), deployment=soon)
        on.box.reboot()
        stop = {"schema": 1, "generation": 1, "reason": "a bad release"}
        on.box.halt("lab", keys.sign_message({"group": "lab"}, "halt", stop, on.private))
        wanted = {"schema": 1, "generation": 1, "models": {"kanji": {"manifest": on.signed()}}}
        document = keys.sign_message({"group": "lab"}, "desired", wanted, on.private)
        on.box.want(document.pop("generation"), "lab", **document)
        on.box.halt("lab", generation=0)
        on.box.halt("lab", b"")
        on.box.settle()
        assert not on.box.sources.fetched, "it was begun"


def command_for_another_device(directory: Path) -> None:
    with stage(directory) as on:
        expect(on.send("status", signed_command(on, device="box-2")), "rejected", "bad_signature")


def command_under_another_name(directory: Path) -> None:
    with stage(directory) as on:
        expect(on.deploy("d-1", manifest=on.signed()), "succeeded")
        expect(on.send("undeploy", signed_command(on, "replan", model="kanji")), "rejected", "bad_signature")


def changed_command(directory: Path) -> None:
    with stage(directory) as on:
        signed = signed_command(on, "set_config", config={"health": {"interval_s": 5}})
        expect(
            on.send("set_config", {**signed, "config": {"health": {"interval_s": 3600}}}), "rejected", "bad_signature"
        )


def command_of_a_stranger(directory: Path) -> None:
    with stage(directory) as on:
        stranger, _ = keys.generate(directory, "stranger")
        signed = keys.sign_message({"device": "box-1"}, "status", {"schema": 1, "id": "c-1"}, stranger)
        expect(on.send("status", signed), "rejected", "untrusted_key")


def class_by_name(directory: Path) -> None:
    with stage(directory) as on:
        found = on.deploy("d-1", manifest=on.signed(model_type="os.system"))
        expect(found, "rejected", "unknown_model_type")


def bundle_of_other_files(directory: Path) -> None:
    with stage(directory) as on:
        (on.trust / "maker.pub").write_bytes((OMS / "p256.pub").read_bytes())
        found = on.deploy("d-1", artifact=FILE, oms=json.loads((OMS / "p256.sig").read_bytes()))
        expect(found, "rejected", "checksum_mismatch")


def bundle_over_a_newer_manifest(directory: Path) -> None:
    with stage(directory) as on:
        (on.trust / "maker.pub").write_bytes((OMS / "p256.pub").read_bytes())
        content = (OMS / "model" / "model.safetensors").read_bytes()
        on.box.sources.files[URL] = content
        entry = {"name": "x", "url": URL, "sha256": sha256(content), "size": len(content)}
        expect(on.deploy("d-1", manifest=on.signed(9, files=[entry])), "succeeded")
        found = on.deploy("d-2", artifact=entry, oms=json.loads((OMS / "p256.sig").read_bytes()))
        expect(found, "rejected", "stale_sequence")


# --- Secrets


def presigned_address_in_a_log_line(_directory: Path) -> None:
    line = {
        "event": f"GET https://me:{CANARY}@h.example/x?X-Amz-Signature={CANARY}",
        "error": ValueError(f"x://y?{CANARY}"),
    }
    assert CANARY not in repr(logs.redact(line)), "the line shows the secret"


def key_in_a_log_line(_directory: Path) -> None:
    pem = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"
    assert CANARY not in repr(logs.redact({"event": f"cannot read {pem}"})), "the line shows the key"


def presigned_address_in_an_ended_operation(directory: Path) -> None:
    url = f"{URL}?sig={CANARY}"
    with stage(directory) as on:
        on.box.sources.files[url] = CONTENT
        expect(on.deploy("d-1", manifest=on.signed(files=[{**FILE, "url": url}])), "succeeded")
        records = on.box.journal._read("SELECT record FROM operation")
    kept = json.dumps(records) + b"".join(path.read_bytes() for path in directory.glob("journal.db*")).decode("latin-1")
    assert CANARY not in kept, "the journal keeps the address"
    manifests = [json.loads(record)["request"].get("manifest") for (record,) in records]
    assert manifests == [None], "the journal keeps the manifest, and the address in it"


def private_key_among_the_trusted(directory: Path) -> None:
    with stage(directory) as on:
        (on.trust / "stolen.pub").write_bytes(on.private.read_bytes())
        (problem,) = KeyDirectory(on.trust).problems()
    assert "a private key" in problem, f"it is called: {problem}"


CHECKPOINT, CONTAINERS, HEADER = (
    f"agent.quantization.{name}" for name in ("checkpoint", "containers", "safetensors_header")
)
WEIGHER, DOWNLOAD, KEY = "agent.adapters.headers", "agent.adapters.download", "agent.adapters.trusted_keys.TrustedKey"
WIRE, MANIFEST, TRUST = "agent.contract.wire", "agent.contract.manifest", "agent.deployment.trust"
SIGNED, SIGNED_DIFFERENCE = "agent.deployment.signed", Refusal("agent.contract.signed", "difference")
UNSAFE_GLOBALS = Refusal(CHECKPOINT, "globals that can run code")


def _same(value: Any) -> Any:
    return value


ATTACKS = (
    Attack("pickle RCE", UNSAFE_GLOBALS, pickle_that_runs_code),
    Attack(
        "pickle RCE past the list of globals",
        Substitute(f"{CHECKPOINT}._load", _load_anything),
        pickle_that_runs_code_past_the_list,
        (UNSAFE_GLOBALS,),
    ),
    Attack("pickle for a torch with holes", Refusal(CHECKPOINT, "with known holes"), pickle_for_an_old_torch),
    Attack("bare pickle RCE", Refusal(CONTAINERS, "a bare pickle"), bare_pickle),
    Attack("legacy pickle", Refusal(CONTAINERS, "a bare pickle"), legacy_pickle),
    Attack("legacy pickle, weighed", Refusal(WEIGHER, "neither a torch zip archive"), weighed_legacy_pickle),
    Attack("TorchScript", Refusal(CONTAINERS, "a TorchScript archive"), torchscript),
    Attack("TorchScript, weighed", Refusal(WEIGHER, "a TorchScript archive"), weighed_torchscript),
    Attack("deflated zip bomb", Refusal(CONTAINERS, "torch.save never compresses"), zip_bomb),
    Attack("deflated zip bomb, weighed", Refusal(WEIGHER, "compressed members"), weighed_zip_bomb),
    Attack("stride-0 bomb", Refusal(CHECKPOINT, "its storage has"), stride_0_bomb),
    Attack("sparse bomb", Refusal(CHECKPOINT, "not dense and in the file"), sparse_bomb),
    Attack("overlapping zip members", Refusal(CONTAINERS, "entries claim"), overlapping_zip),
    Attack("overlapping zip members, weighed", Refusal(WEIGHER, "members of {total}"), weighed_overlapping_zip),
    Attack(
        "safetensors header of 1 M tensors",
        Refusal(HEADER, "the header claims {length} bytes, at most"),
        million_tensors,
    ),
    Attack(
        "safetensors header of 1 M tensors, weighed",
        Refusal(WEIGHER, "a safetensors header of"),
        weighed_million_tensors,
    ),
    Attack("safetensors header of 25 000 tensors", Refusal(HEADER, "the header lists {len(fields)}"), many_tensors),
    Attack("safetensors header of 25 000 tensors, weighed", Refusal(WEIGHER, "tensors, at most"), weighed_many_tensors),
    Attack("safetensors duplicate keys", Refusal(HEADER, "the header lists {twice!r} twice"), duplicate_keys),
    Attack("safetensors duplicate keys, weighed", Refusal(WEIGHER, "a name occurs twice"), weighed_duplicate_keys),
    Attack("safetensors shape bomb, weighed", Refusal(WEIGHER, "claims {numel} weights"), weighed_shape_bomb),
    Attack("path traversal in a zip", Refusal(CONTAINERS, "points outside of it"), escaping_zip),
    Attack("path traversal in a zip, weighed", Refusal(WEIGHER, "leaves the archive"), weighed_escaping_zip),
    Attack("path traversal in a tar", Refusal("agent.archives", "points outside of the archive"), escaping_tar),
    Attack("link in a tar", Refusal("agent.archives", "is a link or no plain file"), linked_tar),
    Attack(
        "path traversal in an index",
        Refusal("agent.quantization.huggingface_files", "which is none of its directory"),
        escaping_index,
    ),
    Attack("path traversal in a manifest", Substitute(f"{MANIFEST}.Envelope.manifest", _unchecked), path_in_a_manifest),
    Attack("SSRF to a link-local address", Refusal(DOWNLOAD, "has the {kind} address"), link_local_address),
    Attack("SSRF to a private address", Refusal(DOWNLOAD, "has the {kind} address"), private_address),
    Attack(
        "SSRF by a name of a link-local address", Refusal(DOWNLOAD, "has the {kind} address"), name_of_a_private_address
    ),
    Attack("SSRF by another scheme", Refusal(DOWNLOAD, "is not allowed here"), scheme_that_is_not_allowed),
    Attack(
        "SSRF to a host that is not named",
        Refusal(DOWNLOAD, "is not in downloads.allowed_hosts"),
        host_that_is_not_allowed,
    ),
    Attack("redirect to link-local", Refusal(DOWNLOAD, "is not in downloads.allowed_hosts"), redirect_to_link_local),
    Attack("redirects in a circle", Refusal(DOWNLOAD, "more than {MAX_REDIRECTS} redirects"), redirects_in_a_circle),
    Attack("endless file", Refusal(DOWNLOAD, "wrong_size("), endless_file),
    Attack("oversize payload", Refusal(WIRE, "are accepted"), oversize_payload),
    Attack("deeply nested payload", Refusal(WIRE, "nested deeper"), deep_payload),
    Attack("ambiguous payload", Refusal(WIRE, "occurs twice"), ambiguous_payload),
    Attack("a number that is none", Refusal(WIRE, "is no JSON number"), number_that_is_none),
    Attack("wildcard in a device id", Refusal("agent.contract.topics", "device id"), wildcard_in_a_device_id),
    Attack("replay by the broker's store", Refusal("agent.contract.commands", "was retained"), retained_command),
    Attack(
        "replay of a command",
        Substitute("agent.adapters.journal.SqliteJournal.operation", lambda *_: None),
        replayed_command,
    ),
    Attack(
        "replay of a late command",
        Together(
            (
                Refusal(TRUST, "was to be acted on before"),
                Substitute("agent.deployment.open_operations.expiry", lambda _operation: None),
            )
        ),
        late_command,
    ),
    Attack("a signed command for another device", SIGNED_DIFFERENCE, command_for_another_device),
    Attack("a signed command under another name", SIGNED_DIFFERENCE, command_under_another_name),
    Attack("a signed command, changed", SIGNED_DIFFERENCE, changed_command),
    Attack("a signed command of a stranger", Substitute(f"{KEY}.has_signed", lambda *_: True), command_of_a_stranger),
    Attack("a command without the signature that is required", Refusal(SIGNED, "carries no"), unsigned_command),
    Attack("a wanted state without the signature", Refusal(SIGNED, "carries no"), unsigned_wanted_state),
    Attack(
        "a signed halt, lifted by anybody",
        Substitute("agent.contract.halt.Halts.after", lambda _self, halt, **_told: Halts(halt)),
        lifted_halt,
    ),
    Attack("rollback to an older release", Refusal(MANIFEST, "is older than"), older_release),
    Attack("freeze: a release past its end", Refusal(MANIFEST, "the manifest expired"), release_past_its_end),
    Attack(
        "freeze: past its end on a clock that is not set",
        Substitute(f"{TRUST}.deferral", lambda _dates: None),
        release_past_its_end_on_a_clock_that_is_not_set,
    ),
    Attack("another device's manifest", Refusal(MANIFEST, "the manifest is for "), release_for_another_device),
    Attack("another model's manifest", Refusal(TRUST, "its manifest for"), release_of_another_model),
    Attack("rogue publisher, unsigned", Refusal(TRUST, "carries no signed manifest"), unsigned_release),
    Attack(
        "rogue publisher, a stranger's key", Substitute(f"{KEY}.has_signed", lambda *_: True), release_of_a_stranger
    ),
    Attack("rogue publisher, a changed manifest", Substitute(f"{KEY}.has_signed", lambda *_: True), changed_release),
    Attack("a key past its end", Substitute(f"{KEY}.objection", lambda *_: None), release_of_a_key_past_its_end),
    Attack(
        "a key for other models", Substitute(f"{KEY}.objection", lambda *_: None), release_of_a_key_for_other_models
    ),
    Attack("a bundle of other files", Refusal("agent.contract.oms", "is none of the"), bundle_of_other_files),
    Attack("a bundle over a newer manifest", Refusal(TRUST, "a bundle has no sequence"), bundle_over_a_newer_manifest),
    Attack("class named by model_type", Refusal("agent.deployment.intake", "unknown model_type"), class_by_name),
    Attack("secret of an address in a log", Substitute("agent.logs.redacted", _same), presigned_address_in_a_log_line),
    Attack("private key in a log", Substitute("agent.logs.redacted", _same), key_in_a_log_line),
    Attack(
        "secret of an address in the journal",
        Substitute("agent.adapters.journal_rows.forgotten", _same),
        presigned_address_in_an_ended_operation,
    ),
    Attack(
        "private key as a trusted one",
        Refusal("agent.adapters.trusted_keys", "a private key"),
        private_key_among_the_trusted,
    ),
)
NAMES = [attack.name for attack in ATTACKS]


@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_the_attack_is_stopped_by_its_guard(attack: Attack, tmp_path: Path) -> None:
    attack.carry_out(tmp_path)


@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_without_its_guard_the_test_of_the_attack_fails(attack: Attack, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        attack.carry_out_unguarded(tmp_path)


def test_every_attack_has_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("guard", [Refusal(WIRE, "no such words"), Substitute(f"{WIRE}.nothing", None)])
def test_a_guard_that_is_not_there_is_an_error_and_not_a_pass(guard: Guard) -> None:
    with pytest.raises(NoGuardError), guard.removed():
        pass


def test_a_guard_is_back_after_the_block() -> None:
    with Refusal(WIRE, "occurs twice").removed():
        assert parse_object(b'{"a":1,"a":2}') == {"a": 2}
    with pytest.raises(RefusalError):
        parse_object(b'{"a":1,"a":2}')


def test_the_dates_of_the_table_are_past_and_future() -> None:
    now = datetime.now(timezone.utc)
    assert datetime.fromisoformat(PAST.replace("Z", "+00:00")) < now
