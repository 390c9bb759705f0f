"""Connections to the database of a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict

from bronze.postgres.connection import connect
from bronze.postgres.connection.connect import Connection
from tests.conftest import Source


@pytest.fixture
def connection(source: Source) -> Iterator[Connection]:
    """A pinned connection of the superuser."""
    with connect.connect(source.settings().origin("test")) as pinned:
        yield pinned


@pytest.fixture
def login(source: Source) -> Iterator[str]:
    """A role that may log in and replicate, and nothing else."""
    role = f"{conninfo_to_dict(source.dsn)['dbname']}_streamer"
    source.execute(f"CREATE ROLE {role} LOGIN REPLICATION")
    yield role
    source.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
