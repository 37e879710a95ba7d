"""A short run of a target: neighbours of its seeds, the same ones every time."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import campaign

if TYPE_CHECKING:
    from tests.fuzz.targets import Target


def try_neighbours(target: Target, count: int) -> None:
    """Try a target's seeds and ``count`` neighbours of theirs; raises what the first one broke."""
    seeds = target.seeds()

    @settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(seeds), st.integers(0, 2**32), st.integers(1, 5))
    def one(data: bytes, seed: int, steps: int) -> None:
        draw = random.Random(seed)
        for _ in range(steps):
            data = target.mutate(data, draw, campaign.MOST_BYTES)
        began = time.process_time()
        target(data)
        assert time.process_time() - began < campaign.SLOWEST_S

    for seed in seeds:
        target(seed)
    one()
