"""Many simulated devices in one process, which lives as long as its standard input stays open.

python -m tests.simulation.process '{"names": ["d-1"], "port": 1883, …}'
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from agent.adapters.broker import Broker
from tests.simulation.device import SimulatedDevice

DESCRIPTORS = 16
"""Open files of one device, at most."""
SWITCH_S = 0.1
"""How long a thread waits for the interpreter before it asks for it: by default 5 ms. Here some hundred threads of
fifty devices wait at once, and their asking alone would take most of the machine; a device has a few threads."""


def main(arguments: list[str]) -> None:
    """Run the devices that the first argument, a JSON object, describes."""
    told: dict[str, Any] = json.loads(arguments[0])
    sys.setswitchinterval(SWITCH_S)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256 + DESCRIPTORS * len(told["names"])), hard))
    files = {url: bytes.fromhex(content) for url, content in told["files"].items()}
    broker = Broker("127.0.0.1", told["port"], version=told.get("version", "5"))
    root = Path(told["directory"])
    devices = [
        SimulatedDevice(
            name,
            root / name,
            broker,
            groups=told["groups"],
            files=files,
            fails=told["method"] if name in told["bad"] else None,
            interval_s=told["interval_s"],
            soak_s=told["soak_s"],
        )
        for name in told["names"]
    ]
    for device in devices:
        device.start()
    sys.stdin.read()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda device: device.stop(), devices))


if __name__ == "__main__":
    main(sys.argv[1:])
