"""How many examples a property is tried with: few in each run, more where there is time."""

from __future__ import annotations

import os

EFFORT = "BRONZE_TEST_EFFORT"
"""The environment variable by which the numbers of examples are multiplied, 1 if it is not set."""


def examples(count: int) -> int:
    """So many examples, or as many times more as the environment asks for."""
    return max(1, round(count * float(os.environ.get(EFFORT, "1"))))
