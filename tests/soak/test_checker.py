"""A model checker: whatever is done to tables, types, publication, slot, lake and processes, in
whatever order, Bronze equals the source once it has had its minute, or says why it does not follow.

The operations are drawn from ``BRONZE_MODEL_SEED`` and are as many as ``BRONZE_MODEL_OPERATIONS``;
a failure prints both, and all that was done. ``BRONZE_MODEL_ONLY`` and ``BRONZE_MODEL_WITHOUT``
name operations (`tests.soak.checker.operations`). ``python -m tests.soak.checker 1 100 60`` goes
over many seeds.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bronze.demo.server import Server
from tests.conftest import database
from tests.soak.checker import checker, driver
from tests.soak.checker.world import World

pytestmark = pytest.mark.soak

SEED = int(os.environ.get("BRONZE_MODEL_SEED", "1"))
OPERATIONS = int(os.environ.get("BRONZE_MODEL_OPERATIONS", "60"))
_SHORT = 3
_LONG = 10_000


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens within a minute happens within a second."""
    driver.hurry(monkeypatch.setattr)


def _checked(server: Server, folder: Path, seed: int) -> World:
    with database(server, folder / str(seed) / "lake") as source:
        return checker.story(source, folder / str(seed), seed, OPERATIONS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_bronze_equals_its_source_after_any_operations(server: Server, tmp_path: Path) -> None:
    """A few seeds: rounds of operations, after each of which all tables are compared by content,
    the proofs are clean, and a table that is refused is as it was.
    """
    for seed in range(SEED, SEED + _SHORT):
        _checked(server, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_bronze_equals_its_source_after_ten_thousand_operations(
    server: Server, tmp_path: Path
) -> None:
    """Runs many seeds, and reports all that fail together."""
    wrong: list[Exception] = []
    seeds = range(SEED, SEED + -(-_LONG // OPERATIONS))
    for seed in seeds:
        try:
            _checked(server, tmp_path, seed)
        except Exception as error:
            wrong.append(error)
    if wrong:
        raise ExceptionGroup(f"{len(wrong)} of {len(seeds)} seeds went wrong", wrong)
