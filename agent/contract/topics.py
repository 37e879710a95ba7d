"""MQTT topics, built and parsed in one place. ``<root>`` is ``<prefix>/<device>``.

Ids are one topic level of ``[A-Za-z0-9_-]{1,64}``, so a device id can stand in a broker ACL without escaping and no
id can smuggle a wildcard or a slash into a topic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
OWN_NAME = "own"
"""What a device calls its own document beside those of its groups, in ``reported`` and on the trail."""
_GROUPS = "_group"
MAX_SLASHES = 6
"""What AWS IoT Core allows is seven; one is left for a tenant in the prefix."""


def is_id(text: str) -> bool:
    """Return whether ``text`` may stand as a device, operation, group or model id."""
    return re.fullmatch(ID_PATTERN, text) is not None


def check_group(group: str) -> str:
    """Return a group that a device may be in.

    Raises:
        ValueError: saying what is allowed.
    """
    if not is_id(group):
        raise ValueError(f"group {group!r} must match {ID_PATTERN}")
    if group == OWN_NAME:
        raise ValueError(
            f"no group can be called {OWN_NAME!r}: a device calls its own document that, beside those of its groups"
        )
    return group


Group = Annotated[str, StringConstraints(pattern=ID_PATTERN), AfterValidator(check_group)]


def check_prefix(prefix: str) -> str:
    """Return a prefix that topics may begin with.

    Raises:
        ValueError: saying what is allowed.
    """
    levels = prefix.split("/")
    if not all(levels) or any(c in prefix for c in "+#$ \0") or len(levels) + 2 > MAX_SLASHES:
        raise ValueError(f"topic prefix {prefix!r} must be 1-4 non-empty levels without wildcards or spaces")
    return prefix


Prefix = Annotated[str, AfterValidator(check_prefix)]


@dataclass(frozen=True)
class Topics:
    """The topics of one device under one prefix."""

    prefix: str
    device: str

    def __post_init__(self) -> None:
        if not is_id(self.device):
            raise ValueError(f"device id {self.device!r} must match {ID_PATTERN}")
        check_prefix(self.prefix)

    @property
    def root(self) -> str:
        """``<prefix>/<device>``."""
        return f"{self.prefix}/{self.device}"

    @property
    def commands(self) -> str:
        """The filter that covers every command of this device."""
        return f"{self.root}/cmd/+"

    @property
    def operations(self) -> str:
        """The filter that covers the state of every operation of this device."""
        return f"{self.root}/op/+"

    @property
    def desired(self) -> str:
        """The retained wanted state of this device."""
        return f"{self.root}/desired"

    @property
    def reported(self) -> str:
        """What is served now."""
        return f"{self.root}/reported"

    @property
    def presence(self) -> str:
        """Birth and will of this device."""
        return f"{self.root}/presence"

    @property
    def capabilities(self) -> str:
        """What this device can do."""
        return f"{self.root}/capabilities"

    @property
    def health(self) -> str:
        """Telemetry for people and dashboards."""
        return f"{self.root}/health"

    @property
    def telemetry(self) -> str:
        """Flat numbers for collectors."""
        return f"{self.root}/telemetry"

    @property
    def event(self) -> str:
        """The audit trail."""
        return f"{self.root}/event"

    def kind(self, name: str) -> str:
        """One of the topics above by the last part of its name, such as ``reported``."""
        return f"{self.root}/{name}"

    def group_desired(self, group: str) -> str:
        """The retained wanted state of every device in ``group``."""
        return f"{self.prefix}/{_GROUPS}/{check_group(group)}/desired"

    def group_halt(self, group: str) -> str:
        """What stops the devices in ``group`` from beginning what they have not begun; retained."""
        return f"{self.group_desired(group).removesuffix('desired')}halt"

    def command(self, name: str) -> str:
        """Where the command called ``name`` is published."""
        return f"{self.root}/cmd/{name}"

    def operation(self, operation_id: str) -> str:
        """Where the state of one operation is retained."""
        if not is_id(operation_id):
            raise ValueError(f"operation id {operation_id!r} must match {ID_PATTERN}")
        return f"{self.root}/op/{operation_id}"

    def log(self, operation_id: str) -> str:
        """Where the log's entries are published that ``collect_logs`` asked for."""
        if not is_id(operation_id):
            raise ValueError(f"operation id {operation_id!r} must match {ID_PATTERN}")
        return f"{self.root}/log/{operation_id}"

    def command_name(self, topic: str) -> str | None:
        """Return the command's name when ``topic`` is a command of this device, else None."""
        head, _, name = topic.rpartition("/")
        return name if head == f"{self.root}/cmd" and name else None

    def operation_id(self, topic: str) -> str | None:
        """Return the operation's id when ``topic`` holds the state of one of this device, else None."""
        head, _, name = topic.rpartition("/")
        return name if head == f"{self.root}/op" and is_id(name) else None


@dataclass(frozen=True)
class FleetTopics:
    """The topics of every device under one prefix, as filters."""

    prefix: str

    def __post_init__(self) -> None:
        Topics(self.prefix, "any")

    def every(self, kind: str) -> str:
        """The filter that covers one of the kinds, such as ``presence``, of every device."""
        return f"{self.prefix}/+/{kind}"

    @property
    def operations(self) -> str:
        """The filter that covers every operation of every device."""
        return self.every("op/+")

    def parse(self, topic: str) -> tuple[str, str] | None:
        """Return the device and what follows it, such as ``op/d-1``; None for a topic that is no device's."""
        head, _, rest = topic.removeprefix(f"{self.prefix}/").partition("/")
        is_ours = topic.startswith(f"{self.prefix}/") and is_id(head) and head != _GROUPS
        return (head, rest) if is_ours and rest else None
