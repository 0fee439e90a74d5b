"""How many examples a generating test runs through."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# `make check-differential` goes through many more, each time through others.
FACTOR = int(os.environ.get("CKPT_STREAMER_EXAMPLE_FACTOR", "1"))


def examples(count: int) -> settings:
    return settings(
        deadline=None,
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
