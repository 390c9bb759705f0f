"""Tables to merge into."""

from __future__ import annotations

from pathlib import Path

import pytest

from bronze.model.locations import Place
from tests.support.merging import (
    PLAIN,
    Bench,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A table to be, whose key is a number."""
    return Bench(Place(str(tmp_path / "t")), PLAIN, ("id",))
