"""Verify: every difference between Bronze and its source is found, listed, and repaired."""

from __future__ import annotations

import base64
import errno
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from psycopg.conninfo import make_conninfo

from bronze.cdc import stream
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.delta import store
from bronze.errors import ConfigError, LakeUnreachable, SnapshotLost, SourceUnreachable
from bronze.execution import budget
from bronze.ingest import load, pipeline
from bronze.model.locations import Place
from bronze.tables import duplicate_keys
from bronze.verify import claim
from bronze.verify import verify as verifying
from bronze.verify.comparison import Options, compare_tables
from bronze.verify.results import VerifiedTable
from tests.acceptance.test_cli import configured, invoke
from tests.conftest import Source
from tests.support.content import differences
from tests.support.failing import Failing
from tests.support.feed import faults
from tests.support.sent import Sent

TABLE = """
CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(8,2));
INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 50) i
"""
KEYLESS = TABLE.replace(" PRIMARY KEY", "")


def loaded(source: Source, table: str = TABLE, **own: Any) -> Settings:
    """A database with one table that a run has loaded."""
    source.execute(table)
    settings = source.settings(tables={"t": own})
    assert pipeline.run(settings).exit_code == 0
    return settings


def verify(settings: Settings, **how: Any) -> VerifiedTable:
    """The result of the only table."""
    (found,) = verifying.verify(settings, **how).tables
    return found


def counts(found: VerifiedTable) -> tuple[int, int, int]:
    """The numbers of missing, extra and different rows; an error fails the test."""
    assert found.error is None
    return found.missing, found.extra, found.different


def rows(found: VerifiedTable) -> list[tuple[str, Any]]:
    """The faults and the keys of the listed rows."""
    return [(row.fault, json.loads(row.key)) for row in found.rows]


def files(source: Source, table: str = "t") -> list[Path]:
    """The files of the table's current version."""
    return [Path(path) for path in DeltaTable(str(source.table(table))).file_uris()]


@contextmanager
def tampered(
    source: Source, number: int | None = None, table: str = "t"
) -> Iterator[list[pl.DataFrame]]:
    """The rows of the table's one file (or one of them), to be changed without a commit."""
    found = sorted(files(source, table))
    (path,) = found if number is None else found[number : number + 1]
    before = pq.read_table(path)
    frames = [pl.DataFrame(before)]
    yield frames
    changed = frames[0].to_arrow(compat_level=pl.CompatLevel.oldest()).cast(before.schema)
    pq.write_table(changed, path, compression="zstd", store_schema=False)
    _logged(path)


def _logged(path: Path) -> None:
    """Corrects the size and the number of rows of a file in the log."""
    log = path.parent / "_delta_log"
    rows = pq.read_metadata(path).num_rows
    for entry in log.glob("*.json"):
        actions = [json.loads(line) for line in entry.read_text().splitlines()]
        for action in actions:
            if "add" in action and action["add"]["path"] == path.name:
                stats = json.loads(action["add"]["stats"]) | {"numRecords": rows}
                action["add"] |= {"size": path.stat().st_size, "stats": json.dumps(stats)}
        entry.write_text("".join(json.dumps(action) + "\n" for action in actions))


def value(row: int, text: str) -> pl.Expr:
    """The column v with another value in one row."""
    return pl.when(pl.col("id") == row).then(pl.lit(text)).otherwise("v").alias("v")


def changed(frame: pl.DataFrame) -> pl.DataFrame:
    """A row has another value and another row_hash."""
    other = pl.when(pl.col("id") == 7).then(pl.lit("0" * 31 + "1")).otherwise("row_hash")
    return frame.with_columns(value(7, "other"), other.alias("row_hash"))


def removed(frame: pl.DataFrame) -> pl.DataFrame:
    """A row is removed."""
    return frame.filter(pl.col("id") != 7)


def twice(frame: pl.DataFrame) -> pl.DataFrame:
    """A row is duplicated."""
    return pl.concat([frame, frame.filter(pl.col("id") == 7)])


def twice_and_changed(frame: pl.DataFrame) -> pl.DataFrame:
    """A row is duplicated, and both are changed."""
    return changed(twice(frame))


def added(frame: pl.DataFrame) -> pl.DataFrame:
    """A row is added that the source never had."""
    more = frame.filter(pl.col("id") == 7).with_columns(
        pl.lit(99, pl.Int32).alias("id"), pl.lit("f" * 32).alias("row_hash")
    )
    return pl.concat([frame, more])


def without_hash(frame: pl.DataFrame) -> pl.DataFrame:
    """A row has no hash."""
    none = pl.when(pl.col("id") == 7).then(None).otherwise("row_hash")
    return frame.with_columns(none.alias("row_hash"))


ALTERED = ("altered", {"id": 7})
CASES = [
    (changed, (0, 0, 1), [ALTERED, ("different", {"id": 7})]),
    (removed, (1, 0, 0), [("missing", {"id": 7})]),
    (twice, (0, 1, 0), [("extra", {"id": 7})]),
    (
        twice_and_changed,
        (0, 1, 1),
        [ALTERED, ALTERED, ("different", {"id": 7}), ("extra", {"id": 7})],
    ),
    (added, (0, 1, 0), [("altered", {"id": 99}), ("extra", {"id": 99})]),
    (without_hash, (0, 0, 1), [ALTERED, ("different", {"id": 7})]),
]
Change = Callable[[pl.DataFrame], pl.DataFrame]


# --- differences ------------------------------------------------------------------------------


def test_a_loaded_table_is_equal(source: Source) -> None:
    """A loaded table has all rows of PostgreSQL: no difference, no note."""
    found = verify(loaded(source))
    assert (found.status, found.source_rows, found.bronze_rows) == ("equal", 50, 50)
    assert (counts(found), found.rows, found.notes) == ((0, 0, 0), (), ())
    assert found.version == 0
    assert found.position is not None


def several(source: Source, table: str, changes: Sequence[Change]) -> Settings:
    """A database with a table for each change, which is made after a run."""
    names = [change.__name__ for change in changes]
    for name in names:
        source.execute(re.sub(r"\bt\b", name, table))
    settings = source.settings()
    assert pipeline.run(settings).exit_code == 0
    for name, change in zip(names, changes, strict=True):
        with tampered(source, table=name) as frames:
            frames[0] = change(frames[0])
    return settings


def verified(settings: Settings, **how: Any) -> dict[str, VerifiedTable]:
    """The result of each table."""
    tables = verifying.verify(settings, **how).tables
    return {found.table.removeprefix("public."): found for found in tables}


def test_each_faulty_row_is_found_and_repaired(source: Source) -> None:
    """It is listed by its key; a repair changes only it, with a change data feed, and verifies."""
    settings = several(source, TABLE, [change for change, _, _ in CASES])
    assert {
        name: (found.status, counts(found), rows(found))
        for name, found in verified(settings).items()
    } == {change.__name__: ("differs", expected, named) for change, expected, named in CASES}
    assert verifying.verify(settings).exit_code == 1
    names = [change.__name__ for change, _, _ in CASES]
    since = {name: DeltaTable(str(source.table(name))).version() for name in names}
    repaired = verified(settings, repair=True)
    assert {
        name: (found.status, counts(found), found.bronze_rows) for name, found in repaired.items()
    } == dict.fromkeys(names, ("equal", (0, 0, 0), 50))
    assert {name: f.repaired for name, f in repaired.items() if not 1 <= f.repaired <= 3} == {}
    assert differences(settings) == {}
    with_feed = [change.__name__ for change in (changed, removed, added, without_hash)]
    assert {n: faults(source.table(n), since[n]) for n in with_feed} == {
        name: [] for name in with_feed
    }
    assert {n: f.status for n, f in verified(settings).items()} == dict.fromkeys(names, "equal")


def test_rows_without_a_key_are_listed_by_row_hash(source: Source) -> None:
    """A row that differs is missing on one side and extra on the other."""
    settings = several(source, KEYLESS, [changed, twice])
    found = verified(settings)
    assert {name: counts(one) for name, one in found.items()} == {
        "changed": (1, 1, 0),
        "twice": (0, 1, 0),
    }
    for name, one in found.items():
        assert all(list(key) == ["row_hash"] for _, key in rows(one)), name
    repaired = {name: one.status for name, one in verified(settings, repair=True).items()}
    assert repaired == {"changed": "equal", "twice": "equal"}
    assert differences(settings) == {}


def test_a_history_is_compared_by_its_last_versions(source: Source) -> None:
    """Earlier versions are not compared; a wrong last one is found, and a new version appended."""
    settings = loaded(source, history=True, pattern="batch")
    source.execute("UPDATE t SET v = 'new' WHERE id = 3; DELETE FROM t WHERE id = 4")
    assert pipeline.run(settings).exit_code == 0
    assert verify(settings).status == "equal"
    source.execute("UPDATE t SET v = 'newer' WHERE id = 3; DELETE FROM t WHERE id = 5")
    found = verify(settings)
    assert (counts(found), rows(found)) == (
        (0, 1, 1),
        [("different", {"id": 3}), ("extra", {"id": 5})],
    )
    assert verify(settings, repair=True).status == "equal"
    assert differences(settings) == {}
    assert faults(source.table("t")) == []


def test_changes_since_the_last_load_are_reported_as_lag(source: Source) -> None:
    """The result says how many bytes of WAL Bronze is behind, and how to load them."""
    settings = loaded(source)
    source.execute("INSERT INTO t VALUES (51, 'new', 1); UPDATE t SET v = 'new' WHERE id = 1")
    found = verify(settings)
    assert counts(found) == (1, 0, 1)
    assert found.lag_bytes
    assert any("bronze run" in note for note in found.notes)
    assert verify(settings, repair=True).status == "equal"
    assert faults(source.table("t")) == []


def test_a_commit_after_the_snapshot_is_reported(source: Source) -> None:
    """Bronze is newer than the snapshot then: a note says to verify again."""
    settings = loaded(source)
    with ExitStack() as stack:
        (before,) = claim.claims_of_source(settings, (), "batch", stack)
        source.execute("UPDATE t SET v = 'new' WHERE id = 3")
        assert pipeline.run(settings).exit_code == 0
        options = Options(repair=False, trust_hashes=False)
        (compared,) = compare_tables(
            settings, [before.with_current_table()], options, None, lambda _: None
        )
    found = compared.result
    assert (found.status, counts(found)) == ("differs", (0, 0, 1))
    assert any("verify again" in note for note in found.notes)


def test_rows_kept_by_deletes_ignore_are_no_difference(source: Source) -> None:
    """With deletes = "ignore" rows deleted in the source are noted and counted, but equal."""
    settings = loaded(source, pattern="batch", deletes="ignore")
    source.execute("DELETE FROM t WHERE id < 4")
    found = verify(settings)
    assert (found.status, counts(found), found.rows) == ("equal", (0, 3, 0), ())
    assert any("ignore" in note for note in found.notes)


def test_rows_marked_as_deleted_are_not_compared(source: Source) -> None:
    """A row deleted in the source stays in the table as DELETED, and the table is equal."""
    settings = loaded(source)
    source.execute("DELETE FROM t WHERE id < 4")
    assert pipeline.run(settings).exit_code == 0
    found = verify(settings)
    assert (found.status, found.bronze_rows) == ("equal", 47)


KEYS = {
    "text": "('a'), ('B'), ('ä'), ('aa '), (''), ('10'), ('9'), ('𝄞')",
    "numeric(30,10)": "(1.5), (-2), (0), (12345678901234567890.0123456789)",
    "numeric": "(1.50), (-2), (0.000), (1e30)",
    "uuid": "('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), ('00000000-0000-0000-0000-000000000000')",
    "timestamptz": "('2020-01-01Z'), ('1999-12-31 23:59:59.999999Z'), ('0001-01-01Z')",
    "bytea": r"('\x00'), ('\x'), ('\xff00')",
    "float8": "('NaN'), ('-infinity'), (0.1), ('infinity')",
}


def test_rows_are_matched_by_keys_of_any_type(source: Source) -> None:
    """A changed row is different rather than missing and extra, whatever the type of its key."""
    names = {f"t{number}": kind for number, kind in enumerate(KEYS)}
    for name, kind in names.items():
        source.execute(f"CREATE TABLE {name} (k {kind} PRIMARY KEY, v text DEFAULT 'x')")
        source.execute(f"INSERT INTO {name} VALUES {KEYS[kind]}")
    settings = source.settings()
    assert pipeline.run(settings).exit_code == 0
    assert verifying.verify(settings).exit_code == 0
    for name in names:
        source.execute(f"UPDATE {name} SET v = 'y'")
    found = verifying.verify(settings)
    assert {table.table: counts(table) for table in found.tables} == {
        f"public.{name}": (0, 0, KEYS[kind].count("(")) for name, kind in names.items()
    }
    assert found.exit_code == 1
    assert verifying.verify(settings, repair=True).exit_code == 0
    assert differences(settings) == {}


def test_composite_keys_with_quoted_names(source: Source) -> None:
    """Names in SQL are quoted, and aliases of bronze do not clash with columns of the source."""
    source.execute('CREATE TABLE t (d text, k0 int, v0 int, "a""b" text, PRIMARY KEY (k0, "a""b"))')
    source.execute("INSERT INTO t VALUES ('d', 1, 1, 'x'), ('e', 1, 1, 'y'), ('f', 2, NULL, 'x')")
    settings = source.settings()
    assert pipeline.run(settings).exit_code == 0
    source.execute('UPDATE t SET d = NULL WHERE k0 = 1 AND "a""b" = \'y\'')
    found = verify(settings)
    assert rows(found) == [("different", {"k0": 1, 'a"b': "y"})]


def test_special_and_rejected_values_are_equal(source: Source) -> None:
    """NaN, infinities and values that Delta cannot hold are part of the hash on both sides."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, f float8, n numeric(9,2), d date, a int[])")
    source.execute(
        "INSERT INTO t VALUES (1, 'NaN', 'NaN', 'infinity', '{1,NULL}'), (2, '-infinity', 1,"
        " '0044-03-15 BC', '{{1,2},{3,4}}'), (3, '-0', NULL, '2020-01-01', NULL),"
        " (4, 0, 0, NULL, '{}')"
    )
    settings = source.settings()
    assert pipeline.run(settings).exit_code == 0
    assert verify(settings).status == "equal"
    assert verify(settings, at_rest=True).status == "equal"
    source.execute("UPDATE t SET d = '-infinity' WHERE id = 1")
    assert rows(verify(settings)) == [("different", {"id": 1})]


def test_added_and_dropped_columns_are_compared(source: Source) -> None:
    """An added column, with values or without, and a dropped one are part of the comparison."""
    settings = loaded(source)
    source.execute("ALTER TABLE t ADD c int; ALTER TABLE t DROP n")
    found = verify(settings)
    assert counts(found) == (0, 0, 50)
    assert pipeline.run(settings).exit_code == 0
    assert verify(settings).status == "equal"
    source.execute("UPDATE t SET c = 1 WHERE id = 9")
    assert rows(verify(settings)) == [("different", {"id": 9})]
    assert pipeline.run(settings).exit_code == 0
    assert verify(settings, at_rest=True).status == "equal"


def test_a_table_without_a_bronze_table_is_loaded_by_a_repair(source: Source) -> None:
    """All its rows are missing, with a note; a repair loads it."""
    source.execute(TABLE)
    settings = source.settings()
    found = verify(settings)
    assert (found.status, counts(found), found.version) == ("differs", (50, 0, 0), None)
    assert any("no Bronze table" in note for note in found.notes)
    assert verify(settings, repair=True).status == "equal"
    assert differences(settings) == {}


def test_empty_tables_are_compared(source: Source) -> None:
    """An empty table is equal to an empty table only."""
    settings = loaded(source, "CREATE TABLE t (id int PRIMARY KEY)")
    assert verify(settings).status == "equal"
    source.execute("INSERT INTO t VALUES (1)")
    assert rows(verify(settings)) == [("missing", {"id": 1})]
    source.execute("DELETE FROM t")
    assert verify(settings).status == "equal"


def test_all_differences_are_counted_and_a_hundred_listed(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first hundred are listed; comparing in several shares gives the same result."""
    settings = loaded(source)
    source.execute("UPDATE t SET v = 'new'; INSERT INTO t SELECT i FROM generate_series(51, 300) i")
    once = verify(settings)
    assert (counts(once), len(once.rows)) == ((250, 0, 50), 100)
    monkeypatch.setattr(budget, "rounds_of_named_rows", lambda *_: 7)
    shared = verify(settings)
    assert (counts(shared), len(shared.rows)) == ((250, 0, 50), 100)


def test_an_unknown_table_name_is_an_error(source: Source) -> None:
    """The error names it, with and without a source."""
    settings = loaded(source)
    for at_rest in (False, True):
        with pytest.raises(ConfigError, match="nothing"):
            verifying.verify(settings, ["nothing"], at_rest=at_rest)


def test_verification_at_rest_needs_no_source(source: Source) -> None:
    """An unreachable source fails the comparison and a repair, not the check of the files."""
    settings = loaded(source)
    document = {
        "source": {"name": "test", "dsn": "postgresql://x@127.0.0.1:1/none", "connect_timeout": 1},
        "lake": {"root": settings.lake.root, "schema": "bronze"},
    }
    dead = loading.parse(document)
    with pytest.raises(SourceUnreachable):
        verifying.verify(dead)
    found = verify(dead, at_rest=True)
    assert (found.status, found.bronze_rows, found.source_rows) == ("equal", 50, -1)
    with tampered(source) as frames:
        frames[0] = frames[0].with_columns(value(7, "other"))
    result = verifying.verify(dead, at_rest=True, repair=True)
    assert [table.altered for table in result.tables] == [1]
    assert result.exit_code == 3
    source.execute("ALTER TABLE t RENAME TO u")
    result = verifying.verify(settings, at_rest=True, repair=True)
    assert (result.tables[0].altered, result.exit_code) == (1, 1)


MASTER = base64.b64encode(bytes(range(32))).decode()


def test_protected_tables_are_compared_and_repaired(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's hashes are keyed here, and keys are listed in their protected form."""
    monkeypatch.setenv("BRONZE_MASTER_KEY", MASTER)
    source.execute("CREATE TABLE t (mail text PRIMARY KEY, born date, paid numeric(8,2), v text)")
    source.execute(
        "INSERT INTO t SELECT 'p' || i || '@x.org', '1990-01-01'::date + i, i / 3.0, 'v'"
        " FROM generate_series(1, 30) i"
    )
    own = {"mail": "tokenize", "born": "encrypt", "paid": "mask"}
    settings = source.settings(tables={"t": {"protect": own}})
    assert pipeline.run(settings).exit_code == 0
    assert verify(settings).status == "equal"
    assert verify(settings, at_rest=True).status == "equal"
    source.execute("UPDATE t SET born = born + 1 WHERE mail = 'p7@x.org'")
    source.execute("INSERT INTO t VALUES ('new@x.org')")
    found = verify(settings)
    assert counts(found) == (1, 0, 1)
    assert all(key["mail"].startswith("tok_") for _, key in rows(found))
    assert "x.org" not in repr(found)
    repaired = verify(settings, repair=True)
    assert (repaired.status, repaired.repaired) == ("equal", 2)
    with tampered(source, 0) as frames:
        frames[0] = frames[0].with_columns(pl.lit("***").alias("v"))
    assert verify(settings, trust_hashes=True).status == "equal"
    assert verify(settings).status == "differs"
    assert verify(settings, at_rest=True, repair=True).status == "equal"
    assert verify(settings).status == "equal"


def test_a_database_with_another_encoding_is_compared(source: Source) -> None:
    """PostgreSQL hashes texts as UTF-8, whatever the encoding of the database."""
    name = f"{psycopg.conninfo.conninfo_to_dict(source.dsn)['dbname']}_latin1"
    create = f"CREATE DATABASE {name} ENCODING LATIN1 LOCALE 'C' TEMPLATE template0"
    source.execute(create)
    try:
        other = Source(make_conninfo(source.dsn, dbname=name), source.lake)
        settings = loaded(other)
        other.execute("UPDATE t SET v = 'Grüße' WHERE id = 1")
        assert pipeline.run(settings).exit_code == 0
        assert verify(settings).status == "equal"
    finally:
        source.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_streamed_table_is_repaired_and_resynced(source: Source) -> None:
    """It is compared like any other; after a repair the stream resyncs it once, and continues."""
    source.execute(TABLE)
    settings = source.settings(tables={"t": {"pattern": "streaming"}}, stream={"interval": 0})
    found = verify(settings, repair=True)
    assert found.error is not None
    assert "stream" in found.error.hint
    assert stream.stream(settings, until_caught_up=True).exit_code == 0
    assert verify(settings).status == "equal"
    source.execute("UPDATE t SET v = 'new' WHERE id = 3")
    behind = verify(settings)
    assert rows(behind) == [("different", {"id": 3})]
    assert any("stream --until-caught-up" in note for note in behind.notes)
    repaired = verify(settings, repair=True)
    assert (repaired.status, repaired.repaired) == ("equal", 1)
    assert any("resyncs this table once" in note for note in repaired.notes)
    source.execute("DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (51, 'x', 1)")
    assert stream.stream(settings, until_caught_up=True).exit_code == 0
    assert verify(settings).status == "equal"
    assert differences(settings) == {}
    assert faults(source.table("t")) == []


SPAWN = partial(ProcessPoolExecutor, mp_context=get_context("spawn"))


@pytest.mark.parametrize("pools", [Sent, pytest.param(SPAWN, marks=pytest.mark.soak)])
def test_worker_processes_give_the_same_results(
    source: Source, pools: Callable[[int], Executor]
) -> None:
    """Tasks and results of workers can be pickled."""
    settings = loaded(source)
    source.execute("UPDATE t SET v = 'new' WHERE id = 3")
    with pools(1) as pool:
        assert rows(verify(settings, pool=pool)) == [("different", {"id": 3})]
        assert verify(settings, repair=True, pool=pool).status == "equal"
        assert verify(settings, at_rest=True, pool=pool).status == "equal"


def test_the_verify_command_reports_differing_tables(source: Source) -> None:
    """It exits with 1 where a table differs, lists the rows, and prints JSON if asked."""
    source.execute(TABLE)
    path = configured(source)
    assert invoke("run", "-c", path).exit_code == 0
    assert invoke("verify", "-c", path).exit_code == 0
    source.execute("UPDATE t SET v = 'new' WHERE id = 3")
    shown = invoke("verify", "t", "-c", path)
    assert shown.exit_code == 1
    assert 'public.t: different {"id": 3}' in shown.stdout
    given = invoke("verify", "-c", path, "--json")
    (table,) = json.loads(given.stdout)["tables"]
    assert (given.exit_code, table["status"], table["different"]) == (1, "differs", 1)
    assert table["rows"] == [{"fault": "different", "key": '{"id": 3}', "file": "", "what": ""}]
    assert (table["source_rows"], table["bronze_rows"], table["bronze_files"]) == (50, 50, 1)
    assert invoke("verify", "nothing", "-c", path).exit_code == 2
    assert invoke("verify", "-c", path, "--repair").exit_code == 0
    assert invoke("verify", "-c", path, "--at-rest").exit_code == 0


# --- at rest ---------------------------------------------------------------------------------


def test_a_value_altered_without_its_hash_is_detected_at_rest(source: Source) -> None:
    """The row_hash is right, the value is not; a repair keeps the row's load_timestamp."""
    settings = loaded(source)
    first = pl.read_delta(str(source.table("t")))["load_timestamp"].unique().to_list()
    with tampered(source) as frames:
        frames[0] = frames[0].with_columns(value(7, "other"))
    assert verify(settings, trust_hashes=True).status == "equal"
    by_values = verify(settings)
    assert (by_values.status, counts(by_values)) == ("differs", (0, 0, 1))
    found = verify(settings, at_rest=True)
    assert (found.status, found.altered, rows(found)) == ("differs", 1, [("altered", {"id": 7})])
    assert found.rows[0].file == files(source)[0].name
    repaired = verify(settings, at_rest=True, repair=True)
    assert (repaired.status, repaired.altered, repaired.repaired) == ("equal", 0, 1)
    assert differences(settings) == {}
    rows_now = pl.read_delta(str(source.table("t")))
    assert rows_now["load_timestamp"].unique().to_list() == first
    assert verify(settings).status == "equal"


@pytest.mark.parametrize("table", [TABLE, pytest.param(KEYLESS, marks=pytest.mark.soak)])
def test_flipped_bytes_are_detected(source: Source, table: str) -> None:
    """The file is unreadable, or rows have wrong checksums; or else no value has changed."""
    settings = loaded(source, table)
    (path,) = files(source)
    whole, rows = path.read_bytes(), pl.read_delta(str(source.table("t")))
    found = 0
    for place in range(10, len(whole) - 8, 149):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        if verify(settings, at_rest=True).status == "differs":
            found += 1
        else:
            assert pl.DataFrame(pq.read_table(path)).equals(rows)
    assert found > len(range(10, len(whole) - 8, 149)) // 2
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 0x10]) + whole[201:])
    repaired = verify(settings, at_rest=True, repair=True)
    assert repaired.status == "equal"
    assert differences(settings) == {}


def test_missing_files_are_listed_and_their_rows_reloaded(source: Source) -> None:
    """A repair leaves the other files as they are."""
    cases = {"gone": "is missing", "short": "has 9 bytes"}
    for name in cases:
        source.execute(re.sub(r"\bt\b", name, TABLE))
    settings = source.settings()
    assert pipeline.run(settings).exit_code == 0
    for name in cases:
        source.execute(f"INSERT INTO {name} SELECT i, 'more', i FROM generate_series(51, 80) i")
    assert pipeline.run(settings).exit_code == 0
    by_size = {n: sorted(files(source, n), key=lambda file: file.stat().st_size) for n in cases}
    by_size["gone"][0].unlink()
    by_size["short"][0].write_bytes(b"nine byte")
    for name, found in verified(settings, at_rest=True).items():
        (named,) = found.files
        expected = ("differs", by_size[name][0].name, 30)
        assert (found.status, named.file, named.rows) == expected, name
        assert named.what.startswith(cases[name]), name
    for how in ({}, {"trust_hashes": True}):
        for name, found in verified(settings, **how).items():
            assert (found.status, counts(found)) == ("differs", (30, 0, 0)), name
            assert [file.file for file in found.files] == [by_size[name][0].name], name
    repaired = verified(settings, at_rest=True, repair=True)
    assert {name: (found.status, found.bronze_rows) for name, found in repaired.items()} == (
        dict.fromkeys(cases, ("equal", 80))
    )
    for name, (lost, kept) in by_size.items():
        assert kept in files(source, name), name
        assert lost not in files(source, name), name
        assert faults(source.table(name), 2) == [], name
    assert differences(settings) == {}


@pytest.mark.parametrize("at_rest", [True, False])
def test_a_file_with_a_read_error_is_not_removed(
    source: Source, monkeypatch: pytest.MonkeyPatch, at_rest: bool
) -> None:
    """The disk or the store failed for the moment: the file may be whole."""
    settings = loaded(source)
    before = {path.name for path in files(source)}
    opened = store.reader

    def failing(place: Place, path: str, size: int = 0) -> Any:
        if path in before:
            error = OSError(errno.EIO, "Input/output error")
            return Failing(Path(place.url) / path, error, 1)
        return opened(place, path, size)

    monkeypatch.setattr(store, "reader", failing)
    found = verify(settings, at_rest=at_rest, repair=True)
    assert (found.status, found.files, found.repaired) == ("failed", (), 0)
    assert found.error
    assert found.error.kind == "LakeUnreachable"
    monkeypatch.undo()
    assert {path.name for path in files(source)} == before
    assert verify(settings, at_rest=at_rest).status == "equal"


@pytest.mark.parametrize("at_rest", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_versions_lost_from_a_history_are_reported(source: Source, at_rest: bool) -> None:
    """A repair removes altered versions and missing files, and reloads the last versions."""
    settings = loaded(source, history=True, pattern="batch")
    source.execute("UPDATE t SET v = 'new' WHERE id < 4")
    assert pipeline.run(settings).exit_code == 0
    with tampered(source, [size(file) for file in sorted(files(source))].index(50)) as frames:
        frames[0] = frames[0].with_columns(value(7, "other"))
    repaired = verify(settings, at_rest=at_rest, repair=True)
    assert (repaired.status, repaired.repaired) == ("equal", 2)
    assert any("1 altered version is lost" in note for note in repaired.notes)
    assert differences(settings) == {}
    lost = max(files(source), key=size)
    lost.unlink()
    repaired = verify(settings, at_rest=at_rest, repair=True)
    assert repaired.status == "equal"
    assert any(lost.name in note and "earlier versions" in note for note in repaired.notes)
    assert differences(settings) == {}
    assert verify(settings).status == "equal"


def size(file: Path) -> int:
    """The number of rows of a file."""
    return int(pq.read_metadata(file).num_rows)


def test_altered_rows_deleted_in_the_source_are_removed_and_reported(source: Source) -> None:
    """Their original values are unknown: a repair removes them, with a note."""
    settings = loaded(source)
    source.execute("DELETE FROM t WHERE id = 7")
    assert pipeline.run(settings).exit_code == 0
    with tampered(source) as frames:
        frames[0] = frames[0].with_columns(value(7, "other"))
    for how in ({}, {"at_rest": True}):
        found = verify(settings, **how)
        assert (found.status, found.altered, rows(found)) == ("differs", 1, [ALTERED])
        assert any("deleted in the source" in note for note in found.notes)
    repaired = verify(settings, at_rest=True, repair=True)
    assert (repaired.status, repaired.repaired) == ("equal", 1)
    assert any(
        "1 altered row that is deleted in the source is lost" in note for note in repaired.notes
    )
    left = pl.read_delta(str(source.table("t")))
    assert 7 not in left["id"]
    assert left.height == 49


def test_deleted_rows_from_before_a_widening_are_not_altered(source: Source) -> None:
    """They keep the checksum of their narrower values."""
    settings = loaded(source)
    source.execute("DELETE FROM t WHERE id = 7")
    assert pipeline.run(settings).exit_code == 0
    for change in ("id TYPE bigint", "n TYPE numeric(20,4)"):
        source.execute(f"ALTER TABLE t ALTER {change}; DELETE FROM t WHERE v = 'v8'")
        assert pipeline.run(settings).exit_code == 0
        assert verify(settings).status == "equal"
        assert verify(settings, at_rest=True).status == "equal"
    with tampered(source) as frames:
        frames[0] = frames[0].with_columns(value(7, "other"))
    assert rows(verify(settings, at_rest=True)) == [("altered", {"id": 7})]


def test_stray_files_are_counted(source: Source) -> None:
    """They are no fault; files of earlier versions are not stray."""
    settings = loaded(source)
    source.execute("UPDATE t SET v = 'new'")
    assert pipeline.run(settings).exit_code == 0
    assert verify(settings, at_rest=True).stray_files == 0
    (source.table("t") / "stray.parquet").write_bytes(b"12345")
    found = verify(settings, at_rest=True)
    assert (found.status, found.stray_files, found.stray_bytes) == ("equal", 1, 5)


def test_wrong_bounds_in_the_log_are_detected(source: Source) -> None:
    """Data skipping would leave out the file for keys that it has."""
    settings = loaded(source)
    entry = source.table("t") / "_delta_log" / f"{0:020}.json"
    entry.write_text(
        entry.read_text().replace(
            '\\"maxValues\\": {\\"id\\": 50', '\\"maxValues\\": {\\"id\\": 49'
        )
    )
    found = verify(settings, at_rest=True)
    assert found.status == "differs"
    assert "bounds" in found.files[0].what


def test_a_partitioned_table_is_equal(source: Source) -> None:
    """A partition value, which is in no file, is not part of the checksum."""
    table = TABLE + "; ALTER TABLE t ADD at date; UPDATE t SET at = '2024-01-01'::date + id % 3"
    settings = loaded(source, table, partition_by="at")
    assert verify(settings).status == "equal"
    assert verify(settings, at_rest=True).status == "equal"


def test_an_unreadable_file_is_listed_and_its_rows_are_missing(source: Source) -> None:
    """No row of a damaged file counts; the next run is refused with the repair as hint."""
    settings = loaded(source)
    (path,) = files(source)
    path.write_bytes(path.read_bytes()[:-4] + b"none")
    for how in ({}, {"trust_hashes": True}, {"at_rest": True}):
        found = verify(settings, **how)
        assert (found.status, [file.file for file in found.files]) == ("differs", [path.name])
        assert found.bronze_rows == 0
    (failed,) = pipeline.run(settings).tables
    assert failed.error is not None
    assert path.name in failed.error.message
    assert "verify --repair" in failed.error.hint
    assert verify(settings, repair=True).status == "equal"


def test_rows_not_loaded_again_by_a_repair_are_loaded_by_the_next_run(source: Source) -> None:
    """The rows are reported as missing, and the next run compares all rows."""
    rule = {"name": "no", "expression": "id < 0", "severity": "critical"}
    strict = {"rules": [rule], "quality": {"on_failure": "stop"}}
    own = {"pattern": "batch", "deletes": "ignore"}
    settings = loaded(source, **own)
    (path,) = files(source)
    path.unlink()
    result = verifying.verify(
        source.settings(tables={"t": {**own, **strict}}), at_rest=True, repair=True
    )
    (found,) = result.tables
    assert (found.status, found.repaired, result.exit_code) == ("failed", 0, 1)
    assert found.error is not None
    assert any("50 rows were removed and not loaded again" in note for note in found.notes)
    assert counts(verify(settings)) == (50, 0, 0)
    (again,) = pipeline.run(settings).tables
    assert (again.inserted, again.updated, again.deleted) == (50, 0, 0)
    assert "all rows are compared: a repair has removed rows" in again.notes
    assert differences(settings) == {}
    (after,) = pipeline.run(settings).tables
    assert not any("repair" in note for note in after.notes)


def test_a_repair_has_a_lineage_record(source: Source) -> None:
    """Its rows have a lineage, and the next run does not take it for a run that died."""
    settings = loaded(source)
    with tampered(source) as frames:
        frames[0] = changed(frames[0])
    assert verify(settings, repair=True).status == "equal"
    book = pl.read_delta(str(source.lake / "governance" / "data_lineage"))
    rows = pl.read_delta(str(source.table("t")))
    assert set(rows["data_lineage"]) == set(book["lineage_id"])
    assert pipeline.run(settings).late == ()


def test_duplicate_rows_differ_even_with_deletes_ignore(source: Source) -> None:
    """A duplicate is not a row that the source has deleted: it is found and removed."""
    settings = loaded(source, pattern="batch", deletes="ignore")
    source.execute("DELETE FROM t WHERE id < 4")
    with tampered(source) as frames:
        frames[0] = twice(frames[0])
    found = verify(settings)
    assert (found.status, counts(found), rows(found)) == (
        "differs",
        (0, 4, 0),
        [("extra", {"id": 7})],
    )
    assert any("3 rows are only in Bronze" in note for note in found.notes)
    repaired = verify(settings, repair=True)
    assert (repaired.status, counts(repaired)) == ("equal", (0, 3, 0))


def test_the_former_bronze_table_of_a_table_is_not_repaired(source: Source) -> None:
    """Its damage is not repaired in the Bronze table that the config names now."""
    loaded(source)
    settings = source.settings(tables={"t": {"target": "bz_new"}})
    assert pipeline.run(settings).exit_code == 0
    with tampered(source) as frames:
        frames[0] = frames[0].with_columns(value(7, "other"))
    result = verifying.verify(settings, at_rest=True, repair=True)
    found = {table.target: (table.status, table.altered) for table in result.tables}
    assert found == {"bronze.bz_t": ("differs", 1), "bronze.bz_new": ("equal", 0)}
    assert result.exit_code == 1


def failing_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lake fails after a file was removed."""

    def twins(_: object) -> None:
        raise LakeUnreachable("The lake is away.")

    monkeypatch.setattr(duplicate_keys, "surplus_rows", twins)


def failing_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source fails after a file was removed."""

    def planned(*_: object, **__: object) -> None:
        raise SourceUnreachable("The source is away.")

    monkeypatch.setattr(pipeline, "plan_tables", planned)


def failing_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source fails while the rows are loaded again."""

    def landing(*_: object) -> Iterator[None]:
        raise SnapshotLost("The source went away.")
        yield

    monkeypatch.setattr(load, "load_table", landing)


@pytest.mark.parametrize(
    ("fail", "at_rest", "kind"),
    [
        pytest.param(failing_removal, False, "LakeUnreachable", marks=pytest.mark.soak),
        (failing_removal, True, "LakeUnreachable"),
        pytest.param(failing_plan, False, "SourceUnreachable", marks=pytest.mark.soak),
        (failing_load, True, "SnapshotLost"),
    ],
)
def test_a_failed_repair_reports_what_it_did(
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[pytest.MonkeyPatch], None],
    at_rest: bool,
    kind: str,
) -> None:
    """A removed file is reported, and its rows are loaded again where possible."""
    settings = loaded(source)
    source.execute("INSERT INTO t SELECT i, 'v' || i FROM generate_series(51, 60) i")
    assert pipeline.run(settings).exit_code == 0
    path = min(files(source), key=size)
    path.unlink()
    fail(monkeypatch)
    found = verify(settings, repair=True, at_rest=at_rest)
    assert found.error
    assert found.error.kind == kind
    (summary,) = [note for note in found.notes if note.startswith("repaired: ")]
    assert "1 file removed" in summary
    lands = fail is failing_removal
    assert ("10 inserted" in summary) is lands
    assert any("not loaded again" in note for note in found.notes) is not lands
    assert (differences(settings) == {}) is lands
    monkeypatch.undo()
    assert verify(settings, repair=True).status == "equal"
    assert differences(settings) == {}


@pytest.mark.parametrize("at_rest", [pytest.param(True, marks=pytest.mark.soak), False])
def test_a_file_without_the_rows_of_the_log_is_replaced(source: Source, at_rest: bool) -> None:
    """No rows are left to rewrite: the file is removed, and its rows are loaded again."""
    settings = loaded(source)
    source.execute("INSERT INTO t VALUES (51, 'v51', 51)")
    assert pipeline.run(settings).exit_code == 0
    last = [pq.read_metadata(path).num_rows for path in sorted(files(source))].index(1)
    with tampered(source, last) as frames:
        frames[0] = frames[0].head(0)
    for entry in (source.table("t") / "_delta_log").glob("*.json"):
        entry.write_text(entry.read_text().replace('numRecords\\": 0', 'numRecords\\": 1'))
    found = verify(settings, at_rest=at_rest)
    assert [(file.what, file.rows) for file in found.files] == [("has 0 rows, but 1 by the log", 1)]
    assert verify(settings, at_rest=at_rest, repair=True).status == "equal"
    assert verify(settings, at_rest=True).status == "equal"
    assert differences(settings) == {}


def test_tables_without_a_source_table_fail_alone_in_a_repair(source: Source) -> None:
    """A table that was dropped, or that the config excludes now, fails alone."""
    names = ("dropped", "left_out", "t")
    for name in names:
        source.execute(
            TABLE.replace("TABLE t ", f"TABLE {name} ").replace("INTO t ", f"INTO {name} ")
        )
    assert pipeline.run(source.settings()).exit_code == 0
    for name in names:
        with tampered(source, table=name) as frames:
            frames[0] = frames[0].with_columns(value(7, "other"))
    source.execute("DROP TABLE dropped")
    settings = source.settings(source={"exclude": ["left_out"]})
    result = verifying.verify(settings, at_rest=True, repair=True)
    found = {table.target: (table.status, table.repaired) for table in result.tables}
    assert found == {
        "bronze.bz_dropped": ("differs", 0),
        "bronze.bz_left_out": ("differs", 0),
        "bronze.bz_t": ("equal", 1),
    }
    errors = [table.error.message for table in result.tables if table.error]
    assert len(errors) == 2
    assert all("no table of the source is loaded into it" in error for error in errors)
    assert result.exit_code == 1


def test_columns_with_overlapping_names_are_repaired(source: Source) -> None:
    """Rows are removed from a file with statistics of the key alone."""
    settings = loaded(
        source,
        "CREATE TABLE t (rate_id int PRIMARY KEY, id int, v text, rate numeric(18,6), te float8);"
        " INSERT INTO t SELECT i, i, 'v' || i, i, i FROM generate_series(1, 50) i",
    )
    with tampered(source) as frames:
        frames[0] = frames[0].with_columns(value(7, "other"))
    assert verify(settings, at_rest=True, repair=True).status == "equal"
    assert differences(settings) == {}
