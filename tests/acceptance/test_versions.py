"""Features of each version of PostgreSQL, and refusals of versions without them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest

from bronze.demo import installation
from bronze.errors import SnapshotLost
from bronze.postgres.connection import connect, translation
from tests.acceptance.test_cli import configured, invoke
from tests.conftest import Source
from tests.support.content import differences
from tests.support.features import FEATURES, VERSION, has


@pytest.fixture
def empty(source: Source) -> Iterator[psycopg.Connection]:
    """A transaction in a database that has the table of `tests.support.features.Feature`."""
    generated = "CREATE TABLE a (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id) STORED)"
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        connection.execute(generated)
        yield connection


def test_each_version_has_the_features_of_the_list(empty: psycopg.Connection) -> None:
    """No test is skipped on a server with the feature, and none passes on one without it."""
    assert empty.info.server_version // 10_000 == VERSION == installation.version()
    wrong = {}
    for name, feature in FEATURES.items():
        try:
            empty.execute(feature.statement.encode())
            found = True
        except psycopg.Error:
            found = False
        if found != has(name):
            wrong[name] = feature.since
        empty.execute("DROP PUBLICATION IF EXISTS p; DROP TABLE IF EXISTS b")
    assert wrong == {}


def test_an_unsupported_version_is_refused(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each command, with its version and the oldest one that is supported."""
    monkeypatch.setattr(connect, "OLDEST_VERSION", VERSION + 1)
    for command in ("check", "run", "verify"):
        done = invoke(command, "-c", configured(source))
        assert done.exit_code == 3, command
        said = " ".join(done.stderr.split())
        assert f"is PostgreSQL {VERSION}." in said, command
        assert f"bronze supports {VERSION + 1} and later" in said, command


def test_a_lost_snapshot_is_recognised_by_the_error_of_each_version(
    source: Source, empty: psycopg.Connection
) -> None:
    """Each version has its own message and SQLSTATE for a snapshot that does not exist."""
    origin = source.settings().origin("test")
    empty.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    with pytest.raises(psycopg.Error) as caught:
        empty.execute("SET TRANSACTION SNAPSHOT '00000FFF-0000001B-1'")
    assert isinstance(translation.explain(caught.value, origin), SnapshotLost)
    assert isinstance(translation.explain(caught.value, origin, "t"), SnapshotLost)


@pytest.mark.skipif(VERSION >= 14, reason=f"PostgreSQL {VERSION} is streamed")
def test_servers_before_14_are_loaded_and_not_streamed(source: Source) -> None:
    """`bronze run` and `bronze verify` work; `bronze stream` and `bronze check` refuse a stream in
    a sentence, and there is none to drop.
    """
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now());"
        "INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 20000) i;"
        "CREATE TABLE plain AS SELECT id % 7 AS a, v FROM t; CREATE VIEW shown AS SELECT * FROM t;"
        "CREATE TABLE r (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10);"
        "INSERT INTO r VALUES (1), (2); ANALYZE"
    )
    config = configured(source, tables={"t": {"pattern": "batch", "cursor": "xmin"}})
    assert invoke("check", "-c", config).exit_code == 0
    for _ in range(2):
        assert invoke("run", "-c", config).exit_code == 0
        source.execute(
            "UPDATE t SET v = 'new' WHERE id < 9; DELETE FROM t WHERE id = 10;"
            "INSERT INTO plain VALUES (1, 'more'); DELETE FROM r WHERE id = 1"
        )
    assert invoke("run", "-c", config).exit_code == 0
    assert invoke("verify", "-c", config).exit_code == 0
    assert differences(source.settings(tables={"t": {"pattern": "batch"}})) == {}

    streamed = configured(source, tables={"t": {"pattern": "streaming"}})
    checked = invoke("check", "--json", "-c", streamed)
    assert checked.exit_code == 1
    assert f"The server is PostgreSQL {VERSION}." in json.dumps(json.loads(checked.stdout))
    refused = invoke("stream", "--until-caught-up", "-c", streamed)
    assert refused.exit_code == 3
    said = " ".join(refused.stderr.split())
    assert "streaming needs 14 or later" in said
    assert "load these tables in batches" in said
    assert invoke("stream", "--drop", "-c", streamed).exit_code == 0
