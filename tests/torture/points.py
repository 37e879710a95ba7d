"""Every fail point of the agent, by the process that passes it; a test compares them with the source."""

from __future__ import annotations

SUPERVISOR, BUILDER, SERVER = "supervisor", "builder", "server"
ROLES = (SUPERVISOR, BUILDER, SERVER)
PLACES = {
    "journal.migrate": SUPERVISOR,
    "journal.count": SUPERVISOR,
    "journal.queue": SUPERVISOR,
    "journal.save": SUPERVISOR,
    "journal.acknowledged": SUPERVISOR,
    "journal.adopt": SUPERVISOR,
    "journal.defer": SUPERVISOR,
    "journal.halt": SUPERVISOR,
    "journal.settle": SUPERVISOR,
    "journal.note": SUPERVISOR,
    "journal.recover": SUPERVISOR,
    "journal.file.rename": SUPERVISOR,
    "journal.file.fsync": SUPERVISOR,
    "served_copy.rename": SUPERVISOR,
    "served_copy.fsync": SUPERVISOR,
    "directory.fsync": SUPERVISOR,
    "store.admit.fsync": SUPERVISOR,
    "store.admit.rename": SUPERVISOR,
    "store.footprint.rename": SUPERVISOR,
    "store.publish.fsync": SUPERVISOR,
    "store.publish.rename": SUPERVISOR,
    "store.aside.rename": SUPERVISOR,
    "store.mend.rename": SUPERVISOR,
    "store.mend.fsync": SUPERVISOR,
    "lessons.rename": SUPERVISOR,
    "download.mark.fsync": SUPERVISOR,
    "download.mark.rename": SUPERVISOR,
    "mqtt.birth.publish": SUPERVISOR,
    "mqtt.report.publish": SUPERVISOR,
    "mqtt.telemetry.publish": SUPERVISOR,
    "mqtt.puback": SUPERVISOR,
    "mqtt.farewell.publish": SUPERVISOR,
    "builder.start": SUPERVISOR,
    "server.start": SUPERVISOR,
    "server.load": SUPERVISOR,
    "server.canary": SUPERVISOR,
    "server.activate": SUPERVISOR,
    "server.unload": SUPERVISOR,
    "serving.load": SERVER,
    "serving.swap": SERVER,
    "serving.unload": SERVER,
    "artifact.fsync": BUILDER,
    "gate_file.fsync": BUILDER,
    "sidecar.fsync": BUILDER,
    "mix.rename": BUILDER,
}
POINTS = {f"{place}.{side}": role for place, role in PLACES.items() for side in ("before", "after")}
FAULTS = ("kill-supervisor", "kill-builder", "kill-server", "enospc", "eio")
POWER_CUT = "power-cut"
"""The fault that needs a disk of its own: ``tests/torture/powercut.py``."""
