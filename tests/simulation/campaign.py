"""A fleet on one machine: what it costs, how fast it converges, what a broker's restart does to it.

    make fleet-sim N=1000

Each size is simulated with the agent's own code over a real mosquitto; see ``tests/simulation/device.py`` for what is
real and what is not. ``--publish`` puts the table into ``docs/scale.md``. A goal that is not reached ends with an
error; nothing else is judged, for the machines are noisy.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.bench.page import markdown, publish
from tests.e2e.harness.mqtt import publish as send
from tests.fakes.device import checkpoint
from tests.simulation.device import PREFIX
from tests.simulation.fleet import Fleet, Usage, fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
GROUP, MODEL, URL = "all", "kanji", "https://models.example/kanji.pt"
CONTENT = checkpoint(4096, 64)
FIRST, NEXT = "nf4", "fp4"
BAD_EVERY, WAVES = 33, (2, 10, 30, 60, 100)
TIMEOUT_S = 900.0
PLAN = """
schema = 1
id = "simulated"
[command]
name = "set_method"
model = "kanji"
method = "{method}"
{waves}
[pace]
max_in_flight = {in_flight}
timeout_s = 600
soak_s = 0
[success]
percent = 0
[errors]
percent = 2
min_devices = {least}
then = "abort"
[on_abort]
rollback = true
"""
MEMORY = Path("/dev/shm")
"""Journals lie in memory: a thousand devices have a thousand disks, this machine has one."""


@dataclass
class Figures:
    """What one size came to.

    Attributes:
        devices: how many.
        online_s: from the start of the processes until all were online and had reported.
        converge_s: from a group's new wanted state, with no operator online, until all had it served and reported.
        converge_messages: what the broker took in from devices meanwhile, as far as the observer subscribes.
        again_s: from the restart of the broker until every device had a new connection and was online.
        idle_messages_per_s: presence, reports, states and health of the whole fleet at rest.
        idle_cpu: CPU seconds per second of the devices at rest.
        idle_broker_cpu: of the broker.
        rss_per_device: bytes of memory of the processes, by device.
        broker_heap: bytes that the broker says it holds.
        retained: messages that it retains.
        rollout_s: a rollout of another method that fails on 3 % of the devices, from its begin until it was aborted
            and taken back.
        touched: devices that it was begun with.
    """

    devices: int
    online_s: float
    converge_s: float
    converge_messages: int
    again_s: float
    idle_messages_per_s: float
    idle_cpu: float
    idle_broker_cpu: float
    rss_per_device: float
    broker_heap: float
    retained: float
    rollout_s: float
    touched: int

    def row(self) -> list[str]:
        """Return the table's row."""
        return [
            f"{self.devices:,}",
            f"{self.online_s:.1f}",
            f"{self.converge_s:.1f}",
            f"{self.converge_messages / self.devices:.1f}",
            f"{self.again_s:.1f}",
            f"{self.idle_messages_per_s:.1f}",
            f"{100 * self.idle_cpu / self.devices:.3f}",
            f"{100 * self.idle_broker_cpu / self.devices:.4f}",
            f"{self.rss_per_device / 2**20:.2f}",
            f"{self.broker_heap / self.devices / 1024:.1f}",
            f"{self.retained / self.devices:.1f}",
            f"{self.rollout_s:.1f}",
            f"{self.touched:,}",
        ]


HEAD = (
    "devices", "all online, s", "converged, s", "messages per device to converge",
    "online after the broker's restart, s", "messages/s at rest", "CPU per device at rest, %",
    "broker's CPU per device at rest, %", "memory per device, MiB", "broker's memory per device, KiB",
    "retained per device", "rollout aborted and taken back, s", "devices it had touched",
)  # fmt: skip


def simulate(count: int, directory: Path, *, interval_s: float, rest_s: float) -> Figures:
    """Return the figures of a fleet of ``count`` devices.

    Args:
        count: how many.
        directory: for the broker's files; the devices' lie in memory.
        interval_s: of health.
        rest_s: how long the fleet at rest is watched.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY) as disks, fleet(count, directory) as found:
        observer = found.observer
        began = time.monotonic()
        found.start(
            Path(disks),
            groups=[GROUP],
            files={URL: CONTENT.hex()},
            bad=bad(found.names),
            method=NEXT,
            interval_s=interval_s,
            soak_s=0.5,
        )
        observer.wait(
            lambda: found.online() and len(observer.reported) == count, TIMEOUT_S, "all devices online and reported"
        )
        online_s = time.monotonic() - began
        converge_s, messages = converge(found, 1)
        idle = rest(found, rest_s)
        again_s = restart_broker(found)
        return Figures(count, online_s, converge_s, messages, again_s, **idle, **roll_out(found, directory))


def bad(names: Sequence[str]) -> list[str]:
    """Return the devices on which the next method fails: every thirty-third, 3 %."""
    return list(names[::BAD_EVERY])


def roll_out(found: Fleet, directory: Path) -> dict[str, Any]:
    """Switch the method in five waves, which has to be aborted and taken back; return what that came to.

    Raises:
        AssertionError: it was not, or devices were begun with after the decision, or one does not serve what it did.
    """
    plan = directory / "waves.toml"
    waves = "".join(f'[[waves]]\nname = "w{share}"\npercent = {share}\n' for share in WAVES)
    in_flight, least = max(2, len(found.names) // 20), max(1, len(found.names) // 50)
    plan.write_text(PLAN.format(waves=waves, in_flight=in_flight, least=least, method=NEXT), encoding="utf-8")
    connection = ("--host", "127.0.0.1", "--port", str(found.broker.port))
    command = [sys.executable, "-c", "from agent.fleet.cli import main; main()", *connection, "--json", "rollout"]
    environment = {**os.environ, "XDG_STATE_HOME": str(directory)}
    began = time.monotonic()
    subprocess.run([*command, str(plan)], env=environment, stdout=subprocess.DEVNULL, check=False, timeout=TIMEOUT_S)
    took_s = time.monotonic() - began
    told = subprocess.run([*command, "report", str(plan)], env=environment, capture_output=True, check=True)
    report = json.loads(told.stdout)["report"]
    timeline = [entry["event"] for entry in report["timeline"]]
    assert report["status"] == "aborted", report["reason"]
    later = timeline[timeline.index("rollout_aborting") :].count("device_started")
    assert later == 0, f"{later} devices were begun with after the decision"
    found.observer.wait(
        lambda: all(found.observer.reported[name]["models"][MODEL]["method"] == FIRST for name in found.names),
        TIMEOUT_S,
        "every device with the method of before",
    )
    return {"rollout_s": took_s, "touched": timeline.count("device_started")}


def converge(found: Fleet, generation: int, method: str = FIRST) -> tuple[float, int]:
    """Publish the group's wanted state and leave; return the seconds and the messages until all devices have it."""
    artifact = {"url": URL, "sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)}
    wanted = {"artifact": artifact, "version": f"v{generation}", "method": method}
    body = {"schema": 1, "generation": generation, "models": {MODEL: wanted}}
    before = found.observer.messages
    send(found.broker.port, f"{PREFIX}/_group/{GROUP}/desired", json.dumps(body), is_retained=True)

    def has_it(name: str) -> bool:
        told = found.observer.reported.get(name, {})
        reached = ((told.get("desired") or {}).get("reached") or {}).get(GROUP)
        return reached == generation and told["models"][MODEL]["version"] == f"v{generation}"

    seconds = found.observer.wait(
        lambda: all(has_it(name) for name in found.names), TIMEOUT_S, "all devices at the generation"
    )
    return seconds, found.observer.messages - before


def rest(found: Fleet, seconds: float) -> dict[str, Any]:
    """Return what the fleet costs when nothing happens."""
    time.sleep(2.0)
    before, broker_before = Usage.of(found.pids), Usage.of([found.broker_pid])
    messages = found.observer.messages
    time.sleep(seconds)
    after, broker_after = Usage.of(found.pids), Usage.of([found.broker_pid])
    return {
        "idle_messages_per_s": (found.observer.messages - messages) / seconds,
        "idle_cpu": (after.cpu_s - before.cpu_s) / seconds,
        "idle_broker_cpu": (broker_after.cpu_s - broker_before.cpu_s) / seconds,
        "rss_per_device": after.rss_bytes / len(found.names),
        "broker_heap": found.observer.broker.get("heap/current", 0.0),
        "retained": found.observer.broker.get("retained messages/count", 0.0),
    }


def restart_broker(found: Fleet) -> float:
    """Restart the broker; return the seconds until every device has a new connection."""
    before = found.epochs()
    found.broker.stop()
    found.broker.start()
    return found.observer.wait(
        lambda: found.online() and all(found.epochs()[name] > before[name] for name in found.names),
        TIMEOUT_S,
        "all devices online again",
    )


def growth(first: Figures, last: Figures) -> dict[str, float]:
    """Return how much more a device costs in the larger fleet than in the smaller one: 1 is linear growth."""
    a, b = asdict(first), asdict(last)
    return {
        name: (b[name] / last.devices) / (a[name] / first.devices)
        for name in ("converge_messages", "idle_messages_per_s", "idle_cpu", "idle_broker_cpu", "retained")
        if a[name]
    }


@click.command()
@click.option("-n", "--devices", "sizes", multiple=True, type=int, default=(10, 100, 1000), show_default=True)
@click.option("--interval", "interval_s", type=float, default=30.0, show_default=True, help="Seconds between health.")
@click.option("--rest", "rest_s", type=float, default=60.0, show_default=True, help="Seconds to watch it at rest.")
@click.option("--publish", "is_published", is_flag=True, help="Put the table into docs/scale.md.")
def main(sizes: tuple[int, ...], interval_s: float, rest_s: float, *, is_published: bool) -> None:
    """Simulate fleets of several sizes, one after the other."""
    found: list[Figures] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as directory:
            figures = simulate(size, Path(directory), interval_s=interval_s, rest_s=rest_s)
        found.append(figures)
        click.echo(json.dumps({name: _rounded(value) for name, value in asdict(figures).items()}))
    table = markdown(HEAD, [figures.row() for figures in found])
    if len(found) > 1:
        told = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}" for name, ratio in growth(found[0], found[-1]).items())
        table += f"\n\nPer device, {found[-1].devices:,} against {found[0].devices:,} (1 is linear growth): {told}."
    if is_published:
        publish("fleet-sim", table, PAGE)
    else:
        click.echo(table)


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
