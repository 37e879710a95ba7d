"""What the programs end with: one table, for the code that ends them, for their help and for their man pages.

A command without a row of its own ends as the one above it does. Where people type Ctrl-C and nothing goes on without
them, click ends a command with 1.
"""

from __future__ import annotations

import signal
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

DONE, FAILED, USAGE = 0, 1, 2
WAITS_FOR_A_PERSON = 3
NO_ANSWER = 4
INTERRUPTED = 128 + signal.SIGINT
"""As shells tell the end by a signal."""

_USAGE = {USAGE: "wrong usage"}
_DEVICE = {DONE: "it is done", FAILED: "it could not be done, and a sentence on stderr says why", **_USAGE}
_OPERATOR = {
    DONE: "it succeeded, or is to be trusted",
    FAILED: "it did not, or is not; nothing was found",
    USAGE: "wrong usage, or nothing that can be read",
    NO_ANSWER: "broker or device did not answer, or with what cannot be read",
    INTERRUPTED: "Ctrl-C while it waited; what was begun goes on",
}
_EXAMINED = {USAGE: "it is no manifest, or wrong usage"}
_RECORD = {DONE: "it is recorded", USAGE: "the plan cannot be used, or there is no record of it"}
_ASKED = {DONE: "it is recorded", USAGE: "the plan cannot be used, there is no record of it, or it is over"}
_LOOKED = {DONE: "nothing failed", FAILED: "something failed", **_USAGE}
_PUBLISHED = {
    DONE: "it is published",
    USAGE: "wrong usage, a key that cannot be used, or nothing that devices would take",
    NO_ANSWER: "the broker did not answer, or what it keeps cannot be heard",
}

STATUSES: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "nibbled": _DEVICE,
        "nibbled run": {DONE: "it was stopped", FAILED: "it could not start, or broke off", **_USAGE},
        "nibbled doctor": _LOOKED,
        "nibbled status": {
            DONE: "it is ok or degraded",
            FAILED: "it is failing, or the configuration cannot be used",
            **_USAGE,
            NO_ANSWER: "no agent answers",
        },
        "nibbled demo": {
            DONE: "the whole line went through",
            FAILED: "it did not",
            **_USAGE,
            128 + signal.SIGHUP: "the terminal was closed",
            128 + signal.SIGTERM: "it was ended",
        },
        "nibbled plan": {DONE: "something fits", FAILED: "nothing fits, or it cannot be read", **_USAGE},
        "nibblectl": _OPERATOR,
        "nibblectl devices": {**_OPERATOR, DONE: "there are some", FAILED: "there are none"},
        "nibblectl report": {
            **_OPERATOR,
            DONE: "devices reported models",
            FAILED: "no device reported a model, or the file cannot be written",
        },
        "nibblectl events": {**_OPERATOR, NO_ANSWER: "the broker did not answer, or refuses to let events be heard"},
        "nibblectl cancel": {**_OPERATOR, DONE: "it was stopped", FAILED: "it was not"},
        "nibblectl infer": {
            DONE: "the model answered",
            FAILED: "the device refused",
            USAGE: "wrong usage, or no request",
            NO_ANSWER: "nobody answered",
        },
        "nibblectl doctor": {**_LOOKED, NO_ANSWER: "the broker does not answer"},
        "nibblectl keygen": {
            DONE: "the pair is written",
            USAGE: "wrong usage, or the pair exists or cannot be written",
        },
        "nibblectl sign": {
            DONE: "the manifest is printed",
            USAGE: "wrong usage, a key that cannot be used, or a manifest that no device would take",
        },
        "nibblectl sign-command": {
            DONE: "the message is printed",
            USAGE: "wrong usage, a key that cannot be used, or a message that no device would take",
        },
        "nibblectl verify": {DONE: "it is to be trusted", FAILED: "it is not", **_EXAMINED},
        "nibblectl inspect": {DONE: "nothing is wrong", FAILED: "something is", **_EXAMINED},
        "nibblectl rollout": {
            DONE: "it is finished",
            FAILED: "it was aborted",
            USAGE: "the plan, its record or a key cannot be used",
            WAITS_FOR_A_PERSON: "it waits for a person",
            NO_ANSWER: "the broker did not answer, or refuses what is to be sent",
            INTERRUPTED: "Ctrl-C; devices in flight go on",
        },
        **{f"nibblectl rollout {name}": _ASKED for name in ("approve", "pause", "resume", "abort")},
        "nibblectl rollout report": {**_RECORD, DONE: "it is printed"},
        "nibblectl bridge": {
            USAGE: "wrong usage, or a key that cannot be used",
            NO_ANSWER: "a broker did not answer at the start",
            INTERRUPTED: "Ctrl-C; it is taken up by the next one",
        },
        "nibblectl desired": _PUBLISHED,
        "nibblectl desired resume": {
            **_PUBLISHED,
            DONE: "it is lifted",
            FAILED: "there is none to lift, or it is signed",
        },
    }
)
"""By the command as it is typed: each status, and what it means."""


def statuses(command: str) -> Mapping[int, str]:
    """Return what ``command``, such as ``nibblectl rollout run``, may end with, and what each means."""
    while command not in STATUSES:
        command = command.rpartition(" ")[0]
    return dict(sorted(STATUSES[command].items()))


def explain(command: click.Command, name: str) -> None:
    """Let the help of a program, and of those of its commands that have a row, end with what they end with."""
    if name in STATUSES:
        told = ", ".join(f"{status} {meaning}" for status, meaning in statuses(name).items())
        command.epilog = f"Exit status: {told}."
    if isinstance(command, click.Group):
        for each, inner in command.commands.items():
            explain(inner, f"{name} {each}")
