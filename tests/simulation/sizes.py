"""What one real device says, in bytes by topic, and what a hundred thousand of them are to a broker.

    make fleet-sizes

A real agent deploys the demo's model by ``auto`` and switches its method; every message is weighed with its topic, as a
broker handles it. The sum for a fleet is arithmetic on those weights, nothing that was run.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.contract.reports import OPERATION_EXPIRY_S
from deploy.bench.page import markdown, publish
from tests.e2e.harness.operator import MODEL
from tests.simulation.campaign import PAGE
from tests.simulation.device import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.e2e.harness.mqtt import Message

FLEET = 100_000
INTERVAL_S = 30.0
DEPLOYS_PER_WEEK = 2
WAVE_S = 3600.0
"""In which a whole fleet is changed, for the rate."""
KINDS = ("presence", "capabilities", "reported", "op", "health", "telemetry", "event")
RETAINED = ("presence", "capabilities", "reported")


@dataclass(frozen=True)
class Weight:
    """Messages of one kind.

    Attributes:
        count: how many one deploy and one switch brought, or came in all.
        largest: bytes of the largest, with its topic.
    """

    count: int
    largest: int


def weigh(messages: Sequence[Message], device: str) -> dict[str, Weight]:
    """Return the weights by kind of what a device said."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    root = f"{PREFIX}/{device}/"
    for message in messages:
        if message.topic.startswith(root) and message.text:
            kind = message.topic.removeprefix(root).partition("/")[0]
            found[kind].append(len(message.text.encode()) + len(message.topic))
    return {kind: Weight(len(found[kind]), max(found[kind])) for kind in KINDS if kind in found}


def say(root: Path) -> tuple[dict[str, Weight], dict[str, Weight]]:
    """Return the weights of all that a device said, and of what one deploy alone made it say."""
    from tests.torture.rig import Rig  # noqa: PLC0415 - they need torch, the arithmetic below does not
    from tests.torture.surroundings import Surroundings  # noqa: PLC0415

    world = Surroundings(root)
    try:
        rig = Rig(world, "weighed")
        rig.boot()
        operator = rig.operator
        mark = operator.mark()
        operator.result(operator.deploy(operator.manifest(world.checkpoint()), method="auto"))
        deploy = weigh(world.subscriber.all(since=mark), "weighed")
        operator.result(operator.send("set_method", model=MODEL, method="fp4"))
        operator.result(operator.send("status"))
        everything = weigh(world.subscriber.all(), "weighed")
        rig.agent.terminate()
        return everything, deploy
    finally:
        world.close()


def fleet(weights: Mapping[str, Weight], deploy: Mapping[str, Weight]) -> list[tuple[str, str]]:
    """Return what a broker for ``FLEET`` devices has to bear, as rows of words and figures."""
    weeks = OPERATION_EXPIRY_S / (7 * 24 * 3600)
    operations = DEPLOYS_PER_WEEK * weeks
    held = sum(weights[kind].largest for kind in RETAINED) + operations * weights["op"].largest
    at_rest = 2 * FLEET / INTERVAL_S
    bytes_at_rest = FLEET / INTERVAL_S * (weights["health"].largest + weights["telemetry"].largest)
    changed = [weight for kind, weight in deploy.items() if kind not in ("health", "telemetry")]
    per_deploy = sum(each.count for each in changed)
    bytes_per_deploy = sum(each.count * each.largest for each in changed)
    in_wave_s, bytes_in_wave_s = per_deploy * FLEET / WAVE_S, bytes_per_deploy * FLEET / WAVE_S
    return [
        ("connections", f"{FLEET:,}"),
        ("subscriptions: commands, presence, desired, one group and its halt", f"{5 * FLEET:,}"),
        (f"retained messages, {DEPLOYS_PER_WEEK} operations a week", f"{(len(RETAINED) + operations) * FLEET:,.0f}"),
        ("retained bytes", f"{held * FLEET / 2**30:.2f} GiB"),
        (f"messages/s at rest, health and telemetry every {INTERVAL_S:.0f} s", f"{at_rest:,.0f}"),
        ("bytes/s at rest", f"{bytes_at_rest / 2**20:.1f} MiB/s"),
        ("pings/s at rest, keepalive 30 s, of those that say nothing in between", f"at most {FLEET / 30:,.0f}"),
        (f"messages/s while all are changed within {WAVE_S / 3600:.0f} h", f"{at_rest + in_wave_s:,.0f}"),
        ("bytes/s meanwhile, at most", f"{(bytes_at_rest + bytes_in_wave_s) / 2**20:.1f} MiB/s"),
    ]


@click.command()
@click.option("--publish", "is_published", is_flag=True, help="Put the tables into docs/scale.md.")
def main(*, is_published: bool) -> None:
    """Weigh what a real device says."""
    with tempfile.TemporaryDirectory() as directory:
        everything, deploy = say(Path(directory))
    rows = [
        [
            kind,
            f"{weight.largest:,}",
            str(deploy[kind].count if kind in deploy else 0),
            "yes" if kind in (*RETAINED, "op") else "no",
        ]
        for kind, weight in everything.items()
    ]
    one = markdown(("topic", "largest, bytes with its topic", "messages in a deploy", "retained"), rows)
    many = markdown((f"{FLEET:,} devices", ""), fleet(everything, deploy))
    if is_published:
        publish("fleet-sizes", f"{one}\n\n{many}", PAGE)
    else:
        click.echo(f"{one}\n\n{many}")


if __name__ == "__main__":
    main()
