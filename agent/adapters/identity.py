"""Whether the broker knows this device by its id: the contract wants it as user name or common name, and client id.

Brokers hold a device to its own topics by the name it logged in with; the rules in ``deploy/mosquitto`` put that name
where the topics have the id. Where the two differ a connection succeeds, and what is published is refused in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.adapters.tls import TlsFiles

NEXT_STEP = (
    "give the device its id as user name, or a certificate with it as common name, or change device_id; "
    "else rules such as deploy/mosquitto/devices.acl refuse what it publishes, in silence"
)


def names(username: str | None, files: TlsFiles) -> dict[str, str]:
    """Return the names that the broker may know this device by; a certificate that cannot be read has none."""
    found = {} if username is None else {"mqtt.username": username}
    try:
        common_name = files.common_name()
    except (OSError, ValueError):
        return found
    return found if common_name is None else {**found, f"the common name in {files.cert_file}": common_name}


def differences(device_id: str, known: dict[str, str]) -> list[str]:
    """Return a sentence for each of ``names`` that is not the device's id."""
    return [f"{what} is {name!r}, device_id is {device_id!r}" for what, name in known.items() if name != device_id]
