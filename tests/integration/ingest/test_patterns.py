"""Patterns: only differences land, exactly once, and late commits are not missed."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import polars as pl
import psycopg
import pytest
import tenacity
from deltalake import DeltaTable

from bronze.config.settings import Settings
from bronze.ingest import pipeline
from bronze.model.events import LoadEvent, TableProgress
from bronze.model.results import TableResult
from bronze.postgres.copy import snapshot
from tests.conftest import Source
from tests.support.content import differences
from tests.support.together import Case, Story, Unproven, tell, together

FULL = {"pattern": "full_refresh"}
BATCH = {"pattern": "batch"}
BY_TIME = {"pattern": "batch", "cursor": "at"}
LONG_AGO = "'2020-01-01 00:00Z'::timestamptz"
THING = f"""
CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now());
INSERT INTO t SELECT i, 'v' || i, {LONG_AGO} FROM generate_series(1, 50) i
"""


def settings(source: Source, options: dict[str, Any], name: str = "t") -> Settings:
    """Settings of one table with these options."""
    return source.settings(tables={name: options})


def run(source: Source, options: dict[str, Any], name: str = "t") -> TableResult:
    """Runs the only table of a source."""
    (result,) = pipeline.run(settings(source, options, name)).tables
    return result


def land(source: Source, options: dict[str, Any], name: str = "t") -> TableResult:
    """Runs the only table of a source; afterwards its Bronze table equals it."""
    result = run(source, options, name)
    assert result.error is None
    assert differences(settings(source, options, name)) == {}
    return result


def counts(result: TableResult) -> tuple[int, int, int]:
    """What a run inserted, updated and deleted."""
    assert result.error is None
    return result.inserted, result.updated, result.deleted


def entry(source: Source, version: int | None, name: str = "t") -> dict[str, list[Any]]:
    """The actions of one commit, by their names."""
    path = source.table(name) / "_delta_log" / f"{version:020}.json"
    actions: dict[str, list[Any]] = {}
    for line in path.read_text().splitlines():
        for kind, action in json.loads(line).items():
            actions.setdefault(kind, []).append(action)
    return actions


def position(source: Source, version: int | None) -> dict[str, int]:
    """The position and the watermarks of a commit, by the last part of their names."""
    return {
        action["appId"].rpartition("/")[2]: action["version"]
        for action in entry(source, version)["txn"]
        if not action["appId"].startswith(("bronze/commit", "bronze/audit/"))
    }


def files(source: Source, version: int | None = None, name: str = "t") -> set[str]:
    """The data files of a version."""
    return set(DeltaTable(str(source.table(name)), version=version).file_uris())


def feed(source: Source, version: int | None, name: str = "t") -> list[tuple[str, Any]]:
    """The change data feed of one version: kinds of change and ids, sorted."""
    assert version is not None
    changes = DeltaTable(str(source.table(name))).load_cdf(version, version).read_all()
    return sorted(pl.DataFrame(changes).select("_change_type", "id").rows())


def row(source: Source, key: Any, name: str = "t") -> dict[str, Any]:
    """The one row with an id in a Bronze table."""
    (match,) = pl.read_delta(str(source.table(name))).filter(pl.col("id") == key).to_dicts()
    return dict(match)


def updates(*ids: Any) -> list[tuple[str, Any]]:
    """The change data feed of updates of these ids."""
    kinds = ("update_postimage", "update_preimage")
    return sorted((kind, key) for kind in kinds for key in ids)


@contextmanager
def open_transaction(source: Source, *statements: str) -> Iterator[psycopg.Connection]:
    """A second connection with an open transaction that has run some statements."""
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        connection.execute("BEGIN")
        for statement in statements:
            connection.execute(statement)
        yield connection


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conflicts are retried without a pause."""
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=lambda _: None))


@pytest.fixture
def without_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """No margin around the start of transactions: it could hide faults."""
    monkeypatch.setattr(snapshot, "START_MARGIN", 0)


# --- what lands ------------------------------------------------------------------------------


@together(FULL, BATCH, {"pattern": "micro_batch"}, BY_TIME)
def test_only_differences_are_committed(source: Case, options: dict[str, Any]) -> Story:
    """New, changed and deleted rows become inserts, updates and marks; no other row changes."""
    source.execute(THING)
    assert counts((yield options)) == (50, 0, 0)
    before = {key: row(source, key) for key in (1, 2, 3)}
    source.execute(
        "UPDATE t SET v = 'new', at = now() WHERE id = 2; DELETE FROM t WHERE id = 3;"
        " INSERT INTO t VALUES (51, 'v51')"
    )
    result = yield options
    assert counts(result) == (1, 1, 1)
    assert feed(source, result.version) == sorted([("insert", 51), *updates(2, 3)])
    assert row(source, 1) == before[1]
    changed, deleted = row(source, 2), row(source, 3)
    assert (changed["v"], changed["record_status"]) == ("new", "ACTIVE")
    assert (deleted["v"], deleted["record_status"]) == ("v3", "DELETED")
    for now, then in ((changed, before[2]), (deleted, before[3])):
        assert now["load_timestamp"] == then["load_timestamp"]
        assert now["update_timestamp"] > then["update_timestamp"]
        assert now["batch_id"] != then["batch_id"]
        assert now["ingestion_method"] == options["pattern"]
    if options["pattern"] != "full_refresh":
        assert result.rows_read == 2


@together(FULL, BATCH, BY_TIME)
def test_without_changes_only_the_position_is_committed(
    source: Case, options: dict[str, Any]
) -> Story:
    """The commit has a later position, and no file."""
    source.execute(THING)
    first = yield options
    source.execute("CREATE TABLE other (id int); DROP TABLE other")
    second = yield options
    assert (second.status, counts(second), second.files) == ("unchanged", (0, 0, 0), 0)
    assert second.version == 1
    assert not {"add", "remove", "cdc", "metaData"} & set(entry(source, 1))
    assert files(source, 0) == files(source, 1)
    before, after = position(source, first.version), position(source, second.version)
    # A run by a cursor column has not read what xmin would show.
    unset = {"xmin"} if "cursor" in options else set()
    assert before.keys() - unset == after.keys()
    # The difference of the clocks is no position.
    assert all(after[name] >= before[name] for name in after if name != "ahead")
    assert unset or after["xmin"] > before["xmin"]


@together(FULL, BATCH, BY_TIME)
def test_a_reinserted_row_is_active_again(source: Case, options: dict[str, Any]) -> Story:
    """A row that is deleted and inserted again with the same values stays one row of the table."""
    source.execute(THING)
    yield options
    source.execute("DELETE FROM t WHERE id = 7")
    assert counts((yield options)) == (0, 0, 1)
    assert counts((yield options)) == (0, 0, 0)
    source.execute(f"INSERT INTO t VALUES (7, 'v7', {LONG_AGO})")
    if options == BY_TIME:
        source.execute("UPDATE t SET at = now() WHERE id = 7")
    result = yield options
    assert counts(result) == (0, 1, 0)
    assert row(source, 7)["record_status"] == "ACTIVE"
    assert feed(source, result.version) == updates(7)


@together(FULL, BATCH)
def test_on_delete_remove_removes_deleted_rows(source: Case, options: dict[str, Any]) -> Story:
    """With on_delete = "remove" deleted rows leave the table, and return as inserts."""
    options = {**options, "on_delete": "remove"}
    source.execute(THING)
    yield options
    source.execute("DELETE FROM t WHERE id IN (7, 8)")
    result = yield options
    assert counts(result) == (0, 0, 2)
    assert feed(source, result.version) == [("delete", 7), ("delete", 8)]
    assert pl.read_delta(str(source.table("t"))).height == 48
    source.execute("INSERT INTO t VALUES (7, 'v7')")
    result = yield options
    assert counts(result) == (1, 0, 0)
    assert feed(source, result.version) == [("insert", 7)]


@together(FULL, BATCH)
def test_a_changed_key_is_a_delete_and_an_insert(source: Case, options: dict[str, Any]) -> Story:
    """An UPDATE of a key is a delete and an insert; rows that swap their values are updates."""
    source.execute(THING)
    yield options
    source.execute("UPDATE t SET id = id + 1000, at = now() WHERE id = 1")
    source.execute(
        "UPDATE t SET v = CASE id WHEN 2 THEN 'v3' ELSE 'v2' END, at = now() WHERE id IN (2, 3)"
    )
    result = yield options
    assert counts(result) == (1, 2, 1)
    assert feed(source, result.version) == sorted([("insert", 1001), *updates(1, 2, 3)])


@together(FULL, BATCH)
def test_truncate_marks_all_rows_and_reinserts_update_them(
    source: Case, options: dict[str, Any]
) -> Story:
    """TRUNCATE marks every row as deleted; inserting them again updates each once."""
    source.execute(THING)
    yield options
    source.execute("TRUNCATE t")
    assert counts((yield options)) == (0, 0, 50)
    source.execute("INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 50) i")
    assert counts((yield options)) == (0, 50, 0)


@together(BATCH, BY_TIME)
def test_rows_reloaded_with_equal_values_are_unchanged(
    source: Case, options: dict[str, Any]
) -> Story:
    """Rows that are inserted again with equal values after a TRUNCATE are unchanged."""
    source.execute(THING)
    yield options
    at = LONG_AGO if options == BATCH else "now()"
    source.execute(
        f"TRUNCATE t; INSERT INTO t SELECT i, 'v' || i, {at} FROM generate_series(2, 51) i"
    )
    result = yield options
    assert result.rows_read == 50
    assert counts(result) == ((1, 0, 1) if options == BATCH else (1, 49, 1))


def a_table_without_a_key_is_replaced(source: Case) -> Story:
    """Without a key all rows are replaced in one commit, duplicates included."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id, 'x' AS v FROM generate_series(1, 3)")
    yield FULL
    source.execute("DELETE FROM t WHERE ctid = '(0,1)'; INSERT INTO t VALUES (2, 'y')")
    result = yield FULL
    assert counts(result) == (3, 0, 0)
    frame = pl.read_delta(str(source.table("t")))
    assert sorted(frame["id"].to_list()) == [1, 1, 2]
    assert set(frame["record_status"]) == {"ACTIVE"}
    refused = (yield Unproven(BATCH)).error
    assert refused is not None
    assert (
        source.named('Table public.t has no key, which the pattern "batch" needs')
        in refused.message
    )
    assert "key = […]" in refused.hint


def only_files_with_changed_keys_are_rewritten(source: Case) -> Story:
    """Where rows of one of three files change, the other two files stay."""
    source.execute(THING)
    yield BATCH
    for start in (100, 200):
        source.execute(f"INSERT INTO t SELECT i FROM generate_series({start}, {start + 50}) i")
        (yield BATCH)
    before = files(source)
    assert len(before) == 3
    source.execute("UPDATE t SET v = 'new' WHERE id IN (110, 111)")
    result = yield BATCH
    assert (result.rows_read, counts(result)) == (2, (0, 2, 0))
    assert len(before - files(source)) == len(files(source) - before) == 1
    source.execute("DELETE FROM t WHERE id = 220")
    before = files(source)
    assert (result.rows_read, counts((yield BATCH))) == (2, (0, 0, 1))
    assert len(before - files(source)) == 1


def an_update_to_equal_values_changes_nothing(source: Case) -> Story:
    """An UPDATE to equal values is read, and changes nothing."""
    source.execute(THING)
    yield BATCH
    before = files(source)
    source.execute("UPDATE t SET v = v WHERE id <= 10")
    result = yield BATCH
    assert (result.rows_read, counts(result), result.status) == (10, (0, 0, 0), "unchanged")
    assert files(source) == before


# --- deletes ---------------------------------------------------------------------------------


@together(BATCH, BY_TIME)
def test_ignored_deletes_leave_rows_active(source: Case, options: dict[str, Any]) -> Story:
    """Deleted rows stay ACTIVE, and a row that is inserted again is an update."""
    options = {**options, "deletes": "ignore"}
    source.execute(THING)
    yield Unproven(options)
    source.execute("DELETE FROM t WHERE id IN (1, 2); UPDATE t SET v = 'x', at = now() WHERE id=3")
    assert counts((yield Unproven(options))) == (0, 1, 0)
    assert row(source, 1)["record_status"] == "ACTIVE"
    source.execute("INSERT INTO t VALUES (1, 'again')")
    assert counts((yield Unproven(options))) == (0, 1, 0)
    assert counts((yield {**options, "deletes": "detect"})) == (0, 0, 1)


def test_deletes_are_detected_once_per_interval(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an interval, deletes are detected by the first run after it has passed."""
    options = {**BATCH, "deletes": "1h"}
    start = dt.datetime.now(dt.UTC)
    passed = dt.timedelta()

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return (start + passed).astimezone(tz)

    monkeypatch.setattr(pipeline, "datetime", Clock)
    source.execute(THING)
    run(source, options)
    counted = []
    for minutes in (59, 61, 119, 122):
        passed = dt.timedelta(minutes=minutes)
        source.execute("DELETE FROM t WHERE id = (SELECT min(id) FROM t)")
        counted.append(counts(run(source, options)))
    assert counted == [(0, 0, 0), (0, 0, 2), (0, 0, 0), (0, 0, 2)]


# --- late commits ----------------------------------------------------------------------------


@pytest.mark.usefixtures("without_margin")
@together(BATCH, BY_TIME)
def test_a_late_commit_is_not_missed(source: Case, options: dict[str, Any]) -> Story:
    """Rows that were written before a run and committed after it land, whatever ran in between."""
    source.execute(THING)
    yield Unproven(options)
    write = source.named(
        "INSERT INTO t VALUES (60, 'late'); UPDATE t SET v = 'late', at = now() WHERE id = 5"
    )
    with open_transaction(source, write) as late:
        for key in (61, 62):
            source.execute(f"INSERT INTO t VALUES ({key}, 'soon')")
            assert counts((yield options)) == (1, 0, 0)
        late.execute("COMMIT")
    result = yield options
    assert (counts(result), result.notes) == ((1, 1, 0), ())
    assert result.rows_read <= 5
    assert feed(source, result.version) == sorted([("insert", 60), *updates(5)])


@pytest.mark.usefixtures("without_margin")
@together(BATCH, BY_TIME)
def test_a_late_write_of_an_old_transaction_is_not_missed(
    source: Case, options: dict[str, Any]
) -> Story:
    """A transaction writes now(), the time of its start, after a run that did not see its rows."""
    source.execute(THING)
    with open_transaction(source) as late:
        yield Unproven(options)
        source.execute("INSERT INTO t VALUES (61, 'soon')")
        yield options
        late.execute(source.named("INSERT INTO t VALUES (60, 'late')").encode())
        late.execute("COMMIT")
    result = yield options
    assert (counts(result), result.notes) == ((1, 0, 0), ())
    assert result.rows_read <= 5


@pytest.mark.usefixtures("without_margin")
@together(BATCH, BY_TIME)
def test_a_savepoint_in_a_late_commit_is_not_missed(source: Case, options: dict[str, Any]) -> Story:
    """Subtransactions get ids of their own, at any time."""
    source.execute(THING)
    insert = source.named("INSERT INTO t VALUES (%s, %s)")
    with open_transaction(source) as late:
        late.execute(insert, (60, "late"))
        late.execute("SAVEPOINT a")
        late.execute(insert, (61, "late"))
        late.execute("ROLLBACK TO a")
        yield Unproven(options)
        for key in range(70, 73):
            late.execute(f"SAVEPOINT s{key}")
            late.execute(insert, (key, "sub"))
        source.execute("INSERT INTO t VALUES (62, 'soon')")
        yield options
        late.execute("COMMIT")
    result = yield options
    assert (counts(result), result.notes) == ((4, 0, 0), ())
    assert result.rows_read <= 5


@pytest.mark.usefixtures("without_margin")
def test_a_transaction_with_a_hidden_start_is_not_missed(source: Source) -> None:
    """With track_activities off a transaction hides its start: its rows land, or runs fail."""
    source.execute(THING)
    with open_transaction(source) as late:
        for statement in ("COMMIT", "SET track_activities = off", "BEGIN", "SELECT now()"):
            late.execute(statement)
        for _ in range(2):
            run(source, BY_TIME)
        late.execute("UPDATE t SET v = 'late', at = now() WHERE id = 1")
        late.execute("COMMIT")
        assert run(source, BY_TIME).error or differences(settings(source, BY_TIME)) == {}


@pytest.mark.usefixtures("without_margin")
def test_the_watermark_is_the_start_of_the_oldest_transaction(source: Source) -> None:
    """The watermark waits at the start of an open transaction, and never moves back."""
    source.execute(THING)
    with open_transaction(source) as late:
        row: Any = late.execute("SELECT now()").fetchone()
        began = int(row[0].timestamp() * 1_000_000)
        marks = [position(source, land(source, BY_TIME).version)["at"] for _ in range(2)]
        assert marks == [began, began]
        late.execute("COMMIT")
    after = position(source, land(source, BY_TIME).version)["at"]
    assert after > began
    later = position(source, land(source, {**BY_TIME, "overlap": "1h"}).version)["at"]
    assert later == after


def rows_with_a_null_cursor_are_always_read(source: Case) -> Story:
    """Rows whose cursor is NULL may have changed at any time."""
    source.execute(THING)
    source.execute("INSERT INTO t VALUES (51, 'a', NULL), (52, 'b', NULL)")
    yield BY_TIME
    source.execute("UPDATE t SET v = 'c' WHERE id = 51")
    result = yield BY_TIME
    assert (result.rows_read, counts(result)) == (2, (0, 1, 0))


def only_rows_since_the_watermark_are_read(source: Case) -> Story:
    """Rows whose cursor did not change are not read, even where other columns changed."""
    source.execute(THING)
    yield BY_TIME
    source.execute("UPDATE t SET v = 'hidden' WHERE id = 1")
    source.execute("UPDATE t SET v = 'shown', at = now() WHERE id = 2")
    result = yield Unproven(BY_TIME)
    assert (result.rows_read, counts(result)) == (1, (0, 1, 0))
    assert counts((yield FULL)) == (0, 1, 0)


@pytest.mark.parametrize(
    "zone", ["Pacific/Kiritimati", pytest.param("Pacific/Pago_Pago", marks=pytest.mark.soak)]
)
def test_a_cursor_without_a_time_zone_needs_an_overlap(source: Source, zone: str) -> None:
    """Whether such a column is in UTC or in the server's zone, late commits are not missed."""
    (name,) = source.execute("SELECT current_database()")
    source.execute(f"ALTER DATABASE {name[0]} SET timezone = '{zone}'")

    def story(source: Case, kind: str, cursor: str) -> Story:
        source.execute(
            f"CREATE TABLE t (id int PRIMARY KEY, at {kind}, utc {kind} DEFAULT (now() AT TIME ZONE"
            f" 'UTC'), local {kind} DEFAULT now()); INSERT INTO t SELECT i, '2020-01-01',"
            " '2020-01-01', '2020-01-01' FROM generate_series(1, 20) i"
        )
        refused = (yield Unproven({**BATCH, "cursor": cursor})).error
        assert refused is not None
        message = source.named(f"The cursor {cursor} of table public.t has no time zone")
        assert message in refused.message
        assert 'overlap, such as "1h"' in refused.hint
        options = {**BATCH, "cursor": cursor, "overlap": "1m"}
        with open_transaction(source) as late:
            yield Unproven(options)
            yield Unproven(options)
            late.execute(source.named("INSERT INTO t (id) VALUES (100)").encode())
            late.execute("COMMIT")
        result = yield options
        assert counts(result) == (1, 0, 0)
        assert result.rows_read <= 2

    tell(source, story, *itertools.product(("timestamp", "date"), ("utc", "local")))


@together(
    ("nothing", "The cursor nothing of table public.t is not there"),
    ("id", "The cursor id of table public.t is of type int4"),
    ("v", "The cursor v of table public.t is of type text"),
)
def test_an_unsuitable_cursor_column_is_refused(source: Case, cursor: str, message: str) -> Story:
    """The error names the column, its type and the types that a cursor may have."""
    source.execute(THING)
    failed = yield Unproven({**BATCH, "cursor": cursor})
    assert failed.error is not None
    assert source.named(message) in failed.error.message
    assert "timestamptz, timestamp, date" in failed.error.message
    assert "xmin" in failed.error.hint
    assert not source.table("t").exists()


def test_a_role_that_sees_no_transactions_needs_an_overlap(source: Source) -> None:
    """Without pg_read_all_stats open transactions are hidden: an overlap is needed."""
    source.execute(THING)
    (name,) = source.execute("SELECT 'reader_' || current_database()")
    role = name[0]
    source.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON t TO {role}")
    try:
        dsn = source.dsn.replace("postgres@", f"{role}@")
        reader = Source(dsn, source.lake)
        refused = run(reader, BY_TIME).error
        assert refused is not None
        assert (
            "The cursor at of table public.t needs the start of the oldest open transaction"
            in refused.message
        )
        assert "GRANT pg_read_all_stats" in refused.hint
        assert counts(land(reader, {**BY_TIME, "overlap": "1h"})) == (50, 0, 0)
        source.execute("INSERT INTO t VALUES (51, 'new')")
        result = land(reader, {**BY_TIME, "overlap": "1h"})
        assert (result.rows_read, counts(result)) == (1, (1, 0, 0))
        source.execute(f"GRANT pg_read_all_stats TO {role}")
        assert counts(land(reader, BY_TIME)) == (0, 0, 0)
    finally:
        source.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# --- xmin, and commands that move rows -------------------------------------------------------


def vacuum_and_cluster_change_no_rows(source: Case) -> Story:
    """VACUUM FREEZE, VACUUM FULL and CLUSTER: changed rows are read, unchanged ones are not."""
    source.execute(THING)
    yield BATCH
    source.execute("UPDATE t SET v = 'new' WHERE id = 4")
    source.execute("INSERT INTO t VALUES (51, 'new')")
    source.execute("VACUUM (FREEZE) t")
    result = yield BATCH
    assert (result.rows_read, counts(result)) == (2, (1, 1, 0))
    source.execute("UPDATE t SET v = 'newer' WHERE id = 5")
    source.execute("VACUUM (FULL, FREEZE) t")
    result = yield BATCH
    assert (result.rows_read, counts(result)) == (1, (0, 1, 0))
    source.execute(f"CLUSTER t USING {source.name}_pkey")
    result = yield BATCH
    assert (result.rows_read, counts(result)) == (0, (0, 0, 0))


def test_rows_of_copy_freeze_are_not_missed(source: Source) -> None:
    """COPY FREEZE writes rows that are frozen from the start, without an xmin to find them by."""
    source.execute(THING)
    land(source, BATCH)
    with psycopg.connect(source.dsn) as connection:
        connection.execute("TRUNCATE t")
        with connection.cursor().copy("COPY t (id, v) FROM STDIN (FREEZE)") as copy:
            copy.write("".join(f"{i}\tcopied{i}\n" for i in range(10, 80)))
    assert counts(land(source, BATCH)) == (29, 41, 9)


@together(FULL, BATCH)
def test_partitions_are_created_detached_and_exchange_rows(
    source: Case, options: dict[str, Any]
) -> Story:
    """A row that moves to another partition is an update; a partition does not land by itself."""
    source.execute(
        "CREATE TABLE t (id int, p int, at timestamptz DEFAULT now(), PRIMARY KEY (id, p))"
        " PARTITION BY LIST (p);"
        f" CREATE TABLE {source.name}1 PARTITION OF t FOR VALUES IN (1);"
        f" CREATE TABLE {source.name}2 PARTITION OF t FOR VALUES IN (2);"
        f" INSERT INTO t SELECT i, 1 + i % 2, {LONG_AGO} FROM generate_series(1, 40) i"
    )
    options = {**options, "key": "id"}
    yield options
    source.execute("UPDATE t SET p = 3 - p, at = now() WHERE id IN (1, 2, 3)")
    result = yield options
    assert counts(result) == (0, 3, 0)
    assert feed(source, result.version) == updates(1, 2, 3)
    source.execute(
        f"CREATE TABLE {source.name}3 PARTITION OF t FOR VALUES IN (3);"
        " INSERT INTO t VALUES (50, 3), (51, 3)"
    )
    assert counts((yield options)) == (2, 0, 0)
    source.execute(f"ALTER TABLE t DETACH PARTITION {source.name}3; DROP TABLE {source.name}3")
    assert counts((yield options)) == (0, 0, 2)


def test_rows_of_an_attached_partition_are_not_missed(source: Source) -> None:
    """Its rows are older than the last run, but were not in this table then."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        " CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100);"
        " CREATE TABLE t2 (id int PRIMARY KEY);"
        " INSERT INTO t VALUES (1); INSERT INTO t2 VALUES (101)"
    )
    only = source.settings(source={"tables": ["t"]}, tables={"t": BATCH})
    pipeline.run(only)
    source.execute("ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (100) TO (200)")
    (result,) = pipeline.run(only).tables
    assert differences(only) == {}
    assert counts(result) == (1, 0, 0)


def test_rows_of_an_exchanged_partition_are_not_missed(source: Source) -> None:
    """The new partition has the same keys, and other values that are older than the last run."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        " CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100);"
        " CREATE TABLE t2 (id int PRIMARY KEY, v text);"
        " INSERT INTO t VALUES (1, 'old'); INSERT INTO t2 VALUES (1, 'new')"
    )
    only = source.settings(source={"tables": ["t"]}, tables={"t": BATCH})
    pipeline.run(only)
    source.execute(
        "ALTER TABLE t DETACH PARTITION t1; DROP TABLE t1;"
        " ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (0) TO (100)"
    )
    (result,) = pipeline.run(only).tables
    assert differences(only) == {}
    assert counts(result) == (0, 1, 0)


def test_rows_of_inheriting_tables_are_loaded_with_their_parent(source: Source) -> None:
    """With inheritance, a change in a child table is a change of its parent, too."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (more int) INHERITS (t);"
        " ALTER TABLE u ADD PRIMARY KEY (id);"
        " INSERT INTO t VALUES (1, 'a'), (2, 'b'); INSERT INTO u VALUES (3, 'c'), (4, 'd')"
    )
    both = source.settings(tables={"t": BATCH, "u": BATCH})
    pipeline.run(both)
    source.execute("UPDATE t SET v = 'new' WHERE id IN (1, 3); DELETE FROM u WHERE id = 4")
    parent, child = sorted(pipeline.run(both).tables, key=lambda result: result.table)
    assert differences(both) == {}
    assert (parent.rows_read, counts(parent)) == (2, (0, 2, 1))
    assert (child.rows_read, counts(child)) == (1, (0, 1, 1))
    source.execute("INSERT INTO u VALUES (1, 'twice')")
    error = {r.table: r.error for r in pipeline.run(both).tables}["public.t"]
    assert error is not None
    assert "have the same value of the key id" in error.message
    assert pl.read_delta(str(source.table("t"))).height == 4


def test_a_view_needs_a_cursor_column(source: Source) -> None:
    """A view cannot be read by xmin, but by a cursor column."""
    source.execute(THING)
    source.execute("CREATE VIEW w AS SELECT * FROM t")

    def of_view(options: dict[str, Any]) -> TableResult:
        only = source.settings(source={"tables": ["w"]}, tables={"w": {"key": "id", **options}})
        (result,) = pipeline.run(only).tables
        assert result.error or differences(only) == {}
        return result

    error = of_view(BATCH).error
    assert error is not None
    assert "public.w is a view, whose rows have no xmin" in error.message
    assert counts(of_view(BY_TIME)) == (50, 0, 0)
    source.execute("UPDATE t SET v = 'new', at = now() WHERE id = 9; DELETE FROM t WHERE id = 8")
    result = of_view(BY_TIME)
    assert (result.rows_read, counts(result)) == (1, (0, 1, 1))


# --- exactly once ----------------------------------------------------------------------------


def patterns_may_be_switched(source: Case) -> Story:
    """Each pattern continues where another ended, and positions never go back."""
    source.execute(THING)
    last: dict[str, int] = {}
    for number, options in enumerate([FULL, BATCH, FULL, BY_TIME, BATCH, BY_TIME, FULL, BATCH]):
        source.execute(
            f"UPDATE t SET v = v || '!', at = now() WHERE id = {number + 1};"
            f" DELETE FROM t WHERE id = {50 - number}; INSERT INTO t VALUES ({100 + number})"
        )
        result = yield options
        assert counts(result) == ((1, 1, 1) if number else (50, 0, 0))
        marks = position(source, result.version)
        # The difference of the clocks is no position.
        both = (marks.keys() & last.keys()) - {"ahead"}
        assert all(marks[name] >= last[name] for name in both)
        last |= marks
        if options is BATCH:
            assert result.rows_read == 2


def another_cursor_leads_to_a_full_comparison(source: Case) -> Story:
    """Changes that one cursor missed are found by the other."""
    source.execute(THING)
    source.execute(f"ALTER TABLE t ADD b timestamptz; UPDATE t SET b = {LONG_AGO}")
    yield BATCH
    result = yield BY_TIME
    assert (result.rows_read, counts(result)) == (50, (0, 0, 0))
    assert any("all rows are compared" in note for note in result.notes)
    source.execute("UPDATE t SET v = 'missed' WHERE id = 3")
    assert counts((yield Unproven(BY_TIME))) == (0, 0, 0)
    result = yield {**BATCH, "cursor": "b"}
    assert (result.rows_read, counts(result)) == (50, (0, 1, 0))


def xmin_after_a_cursor_leads_to_a_full_comparison(source: Case) -> Story:
    """Changes that the cursor missed are found by xmin."""
    source.execute(THING)
    yield BATCH
    yield BY_TIME
    source.execute("UPDATE t SET v = 'missed' WHERE id = 3")
    assert counts((yield Unproven(BY_TIME))) == (0, 0, 0)
    assert counts((yield BATCH)) == (0, 1, 0)


def a_cursor_that_is_used_again_misses_nothing(source: Case) -> Story:
    """The watermark of a cursor stays while another cursor is used."""
    source.execute(THING)
    yield BY_TIME
    source.execute("INSERT INTO t VALUES (51, 'a')")
    yield BATCH
    source.execute("INSERT INTO t VALUES (52, 'b'); UPDATE t SET v = 'c', at = now() WHERE id = 1")
    assert counts((yield BY_TIME)) == (1, 1, 0)


@pytest.mark.usefixtures("without_pauses")
def test_an_overtaken_run_commits_nothing(source: Source) -> None:
    """Another run commits between the reads and the commit of a run: the older run fails."""
    every = source.settings(tables={"whole": FULL, "by_xmin": BATCH, "by_time": BY_TIME})

    def execute(statement: str) -> None:
        for name in every.tables:
            source.execute(re.sub(r"\bt\b", name, statement))

    execute(THING)
    pipeline.run(every)
    execute("UPDATE t SET v = 'older', at = now() WHERE id = 1")
    rivals: dict[str, TableResult] = {}

    def overtaken(_: LoadEvent) -> None:
        if not rivals:
            execute("UPDATE t SET v = 'newer', at = now() WHERE id IN (1, 2)")
            rivals.update({result.table: result for result in pipeline.run(every).tables})

    results = {result.table: result for result in pipeline.run(every, notify=overtaken).tables}
    assert {table: counts(rival) for table, rival in rivals.items()} == {
        f"public.{name}": (0, 2, 0) for name in every.tables
    }
    errors = {table: (r.status, r.error.message if r.error else "") for table, r in results.items()}
    for name in every.tables:
        assert errors[f"public.{name}"][0] == "failed", name
        assert "Another run has committed to the table at" in errors[f"public.{name}"][1], name
        folder = source.table(name)
        assert DeltaTable(str(folder)).version() == rivals[f"public.{name}"].version, name
        log = "".join(path.read_text() for path in (folder / "_delta_log").glob("*.json"))
        assert not [path for path in folder.rglob("*.parquet") if path.name not in log], name
    assert differences(every) == {}
    again = pipeline.run(every).tables
    assert {result.table: counts(result) for result in again} == dict.fromkeys(rivals, (0, 0, 0))
    assert differences(every) == {}


@pytest.mark.usefixtures("without_pauses")
def test_an_overtaken_run_retries_from_a_new_snapshot(source: Source) -> None:
    """With retries left the run reads again, from a new snapshot."""
    source.execute(THING)
    land(source, BATCH)
    patient = source.settings(tables={"t": BATCH}, run={"max_retries": 2})
    rivals: list[TableResult] = []

    def overtaken(_: LoadEvent) -> None:
        if not rivals:
            source.execute("UPDATE t SET v = 'newer' WHERE id IN (1, 2)")
            rivals.append(run(source, BATCH))
            source.execute("UPDATE t SET v = 'newest' WHERE id = 3")

    (result,) = pipeline.run(patient, notify=overtaken).tables
    assert counts(result) == (0, 1, 0)
    assert differences(patient) == {}


@pytest.mark.usefixtures("without_pauses")
def test_an_overtaken_replacement_commits_nothing(source: Source) -> None:
    """A table without a key does not go back to an older state, either."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    land(source, FULL)
    rivals: list[TableResult] = []

    def overtaken(_: LoadEvent) -> None:
        if not rivals:
            source.execute("INSERT INTO t VALUES (2)")
            rivals.append(run(source, FULL))

    (result,) = pipeline.run(settings(source, FULL), notify=overtaken).tables
    assert result.error is not None
    assert result.error.kind in ("CommitConflict", "LakeError")
    assert DeltaTable(str(source.table("t"))).version() == rivals[0].version
    assert differences(settings(source, FULL)) == {}


@pytest.mark.usefixtures("without_pauses")
def test_a_foreign_commit_during_a_run_is_no_conflict(source: Source) -> None:
    """Another writer compacts the table while a run reads: the run merges into the new files."""
    source.execute(THING)
    land(source, BATCH)
    source.execute("INSERT INTO t SELECT i FROM generate_series(51, 60) i")
    land(source, BATCH)
    source.execute("UPDATE t SET v = 'new' WHERE id IN (5, 55); DELETE FROM t WHERE id = 6")
    done: list[Any] = []

    def compacted(_: LoadEvent) -> None:
        if not done:
            done.append(DeltaTable(str(source.table("t"))).optimize.compact())

    (result,) = pipeline.run(settings(source, BATCH), notify=compacted).tables
    assert done[0]["numFilesRemoved"] == 2
    assert counts(result) == (0, 2, 1)
    assert differences(settings(source, BATCH)) == {}
    assert feed(source, result.version) == updates(5, 6, 55)


# --- keys ------------------------------------------------------------------------------------


KEYS = {
    "text": ("text", "'k' || i || 'ü'"),
    "uuid": ("uuid", "md5(i::text)::uuid"),
    "timestamptz": ("timestamptz", "'2024-01-01Z'::timestamptz + i * interval '1 us'"),
    "numeric": ("numeric", "i + 0.50"),
    "decimal": ("numeric(30,5)", "i * 1e20::numeric + 0.5"),
    "bytea": ("bytea", "sha256(i::text::bytea)"),
}


@pytest.mark.soak
def test_keys_of_any_type_identify_rows(source: Source) -> None:
    """Keys of every usual type work, alone and as one of two columns."""
    single, double = ([f"{count} {kind}" for kind in KEYS] for count in ("one", "two"))
    for kind, (declared, value) in KEYS.items():
        source.execute(
            f'CREATE TABLE "one {kind}" (id {declared} PRIMARY KEY, v int);'
            f' INSERT INTO "one {kind}" SELECT {value}, i FROM generate_series(1, 40) i;'
            f' CREATE TABLE "two {kind}" (a int, id {declared}, v int, PRIMARY KEY (a, id));'
            f' INSERT INTO "two {kind}" SELECT i % 3, {value}, i FROM generate_series(1, 40) i'
        )
    config = source.settings(tables=dict.fromkeys(single, BATCH) | dict.fromkeys(double, FULL))
    pipeline.run(config)
    for name in single + double:
        of_two = name in double
        value = KEYS[name.partition(" ")[2]][1]
        source.execute(
            f'UPDATE "{name}" SET v = -v WHERE v IN (1, 2);'
            f' DELETE FROM "{name}" WHERE v IN (3, 4, 5);'
            f' INSERT INTO "{name}" (id, v{", a" if of_two else ""})'
            f" SELECT {value}, i{', 0' if of_two else ''} FROM generate_series(41, 44) i"
        )
    results = pipeline.run(config).tables
    every = [f"public.{name}" for name in single + double]
    assert {r.table: counts(r) for r in results} == dict.fromkeys(every, (4, 2, 3))
    assert differences(config) == {}
    config = source.settings(tables=dict.fromkeys(single, FULL) | dict.fromkeys(double, BATCH))
    results = pipeline.run(config).tables
    assert {r.table: counts(r) for r in results} == dict.fromkeys(every, (0, 0, 0))


@pytest.mark.soak
def test_a_key_may_be_nan(source: Source) -> None:
    """A row with the key NaN is inserted, updated and deleted, also as the only row."""
    tables = {
        f"{pattern}_{how}": {"pattern": pattern, **options}
        for pattern in ("full_refresh", "batch")
        for how, options in (("history", {"history": True}), ("marked", {}))
    }
    config = source.settings(tables=tables)
    for name in tables:
        source.execute(f"CREATE TABLE {name} (k float8 PRIMARY KEY, v int)")
    for change, expected in (
        ("INSERT INTO {t} VALUES ('NaN', 1)", (1, 0, 0)),
        ("UPDATE {t} SET v = 2", (0, 1, 0)),
        ("INSERT INTO {t} VALUES (0, 1)", (1, 0, 0)),
        ("UPDATE {t} SET v = 3 WHERE k = 'NaN'", (0, 1, 0)),
        ("DELETE FROM {t} WHERE k = 'NaN'", (0, 0, 1)),
    ):
        for name in tables:
            source.execute(change.format(t=name))
        results = pipeline.run(config).tables
        assert {r.table: counts(r) for r in results} == {
            f"public.{name}": expected for name in tables
        }
        assert differences(config) == {}


def the_config_may_name_another_key(source: Case) -> Story:
    """A key of the config replaces the primary key; one that is not unique is refused."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, code text, v text);"
        " INSERT INTO t SELECT i, 'c' || i, 'v' FROM generate_series(1, 20) i"
    )
    options = {**BATCH, "key": "code"}
    yield BATCH
    result = yield options
    assert "all rows are compared: its key has changed" in result.notes
    assert counts(result) == (0, 0, 0)
    source.execute("UPDATE t SET id = id + 100 WHERE id <= 2; UPDATE t SET code = 'x' WHERE id = 3")
    result = yield options
    assert counts(result) == (1, 2, 1)
    # The deleted row had the id of a live one.
    result = yield BATCH
    note = "rows marked as deleted share the new key with others: the table is reloaded"
    assert note in result.notes
    source.execute("UPDATE t SET v = 'w' WHERE id = 3")
    assert counts((yield BATCH)) == (0, 1, 0)
    source.execute("UPDATE t SET code = 'twice' WHERE id IN (5, 6)")
    for wrong, message in (
        ({"key": "code"}, "have the same value of the key code"),
        ({"key": "nothing"}, "has no column nothing"),
    ):
        error = (yield Unproven({**BATCH, **wrong})).error
        assert error is not None
        assert message in error.message
        assert error.hint
    source.execute("UPDATE t SET code = NULL WHERE id = 5")
    error = (yield Unproven(options)).error
    assert error is not None
    assert "have no value in the key code" in error.message
    assert counts((yield BATCH)) == (0, 2, 0)


def a_new_primary_key_leads_to_a_full_comparison(source: Case) -> Story:
    """All rows are compared by the new key, with one note; only differences land."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, v text);"
        " INSERT INTO t SELECT i, 'c' || i, 'v' FROM generate_series(1, 20) i"
    )
    yield BATCH
    source.execute(
        f"ALTER TABLE t DROP CONSTRAINT {source.name}_pkey; ALTER TABLE t ADD PRIMARY KEY (code);"
        " UPDATE t SET id = 1000 WHERE id = 1; DELETE FROM t WHERE id = 2"
    )
    result = yield BATCH
    assert result.notes == ("all rows are compared: its key has changed",)
    assert counts(result) == (0, 1, 1)
    assert (yield BATCH).notes == ()


def a_key_that_delta_cannot_hold(source: Case) -> Story:
    """Rows with an infinite time in their key land in both patterns."""
    source.execute(
        "CREATE TABLE t (id timestamptz PRIMARY KEY, v int);"
        " INSERT INTO t SELECT '2024-01-01Z'::timestamptz + i * interval '1 day', i"
        " FROM generate_series(1, 10) i"
    )
    yield FULL
    source.execute("INSERT INTO t VALUES ('infinity', 11), ('-infinity', 12)")
    assert counts((yield Unproven(FULL))) == (2, 0, 0)
    assert pl.read_delta(str(source.table("t")))["id"].null_count() == 2
    source.execute("UPDATE t SET v = v + 1 WHERE id = 'infinity'")
    assert counts((yield Unproven(BATCH))) == (0, 1, 0)
    source.execute("DELETE FROM t WHERE NOT isfinite(id)")
    assert counts((yield FULL)) == (0, 0, 2)


@together(FULL, BATCH)
def test_only_rejected_values_of_changed_rows_are_recorded(
    source: Case, options: dict[str, Any]
) -> Story:
    """A rejected value of an unchanged row is not recorded again."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n numeric(10,2), at timestamptz DEFAULT now());"
        f" INSERT INTO t SELECT i, 'NaN', {LONG_AGO} FROM generate_series(1, 5) i;"
        f" INSERT INTO t SELECT i, i, {LONG_AGO} FROM generate_series(6, 20) i"
    )

    def recorded_ids() -> list[int]:
        frame = pl.read_delta(str(source.lake / "governance" / "rejected_values"))
        records = frame.filter(pl.col("source_table") == f"public.{source.name}")
        return sorted(json.loads(key)["id"] for key in records["row_key"])

    assert (yield Unproven(options)).rejected == 5
    assert (yield Unproven(options)).rejected == 0
    assert recorded_ids() == [1, 2, 3, 4, 5]
    source.execute(
        "UPDATE t SET n = 'NaN', at = now() WHERE id = 6; UPDATE t SET n = 0, at = now()"
        " WHERE id = 1; INSERT INTO t VALUES (21, 'NaN')"
    )
    result = yield Unproven(options)
    assert (counts(result), result.rejected) == ((1, 2, 0), 2)
    assert recorded_ids() == [1, 2, 3, 4, 5, 6, 21]
    assert row(source, 6)["n"] is None


@together(
    a_table_without_a_key_is_replaced,
    only_files_with_changed_keys_are_rewritten,
    an_update_to_equal_values_changes_nothing,
    rows_with_a_null_cursor_are_always_read,
    only_rows_since_the_watermark_are_read,
    vacuum_and_cluster_change_no_rows,
    patterns_may_be_switched,
    another_cursor_leads_to_a_full_comparison,
    xmin_after_a_cursor_leads_to_a_full_comparison,
    a_cursor_that_is_used_again_misses_nothing,
    the_config_may_name_another_key,
    a_new_primary_key_leads_to_a_full_comparison,
    a_key_that_delta_cannot_hold,
)
def test_every_load_pattern_commits_the_changed_rows(
    source: Case, story: Callable[[Case], Story]
) -> Story:
    """Each pattern commits exactly the changed rows, in runs shared by all cases."""
    yield from story(source)


# --- prepared transactions -------------------------------------------------------------------


@pytest.fixture
def rolled_back(source: Source) -> Iterator[None]:
    """Rolls back the prepared transactions that a test leaves behind."""
    yield
    for (name,) in source.execute("SELECT gid FROM pg_prepared_xacts"):
        source.execute(f"ROLLBACK PREPARED '{name}'")


@pytest.mark.usefixtures("without_margin", "rolled_back")
@together(BATCH, BY_TIME)
def test_prepared_transactions_hold_the_watermark_back(
    source: Case, options: dict[str, Any]
) -> Story:
    """Their start is not known: the watermark waits for them, and their rows land."""
    source.execute(THING)
    marks = [position(source, (yield options).version)]
    with open_transaction(source, source.named("INSERT INTO t VALUES (60, 'late')")) as late:
        late.execute(f"PREPARE TRANSACTION '{source.name}'".encode())
    for key in (61, 62):
        source.execute(f"INSERT INTO t VALUES ({key}, 'soon')")
        result = yield options
        assert counts(result) == (1, 0, 0)
        marks.append(position(source, result.version))
    mark = options.get("cursor", "xmin")
    assert marks[1][mark] == marks[2][mark]
    if options is BY_TIME:
        assert marks[0][mark] == marks[1][mark]
    source.execute(f"COMMIT PREPARED '{source.name}'")
    result = yield options
    assert (counts(result), result.notes) == ((1, 0, 0), ())
    assert result.rows_read <= 5
    assert position(source, result.version)[mark] > marks[2][mark]


@pytest.mark.usefixtures("without_margin", "rolled_back")
def test_a_first_run_beside_a_prepared_transaction_sets_no_watermark(source: Source) -> None:
    """All rows are compared until there is a watermark."""
    source.execute(THING)
    with open_transaction(source, "INSERT INTO t VALUES (60, 'late')") as late:
        late.execute("PREPARE TRANSACTION 'first'")
    assert "at" not in position(source, land(source, BY_TIME).version)
    assert "at" not in position(source, land(source, BY_TIME).version)
    source.execute("COMMIT PREPARED 'first'")
    result = land(source, BY_TIME)
    assert counts(result) == (1, 0, 0)
    assert "all rows are compared" in result.notes[0]
    assert "at" in position(source, result.version)
    assert land(source, BY_TIME).notes == ()


def test_rows_missed_by_a_cursor_are_detected_by_the_row_count(source: Source) -> None:
    """All rows are compared in the same snapshot, and the progress is of what is read then."""
    source.execute(THING)
    settings = source.settings(tables={"t": BY_TIME})
    assert pipeline.run(settings).exit_code == 0
    source.execute("INSERT INTO t SELECT 900, 'late', '2001-01-01'")
    events: list[LoadEvent] = []
    (result,) = pipeline.run(settings, notify=events.append).tables
    assert counts(result) == (1, 0, 0)
    assert "all rows were compared: its cursor did not show all changes" in result.notes
    assert differences(settings) == {}
    shares = [event.share for event in events if isinstance(event, TableProgress)]
    assert shares
    assert all(0 <= share <= 1 for share in shares)
