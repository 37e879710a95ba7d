"""Which tensor is stored by which method: one notion for building and loading.

An assignment answers for a tensor's name and number of elements with a method, or None for a tensor that stays as it
is. A build makes it from a `Scheme`, a load from what the artifact's own tensors are (`stored_methods`): no table has
to be believed, and one that says something else is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from agent.planning.methods import FOUR_BIT, METHODS, MIN_PACKED_NUMEL, MIXED, Method
from agent.quantization import codebooks, modules, packed

if TYPE_CHECKING:
    from torch import nn

    from agent.quantization.safetensors_header import Header

Assignment = Callable[[str, int], Method | None]
"""From the name and the number of elements of a weight to how it is stored."""

_FOUR_BIT = {(str(METHODS[name].quant_type), METHODS[name].double_quant): METHODS[name] for name in FOUR_BIT}


class SchemeError(ValueError):
    """Tensors that follow no scheme, or a table that they contradict; the text says which."""


@dataclass(frozen=True)
class Scheme:
    """How an artifact's weights are stored.

    Attributes:
        name: what it is called: its method's name, or ``mixed``.
        base: the method of every weight that is large enough for it.
        raised: the methods of those that have another one, by the name that the checkpoint has for them.
    """

    name: str
    base: Method
    raised: Mapping[str, Method] = field(default_factory=dict)

    @classmethod
    def uniform(cls, method: Method) -> Scheme:
        """Return the scheme that stores every weight by ``method``."""
        return cls(method.name, method)

    @classmethod
    def mixed(cls, base: Method, raised: Mapping[str, Method]) -> Scheme:
        """Return the scheme that stores every weight by ``base`` but for those that are ``raised``."""
        return cls(MIXED, base, dict(raised))

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods in use, each once, in the order of the table."""
        used = {self.base.name, *(method.name for method in self.raised.values())}
        return tuple(method for name, method in METHODS.items() if name in used)

    def assignment(self, model: nn.Module) -> Assignment:
        """Return the assignment for ``model``, not packed yet: tied weights are known under each of their names."""
        return spread(self.raised, model, large_enough(self.base))

    def check(self, stored: Mapping[str, Method]) -> None:
        """Compare with what an artifact holds.

        Args:
            stored: its packed tensors.

        Raises:
            SchemeError: a tensor is stored by another method than this scheme says.
        """
        for name in sorted(self.raised.keys() | stored.keys()):
            told, found = self.raised.get(name, self.base), stored.get(name)
            if told != found:
                how = f"is stored as {found.name}" if found else "is not packed"
                raise SchemeError(f"{told.name} is said of {name!r}, which {how}")


def large_enough(method: Method) -> Assignment:
    """Return what one method packs: all weights for fp16, those worth it for codes, none for fp32."""
    least = {32: None, 16: 0}.get(method.bits, MIN_PACKED_NUMEL)
    return lambda _name, numel: method if least is not None and numel >= least else None


def spread(table: Mapping[str, Method], model: nn.Module, otherwise: Assignment) -> Assignment:
    """Return the assignment of a table, in which a tied weight has one of its names, and of ``otherwise`` for the rest.

    Args:
        table: methods by name.
        model: the model, not packed yet.
        otherwise: asked for the weights that the table leaves out.
    """
    chosen: dict[str, Method] = {}
    for names in modules.slots(model).values():
        held = next((table[name] for name in names if name in table), None)
        if held is not None:
            chosen |= dict.fromkeys(names, held)
    return lambda name, numel: chosen.get(name) or otherwise(name, numel)


def nothing(_name: str, _numel: int) -> Method | None:
    """Pack no weight."""
    return None


def stored_methods(header: Header, names: Collection[str]) -> dict[str, Method]:
    """Return the method of every packed tensor in an artifact, as its buffers and the file's codebook tell it.

    Args:
        header: the artifact's.
        names: the tensors of its model, not packed.

    Raises:
        SchemeError: a tensor has 4-bit codes, and the file holds not exactly one 4-bit codebook.
    """
    held = (name.rpartition(".") for name in header.tensors)
    packed_ones = [name for name, _, part in held if part in packed.MARKERS and name in names]
    return {name: _stored_method(name, header) for name in packed_ones}


def _stored_method(name: str, header: Header) -> Method:
    codes = header.tensors.get(f"{name}.codes")
    if codes is None:
        return METHODS["fp16"]
    if codes.dtype == torch.int8:
        return METHODS["int8"]
    books = [kind for kind in ("nf4", "fp4") if f"{codebooks.PREFIX}{kind}" in header.tensors]
    if len(books) != 1:
        found = " and ".join(books) or "none"
        raise SchemeError(f"{name!r} has 4-bit codes, and of the two 4-bit codebooks the file holds {found}")
    return _FOUR_BIT[books[0], f"{name}.nested_scales" in header.tensors]
