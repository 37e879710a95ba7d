"""What is fuzzed: each target takes any bytes and raises only when a claim is broken.

The claim is one for all: whatever comes ends in a success or in a clear error of the product's own, never in another
exception, in bounded time and without more memory than the input is worth. Commands, wanted states and manifests
go through a whole device, whose engine must neither raise nor go round in circles; a journal's file must open and work
again; a checkpoint's file is weighed as the supervisor does and opened as the builder does.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.adapters.signatures import KeyDirectory
from agent.contract.commands import COMMANDS
from agent.contract.desired import OWN, DesiredMessage, HaltMessage, RetainedMessage
from agent.contract.manifest import PAYLOAD_TYPE, pae
from agent.deployment.intake import CommandMessage
from agent.settings import Deployment, Mqtt, Settings
from tests.fakes.box import MAX_TURNS, Box, deploy_body
from tests.fuzz.mutators import mutated_bytes, mutated_json

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from agent.deployment.ports import Signatures

GROUP = "lab"
LIVES = 200
"""Inputs that one device takes in before the next one is made: earlier inputs change what later ones meet."""
WORDS = (
    "schema", "id", "model", "models", "version", "method", "methods", "artifact", "manifest", "oms", "gate", "dataset",
    "url", "sha256", "size", "name", "files", "audience", "devices", "groups", "hardware", "sequence", "not_before",
    "expires", "allow_downgrade", "model_type", "source_dtype", "expires_at", "expected_generation", "response_topic",
    "correlation_id", "priority", "operation", "config", "health", "interval_s", "generation", "keep", "max_bytes",
    "since", "soak_s", "payloadType", "payload", "signatures", "keyid", "sig", "dtype", "shape", "data_offsets",
    "__metadata__", "memory", "reserve", "budget", "deployment", "matrix", "rollout", "percent", "start", "stages",
    "after_s", "spread_s", "reason", "signature",
)  # fmt: skip


class BrokenClaimError(AssertionError):
    """Something else came out than a success or a clear error."""


class Target(Protocol):
    """Something to throw bytes at."""

    def seeds(self) -> list[bytes]:
        """Return inputs that mean something, to begin with."""

    def mutate(self, data: bytes, draw: random.Random, most: int) -> bytes:
        """Return a neighbour of ``data`` that is likely to get far."""

    def __call__(self, data: bytes) -> None:
        """Take an input; raises when a claim is broken."""


class _OnDevice:
    """A device that takes one input after the other, and is made anew now and then."""

    signatures: Signatures | None = None
    _box: Box

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count()
        self._left = 0
        self._lives = 0

    def mutate(self, data: bytes, draw: random.Random, most: int) -> bytes:
        if len(data) < 2 or draw.random() < 0.2:
            return mutated_bytes(data, draw, most)
        return (data[:1] + mutated_json(data[1:], draw, WORDS))[:most]

    def _give(self, message: CommandMessage | RetainedMessage, told: list[str]) -> None:
        """Let a message arrive and the device come to rest; it must have been acknowledged once."""
        if self._left == 0:
            self._renew()
        self._left -= 1
        try:
            self._box.engine.handle(message)
            settle(self._box)
        except BaseException:
            self._left = 0
            raise
        if told != ["ack"]:
            self._left = 0
            raise BrokenClaimError(f"acknowledged {len(told)} times")

    def _renew(self) -> None:
        root = self._directory / "box"
        if root.exists():
            self._box.journal.close()
            shutil.rmtree(root)
        root.mkdir()
        self._box = Box(root, self.signatures)
        self._box.settings = Settings(mqtt=Mqtt(groups=(GROUP,)), deployment=Deployment(soak_s=0.0))
        self._box.reboot()
        self._lives += 1
        self._box.clock.synchronised = self._lives % 4 > 0
        if self.signatures is None:
            self._box.deploy("first")
            self._box.settle()
        self._left = LIVES


class Commands(_OnDevice):
    """The first byte says which command, or that the rest is a wanted state, of the device or a group, or a halt."""

    names = (*sorted(COMMANDS), "nonsense")
    retained = ((DesiredMessage, OWN), (DesiredMessage, GROUP), (HaltMessage, GROUP))

    def seeds(self) -> list[bytes]:
        gate = {
            "dataset": {"url": "https://h.example/d", "sha256": "0" * 64, "size": 9},
            "soak_s": 0,
            "min_accuracy": 0,
        }
        model = {"model": "kanji"}
        fields: dict[str, dict[str, Any]] = {
            "deploy": {**deploy_body("d"), "version": "v1", "gate": gate, "priority": 1, "model_type": "cnn"},
            "set_method": {**model, "method": "nf4-dq", "gate": gate},
            "compare": {**model, "methods": ["nf4", "int8"], "keep": "best"},
            "cancel": {"operation": "first"},
            "set_config": {"config": {"health": {"interval_s": 5}, "memory": {"reserve": "64MiB"}}},
            "collect_logs": {"max_bytes": 2000, "since": "2026-11-23T10:00:00Z"},
        }
        common = {"schema": 1, "response_topic": "a/b", "correlation_id": "c", "expires_at": "2027-01-01T00:00:00Z"}
        found = [
            bytes([number]) + json.dumps({**common, **fields.get(name, model), "id": f"s-{number}"}).encode()
            for number, name in enumerate(self.names)
        ]
        wanted = {"kanji": {**fields["deploy"], "method": "nf4"}, "kana": None}
        document = {"schema": 1, "generation": 7, "models": wanted, "config": fields["set_config"]["config"]}
        stages = [{"percent": 5, "after_s": 0}, {"percent": 100, "after_s": 3600}]
        rollout = {"id": "r", "start": "2026-11-23T10:00:00Z", "stages": stages, "spread_s": 60}
        halt = {"schema": 1, "generation": 7, "reason": "stop"}
        told = (document, {**document, "rollout": rollout}, halt)
        return [
            *found,
            *(bytes([len(self.names) + kind]) + json.dumps(each).encode() for kind, each in enumerate(told)),
        ]

    def __call__(self, data: bytes) -> None:
        if not data:
            return
        told: list[str] = []
        kind, payload = data[0] % (len(self.names) + len(self.retained)), data[1:]
        if kind >= len(self.names):
            make, source = self.retained[kind - len(self.names)]
            self._give(make(source, payload, data[0] > 127, lambda: told.append("ack")), told)
            return
        message = CommandMessage(
            self.names[kind], payload, is_retained=data[0] > 191, acknowledge=lambda: told.append("ack")
        )
        self._give(message, told)


class Manifests(_OnDevice):
    """The first byte says what the rest is: a payload to be signed, a whole envelope, or a bundle."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._key = Ed25519PrivateKey.generate()
        keys = directory / "keys"
        keys.mkdir()
        pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (keys / "k.pub").write_bytes(b"not_after: 2030-01-01T00:00:00Z\n" + pem)
        self.signatures = KeyDirectory(keys)

    def seeds(self) -> list[bytes]:
        artifact = deploy_body("x")["artifact"]
        manifest = {
            "model": "kanji", "version": "v1", "sequence": 5, "files": [{"name": "kanji.pt", **artifact}],
            "audience": {"devices": ["box-1"], "groups": ["north"], "hardware": []}, "model_type": "cnn",
            "not_before": "2026-01-01T00:00:00Z", "expires": "2030-01-01T00:00:00Z", "allow_downgrade": False,
        }  # fmt: skip
        raw = json.dumps(manifest).encode()
        envelope = self._sealed(raw)
        statement = {
            "_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "m", "digest": {"sha256": "0" * 64}}],
            "predicateType": "https://model_signing/signature/v1.0",
            "predicate": {
                "resources": [{"name": "kanji.pt", "algorithm": "sha256", "digest": artifact["sha256"]}],
                "serialization": {"method": "files", "ignore_paths": []},
            },
        }  # fmt: skip
        inner = {
            **envelope,
            "payload": _base64(json.dumps(statement).encode()),
            "payloadType": "application/vnd.in-toto+json",
        }
        bundle = {"verificationMaterial": {"publicKey": {"hint": "0" * 64}}, "dsseEnvelope": inner}
        return [b"\0" + raw, b"\1" + json.dumps(envelope).encode(), b"\2" + json.dumps(bundle).encode()]

    def __call__(self, data: bytes) -> None:
        if not data:
            return
        kind, rest = data[0] % 3, data[1:]
        field = json.dumps(self._sealed(rest)).encode() if kind == 0 else rest
        name = b"oms" if kind == 2 else b"manifest"
        body = b'{"schema":1,"id":"m-%d","model":"kanji","%b":%b}' % (next(self._numbers), name, field)
        told: list[str] = []
        self._give(CommandMessage("deploy", body, acknowledge=lambda: told.append("ack")), told)

    def _sealed(self, payload: bytes) -> dict[str, Any]:
        signature = self._key.sign(pae(PAYLOAD_TYPE, payload))
        return {
            "payloadType": PAYLOAD_TYPE,
            "payload": _base64(payload),
            "signatures": [{"keyid": "k", "sig": _base64(signature)}],
        }


def settle(box: Box) -> None:
    """Like ``Box.settle``, but what the engine would survive and only log is raised."""
    engine = box.engine
    for _ in range(MAX_TURNS):
        while (message := engine._inbox.get(0.0)) is not None:
            engine.handle(message)
        engine._operations.check_deadlines()
        engine._check_deferred()
        engine._converge()
        if engine._inbox.is_empty() and not box.runner.pump():
            return
    raise BrokenClaimError("the engine does not come to rest")


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


TARGETS: dict[str, Any] = {"commands": Commands, "manifest": Manifests}
