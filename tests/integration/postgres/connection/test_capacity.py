"""Limits of connections: whose they are, how many are needed, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from bronze.api import check
from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.errors import SourceBusy
from bronze.ingest import pipeline
from tests.conftest import Source

WHOSE = ["role", "database"]


@pytest.fixture
def login(source: Source) -> Iterator[str]:
    """A role that may read and stream all, and is no superuser."""
    role = f"{conninfo_to_dict(source.dsn)['dbname']}_limited"
    source.execute(f"CREATE ROLE {role} LOGIN REPLICATION; GRANT pg_read_all_stats TO {role}")
    source.execute(f"GRANT CREATE ON DATABASE {conninfo_to_dict(source.dsn)['dbname']} TO {role}")
    source.execute(
        "CREATE TABLE t AS SELECT i AS id, repeat('x', 100) AS s FROM"
        " generate_series(1, 100000) i; ALTER TABLE t ADD PRIMARY KEY (id)"
    )
    source.execute(f"ALTER TABLE t OWNER TO {role}")
    yield role
    source.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def given(source: Source, login: str, pattern: str = "full_refresh") -> Settings:
    """Settings for the role."""
    behind = Source(source.dsn.replace("postgres@", f"{login}@"), source.lake)
    return behind.settings(
        source={"connect_timeout": 1, "pool": {"min": 2, "max": 6}},
        tables={"t": {"pattern": pattern}},
    )


def limited(source: Source, whose: str, login: str, most: int) -> None:
    """Limits the role, or its database."""
    name = login if whose == "role" else conninfo_to_dict(source.dsn)["dbname"]
    source.execute(f"ALTER {whose} {name} CONNECTION LIMIT {most}")


def drawn(settings: Settings) -> Any:
    """A stream of what is there."""
    return stream.stream(settings, until_caught_up=True)


@pytest.mark.parametrize("whose", WHOSE)
def test_a_limit_is_told_as_whose_it_is(source: Source, login: str, whose: str) -> None:
    """Each command says it, and how many connections it needs."""
    commands: list[tuple[Callable[[Settings], Any], str, int]] = [
        (check.check, "full_refresh", 0),
        (pipeline.run, "full_refresh", 1),
        (drawn, "streaming", 1),
    ]
    for command, pattern, most in commands:
        limited(source, whose, login, most)
        with pytest.raises(SourceBusy) as caught:
            command(given(source, login, pattern))
        assert f"no connection free for {whose} " in caught.value.message
        assert "by its own limit" in caught.value.message
        assert "a run or a check needs 4 to 6 connections, a stream 4 to 9" in caught.value.hint
        assert f"ALTER {whose.upper()} " in caught.value.hint
        assert "CONNECTION LIMIT 9" in caught.value.hint
    limited(source, whose, login, -1)


@pytest.mark.parametrize("whose", WHOSE)
def test_a_check_tells_a_limit_before_it_is_met(source: Source, login: str, whose: str) -> None:
    """One below what the config needs is a problem, and with what it needs everything works."""
    for pattern, command in (("full_refresh", pipeline.run), ("streaming", drawn)):
        settings = given(source, login, pattern)
        limited(source, whose, login, 3)
        (problem,) = check.check(settings).missing
        assert "CONNECTION LIMIT of 3; bronze needs 4 at least" in problem.message
        limited(source, whose, login, 4)
        assert check.check(settings).problems == ()
        assert [table.error for table in command(settings).tables] == [None]
    limited(source, whose, login, -1)
    stream.drop(given(source, login, "streaming"))
