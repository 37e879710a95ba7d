from __future__ import annotations

from hypothesis import HealthCheck, settings

# Derandomised: what passes on one machine passes on every other, at every run.
settings.register_profile(
    "house", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")
