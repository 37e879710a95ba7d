"""``nibbled doctor``: asks every question at the same time, each with a deadline, and shows the answers in order.

A look that hangs costs its own line and nobody else's. Exit status 0 when nothing failed, 1 when something did.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from agent import __version__, settings
from agent.console import looking
from agent.console.check import Check, failed, is_well, ok, to_json
from agent.console.telling import show, summary
from agent.devices.bounded import HUNG, OK, Bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Question:
    """Something to look at.

    Attributes:
        name: of the check that stands for it when it has no answer.
        look: returns the checks.
        deadline_s: seconds after which nobody waits for it any longer.
    """

    name: str
    look: Callable[[], list[Check]]
    deadline_s: float = 15.0


def questions(loaded: settings.Settings | None) -> list[Question]:
    """Return what to ask; without a usable configuration, what needs none."""
    chosen = loaded or settings.Settings.model_construct()
    budget = chosen.memory.budget
    limit_bytes = None if budget == "auto" else int(budget)
    found = [
        Question("python", looking.interpreter),
        Question("clock", looking.clock),
        Question("memory", partial(looking.box, chosen.memory.reserve, limit_bytes), 30.0),
        Question("unit", looking.unit),
    ]
    if loaded is not None:
        found += [
            Question("disk", partial(looking.disk, loaded.state_dir, loaded.downloads.disk_reserve)),
            Question("keys", partial(looking.keys, loaded)),
            Question("tokens", partial(looking.tokens, loaded)),
            Question("certificate", partial(looking.certificate, loaded)),
            Question("agent", partial(looking.agent, loaded, __version__), 45.0),
        ]
    return [*found, Question("torch", looking.torch, looking.PROBE_S + 30.0)]


def answers(asked: Sequence[Question]) -> Iterator[list[Check]]:
    """Ask all at once and yield each one's checks, in order."""
    with ThreadPoolExecutor(len(asked)) as pool:
        yield from pool.map(_answer, asked)


def examine(config: Path | None, *, as_json: bool) -> bool:
    """Examine this box, print what was found and return whether nothing failed."""
    try:
        loaded: settings.Settings | None = settings.load(config)
        file = config or (settings.DEFAULT_FILE if settings.DEFAULT_FILE.exists() else None)
        told = f"{file or 'defaults and environment'}, device {loaded.device_id}" if loaded else ""
        found = [ok("configuration", told)]
    except (settings.ConfigError, OSError) as error:
        loaded = None
        found = [failed("configuration", str(error), "configs/ has examples; nothing that needs it was looked at")]
    shown: Callable[[Check], None] = (lambda _: None) if as_json else show
    for check in found:
        shown(check)
    for checks in answers(questions(loaded)):
        found += checks
        for check in checks:
            shown(check)
    click.echo(json.dumps(to_json(found)) if as_json else summary(found))
    return is_well(found)


def _answer(question: Question) -> list[Check]:
    checks, word = Bounded(question.look, name=question.name, deadline_s=question.deadline_s).ask()
    if word == OK and checks is not None:
        return checks
    if word == HUNG:
        told = f"no answer in {question.deadline_s:g} s: something below hangs"
        return [failed(question.name, told, "sudo dmesg | tail; then look at what this line asks for")]
    return [failed(question.name, f"could not be looked at: {word}", "report this; it should not happen")]
