"""Devices that are not at hand, as files: what `nibbled plan --profile` plans for.

They lie in `configs/profiles`, or beside this module in an installed package. A path to a file of one's own works too.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, StringConstraints, ValidationError

from agent.contract import toml
from agent.contract.wire import describe
from agent.planning.budget import Budget
from agent.planning.matrix import Gpu
from agent.workbench.errors import WrongInputError


class ProfileError(WrongInputError):
    """A profile that is not there or cannot be used."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Annotated[Literal[1], Field(alias="schema")]
    title: str
    gpu: Gpu
    capability: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}\.[0-9]{1,2}$")] | None = None
    total: ByteSize
    system: ByteSize
    bandwidth_gb_s: Annotated[float, Field(gt=0)] | None = None
    kernel: Literal["bitsandbytes", "torch"] = "bitsandbytes"
    note: str | None = None


@dataclass(frozen=True)
class Profile:
    """A device as planning sees it.

    Attributes:
        name, title: of the file, and for people.
        gpu, capability: as the matrix judges them.
        total_bytes: its memory.
        system_bytes: what is gone before the first model: the system, the agent, its server.
        bandwidth_gb_s: of its memory in 10^9 bytes a second, None if unknown.
        kernel: what 4-bit weights are computed with there.
        note: what to know about it, or None.
    """

    name: str
    title: str
    gpu: Gpu
    capability: tuple[int, int] | None
    total_bytes: int
    system_bytes: int
    bandwidth_gb_s: float | None = None
    kernel: str = "bitsandbytes"
    note: str | None = None

    def budget(self, reserve_bytes: int, limit_bytes: int | None) -> Budget:
        """Return the memory that models may take there."""
        return Budget(
            available_bytes=self.total_bytes - self.system_bytes,
            reserve_bytes=reserve_bytes,
            source="profile",
            total_bytes=self.total_bytes,
            limit_bytes=limit_bytes,
            has_gpu=self.gpu != "none",
            is_integrated=self.gpu == "integrated",
            capability=self.capability,
        )


def directory() -> Path:
    """Return where the profiles lie: in the wheel, or in a source checkout."""
    package = Path(__file__).parent
    shipped = package / "profiles"
    return shipped if shipped.is_dir() else package.parent.parent / "configs" / "profiles"


def names() -> list[str]:
    """Return the names of all profiles that are shipped."""
    return sorted(path.stem for path in directory().glob("*.toml"))


def load(name: str) -> Profile:
    """Return the profile of that name, or of the file at that path.

    Raises:
        ProfileError: there is none, naming those that there are, or the file is wrong, naming the key.
    """
    path = Path(name) if name.endswith(".toml") else directory() / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ProfileError(f"no profile {name!r}; {hint}known: {', '.join(names())}, or a path to a .toml") from None
    try:
        file = _File.model_validate(toml.loads(text))
    except ValidationError as error:
        raise ProfileError(f"{path}: {describe(error)}") from None
    except toml.TomlError as error:
        raise ProfileError(f"{path}: {error}") from None
    major, _, minor = (file.capability or "").partition(".")
    return Profile(
        path.stem,
        file.title,
        file.gpu,
        (int(major), int(minor)) if file.capability else None,
        file.total,
        file.system,
        file.bandwidth_gb_s,
        file.kernel,
        file.note,
    )
