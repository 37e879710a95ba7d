"""Which tensors of a 4-bit model get int8 or fp16: what they cost, in which order, and how many of them it takes.

The idea is that of mixed-precision quantization: one tensor at a time is perturbed, and the bits go where the answers
change most for each byte. HAWQ (arXiv 1905.03696) and HAWQ-V2 (arXiv 1911.03852) judge by the Hessian; ZeroQ (arXiv
2001.00281, section 3) by the divergence of the answers, which needs no gradient and is what is used here. Tensors
alone say little about tensors together, so the order is a guess: artifacts along it are judged by the gate.

Pure arithmetic: what is measured comes in as numbers, what is built goes out as a callback.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.planning.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.planning.methods import Method

MAX_PARTS = 64
"""Parts whose sensitivity is measured; each takes two runs of the model."""
MAX_TRIALS = 8
"""Artifacts that are built and judged. They are judged by the data that also chooses: few trials, little flattery."""
NOT_FINITE = 1e6
"""The divergence that stands for answers which are not finite, in nats: more than any finite one."""

INT8, FP16 = METHODS["int8"], METHODS["fp16"]


@dataclass(frozen=True)
class Part:
    """Tensors that are measured and raised together: one, or those of a layer or block in a model of very many.

    Attributes:
        numels: elements of each tensor, by its name.
        base_loss: divergence of the answers with these tensors alone under the base; None if they are not finite.
        int8_loss: the same under int8.
        fits_half: whether float16 can hold their weights.
    """

    numels: dict[str, int]
    base_loss: float | None
    int8_loss: float | None
    fits_half: bool


@dataclass(frozen=True)
class Upgrade:
    """One step up for the tensors of a part.

    Attributes:
        names: the tensors.
        method: what they get.
        added_bytes: what that costs on top of the step before.
        value: divergence that it saves, by byte; a later step of a part has at most the value of its first.
    """

    names: tuple[str, ...]
    method: Method
    added_bytes: int
    value: float


def groups(names: Sequence[str], most: int = MAX_PARTS) -> list[tuple[str, ...]]:
    """Return the tensors one by one or, if they are more than ``most``, by layer, by block, or at last as neighbours.

    Args:
        names: dotted, in the model's order.
        most: how many groups there may be.
    """
    if len(names) <= most:
        return [(name,) for name in names]
    for depth in range(max(name.count(".") for name in names), 0, -1):
        found: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            found.setdefault(tuple(name.split(".")[:depth]), []).append(name)
        if len(found) <= most:
            return [tuple(group) for group in found.values()]
    step = -(-len(names) // most)
    return [tuple(names[start : start + step]) for start in range(0, len(names), step)]


def order(parts: Iterable[Part], base: Method, blocksize: int) -> list[Upgrade]:
    """Return every upgrade, from what saves most divergence a byte to what saves least; int8 precedes fp16 of a part.

    float16 is taken to change no answer: its rounding is a thousandth of that of int8.
    """
    steps = [upgrade for part in parts for upgrade in _upgrades(part, base, blocksize)]
    return sorted(steps, key=lambda upgrade: -upgrade.value)


def _upgrades(part: Part, base: Method, blocksize: int) -> list[Upgrade]:
    names, numels = tuple(part.numels), part.numels.values()
    base_loss, int8_loss = (NOT_FINITE if loss is None else loss for loss in (part.base_loss, part.int8_loss))
    added = raised_bytes(numels, base, INT8, blocksize)
    first = Upgrade(names, INT8, added, (base_loss - int8_loss) / added)
    if not part.fits_half:
        return [first]
    added = raised_bytes(numels, INT8, FP16, blocksize)
    return [first, Upgrade(names, FP16, added, min(first.value, int8_loss / added))]


def raised_bytes(numels: Iterable[int], low: Method, high: Method, blocksize: int) -> int:
    """Return the bytes by which tensors grow from ``low`` to ``high``."""
    return sum(high.tensor_bytes(numel, blocksize) - low.tensor_bytes(numel, blocksize) for numel in numels)


def within(upgrades: Iterable[Upgrade], room_bytes: int) -> list[Upgrade]:
    """Return the upgrades that fit, taken in order; one that does not fit is passed over, and what builds on it too."""
    chain: list[Upgrade] = []
    passed_over: set[tuple[str, ...]] = set()
    for upgrade in upgrades:
        if upgrade.names in passed_over or upgrade.added_bytes > room_bytes:
            passed_over.add(upgrade.names)
            continue
        room_bytes -= upgrade.added_bytes
        chain.append(upgrade)
    return chain


def applied(chain: Iterable[Upgrade]) -> dict[str, Method]:
    """Return the method of every tensor that ``chain`` raises."""
    return {name: upgrade.method for upgrade in chain for name in upgrade.names}


def smallest(count: int, passes: Callable[[int], bool], trials: int) -> int | None:
    """Return the least number of upgrades that passes, by bisection; None if all of them do not.

    With none the gate is known to refuse. More upgrades are taken to be better; where they are not, the result passes
    all the same but may not be the least. If the trials run out, it is the least that was tried.

    Args:
        count: how many there are.
        passes: builds with the first so many and says whether the gate accepts.
        trials: how often that may be asked.
    """
    if count == 0 or trials == 0 or not passes(count):
        return None
    refused, accepted = 0, count
    for _ in range(trials - 1):
        if accepted - refused == 1:
            break
        middle = (refused + accepted) // 2
        if passes(middle):
            accepted = middle
        else:
            refused = middle
    return accepted
