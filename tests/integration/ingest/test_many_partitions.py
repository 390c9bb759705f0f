"""Tables of many partitions, each of which is read by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import psycopg
import pytest

from bronze.execution import budget
from bronze.ingest import pipeline
from bronze.model.locations import Origin
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.connection import connect
from bronze.postgres.copy import splits
from bronze.verify.verify import verify
from tests.conftest import Source
from tests.support.content import differences

COUNT = 18


@pytest.fixture
def parts(source: Source, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A table of 18 partitions, of which each is large enough to be read by itself: one has other
    columns before, one is partitioned again, one is in another schema, one is empty.
    """
    monkeypatch.setattr(splits, "_PART_OF_SPLIT", 100)
    monkeypatch.setattr(budget, "PACKED_SPLIT", 2**16)
    monkeypatch.setattr(budget, "LARGEST_FILE", 2**18)
    source.execute(
        "CREATE SCHEMA other;"
        "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(10,2)) PARTITION BY RANGE (id);"
        'CREATE TABLE other."the ""one""" (gone int, n numeric(10,2), v text, id int NOT NULL);'
        'ALTER TABLE other."the ""one""" DROP gone;'
        'ALTER TABLE t ATTACH PARTITION other."the ""one""" FOR VALUES FROM (-1000) TO (0);'
        "CREATE TABLE sub PARTITION OF t FOR VALUES FROM (0) TO (1000) PARTITION BY RANGE (id);"
        "CREATE TABLE sub_1 PARTITION OF sub FOR VALUES FROM (0) TO (500);"
        "CREATE TABLE sub_2 PARTITION OF sub FOR VALUES FROM (500) TO (1000);"
        "CREATE TABLE rest PARTITION OF t DEFAULT;"
    )
    for i in range(1, COUNT - 3):
        source.execute(
            f"CREATE TABLE p{i} PARTITION OF t FOR VALUES FROM ({i * 1000}) TO ({i * 1000 + 1000})"
        )
    source.execute(
        "INSERT INTO t SELECT i, repeat(md5(i::text), 8), i / 4.0"
        " FROM generate_series(-1000, 13999) i"
    )
    return source


@pytest.fixture
def connection(parts: Source) -> Iterator[connect.Connection]:
    """A connection to the source."""
    with connect.connect(Origin("test", parts.dsn)) as opened:
        yield opened


def relation_of(connection: connect.Connection, name: str = "t") -> Relation:
    """The table as the catalog has it now."""
    return next(r for r in relations(connection, ["public"]) if r.name == name)


@pytest.mark.soak
def test_rows_of_many_partitions_land_once(parts: Source) -> None:
    """All rows of all partitions land, changes are found by comparison, and both sides are proven
    equal; no statement reads the parent's rows.
    """
    settings = parts.settings()
    (loaded,) = pipeline.run(settings).tables
    assert (loaded.error, loaded.rows_read) == (None, 15_000)
    assert loaded.files > 2
    assert differences(settings) == {}
    parts.execute(
        "UPDATE t SET v = 'new' WHERE id % 1000 = 7; DELETE FROM t WHERE id BETWEEN 100 AND 699;"
        "INSERT INTO t VALUES (1000000, 'rest', 1)"
    )
    (again,) = pipeline.run(settings).tables
    assert (again.inserted, again.updated, again.deleted) == (1, 14, 600)
    assert differences(settings) == {}
    parts.execute("UPDATE t SET v = 'newer' WHERE id IN (-7, 5, 1000000)")
    (checked,) = verify(settings).tables
    assert (checked.source_rows, checked.different, checked.missing) == (14_401, 3, 0)
    keys = sorted(row.key for row in checked.rows)
    assert keys == ['{"id": -7}', '{"id": 1000000}', '{"id": 5}']


@pytest.mark.soak
def test_large_and_rejected_values_are_found_in_each_partition(parts: Source) -> None:
    """Sizes of rows are measured in the partition, and a value that Delta cannot hold is recorded,
    also by a load that clusters its rows.
    """
    parts.execute(
        "ALTER TABLE t ADD b text; ALTER TABLE t ALTER b SET STORAGE EXTERNAL;"
        "UPDATE t SET b = repeat('x', 200000) WHERE id % 1000 = 1;"
        "UPDATE t SET n = 'NaN' WHERE id % 1000 = 2"
    )
    settings = parts.settings(
        tables={"t": {"cluster_by": ["id"]}}, maintain={"file_size": "1MB"}, run={"memory": "1GB"}
    )
    (loaded,) = pipeline.run(settings).tables
    assert (loaded.error, loaded.rows_read, loaded.rejected) == (None, 15_000, 14)
    landed = pl.read_delta(str(parts.table("t")))
    assert landed["b"].str.len_chars().drop_nulls().to_list() == [200_000] * 14
    assert landed["id"].n_unique() == 15_000


def test_only_many_partitions_that_the_role_may_read_are_read_alone(
    parts: Source, connection: connect.Connection
) -> None:
    """A partition without privileges, or with row-level security, is read through the parent, and
    with it all others; so are few partitions.
    """
    whole = relation_of(connection)
    assert len(whole.leaves) == len(whole.heaps) == COUNT
    assert 'ONLY other."the ""one"""' in whole.leaves
    role = parts.dsn.rpartition("/")[2] + "_reader"
    parts.execute(
        "CREATE TABLE few (id int) PARTITION BY LIST (id);"
        "CREATE TABLE few_1 PARTITION OF few FOR VALUES IN (1);"
        "CREATE TABLE few_2 PARTITION OF few FOR VALUES IN (2)"
    )
    assert relation_of(connection, "few").leaves == ()
    parts.execute(f"CREATE ROLE {role}")
    try:
        parts.execute(f"GRANT USAGE ON SCHEMA other TO {role}; GRANT SELECT ON t TO {role}")
        connection.execute(f"SET ROLE {role}")
        assert relation_of(connection).leaves == ()
        parts.execute(
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};"
            f"GRANT SELECT ON ALL TABLES IN SCHEMA other TO {role}"
        )
        assert len(relation_of(connection).leaves) == COUNT
        parts.execute(f"REVOKE USAGE ON SCHEMA other FROM {role}")
        assert relation_of(connection).leaves == ()
        connection.execute("RESET ROLE")
        parts.execute("ALTER TABLE p1 ENABLE ROW LEVEL SECURITY")
        assert relation_of(connection).leaves == ()
    finally:
        connection.execute("RESET ROLE")
        parts.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_thousand_partitions_cost_few_statements(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan takes as many statements for a thousand partitions as for one table."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)")
    for start in range(0, 1000, 50):
        source.execute(
            ";".join(
                f"CREATE TABLE t_{i} PARTITION OF t FOR VALUES FROM ({i * 10}) TO ({i * 10 + 10})"
                for i in range(start, start + 50)
            )
        )
    source.execute("INSERT INTO t SELECT i, 'v' FROM generate_series(0, 9999) i")
    statements: list[str] = []
    execute = psycopg.Connection.execute

    def counted(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        statements.append(str(query))
        return execute(self, query, *args, **kwargs)

    monkeypatch.setattr(psycopg.Connection, "execute", counted)
    (loaded,) = pipeline.run(source.settings()).tables
    assert (loaded.error, loaded.rows_read, loaded.files) == (None, 10_000, 1)
    assert len(statements) < 60
    assert differences(source.settings()) == {}
