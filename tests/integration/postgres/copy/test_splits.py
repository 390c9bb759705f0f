"""Splits: together they hold every row exactly once, and none is too large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from bronze.execution import budget
from bronze.ingest import pipeline
from bronze.model.locations import Origin
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.connection import connect
from bronze.postgres.copy import splits
from bronze.postgres.copy.splits import Split
from tests.conftest import Source
from tests.support.effort import examples

IN_MEMORY = settings(derandomize=True, database=None, deadline=None, max_examples=examples(15))
NEW, OLD = 180_000, 130_000
PAGE = 8192


@IN_MEMORY
@given(
    heaps=st.lists(st.integers(0, 3000) | st.integers(0, 3), max_size=6),
    pages=st.integers(1, 400),
)
def test_page_ranges_are_contiguous_and_complete(heaps: list[int], pages: int) -> None:
    """Ranges have no gaps, count the pages that they hold, and none holds too many."""
    bounds, counts = splits._bounds(sorted(heaps), pages)
    assert bounds == sorted(set(bounds))
    assert all(bound > 0 for bound in bounds)
    assert all(bound < max(heaps) for bound in bounds)
    edges = [0, *bounds, max(heaps, default=0)]
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        assert count == sum(1 for heap in heaps for _ in range(low, min(heap, high)))
        assert count <= max(pages, len(heaps))
    assert sum(counts) == sum(heaps)


@IN_MEMORY
@given(sizes=st.lists(st.integers(0, 50), min_size=1), size=st.integers(1, 100))
def test_groups_hold_adjacent_splits_that_fit(sizes: list[int], size: int) -> None:
    """Groups hold all splits in order, and more than one only if they fit."""
    parts = [Split(str(i), part_size) for i, part_size in enumerate(sizes)]
    groups = splits.group_splits(parts, size)
    assert [part for group in groups for part in group] == parts
    assert all(len(group) == 1 or sum(part.size for part in group) <= size for group in groups)


@pytest.fixture
def connection(source: Source) -> Iterator[connect.Connection]:
    """A pinned connection to the test's database."""
    with connect.connect(Origin("test", source.dsn)) as opened:
        yield opened


def relation_of(connection: connect.Connection, name: str = "t") -> Relation:
    """A relation as in the catalog, with its current size."""
    (oid,) = [r.oid for r in relations(connection, ["public"]) if r.name == name]
    return next(r for r in relations(connection, ["public"], [oid]) if r.oid == oid)


def row_counts(
    connection: connect.Connection,
    size: int,
    version: int = NEW,
    key: Sequence[str] | None = None,
    name: str = "t",
) -> list[int]:
    """Splits a relation with a column ``id`` and checks that each row is in exactly one split.

    Returns the number of rows in each split.
    """
    relation = relation_of(connection, name)
    key = relation.key if key is None else key
    parts = splits.splits_of(connection, relation, version, size, key)
    assert parts
    rows: list[list[Any]] = [
        connection.execute(
            f"SELECT tableoid, id FROM public.{name} WHERE {part.where}"
            if relation.heaps
            else f"SELECT id FROM public.{name} WHERE {part.where}"
        ).fetchall()
        for part in parts
    ]
    every = f"SELECT {'tableoid, ' if relation.heaps else ''}id FROM public.{name}"
    all_rows = connection.execute(every).fetchall()
    assert Counter(row for part in rows for row in part) == Counter(all_rows), name
    return [len(part) for part in rows]


def test_a_table_without_a_key_is_split_evenly(
    source: Source, connection: connect.Connection
) -> None:
    """A table whose values are all the same is split by pages."""
    source.execute(
        "CREATE TABLE t AS SELECT 1 AS id, repeat('x', 100) AS pad FROM generate_series(1, 5000)"
    )
    counts = row_counts(connection, 10 * PAGE)
    assert len(counts) >= 8
    assert max(counts) < 2 * 5000 / len(counts)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_small_table_is_one_split(
    source: Source, connection: connect.Connection, rows: int
) -> None:
    """A table of at most one page is one split, whether it is split by pages or by key."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.execute(f"INSERT INTO t SELECT generate_series(1, {rows})")
    assert row_counts(connection, 1) == [rows]
    assert row_counts(connection, 10 * PAGE, OLD) == [rows]


def test_uneven_partitions_are_split_completely(
    source: Source, connection: connect.Connection
) -> None:
    """One large partition among small and empty ones, at two levels."""
    source.execute(
        "CREATE TABLE t (id int, pad text) PARTITION BY RANGE (id);"
        "CREATE TABLE t_big PARTITION OF t FOR VALUES FROM (0) TO (100000);"
        "CREATE TABLE t_none PARTITION OF t FOR VALUES FROM (100000) TO (100001);"
        "CREATE TABLE t_sub PARTITION OF t FOR VALUES FROM (100001) TO (200000)"
        " PARTITION BY LIST (id);"
        "CREATE TABLE t_one PARTITION OF t_sub FOR VALUES IN (100001);"
        "CREATE TABLE t_rest PARTITION OF t_sub DEFAULT;"
        "INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 5000) i;"
        "INSERT INTO t SELECT 100001, 'y' FROM generate_series(1, 40);"
        "INSERT INTO t SELECT 150000 + i, 'z' FROM generate_series(1, 700) i"
    )
    counts = row_counts(connection, 12 * PAGE)
    assert len(counts) > 8
    assert sum(counts) == 5740
    assert row_counts(connection, PAGE)


def test_a_table_without_partitions_is_one_empty_split(
    source: Source, connection: connect.Connection
) -> None:
    """A partitioned table that has no partition yet."""
    source.execute("CREATE TABLE t (id int) PARTITION BY LIST (id)")
    assert row_counts(connection, PAGE) == [0]


def test_inheriting_tables_are_read_with_their_parent(
    source: Source, connection: connect.Connection
) -> None:
    """The splits hold the parent's own rows and those of tables that inherit from it."""
    source.execute(
        "CREATE TABLE t (id int, pad text); CREATE TABLE heir (more int) INHERITS (t);"
        "INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 300) i;"
        "INSERT INTO heir SELECT i, repeat('x', 200), 1 FROM generate_series(1, 3000) i"
    )
    assert sum(row_counts(connection, 8 * PAGE)) == 3300


def test_a_foreign_partition_is_read_once(source: Source, connection: connect.Connection) -> None:
    """A partition on another server has no pages here; no row is missing or read twice."""
    port = conninfo_to_dict(source.dsn)
    source.execute(
        "CREATE EXTENSION postgres_fdw; CREATE SCHEMA far;"
        "CREATE TABLE far.v AS SELECT i AS id, repeat('x', 200) AS pad"
        " FROM generate_series(10001, 13000) i;"
        f"CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw"
        f" OPTIONS (host '127.0.0.1', port '{port['port']}', dbname '{port['dbname']}');"
        "CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS (user 'postgres');"
        "CREATE TABLE t (id int, pad text) PARTITION BY RANGE (id);"
        "CREATE TABLE t_near PARTITION OF t FOR VALUES FROM (0) TO (10000);"
        "CREATE FOREIGN TABLE t_far PARTITION OF t FOR VALUES FROM (10000) TO (20000)"
        " SERVER other OPTIONS (schema_name 'far', table_name 'v');"
        "INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 1000) i"
    )
    assert sum(row_counts(connection, 8 * PAGE)) == 4000


def test_dead_rows_and_empty_pages_do_not_matter(
    source: Source, connection: connect.Connection
) -> None:
    """With dead rows, empty ranges and moved rows, each row is still in exactly one split."""
    source.execute(
        "CREATE TABLE t (id int, pad text) WITH (autovacuum_enabled = off);"
        "INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 4000) i"
    )
    source.execute("DELETE FROM t WHERE id BETWEEN 500 AND 3500")
    source.execute("UPDATE t SET pad = repeat('y', 500) WHERE id % 3 = 0")
    assert sum(row_counts(connection, 6 * PAGE)) == 999
    source.execute("VACUUM t")
    assert sum(row_counts(connection, 6 * PAGE)) == 999


def test_values_out_of_line_are_counted(source: Source, connection: connect.Connection) -> None:
    """A table with few pages and much TOAST is split by its real size."""
    source.execute("CREATE TABLE t (id int, pad text)")
    source.execute("ALTER TABLE t ALTER pad SET STORAGE EXTERNAL")
    source.execute("INSERT INTO t SELECT i, repeat('x', 10000) || i FROM generate_series(1, 300) i")
    assert relation_of(connection).heaps == (2,)
    counts = row_counts(connection, 10 * PAGE)
    assert len(counts) == 2


def test_rows_inserted_after_the_plan_are_in_a_split(
    source: Source, connection: connect.Connection
) -> None:
    """The last split is open; the snapshot decides which rows are read."""
    source.execute("CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 5000) i")
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    parts = splits.splits_of(connection, relation_of(connection), NEW, 5 * PAGE, ())
    source.execute("INSERT INTO t SELECT i FROM generate_series(5001, 20000) i")
    wheres = [part.where for part in parts]
    in_snapshot = [
        connection.execute(f"SELECT count(*) FROM public.t WHERE {w}").fetchone() for w in wheres
    ]
    assert sum(int(str(row[0])) for row in in_snapshot if row) == 5000
    connection.execute("ROLLBACK")
    counts = [source.execute(f"SELECT count(*) FROM t WHERE {w}")[0][0] for w in wheres]
    assert sum(counts) == 20000


KEYS = {
    "integers": "i",
    "duplicates": "i % 3",
    "all the same": "7",
    "nulls": "nullif(i % 7, 0)",
    "mostly null": "CASE WHEN i = 1 THEN 1 END",
    "only null": "NULL::int",
    "text": "md5(i::text)",
    "odd text": "'O''Brien \\%s ' || i",
    "letters of both cases": "chr(65 + i % 26) || chr(97 + i % 7)",
    "char(6)": "i::text::char(6)",
    "bit(16)": "(i % 65536)::bit(16)",
    "uuid": "md5(i::text)::uuid",
    "numeric": "i / 7.0",
    "equal numerics": "CASE i % 3 WHEN 0 THEN 1.0 WHEN 1 THEN 1.00 ELSE 1.000 END",
    "floats": "CASE i % 5 WHEN 0 THEN 'NaN' WHEN 1 THEN '-Infinity' ELSE i / 3.0::float8 END",
    "date": "CASE i % 5 WHEN 0 THEN 'infinity' ELSE '2024-01-01'::date + i END",
    "timestamptz": "'2024-01-01'::timestamptz + i * interval '1 hour'",
    "interval": "i % 50 * interval '1 day' - i * interval '24 hours'",
    "boolean": "i % 2 = 0",
    "bytea": "int4send(i)",
    "range": "int4range(i, i + 1)",
    "jsonb": "to_jsonb(i)",
}


@pytest.mark.soak
def test_views_are_split_by_key(source: Source, connection: connect.Connection) -> None:
    """A view is split by ranges of its key, whatever the type, with duplicates and NULLs."""
    for i, (case, key) in enumerate(KEYS.items()):
        rows = f"SELECT {key} AS k, i AS id FROM generate_series(1, 3000) i"
        connection.execute(f"CREATE VIEW public.v{i} AS {rows}".encode())
        counts = row_counts(connection, 5_000, key=["k"], name=f"v{i}")
        (distinct,) = connection.execute(f"SELECT count(DISTINCT k) FROM public.v{i}".encode())
        if int(str(distinct[0])) > 1000:
            assert len(counts) > 1, case
            assert max(counts) < 3 * 3000 / len(counts), case


def test_a_view_without_a_key_is_read_whole(source: Source, connection: connect.Connection) -> None:
    """A relation with neither pages nor a key is one split."""
    source.execute("CREATE VIEW t AS SELECT i AS id FROM generate_series(1, 3000) i")
    assert row_counts(connection, 100) == [3000]


def test_tables_of_old_servers_are_split_by_key(
    source: Source, connection: connect.Connection
) -> None:
    """Before PostgreSQL 14 each range of ctid scans the whole table. A table without a key is split
    by pages all the same, because it may be larger than the memory.
    """
    source.execute(
        "CREATE TABLE t (id bigint, part text, PRIMARY KEY (part, id));"
        "INSERT INTO t SELECT i, md5((i % 100)::text) FROM generate_series(1, 5000) i;"
        "ANALYZE t"
    )
    counts = row_counts(connection, 40_000, OLD)
    assert len(counts) > 3
    assert len(row_counts(connection, 40_000, OLD, key=())) > 3


def test_a_table_without_access_to_ctid_is_split_by_key(
    source: Source, connection: connect.Connection
) -> None:
    """The role may read some columns, but not the system column ctid."""
    source.execute("CREATE TABLE t AS SELECT generate_series(1, 20000) AS id; ANALYZE t")
    relation = replace(relation_of(connection, "t"), system=frozenset())
    parts = splits.splits_of(connection, relation, NEW, 20_000, ["id"])
    assert len(parts) > 2
    assert "ctid" not in "".join(part.where for part in parts)
    queries = [f"SELECT count(*), min(id) FROM t WHERE {part.where}" for part in parts]
    counts = [source.execute(query)[0] for query in queries]
    assert sum(count for count, _ in counts) == 20_000
    assert len({first for _, first in counts}) == len(parts)


@pytest.mark.soak
def test_a_renamed_key_is_split_by_its_source_name(source: Source) -> None:
    """A view is split by ranges of its key, whatever the name of the key in Bronze."""
    source.execute("""
        CREATE FUNCTION many() RETURNS SETOF int LANGUAGE plpgsql ROWS 100000000 AS
        $$ BEGIN RETURN QUERY SELECT generate_series(1, 500); END $$;
        CREATE VIEW v AS SELECT id FROM many() AS id
    """)
    tables = {"v": {"key": ["id"], "rename": {"id": "number"}}}
    result = pipeline.run(source.settings(tables=tables))
    assert [(t.error, t.rows_read) for t in result.tables] == [(None, 500)]
    assert result.tables[0].files > 1


@pytest.mark.soak
def test_many_small_splits_load_every_row_once(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with small splits of a table, a materialized view and a view."""
    monkeypatch.setattr(budget, "LARGEST_SPLIT", 2**20)
    source.execute(
        "CREATE SCHEMA base; CREATE TABLE base.t AS"
        " SELECT i AS id, repeat('x', 300) AS pad FROM generate_series(1, 20000) i"
    )
    kinds = {"t": "TABLE", "m": "MATERIALIZED VIEW", "v": "VIEW"}
    for name, kind in kinds.items():
        source.execute(f"CREATE {kind} {name} AS SELECT * FROM base.t")
    source.execute("ANALYZE")
    result = pipeline.run(source.settings(tables={name: {"key": ["id"]} for name in kinds}))
    results = {table.table.partition(".")[2]: table for table in result.tables}
    assert results.keys() == kinds.keys()
    for name, kind in kinds.items():
        assert results[name].error is None, kind
        assert results[name].rows_read == 20000, kind
        assert results[name].files > 1, kind
        landed = pl.read_delta(str(source.table(name)))
        assert sorted(landed["id"]) == list(range(1, 20001)), kind
