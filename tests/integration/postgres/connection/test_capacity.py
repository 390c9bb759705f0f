"""Connection limits of roles and databases: which limit is too low, and by how much."""

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

LIMITED = ["role", "database"]


@pytest.fixture
def login(source: Source) -> Iterator[str]:
    """A role that may read and stream everything but is not a superuser."""
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


def settings_of(source: Source, login: str, pattern: str = "full_refresh") -> Settings:
    """Settings for the role."""
    as_role = Source(source.dsn.replace("postgres@", f"{login}@"), source.lake)
    return as_role.settings(
        source={"connect_timeout": 1, "pool": {"min": 2, "max": 6}},
        tables={"t": {"pattern": pattern}},
    )


def set_limit(source: Source, limited: str, login: str, limit: int) -> None:
    """Sets the connection limit of the role or of its database."""
    name = login if limited == "role" else conninfo_to_dict(source.dsn)["dbname"]
    source.execute(f"ALTER {limited} {name} CONNECTION LIMIT {limit}")


def stream_once(settings: Settings) -> Any:
    """Streams until caught up."""
    return stream.stream(settings, until_caught_up=True)


@pytest.mark.parametrize("limited", LIMITED)
def test_errors_name_the_limit_that_is_reached(source: Source, login: str, limited: str) -> None:
    """Every command names the role or database and the number of connections that it needs."""
    commands: list[tuple[Callable[[Settings], Any], str, int]] = [
        (check.check, "full_refresh", 0),
        (pipeline.run, "full_refresh", 1),
        (stream_once, "streaming", 1),
    ]
    for command, pattern, limit in commands:
        set_limit(source, limited, login, limit)
        with pytest.raises(SourceBusy) as caught:
            command(settings_of(source, login, pattern))
        assert f"no free connection: the CONNECTION LIMIT of {limited} " in caught.value.message
        assert "is reached" in caught.value.message
        assert "a run or a check needs 4 to 6 connections, a stream 5 to 6" in caught.value.hint
        assert f"ALTER {limited.upper()} " in caught.value.hint
        assert "CONNECTION LIMIT 6" in caught.value.hint
    set_limit(source, limited, login, -1)


@pytest.mark.soak
@pytest.mark.parametrize("limited", ["role", "database"])
def test_check_reports_a_limit_that_is_too_low(source: Source, login: str, limited: str) -> None:
    """A limit below the connections that the config needs is a problem; a sufficient one works."""
    cases = (("full_refresh", pipeline.run, 4), ("streaming", stream_once, 5))
    for pattern, command, least in cases:
        settings = settings_of(source, login, pattern)
        set_limit(source, limited, login, 3)
        (problem,) = check.check(settings).missing
        assert f"CONNECTION LIMIT of 3; bronze needs at least {least}" in problem.message
        set_limit(source, limited, login, least)
        assert check.check(settings).problems == ()
        assert [table.error for table in command(settings).tables] == [None]
    set_limit(source, limited, login, -1)
    stream.drop(settings_of(source, login, "streaming"))
