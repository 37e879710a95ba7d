"""The agent's own figures in Prometheus' text format. Pure."""

from __future__ import annotations

from typing import Any

from agent.health.reporter import flat_numbers

CONTENT_TYPE = "text/plain; version=0.0.4"
_HELP = {
    "supervisor_rss_bytes": "Resident memory of the agent's supervisor",
    "server_rss_bytes": "Resident memory of the inference server",
    "memory_available_bytes": "Memory that a model could have, as the device's provider says",
    "memory_total_bytes": "Memory of the device",
    "disk_free_bytes": "Free bytes of the file system of the state directory",
    "models_served": "Models that answer",
    "requests": "Inference requests since the releases that answer were loaded",
    "failures": "Those that were not answered with 200",
    "open_operations": "Operations without an end",
    "relaxations": "Security settings that were relaxed on purpose",
    "ok": "Whether the state of health is ok",
}


def exposition(health: dict[str, Any]) -> str:
    """Return the numbers of a health report in Prometheus' text format.

    Gauges only: the counters of inference are the server's own, on its port.
    """
    numbers = {**flat_numbers(health), "ok": int(health["status"] == "ok")}
    lines = []
    for name, value in numbers.items():
        text = _HELP.get(name, name.replace("_", " ").capitalize())
        lines += [f"# HELP nibbled_{name} {text}.", f"# TYPE nibbled_{name} gauge", f"nibbled_{name} {value}"]
    return "\n".join(lines) + "\n"
