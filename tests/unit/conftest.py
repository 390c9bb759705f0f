"""Tests of units need no PostgreSQL: what does belongs to the integration tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def server() -> None:
    """Refuses a test that asks for a server."""
    pytest.fail("A test that needs PostgreSQL belongs in tests/integration or tests/acceptance.")
