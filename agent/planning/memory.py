"""How much memory a model needs under a method: exact for its weights, estimated for what comes on top.

What decides on a device is more than weights: the process that serves (torch alone is hundreds of megabytes), the
context that CUDA sets up, the largest weight while it is unpacked, activations at the batch that is served, and the
keys and values of texts (`texts`). Unpacked weights and activations are estimated from the model's definition before
anything is built and measured once it is loaded; how far the estimates were off is remembered (`Learned`) and corrects
the next ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.planning.methods import DEFAULT_BLOCKSIZE, MIN_PACKED_NUMEL
from agent.planning.texts import TextCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.planning.methods import Method

COMPUTE_BYTES = 4
"""Bytes of one unpacked weight: float32 on a CPU, the larger of the compute dtypes."""
SERVED_ROWS = 32
"""Rows of the largest batch that the server forms; activations are estimated and measured for it."""
CUDA_CONTEXT_BYTES = 400 * 2**20
"""What CUDA takes on a device when the first model comes: 287 MB with lazily loaded kernels, which is torch's default,
and 667 MB without (pytorch PR #86509). Not measured here yet: no GPU was at hand."""


@dataclass(frozen=True)
class Footprint:
    """What a model needs, as its definition tells without a weight being read.

    Attributes:
        matrices: number of weights of each tensor that has a packed form.
        plain_bytes: everything else that is held: biases, norms, statistics, layers without a packed form.
        transient_numel: most weights that are unpacked at one moment.
        activation_bytes: peak of the intermediate results for one batch of ``rows``.
        rows: the batch that this is for.
        texts: how a language model remembers what it writes; None for all others.
    """

    matrices: tuple[int, ...]
    plain_bytes: int = 0
    transient_numel: int = 0
    activation_bytes: int = 0
    rows: int = SERVED_ROWS
    texts: TextCache | None = None

    @classmethod
    def of_numels(cls, numels: Iterable[int]) -> Footprint:
        """Return what is known from a container's directory alone: every tensor could be a weight that is packed."""
        matrices = tuple(numels)
        return cls(matrices, transient_numel=max(matrices, default=0))

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Footprint:
        """Read what the builder's ``inspect`` job reports as ``footprint``."""
        return cls(
            tuple(int(numel) for numel in body["matrices"]),
            int(body["plain_bytes"]),
            int(body["transient_numel"]),
            int(body["activation_bytes"]),
            int(body["rows"]),
            TextCache.from_json(body.get("texts")),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what ``from_json`` reads."""
        return {**asdict(self), "matrices": list(self.matrices)}


@dataclass(frozen=True)
class Learned:
    """How far this device's estimates were off; persisted, and applied to the next ones.

    Attributes:
        working_factor: measured working memory over its raw estimate, smoothed.
        samples: how many deploys this has been learned from.
    """

    working_factor: float = 1.0
    samples: int = 0

    def after(self, *, raw_working_bytes: int, measured_working_bytes: int) -> Learned:
        """Return what is known after one more deploy.

        Exponential smoothing, in which the first sample counts in full; a factor outside 1/8 to 8 is not believed as a
        whole, since one odd moment of a busy box must not spoil the plans of a month.
        """
        ratio = min(8.0, max(0.125, measured_working_bytes / max(1, raw_working_bytes)))
        weight = max(0.3, 1 / (self.samples + 1))
        factor = (1 - weight) * self.working_factor + weight * ratio
        return replace(self, working_factor=factor, samples=self.samples + 1)

    def to_json(self) -> dict[str, Any]:
        """Return what ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Learned:
        """Read what ``to_json`` wrote."""
        return cls(float(body["working_factor"]), int(body["samples"]))


@dataclass(frozen=True)
class Estimate:
    """Bytes of a served model.

    Attributes:
        weights_bytes: resident weights, packed ones and those that stay as they are; exact.
        working_bytes: what answering takes for a moment: unpacked weights and activations.
        raw_working_bytes: the same before this device's correction.
        overhead_bytes: what the device takes once, when the first model comes.
        texts_bytes: what the keys and values of texts take at least; 0 for a model that makes none.
    """

    weights_bytes: int
    working_bytes: int
    raw_working_bytes: int
    overhead_bytes: int = 0
    texts_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """What has to be free for the model to be loaded and to answer."""
        return self.weights_bytes + self.working_bytes + self.overhead_bytes + self.texts_bytes

    @classmethod
    def from_json(cls, body: Mapping[str, int]) -> Estimate:
        """Read what ``to_json`` wrote."""
        return cls(**body)

    def to_json(self) -> dict[str, int]:
        """Return the figures for the decision record."""
        return asdict(self)


def estimate(
    footprint: Footprint,
    method: Method,
    blocksize: int = DEFAULT_BLOCKSIZE,
    learned: Learned | None = None,
    overhead_bytes: int = 0,
) -> Estimate:
    """Estimate a model under a method.

    Codes are worth their scales from ``MIN_PACKED_NUMEL`` weights on; smaller matrices stay at four bytes a weight
    under every blockwise method, and all are halved by fp16.
    """
    packed = [n for n in footprint.matrices if _is_packed(n, method)]
    plain = sum(footprint.matrices) - sum(packed)
    weights = sum(method.tensor_bytes(n, blocksize) for n in packed) + 4 * plain + footprint.plain_bytes
    raw = (COMPUTE_BYTES * footprint.transient_numel if packed else 0) + footprint.activation_bytes
    working = raw if learned is None else round(raw * learned.working_factor)
    texts = footprint.texts.least_bytes if footprint.texts else 0
    return Estimate(weights, working, raw, overhead_bytes, texts)


def _is_packed(numel: int, method: Method) -> bool:
    return method.bits < 32 and (not method.is_blockwise or numel >= MIN_PACKED_NUMEL)  # noqa: PLR2004 - fp32 packs none
