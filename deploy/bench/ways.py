"""Whether torch's compiler pays for the demo's model here: the decision of the server itself, with its figures.

    make bench-ways

The model is loaded as the server loads it, nf4, with packed and with unpacked weights, each in a process of its own
with nothing that was compiled before. Times are of what the server compares: a pass of one row and one of eight.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from deploy.bench import page

KANJI = Path(__file__).parents[1] / "demo" / "kanji"
METHOD, ROWS, ROOM = "nf4", 32, 1 << 40
WEIGHTS = ("packed", "unpacked")


def measure(folder: Path, weights: str) -> dict[str, Any]:
    """Return what the server decides, in this process."""
    from agent.quantization import jobs  # noqa: PLC0415 - torch: for the process that measures alone
    from agent.serving import network  # noqa: PLC0415 - as above
    from agent.serving.memory import rss_bytes  # noqa: PLC0415 - as above
    from agent.serving.residency import Wish  # noqa: PLC0415 - as above
    from agent.serving.terms import Terms  # noqa: PLC0415 - as above

    network.configure(1, "cpu")
    job = {"job": "build", "checkpoint": str(KANJI / "checkpoint_best.pt"), "method": METHOD, "output_dir": str(folder)}
    built = jobs.run({**job, "gate": {"rows": 8}}, lambda _event: None)
    it = network.load(Path(built["artifact"]), "cpu")
    it.warm_up(ROWS)
    it.reside(Wish("unpacked" if weights == "unpacked" else "packed", ROOM))
    before = rss_bytes()
    trial = it.accelerate(Terms(compile="auto"), ROWS)["compile"]
    compiler = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {**trial.to_json(), "kept_bytes": rss_bytes() - before, "compiler_bytes": compiler}


def alone(weights: str) -> dict[str, Any]:
    """Return what ``measure`` does in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "deploy.bench.ways", "--measure", weights, "--folder", folder],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"},
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(weights: str, found: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    own, ms = found["own_ms"], found["ms"]
    times = [f"{own:.2f}", f"{ms:.2f}"] if own else ["-", "-"]
    memory = [f"{found['kept_bytes'] / 1e6:.0f}", f"{found['compiler_bytes'] / 1e6:.0f}"]
    return [f"{METHOD}, {weights}", *times, f"{found['seconds']:.0f}", *memory, found["reason"].replace("|", "/")]


@click.command()
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
@click.option("--measure", "weights", type=click.Choice(WEIGHTS), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(path: Path, weights: str | None, folder: Path | None) -> None:
    """Let the server decide on both forms of the weights, and write the table into the page at OUTPUT."""
    if weights is not None and folder is not None:
        print(json.dumps(measure(folder, weights)))
        return
    head = [
        "weights",
        "own way, ms",
        "compiled, ms",
        "ready in, s",
        "memory that stays, MB",
        "g++, MB",
        "decision",
    ]
    page.publish("bench-ways", page.markdown(head, [row(each, alone(each)) for each in WEIGHTS]), path)


if __name__ == "__main__":
    main()
