"""What a release has generated. Written on the event loop only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.serving.exposition import Family
from agent.serving.stats import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.serving.exposition import Labels

PREFIX = "nibbled_generation"
FIRST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
NEXT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass
class Generated:
    """Counters of one release.

    Attributes:
        prompt_tokens, tokens: read and made.
        steps: forward passes that made tokens; fewer than ``tokens`` where sequences share them.
        running, waiting: sequences.
        reserved_tokens: places for keys and values that the running ones may fill.
        first_s: from a request's arrival to its first token.
        next_s: from each token of a sequence to the next.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    running: int = 0
    waiting: int = 0
    reserved_tokens: int = 0
    first_s: Histogram = field(default_factory=lambda: Histogram(FIRST_SECONDS))
    next_s: Histogram = field(default_factory=lambda: Histogram(NEXT_SECONDS))


def families(generated: Mapping[Labels, Generated]) -> list[Family]:
    """Return the metrics of the releases that generate."""
    kinds = {
        "prompt_tokens_total": ("counter", "Tokens of prompts that were read.", "prompt_tokens"),
        "tokens_total": ("counter", "Tokens that were made.", "tokens"),
        "steps_total": ("counter", "Forward passes that made tokens.", "steps"),
        "running": ("gauge", "Sequences that are being generated.", "running"),
        "waiting": ("gauge", "Sequences that wait for their first step.", "waiting"),
        "reserved_tokens": ("gauge", "Places for keys and values that are reserved.", "reserved_tokens"),
        "time_to_first_token_seconds": ("histogram", "From arrival to the first token.", "first_s"),
        "inter_token_seconds": ("histogram", "From each token to the next.", "next_s"),
    }
    return [
        Family(f"{PREFIX}_{name}", kind, text, {labels: getattr(each, key) for labels, each in generated.items()})
        for name, (kind, text, key) in kinds.items()
    ]
