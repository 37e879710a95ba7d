"""On which terms a release is loaded: what it may take of the memory beside its weights, and what for. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from agent.serving.acceleration import Effort
from agent.serving.errors import BadRequestError
from agent.serving.residency import Mode, Wish


@dataclass(frozen=True)
class Terms:
    """What the supervisor grants.

    Attributes:
        residency: how weights are kept.
        compile, graphs: whether faster ways to call the model are tried, see ``acceleration``.
        allowed_bytes: what unpacked weights and graphs may take beside the packed weights.
        texts_bytes: what the keys and values of texts may take, None for a share of what is free after the load.
    """

    residency: Mode = "packed"
    compile: Effort = "off"
    graphs: Effort = "off"
    allowed_bytes: int = 0
    texts_bytes: int | None = None

    @property
    def wish(self) -> Wish:
        """What is asked about the weights."""
        return Wish(self.residency, self.allowed_bytes)

    @classmethod
    def from_json(cls, body: Any) -> Terms:
        """Read the object that a load brings; raises ``BadRequestError``."""
        try:
            terms = cls(**body)
        except TypeError:
            raise BadRequestError(f"'terms' is an object of {', '.join(cls.__dataclass_fields__)}") from None
        for name, known in (("residency", Mode), ("compile", Effort), ("graphs", Effort)):
            if getattr(terms, name) not in get_args(known):
                raise BadRequestError(f"{name!r} is one of {', '.join(get_args(known))}, not {getattr(terms, name)!r}")
        for name in ("allowed_bytes", "texts_bytes"):
            value = getattr(terms, name)
            if type(value) is not int and not (value is None and name == "texts_bytes"):
                raise BadRequestError(f"{name!r} is a number of bytes, not {value!r}")
        return terms
