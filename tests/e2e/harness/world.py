"""What end-to-end tests pass around: the surroundings of every device, and a device with its operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness.device import Agent
    from tests.e2e.harness.files import FileServer, HostedFile
    from tests.e2e.harness.inference import Images
    from tests.e2e.harness.mqtt import Broker, Subscriber
    from tests.e2e.harness.operator import Operator
    from tests.e2e.harness.signing import Signer

SERVED_SEQUENCE = 10_000
"""Sequence of the manifest that brought what the shared device serves."""


@dataclass(frozen=True)
class World:
    """What every device is surrounded by."""

    broker: Broker
    subscriber: Subscriber
    files: FileServer
    signer: Signer
    keys_dir: Path
    checkpoint: HostedFile
    dataset: HostedFile
    images: Images


@dataclass(frozen=True)
class Device:
    """An agent and the person who operates it."""

    agent: Agent
    operator: Operator


class StartDevice(Protocol):
    """Starts a device of that name, which ends with the session."""

    def __call__(self, name: str, *, module: str = "agent", environment: dict[str, str] | None = None) -> Device:
        """Return it once it listens for inference."""
