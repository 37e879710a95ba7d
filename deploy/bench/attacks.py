"""Every attack of ``tests/contract/test_attacks.py``, with its guard and without.

    make attacks

Prints which guard stops what, and what becomes of the attack once the guard is taken out. Exit status 1 if one is not
stopped by its guard, or is stopped just as well without it: then the guard, or the test, is worth nothing.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from tests.contract.test_attacks import ATTACKS

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 70


def outcome(play: Callable[[Path], None]) -> str | None:
    """Play an attack in a directory of its own; return None if it was stopped as it should be, else what happened."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            play(Path(directory))
        except AssertionError as error:
            return (str(error).splitlines() or ["it got through"])[0][:WIDTH]
    return None


def main() -> int:
    """Print the table; return the exit status."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print("| guard | attack | caught | caught without the guard |\n|---|---|---|---|")
    worthless = 0
    for attack in ATTACKS:
        guarded, unguarded = outcome(attack.carry_out), outcome(attack.carry_out_unguarded)
        worthless += guarded is not None or unguarded is None
        caught = "yes" if guarded is None else f"NO: {guarded}"
        without = "YES" if unguarded is None else f"no: {unguarded}"
        print(f"| `{attack.guard.title}` | {attack.name} | {caught} | {without} |")
    print(f"\n{len(ATTACKS)} attacks, {worthless} without a guard that is worth something")
    return 1 if worthless else 0


if __name__ == "__main__":
    sys.exit(main())
