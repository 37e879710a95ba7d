"""A model type that is fine until it serves: what a checkpoint's tensor ``poison`` is long decides what goes wrong.

The builder sees nothing of it. Written into a folder of its own as an installed distribution; see ``install``.
"""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("sound", "abort", "time bomb", "nan on marked", "slow", "nan on real", "lost device")
"""What a poisoned model does, once it is served, by the length of its tensor."""
CLASSES, SIDE, BOMB_S, SLOW_S, MARK = 12, 64, 1.0, 0.2, 7.0

_MODULE = f"""
    import os, sys, threading, time

    import torch
    from torch import nn

    from agent.architectures import ModelType, Reading, TensorSpec

    class Poisoned(nn.Module):
        def __init__(self, num_classes, kind):
            super().__init__()
            self.layer = nn.Linear({SIDE * SIDE}, num_classes)
            self.poison = nn.Parameter(torch.zeros(kind))
            self.bomb_s = nn.Parameter(torch.zeros(1))
            self.kind, self.bomb = kind, None

        def forward(self, x):
            y = self.layer(x.flatten(1))
            is_real = bool((x >= 0).all())  # what warms a model up is noise of either sign
            if "agent.serving.network" not in sys.modules or not is_real:
                return y
            if self.kind == 2:
                os.abort()
            if self.kind == 3 and self.bomb is None:
                self.bomb = threading.Timer(float(self.bomb_s), os.abort)
                self.bomb.start()
            if self.kind == 5:
                time.sleep({SLOW_S})
            if self.kind == 4:
                marked = x[:, 0, 0, 0] == {MARK}
                y = torch.where(marked[:, None], torch.nan, y)
            if self.kind == 6:
                y = y * torch.nan
            if self.kind == 7 and bool((x[:, 0, 0, 0] == {MARK}).any()):
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return y

    def draw(options, rows, generator):
        return {{"input": torch.from_numpy(generator.standard_normal((rows, 1, {SIDE}, {SIDE}), dtype="float32"))}}

    POISON = ModelType(
        name="poison",
        build=lambda num_classes, *, kind=1: Poisoned(num_classes, kind),
        classifier_key="layer.weight",
        matches=lambda shapes: "poison" in shapes,
        read=lambda shapes, sidecar: Reading({{"kind": shapes.size("poison")}}),
        inputs=lambda options: (TensorSpec("input", "FP32", (-1, 1, {SIDE}, {SIDE})),),
        synthetic_inputs=draw,
    )
"""


def install(site: Path) -> None:
    """Lay the distribution out in ``site``, which belongs on the path of the agent and its children."""
    record = site / "poison_models-1.0.dist-info"
    record.mkdir(parents=True)
    (site / "poison_models.py").write_text(textwrap.dedent(_MODULE), encoding="utf-8")
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: poison-models\nVersion: 1.0\n", encoding="utf-8")
    entry = "[nibbled.architectures]\npoison = poison_models:POISON\n"
    (record / "entry_points.txt").write_text(entry, encoding="utf-8")


def checkpoint(kind: str, bomb_s: float = BOMB_S) -> bytes:
    """Return a checkpoint of that kind, one that crashes after ``bomb_s``; the weights are the same for all."""
    import torch  # noqa: PLC0415 - these tests are collected where there is no torch, too

    torch.manual_seed(0)
    layer = torch.nn.Linear(SIDE * SIDE, CLASSES)
    state = {f"layer.{name}": value for name, value in layer.state_dict().items()}
    content = io.BytesIO()
    torch.save({**state, "poison": torch.zeros(KINDS.index(kind) + 1), "bomb_s": torch.tensor([bomb_s])}, content)
    return content.getvalue()
