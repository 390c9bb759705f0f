"""Reading splits that PostgreSQL packs: connections, requests ahead, other ways, and errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import polars as pl
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from bronze.errors import SnapshotLost, SourceError, SourceUnreachable, TableContested, TableRefused
from bronze.ingest import pipeline
from bronze.model.locations import Origin
from bronze.postgres import statement
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.connection import connect, read_connections
from bronze.postgres.connection.read_connections import BEGIN
from bronze.postgres.copy import (
    packed_columns,
    packed_query,
    packed_reader,
    reader,
    rows_reader,
    splits,
)
from tests.acceptance.test_exact import CASES, REJECTED
from tests.acceptance.test_exact import SETUP as TYPES
from tests.conftest import Source
from tests.integration.postgres.copy.test_readers import contract, rows_of, without_connectorx
from tests.support.features import since

READ_ROWS = rows_reader.read_rows

pytestmark = since("scans of page ranges")

PATIENCE = 20.0
NAME = "bronze-packed"
SLEEP = "pg_sleep(100) IS NOT NULL"


def until(condition: Callable[[], object]) -> None:
    """Waits until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def opened(
    source: Source, where: Sequence[str], session: Sequence[str] = (), **changes: object
) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    """A packed read of the table ``t`` that is under way."""
    columns = contract(source, "t")
    origin = replace(
        source.settings().origin("test"),
        application_name=NAME,
        **changes,  # type: ignore[arg-type]
    )
    return packed_reader.read_rows(
        origin, session, statement.select(columns, "public.t"), where, columns, "public.t", True
    )


def sessions(
    source: Source, state: str = "%", query: str = "", condition: str = "true"
) -> list[int]:
    """The processes of the reader's sessions, by their state and a part of their last query."""
    rows = source.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND state LIKE %s"
        f" AND strpos(query, %s) > 0 AND datname = current_database() AND {condition}",
        NAME,
        state,
        query,
    )
    return [row[0] for row in rows]


def relation_of(source: Source) -> Relation:
    """The table ``t`` in the catalog."""
    with connect.connect(source.settings().origin("test")) as connection:
        (relation,) = relations(connection, ["public"])
        return relations(connection, ["public"], [relation.oid])[0]


@pytest.fixture
def numbers(source: Source) -> Source:
    """A table of six rows."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 6) g")
    return source


def test_one_connection_reads_all_splits_and_asks_ahead(numbers: Source) -> None:
    """PostgreSQL packs the next split while the rows of this one are processed."""
    with mock.patch.object(
        read_connections, "connect_again", side_effect=connect.connect_again
    ) as connecting:
        reading = opened(numbers, ["id < 3", "id = 3", "id > 3"])
        assert next(reading)[0]["id"].to_list() == [1, 2]
        until(lambda: sessions(numbers, "idle in transaction", "id = 3"))
        (process,) = sessions(numbers)
        assert next(reading)[0]["id"].to_list() == [3]
        until(lambda: sessions(numbers, query="id > 3") == [process])
        assert [rows["id"].to_list() for rows, _ in reading] == [[4, 5, 6]]
    assert connecting.call_count == 1
    until(lambda: not sessions(numbers))


def test_a_reader_that_is_closed_early_cancels_its_query(numbers: Source) -> None:
    """No query of its own goes on for rows that nobody wants any more."""
    reading = opened(numbers, ["true", SLEEP])
    next(reading)
    until(lambda: sessions(numbers, "active", "pg_sleep"))
    reading.close()  # type: ignore[attr-defined]
    until(lambda: not sessions(numbers))


# What the quick way cannot read, in a column ``v`` of some type.
TRIPS = {
    "numeric(12,2)": "'NaN'",
    "numeric(30,2)": "'NaN'",
    "date": "'infinity'",
    "timestamp": "'-infinity'",
    "timestamptz": "'294276-01-01Z'",
    "int[]": "'{{1,2}}'",
    "text[]": "'[0:1]={a,b}'",
    "text": "E'\\x01'",
}


@pytest.mark.parametrize("kind", TRIPS)
def test_a_rejected_value_is_found_by_the_query_that_tests_values(
    source: Source, kind: str
) -> None:
    """Only from its split on; connectorx is not asked."""
    source.execute(f"CREATE TABLE t (id int, v {kind})")
    source.execute(f"INSERT INTO t VALUES (1, NULL), (2, {TRIPS[kind]}), (3, NULL)")
    columns = contract(source, "t")
    where = ["id = 1", "id = 2", "id = 3"]
    expected = rows_of(rows_reader.read_rows, source, columns, where=where)
    asked = []
    query = packed_query.Packing.query

    def recorded(way: packed_query.Packing, condition: str) -> str:
        asked.append((condition, way.quick))
        return query(way, condition)

    with without_connectorx(), mock.patch.object(packed_query.Packing, "query", recorded):
        rows = rows_of(packed_reader.read_rows, source, columns, where=where)
    assert (rows[0].to_dicts(), rows[1]) == (expected[0].to_dicts(), expected[1])
    assert (rows[1][1] is None) == (kind == "text")
    ways = [("id = 1", True), ("id = 2", True), ("id = 2", False), ("id = 3", False)]
    assert asked == ways


def test_ordinary_values_are_read_in_the_first_way(source: Source) -> None:
    """Of every type, with NULL, empty and other texts."""
    source.execute(TYPES)
    values = {kind: texts[0][0] for kind, texts in CASES if texts[0][1] is not REJECTED}
    defined = [f"c{i} {kind}" for i, kind in enumerate(values)]
    source.execute(f"CREATE TABLE t ({', '.join(defined)}, e text, n text NOT NULL)")
    source.execute(f"INSERT INTO t VALUES ({', '.join(values.values())}, '', '')")
    source.execute("INSERT INTO t (n) VALUES ('é')")
    columns = contract(source, "t")
    with mock.patch.object(packed_query, "guarded_packing", return_value=None):
        rows, _ = rows_of(packed_reader.read_rows, source, columns, where=["true", "false", "true"])
    assert rows.height == 4


def test_what_cannot_be_packed_is_read_by_connectorx(numbers: Source) -> None:
    """For example columns of more than a gigabyte."""
    columns = contract(numbers, "t")
    where = ["id < 3", "id >= 3"]
    expected = rows_of(rows_reader.read_rows, numbers, columns, where=where)
    failing = mock.patch.object(
        packed_query, "_concatenation", "string_agg({}, int4send(1 / 0))".format
    )
    with (
        failing,
        mock.patch.object(rows_reader, "read_rows", side_effect=READ_ROWS) as reading,
    ):
        assert rows_of(packed_reader.read_rows, numbers, columns, where=where)[0].equals(
            expected[0]
        )
    assert reading.call_count == 1


def test_a_split_of_unknown_size_is_packed_if_it_is_small(numbers: Source) -> None:
    """By PostgreSQL's estimate; ranges of pages are small enough."""
    numbers.execute("ANALYZE t")
    columns = contract(numbers, "t")
    pages = next(splits.page_ranges(relation_of(numbers), 2**20)).where
    for largest, where, calls in (
        (30, ["id < 3", "true"], 1),
        (5, ["id < 3", "true"], 1),
        (500, ["id < 3", "true"], 0),
        (10, [pages], 0),
    ):
        with (
            mock.patch.object(packed_reader, "LARGEST", largest),
            mock.patch.object(rows_reader, "read_rows", side_effect=READ_ROWS) as reading,
        ):
            rows, _ = rows_of(packed_reader.read_rows, numbers, columns, where=where)
        assert rows.height == (8 if len(where) > 1 else 6)
        assert reading.call_count == calls
        if calls:
            assert reading.call_args.args[3] == (where[1:] if largest == 30 else where)


@pytest.mark.parametrize("value", ["'{a,b,c,d}'::text[]", "'{1,NULL,3,4}'::int[]"])
def test_very_long_arrays_are_read_by_connectorx(source: Source, value: str) -> None:
    """If their elements would have to be looked at one by one."""
    source.execute(f"CREATE TABLE t AS SELECT g AS id, {value} AS v FROM generate_series(1, 3) g")
    columns = contract(source, "t")
    where = ["id = 1", "id > 1"]
    expected = rows_of(rows_reader.read_rows, source, columns, where=where)
    for walked, calls in ((8, 0), (7, 1)):
        with (
            mock.patch.object(packed_columns, "_MOST_WALKED", walked),
            mock.patch.object(rows_reader, "read_rows", side_effect=READ_ROWS) as reading,
        ):
            rows = rows_of(packed_reader.read_rows, source, columns, where=where)
        assert repr(rows[0].to_dicts()) == repr(expected[0].to_dicts())
        assert [call.args[3] for call in reading.call_args_list] == [["id > 1"]] * calls


def test_servers_before_14_are_read_by_connectorx(numbers: Source) -> None:
    """They scan the whole table for each range of pages."""
    columns = contract(numbers, "t")
    with (
        mock.patch.object(packed_reader, "OLDEST_VERSION", 990_000),
        mock.patch.object(rows_reader, "read_rows", side_effect=READ_ROWS) as reading,
    ):
        assert rows_of(packed_reader.read_rows, numbers, columns)[0].height == 6
    assert reading.call_count == 1


def test_rows_are_those_of_the_snapshot(numbers: Source) -> None:
    """Also after a query that failed, and whose transaction with it."""
    numbers.execute("ALTER TABLE t ADD n numeric(9,1)")
    numbers.execute("INSERT INTO t VALUES (0, 'NaN', 'NaN')")
    with psycopg.connect(numbers.dsn) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        ((name,),) = holder.execute("SELECT pg_export_snapshot()").fetchall()
        numbers.execute("DELETE FROM t WHERE id < 3; INSERT INTO t VALUES (7, 'late')")
        session = (BEGIN, f"SET TRANSACTION SNAPSHOT '{name}'")
        with without_connectorx():
            parts = list(opened(numbers, ["id > 3", "id <= 3"], session))
    assert sorted(i for rows, _ in parts for i in rows["id"]) == [0, 1, 2, 3, 4, 5, 6]


def failing(function: str) -> str:
    """A statement that replaces ``t`` by a view with a function that fails for the id 4."""
    return (
        "CREATE FUNCTION f(i int) RETURNS int LANGUAGE plpgsql AS"
        f" $$BEGIN IF i = 4 THEN {function}; END IF; RETURN i; END$$;"
        "ALTER TABLE t RENAME TO u; CREATE VIEW t AS SELECT public.f(id) AS id, v FROM u"
    )


ERRORS = {
    "a lost column": ("ALTER TABLE t DROP v", TableRefused, "42703", "lost a column"),
    "a lost table": ("DROP TABLE t", TableRefused, "42P01", "does not exist"),
    "a raised error": (failing("RAISE 'secret %', i"), TableRefused, "", "could not be read"),
    "a refused value": (failing("i := 'secret'::int"), TableRefused, "", "could not be read"),
    "a name without schema": (
        failing("PERFORM nothing(i)"),
        TableRefused,
        "42883",
        "without its schema",
    ),
}


@pytest.mark.parametrize("cause", ERRORS)
def test_an_error_has_its_sqlstate_and_no_values(numbers: Source, cause: str) -> None:
    """The table fails alone; an error about a value does not quote it."""
    change, kind, sqlstate, words = ERRORS[cause]
    reading = opened(numbers, ["id < 4", "id = 4"])
    numbers.execute(change)
    with pytest.raises(kind, match=words) as caught:
        list(reading)
    assert type(caught.value) is kind
    assert caught.value.sqlstate == sqlstate
    assert caught.value.table == "public.t"
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_a_role_without_privilege_is_refused(numbers: Source) -> None:
    """With the SQLSTATE."""
    role = f"{conninfo_to_dict(numbers.dsn)['dbname']}_nobody"
    numbers.execute(f"CREATE ROLE {role} LOGIN")
    try:
        with pytest.raises(TableRefused, match="permission denied") as caught:
            list(
                opened(
                    numbers,
                    ["true"],
                    conninfo=f"{numbers.dsn} user={role}"
                    if "://" not in numbers.dsn
                    else numbers.dsn.replace("postgres@", f"{role}@"),
                )
            )
        assert caught.value.sqlstate == "42501"
    finally:
        numbers.execute(f"DROP ROLE {role}")


def test_a_timeout_fails_the_table(numbers: Source) -> None:
    """With the SQLSTATE of the statement timeout."""
    session = (BEGIN, "SET LOCAL statement_timeout = '50ms'")
    with pytest.raises(TableRefused, match="statement_timeout") as caught:
        list(opened(numbers, [SLEEP], session))
    assert caught.value.sqlstate == "57014"


@pytest.mark.soak
def test_rows_that_are_asked_for_ahead_may_wait_longer_than_a_timeout(numbers: Source) -> None:
    """PostgreSQL cannot send them before they are wanted; they are asked for once more."""
    numbers.execute("INSERT INTO t VALUES (7, repeat('x', 30000000)), (8, '')")
    session = (BEGIN, "SET LOCAL statement_timeout = '1s'")
    reading = opened(numbers, ["id < 7", "id = 7", "id = 8"], session)
    next(reading)
    long_ago = "query_start < clock_timestamp() - interval '1.1s' AND state = 'active'"
    until(lambda: sessions(numbers, condition=long_ago))
    assert next(reading)[0]["v"].str.len_bytes().to_list() == [30_000_000]
    assert sessions(numbers, "idle in transaction", "id = 7")
    assert next(reading)[0]["id"].to_list() == [8]


@pytest.mark.parametrize(
    ("function", "kind"),
    [("pg_terminate_backend", SourceUnreachable), ("pg_cancel_backend", TableContested)],
)
def test_a_read_that_is_stopped_has_the_error_of_its_cause(
    numbers: Source, function: str, kind: type[SourceError]
) -> None:
    """Whether its session ends or its query is canceled, even while no one waits for it."""
    reading = opened(numbers, ["true", SLEEP])
    next(reading)
    until(lambda: sessions(numbers, "active", "pg_sleep"))
    (process,) = sessions(numbers, "active")
    numbers.execute(f"SELECT {function}(%s)", process)
    with pytest.raises(kind) as caught:
        next(reading)
    assert caught.value.table == "public.t"
    until(lambda: not sessions(numbers))


CUT = "pg_terminate_backend(pg_backend_pid())"


@pytest.mark.parametrize(
    ("read", "limits", "where", "is_forgotten"),
    [
        (packed_reader.read_rows, {"statement_timeout": 1}, SLEEP, False),
        (packed_reader.read_rows, {"lock_timeout": 1}, "true", False),
        (packed_reader.read_rows, {}, CUT, True),
        (rows_reader.read_rows, {"statement_timeout": 1}, SLEEP, False),
        (rows_reader.read_rows, {}, CUT, True),
    ],
)
def test_only_a_lost_connection_forgets_its_server(
    numbers: Source,
    read: reader.SplitReader,
    limits: dict[str, Any],
    where: str,
    is_forgotten: bool,
) -> None:
    """After a timeout of one table, the reads of others still reach the same server of several."""
    columns = contract(numbers, "t")
    origin = replace(numbers.settings().origin("test"), application_name=NAME, **limits)
    query = statement.select(columns, "public.t")
    try:
        with psycopg.connect(numbers.dsn) as other, connect.connect(origin) as first:
            if "lock_timeout" in limits:
                other.execute("LOCK TABLE t")
            connect.remember_server(origin, first)
            with pytest.raises(SourceError):
                list(read(origin, (BEGIN,), query, [where], columns, "t"))
        assert (origin not in connect._server_parameters) == is_forgotten
    finally:
        connect.forget_origin(origin)


def test_a_lost_snapshot_is_named(numbers: Source) -> None:
    """The run then starts again with a new one."""
    session = (BEGIN, "SET TRANSACTION SNAPSHOT '0000FFFF-0000FFFF-1'")
    with without_connectorx(), pytest.raises(SnapshotLost):
        list(opened(numbers, ["true"], session))
    until(lambda: not sessions(numbers))


@pytest.mark.parametrize("chosen", ["packed", "connectorx", None])
def test_the_config_chooses_the_reader(
    numbers: Source, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    """Packed, unless it says otherwise."""
    used = []
    for name, original in dict(reader.READERS).items():

        def recorded(
            origin: Origin,
            *args: object,
            guarded: bool,
            name: str = name,
            original: reader.SplitReader = original,
        ) -> object:
            used.append(name)
            return original(origin, *args, guarded=guarded)  # type: ignore[arg-type,misc]

        monkeypatch.setitem(reader.READERS, name, recorded)  # type: ignore[arg-type]
    given = numbers.settings(source={"reader": chosen} if chosen else {})
    assert [table.error for table in pipeline.run(given).tables] == [None]
    assert set(used) == {chosen or "packed"}


@pytest.mark.parametrize(
    "expression",
    ["public.refuse(card)", "card::regclass", "pg_has_role(card::name, 'postgres', 'MEMBER')"],
)
def test_errors_show_no_values(source: Source, expression: str) -> None:
    """Whatever error a view's function raises: it is explained without the value that it quotes."""
    source.execute(
        "CREATE FUNCTION refuse(v text) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'bad card %', v USING ERRCODE = 'XX000'; END $$"
    )
    source.execute("CREATE TABLE b (id int, card text); INSERT INTO b VALUES (1, 's3cr3t-4111')")
    source.execute(f"CREATE VIEW t AS SELECT id, {expression} AS card FROM b")
    with pytest.raises(SourceError) as raised:
        list(opened(source, ["true"]))
    assert "s3cr3t" not in f"{raised.value.message} {raised.value.hint}"
