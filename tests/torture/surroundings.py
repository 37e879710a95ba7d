"""What tortured devices share: a broker, a file server, a key, and as many real checkpoints as are asked for.

Each checkpoint is the demo's trained one with the rows of its last layer turned by one more place: the class that it
answers with tells which of them is served.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.numpy import load_file, save

import agent
from tests.e2e.harness.files import FileServer
from tests.e2e.harness.mqtt import Broker, Subscriber
from tests.e2e.harness.signing import Signer
from tests.torture.forking import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from tests.e2e.harness.files import HostedFile

KANJI = Path(__file__).parents[2] / "deploy" / "demo" / "kanji"
LAST_LAYER = ("classifier.4.weight", "classifier.4.bias")
ROWS, ASKED = 16, 2


class Surroundings:
    """The world of all devices of a run, in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys_dir, private = root / "trust.d", root / "private"
        for folder in (self.keys_dir, private, root / "broker"):
            folder.mkdir(parents=True)
        self.broker = Broker(root / "broker")
        self.broker.start()
        self.subscriber = Subscriber(self.broker.port)
        self.files = FileServer()
        self.signer = Signer(self.keys_dir, private, "operator")
        inputs = load_file(KANJI / "evaluation.safetensors")["inputs"].astype("float32")
        self.images: npt.NDArray[np.float32] = inputs[:ASKED]
        self.datasets = [
            self.files.host(f"evaluation-{first}", save({"inputs": inputs[first : first + ROWS]}))
            for first in (0, ROWS)
        ]
        self._state = torch.load(KANJI / "checkpoint_best.pt", weights_only=True)
        self._numbers = itertools.count(1)
        self._answers: dict[str, npt.NDArray[np.float32]] = {}
        self._lock = threading.Lock()

    def checkpoint(self, bytes_per_s: int | None = None) -> HostedFile:
        """Return a checkpoint that nobody has had yet."""
        with self._lock:
            number = next(self._numbers)
        turned = {name: tensor.roll(number, 0) for name, tensor in self._tensors().items() if name in LAST_LAYER}
        content = io.BytesIO()
        with quiet:
            torch.save({**self._tensors(), **turned}, content)
        file = self.files.host(f"checkpoint-{number}.pt", content.getvalue())
        file.bytes_per_s = bytes_per_s
        return file

    def answer_of(self, artifact: str) -> npt.NDArray[np.float32]:
        """Return what the artifact on that path answers to ``images``, computed here."""
        with self._lock, quiet, torch.inference_mode():
            if artifact not in self._answers:
                model = agent.load(artifact)
                self._answers[artifact] = model(torch.from_numpy(self.images)).numpy()
            return self._answers[artifact]

    def close(self) -> None:
        """End what was started."""
        self.subscriber.close()
        self.files.close()
        self.broker.stop()

    def _tensors(self) -> dict[str, Any]:
        state: dict[str, Any] = self._state.get("model_state_dict", self._state)
        return state


@contextlib.contextmanager
def surroundings(root: Path) -> Iterator[Surroundings]:
    """Make the world, and end it."""
    torch.set_num_threads(1)
    world = Surroundings(root)
    try:
        yield world
    finally:
        world.close()
