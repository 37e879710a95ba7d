"""What a fleet looks like, put together from what its devices said. Pure: messages in, values out.

Every device has one ``Device`` from the first word on it. A message that the contract does not allow, or of another
schema, counts as unreadable and changes nothing: one device that talks nonsense must not hide the others. An empty
payload takes back what was said, as a cleared topic does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.contract.errors import RefusalError
from agent.contract.topics import FleetTopics
from agent.contract.wire import parse_object
from agent.fleet.wanted import Missed, missed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

JsonObject = dict[str, Any]
PRESENCE, REPORTED, CAPABILITIES, HEALTH = "presence", "reported", "capabilities", "health"
RETAINED = (PRESENCE, REPORTED, CAPABILITIES)
STALE_S = 100.0
"""Health is told every 30 s and expires after three times that; it says no more about a device after this."""
ONLINE, OFFLINE, UNKNOWN = "online", "offline", "unknown"
FAILING, DEGRADED = "failing", "degraded"


@dataclass
class Device:
    """One device as it was heard.

    Attributes:
        name: its id.
        said: the last body of each kind, such as ``reported``.
        heard_s: when that was, monotonic seconds of the listener.
        operations: the last state of each operation, by id.
        unreadable: how many messages could not be read.
    """

    name: str
    said: dict[str, JsonObject] = field(default_factory=dict)
    heard_s: dict[str, float] = field(default_factory=dict)
    operations: dict[str, JsonObject] = field(default_factory=dict)
    unreadable: int = 0

    @property
    def presence(self) -> str:
        """``online``, ``offline``, or ``unknown`` where it never said."""
        state = self.said.get(PRESENCE, {}).get("state")
        return state if state in (ONLINE, OFFLINE) else UNKNOWN

    @property
    def models(self) -> dict[str, JsonObject]:
        """What it serves, by name, as it last reported."""
        found = self.said.get(REPORTED, {}).get("models")
        return {name: body for name, body in found.items() if isinstance(body, dict)} if isinstance(found, dict) else {}

    @property
    def memory(self) -> JsonObject:
        """The budget as it last reported."""
        found = self.said.get(REPORTED, {}).get("memory")
        return found if isinstance(found, dict) else {}

    @property
    def desired(self) -> JsonObject:
        """Where it stands towards its wanted states, its own and those of its groups, as it last reported."""
        found = self.said.get(REPORTED, {}).get("desired")
        return found if isinstance(found, dict) else {}

    @property
    def groups(self) -> dict[str, JsonObject]:
        """Where it stands towards documents of groups that roll out in stages, wait or are halted."""
        found = self.desired.get("groups")
        return {name: body for name, body in found.items() if isinstance(body, dict)} if isinstance(found, dict) else {}

    @property
    def missed(self) -> Missed | None:
        """What came to an end that is not the wanted one; None where nothing did."""
        return missed(self.desired)

    def health(self, now_s: float) -> JsonObject | None:
        """Return its last word on its health; None where there was none, it is old, or the device is away."""
        if self.presence == OFFLINE or now_s - self.heard_s.get(HEALTH, -STALE_S) >= STALE_S:
            return None
        return self.said.get(HEALTH)


class FleetView:
    """The devices under one prefix.

    Args:
        prefix: of their topics.
    """

    def __init__(self, prefix: str) -> None:
        self._topics = FleetTopics(prefix)
        self._devices: dict[str, Device] = {}

    def take(self, topic: str, payload: bytes, now_s: float) -> Device | None:
        """Take one message in and return whose it is; None for one that is no device's.

        Args:
            topic: where it came.
            payload: as it came.
            now_s: monotonic seconds.
        """
        parsed = self._topics.parse(topic)
        if parsed is None:
            return None
        name, kind = parsed
        device = self._devices.setdefault(name, Device(name))
        head, _, operation = kind.partition("/")
        slots = device.operations if head == "op" and operation else device.said
        key = operation if head == "op" else kind
        if not payload:
            slots.pop(key, None)
            return device
        body = _body(payload)
        if body is None:
            device.unreadable += 1
            return device
        slots[key] = body
        device.heard_s[kind] = now_s
        return device

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        """Yield the devices by name."""
        return iter(sorted(self._devices.values(), key=lambda device: device.name))

    def device(self, name: str) -> Device:
        """Return one device, an empty one that nothing is known of."""
        return self._devices.get(name, Device(name))

    def gaps(self, kinds: Iterable[str]) -> list[tuple[str, str]]:
        """Return which of the kinds which device has not said, although something of it is known."""
        wanted = tuple(kinds)
        return [(device.name, kind) for device in self for kind in wanted if kind not in device.said]


def _body(payload: bytes) -> JsonObject | None:
    try:
        body = parse_object(payload)
    except RefusalError:
        return None
    return body if body.get("schema") == 1 else None
