"""Protection: no personal value is in clear anywhere, whichever way rows are loaded."""

from __future__ import annotations

import base64
import datetime as dt
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

from bronze.api import check, frame
from bronze.cdc import stream
from bronze.config.fields import SecretName
from bronze.config.loading import parse
from bronze.config.sections.protection import ProtectionSettings
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.layout import vacuum
from bronze.errors import ConfigError, LakeError, LakeUnreachable, TableRefused
from bronze.ingest import pipeline
from bronze.model.events import StreamEvent
from bronze.model.protection import ProtectedColumn
from bronze.model.results import TableResult
from bronze.postgres.copy.rows_reader import dtype
from bronze.postgres.replication import batch_builder
from bronze.postgres.replication.batch import Piece, Spool
from bronze.protection import erasure, keyring, keys, protect, reveal
from bronze.protection.old_versions import delete_old_versions
from bronze.tables import evolution
from bronze.verify import verify
from tests.conftest import Source
from tests.support import feed
from tests.support.content import differences
from tests.support.together import Case, Story, together

METHODS = {
    "a": "encrypt",
    "b": "encrypt_deterministic",
    "c": "tokenize",
    "d": {"method": "tokenize", "format": True},
    "e": "hash",
    "f": {"method": "mask", "keep": 2},
    "g": "drop",
}
PLANTED = re.compile(rb"plant|4242424242|\x00p\x00l\x00a\x00n\x00t")
PEOPLE = """
CREATE TABLE people (id int PRIMARY KEY, a text, b text, c text, d text, e text, f text, g text,
                     born date, pay numeric(10, 2), rest text);
INSERT INTO people SELECT i, 'plant a' || i, 'plant b' || i % 3, 'plant c' || i,
    '+42 (42) 4242-42' || i, 'plant e' || i, 'plant f' || i, 'plant g' || i,
    '1970-01-01'::date + i, i, 'rest' FROM generate_series(10, 40) i
"""


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No log, of whatever level, ever has a planted value."""
    caplog.set_level(logging.DEBUG)
    yield
    assert not PLANTED.search(caplog.text.encode())


def settings(source: Source, name: str = "people", **own: Any) -> Settings:
    """Settings that protect the columns of `PEOPLE`, one by each method."""
    given = {"protect": METHODS | {"born": "encrypt", "pay": "encrypt_deterministic"}} | own
    return source.settings(tables={name: given})


def run(given: Settings) -> TableResult:
    """Runs a source with one table; the result has no planted value."""
    (result,) = pipeline.run(given).tables
    assert not PLANTED.search(repr(result).encode())
    return result


def landed(given: Settings) -> TableResult:
    """Runs without an error."""
    result = run(given)
    assert result.error is None, result.error
    return result


def planted(folder: Path, what: re.Pattern[bytes] = PLANTED) -> list[str]:
    """The files with a planted value: in their bytes, or in the values of a Parquet file."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += pl.read_parquet(path, hive_partitioning=False).write_json().encode()
        if what.search(content):
            found.append(str(path))
    return found


def table(source: Source, name: str = "people") -> pl.DataFrame:
    """The Bronze table, sorted by its key."""
    return pl.read_delta(str(source.table(name))).sort("id")


def protections(given: Settings, name: str = "bz_people") -> tuple[ProtectedColumn, ...]:
    """How a table is protected, read from the lake alone."""
    state = log.read(given.place("bronze", name))
    assert state is not None
    known = keys.current_keys(keys.stored_keys(given)[1])
    return tuple(
        ProtectedColumn(
            column,
            column,
            kind,
            how,
            known.get(("" if how.join else f"bronze.{name}", how.join or column, how.method), ()),
        )
        for column, (how, kind) in evolution.protected_columns(state.properties).items()
        if how
    )


def clear(given: Settings, rows: pl.DataFrame, name: str = "bz_people") -> pl.DataFrame:
    """The rows with their encrypted columns decrypted."""
    for one in protections(given, name):
        if one.protect.method in protect.REVEALED:
            values = protect.reveal_values(rows[one.column], one, given.masters, dtype(one.kind))
            rows = rows.with_columns(values.alias(one.column))
    return rows


def test_no_method_leaves_a_value_in_clear(source: Source) -> None:
    """Each method stores its form for any type; no byte of the lake has a planted value."""
    source.execute(PEOPLE)
    given = settings(source)
    landed(given)
    assert planted(source.lake) == []
    rows = table(source)
    assert "g" not in rows.columns
    assert rows["rest"].to_list() == ["rest"] * 31
    assert rows["a"].n_unique() == 31
    assert rows["b"].n_unique() == 3
    assert rows["c"].str.contains("^tok_[0-9a-f]{32}$").all()
    assert rows["d"].str.contains(r"^\+\d\d \(\d\d\) \d{4}-\d{4}$").all()
    assert rows["e"].str.contains("^[0-9a-f]{64}$").all()
    assert rows["f"].to_list() == [f"***{i}" for i in range(10, 41)]
    assert rows.schema["born"] == rows.schema["pay"] == pl.String
    known = clear(given, rows)
    assert known["a"].to_list() == [f"plant a{i}" for i in range(10, 41)]
    wanted = source.execute("SELECT b, born, pay FROM people ORDER BY id")
    assert known.select("b", "born", "pay").rows() == wanted
    assert differences(given) == {}


@pytest.mark.soak
@together(("full_refresh", "hash"), ("batch", "tokenize"), ("batch", "encrypt_deterministic"))
def test_only_differences_are_committed_by_a_protected_key(
    source: Case, pattern: str, method: str
) -> Story:
    """Rows are compared by the stored form of their keys: inserts, updates and deletes are found,
    and unchanged rows are not written again, though their ciphertext would differ.
    """
    source.execute("CREATE TABLE t (mail text, n int, a text, PRIMARY KEY (mail, n))")
    source.execute("INSERT INTO t SELECT 'plant' || i, i, 'plant' FROM generate_series(1, 9) i")
    own = {"pattern": pattern, "protect": {"mail": method, "n": method, "a": "encrypt"}}
    yield own
    before = pl.read_delta(str(source.table("t")))
    assert (yield own).status == "unchanged"
    source.execute("UPDATE t SET a = 'plant new' WHERE mail = 'plant3'")
    source.execute("DELETE FROM t WHERE n IN (4, 5)")
    source.execute("INSERT INTO t VALUES ('plantx', 10, 'plant')")
    result = yield own
    assert not PLANTED.search(repr(result).encode())
    assert (result.inserted, result.updated, result.deleted) == (1, 1, 2)
    assert result.notes == ()
    after = pl.read_delta(str(source.table("t")))
    assert len(set(before["a"]) & set(after["a"])) == 8
    assert planted(source.lake) == []


def streamed(given: Settings) -> None:
    """Streams until all committed changes are applied."""
    result = stream.stream(given, until_caught_up=True)
    assert [table.error for table in result.tables if table.error] == []


@pytest.mark.parametrize("deferred", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_stream_protects_its_changes(
    source: Source, monkeypatch: pytest.MonkeyPatch, deferred: bool
) -> None:
    """Inserts, updates, changes of protected keys and deletes of the stream are protected, also
    keys that rows exchange; files in which the stream buffers changes are encrypted: no byte of the
    lake or of these files is in clear.
    """
    more = "DEFERRABLE INITIALLY DEFERRED" if deferred else ""
    source.execute(
        f"CREATE TABLE t (mail text PRIMARY KEY {more}, a text, n numeric(9, 2), day date)"
    )
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    source.execute("INSERT INTO t SELECT 'plant' || i, 'plant', i FROM generate_series(1, 9) i")
    own = {"mail": "tokenize", "a": "encrypt", "n": "encrypt_deterministic", "day": "encrypt"}
    table = {"pattern": "streaming", "protect": own, "key": ["mail"]}
    given = source.settings(tables={"t": table}, stream={"interval": 0})
    aside: list[bytes] = []
    monkeypatch.setattr(batch_builder, "_PIECE", 4096)
    monkeypatch.setattr("bronze.cdc.apply_loop._LEAST_BATCH", 4096)
    monkeypatch.setattr("bronze.cdc.apply_loop._SHARE", 10**9)
    put_aside = Piece.move_to_spool

    def seen(piece: Piece, spool: Spool) -> None:
        data = piece.data
        put_aside(piece, spool)
        assert piece.read() == data
        spool._file.seek(0)
        aside.append(spool._file.read())

    monkeypatch.setattr(Piece, "move_to_spool", seen)
    streamed(given)
    with psycopg.connect(source.dsn) as connection:
        connection.execute(
            "INSERT INTO t SELECT 'plant' || i, 'plant', i, 'infinity'"
            " FROM generate_series(10, 400) i"
        )
        connection.execute("UPDATE t SET a = 'plant two' WHERE mail = 'plant3'")
        connection.execute("UPDATE t SET mail = 'plant moved' WHERE mail = 'plant5'")
        connection.execute("DELETE FROM t WHERE mail IN ('plant7', 'plant20')")
        if deferred:
            connection.execute(
                "UPDATE t SET mail = CASE mail WHEN 'plant1' THEN 'plant2' ELSE 'plant1' END"
                " WHERE mail IN ('plant1', 'plant2')"
            )
    streamed(given)
    assert differences(given) == {}
    assert aside
    assert not any(PLANTED.search(data) for data in aside)
    assert planted(source.lake) == []
    rows = pl.read_delta(str(source.table("t"))).filter(pl.col("record_status") == "ACTIVE")
    assert sorted(clear(given, rows, "bz_t")["n"]) == sorted(
        row[0] for row in source.execute("SELECT n FROM t")
    )
    book = pl.read_delta(str(source.lake / "governance" / "rejected_values"))
    assert book.height == 390
    assert not book["source_text"].str.contains("infinity").any()
    assert book["row_key"].str.starts_with('{"mail": "tok_').all()


def test_unchanged_toast_is_decrypted_or_the_table_is_resynced(source: Source) -> None:
    """An unchanged TOAST value is read from the table if it can be decrypted; if not, the table is
    resynced.
    """
    methods = {"decrypted": "encrypt", "compared": "hash"}
    for name in methods:
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, big text, n int)")
        source.execute(f"ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL")
        source.execute(
            f"INSERT INTO {name} SELECT i, repeat('plant' || i, 2000), i"
            " FROM generate_series(1, 3) i"
        )
    own = {
        name: {"pattern": "streaming", "protect": {"big": method}}
        for name, method in methods.items()
    }
    given = source.settings(tables=own, stream={"interval": 0})
    streamed(given)
    for name in methods:
        source.execute(f"UPDATE {name} SET n = 10 + n")
    steps: list[StreamEvent] = []
    stream.stream(given, until_caught_up=True, notify=steps.append)
    assert differences(given) == {}
    assert planted(source.lake) == []
    told = [
        step.message
        for step in steps
        if "REPLICA" in step.message or "did not send" in step.message
    ]
    assert [note.split(":")[0] for note in told] == ["public.compared"]
    rows = clear(given, table(source, "decrypted"), "bz_decrypted")
    assert rows["big"].to_list() == [f"plant{i}" * 2000 for i in (1, 2, 3)]


def test_a_history_is_protected(source: Source) -> None:
    """All versions of a row are protected; a change of protection is refused, as earlier versions
    cannot be read again.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    source.execute("INSERT INTO t VALUES (1, 'plant one'), (2, 'plant two')")
    own = {"history": True, "protect": {"a": "encrypt"}}
    given = settings(source, "t", **own)
    landed(given)
    source.execute("UPDATE t SET a = 'plant three' WHERE id = 1")
    source.execute("DELETE FROM t WHERE id = 2")
    landed(given)
    assert planted(source.lake) == []
    rows = clear(given, pl.read_delta(str(source.table("t"))), "bz_t")
    assert sorted(rows["a"]) == ["plant one", "plant three", "plant two", "plant two"]
    other = run(settings(source, "t", **own | {"protect": {"a": "hash"}}))
    assert other.error is not None
    assert "history" in other.error.message


def test_a_change_of_protection_reloads_the_table(source: Source) -> None:
    """Turning protection on, changing the method and turning it off each reload the table in one
    commit and say so; the older versions are deleted on demand.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, n int)")
    source.execute("INSERT INTO t SELECT i, 'plant' || i, i FROM generate_series(1, 9) i")
    choices: list[dict[str, Any]] = [
        {},
        {"a": "encrypt", "n": "hash"},
        {"a": "hash"},
        {"a": "drop"},
    ]
    for number, protect_ in enumerate(choices):
        given = settings(source, "t", protect=protect_)
        result = landed(given)
        assert any("the table is reloaded" in note for note in result.notes) == (number > 0)
        assert differences(given) == {}
        assert landed(given).status == "unchanged"
        if protect_:
            assert planted(source.lake)
    done = delete_old_versions(given, "t")
    assert done.files > 0
    assert planted(source.lake) == []
    assert "a" not in pl.read_delta(str(source.table("t"))).columns
    landed(given)


@pytest.mark.soak
def test_records_from_before_protection_are_deleted_with_old_versions(source: Source) -> None:
    """They name rows, or have values, in clear; records of the current rows stay."""
    source.execute("CREATE TABLE t (mail text PRIMARY KEY, kind text, day date, n int)")
    source.execute(
        "INSERT INTO t SELECT 'plant' || i, 'plant' || i % 3,"
        " CASE WHEN i < 4 THEN 'infinity'::date END,"
        " CASE WHEN i = 7 THEN 1000000 ELSE i % 10 END FROM generate_series(1, 1500) i"
    )
    own: dict[str, Any] = {
        "anomalies": {"expected": 0.01, "trees": 10},
        "rules": [{"name": "small", "column": "n", "range": {"max": 3}}],
    }
    landed(source.settings(tables={"t": own}))
    given = settings(source, "t", protect={"mail": "tokenize", "kind": "encrypt"}, **own)
    landed(given)
    books = ("rejected_values", "quality", "anomalies", "models", "profiles")
    before = {name: pl.read_delta(str(source.lake / "governance" / name)) for name in books}
    assert planted(source.lake / "governance")
    done = delete_old_versions(given, "t")
    assert planted(source.lake) == []
    after = {name: pl.read_delta(str(source.lake / "governance" / name)) for name in books}
    assert all(0 < after[name].height < before[name].height for name in books)
    assert done.records == sum(before[name].height - after[name].height for name in books)
    assert landed(given).status == "unchanged"


def test_a_table_without_its_key_fails_alone(
    source: Source, monkeypatch: pytest.MonkeyPatch, master_key: str
) -> None:
    """If the master key is missing, malformed or another one, check, run, stream and verify refuse
    the table that needs it with the same message, and nothing of it is loaded; tables that need no
    key are loaded.
    """
    source.execute(PEOPLE)
    source.execute("CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO plain VALUES (1)")
    own: dict[str, Any] = {"protect": METHODS | {"born": "encrypt", "pay": "encrypt_deterministic"}}
    batched = source.settings(tables={"people": own})
    streams = {"pattern": "streaming"}
    streamed = source.settings(
        tables={"people": own | streams, "plain": streams}, stream={"interval": 0}
    )
    wrong = {
        None: "BRONZE_MASTER_KEY is not set",
        "c2hvcnQ=": "is not the base64 of 32 bytes",
        base64.b64encode(b"x" * 32).decode(): "was wrapped with the master key",
    }
    for value, said in wrong.items():
        if "wrapped" in said:
            monkeypatch.setenv("BRONZE_MASTER_KEY", master_key)
            assert {t.status for t in pipeline.run(batched).tables} == {"landed", "unchanged"}
        if value is None:
            monkeypatch.delenv("BRONZE_MASTER_KEY")
        else:
            monkeypatch.setenv("BRONZE_MASTER_KEY", value)
        keyring.unwrap.cache_clear()
        (problem,) = check.check(batched).problems
        assert problem.message.startswith("Table public.people cannot be protected (")
        assert said in problem.message
        assert problem.hint
        result = pipeline.run(batched)
        assert {t.table: t.error for t in result.tables} == {
            "public.people": problem,
            "public.plain": None,
        }
        assert result.exit_code == 1
        done = stream.stream(streamed, until_caught_up=True)
        assert {t.table: t.error for t in done.tables if t.error} == {"public.people": problem}
        assert source.table("plain").exists()
        if "wrapped" in said:
            proof = {t.table: t.error for t in verify.verify(batched).tables}
            assert proof["public.people"] == problem
        else:
            assert not source.table("people").exists()
        assert not planted(source.lake)


def test_key_and_cluster_columns_need_a_deterministic_method(source: Source) -> None:
    """A key or a cluster column that is encrypted at random, masked or dropped is refused."""
    source.execute("CREATE TABLE t (mail text PRIMARY KEY, day date)")
    for own in (
        {"protect": {"mail": "encrypt"}},
        {"protect": {"mail": "mask"}},
        {"protect": {"mail": "drop"}},
        {"protect": {"day": "encrypt"}, "cluster_by": ["day"]},
        {"protect": {"day": "hash"}, "partition_by": "day"},
        {"protect": {"nothing": "hash"}},
    ):
        error = run(settings(source, "t", **own)).error
        assert error is not None
        assert error.kind == "TableRefused"
        assert error.hint
    landed(settings(source, "t", protect={"mail": "hash", "day": "hash"}, cluster_by=["day"]))


def test_joined_columns_have_equal_tokens_in_all_tables(source: Source) -> None:
    """Columns with a common ``join`` can be joined, of whatever type; others cannot."""
    methods = ("tokenize", "encrypt_deterministic", "hash")
    names = [f"{side}{i}" for i in range(6) for side in "ab"]
    columns = ", ".join(f"{n} {'int' if n[0] == 'a' else 'bigint'} DEFAULT 7" for n in names)
    source.execute(f"CREATE TABLE t (id int PRIMARY KEY, {columns})")
    source.execute("INSERT INTO t VALUES (1)")
    hows = {n: {"method": methods[int(n[1]) // 2]} for n in names}
    hows = {n: how | {"join": "person" if int(n[1]) % 2 else ""} for n, how in hows.items()}
    landed(settings(source, "t", protect=hows))
    rows = table(source, "t")
    for i in range(6):
        assert (rows[f"a{i}"][0] == rows[f"b{i}"][0]) == bool(i % 2)


def failed(*_: Any) -> Any:
    """A lake that cannot be reached."""
    raise LakeUnreachable("The lake is away.")


def test_keys_of_rows_that_cannot_be_reloaded_are_not_rotated(source: Source) -> None:
    """A history, or a table that keeps rows which the source no longer has, is not reloaded: this
    is refused before a key is made, also if it shares its key with another table; and runs go on.
    """
    for name in "thu":
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, a text)")
        source.execute(f"INSERT INTO {name} VALUES (1, 'plant')")
    joined = {"method": "tokenize", "join": "person"}
    given = source.settings(
        tables={
            "t": {"protect": {"a": joined}},
            "h": {"pattern": "batch", "history": True, "protect": {"a": "tokenize"}},
            "u": {"pattern": "batch", "deletes": "ignore", "protect": {"a": joined}},
        }
    )
    assert all(table.error is None for table in pipeline.run(given).tables)
    before = keys.stored_keys(given)[1]
    for tables in (["bronze.bz_h"], ["bronze.bz_u"], []):
        with pytest.raises(TableRefused, match="cannot be reloaded"):
            keys.rotate(given, tables, reencrypt=True)
    assert keys.stored_keys(given)[1] == before
    assert len(keys.rotate(given, ["bronze.bz_t"], reencrypt=True)) == 1
    assert all(table.error is None for table in pipeline.run(given).tables)


def test_keys_rotate_and_old_values_stay_readable(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new key protects new values; with reencrypt the next run reloads the table; rewrapping
    replaces the master key, after which the old one is not needed.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    source.execute(
        "INSERT INTO t SELECT i, 'plant' || i, 'plant' || i FROM generate_series(1, 5) i"
    )
    given = settings(source, "t", protect={"a": "encrypt", "b": "tokenize"})
    landed(given)
    first = table(source, "t")
    (made,) = keys.rotate(given, ["bronze.bz_t"], reencrypt=False)
    assert (made.column, made.purpose, made.current) == ("a", "encrypt", True)
    source.execute("INSERT INTO t VALUES (6, 'plant6', 'plant6')")
    source.execute("UPDATE t SET b = 'plant' WHERE id = 1")
    assert landed(given).updated == 1
    rows = table(source, "t")
    assert {text.split(":")[1] for text in rows["a"]} == {made.id, first["a"][0].split(":")[1]}
    assert clear(given, rows, "bz_t")["a"].to_list() == [f"plant{i}" for i in range(1, 7)]
    assert rows["b"][1:5].equals(first["b"][1:5])
    assert len(keys.rotate(given, [], reencrypt=True)) == 3
    result = landed(given)
    assert any("rotated" in note for note in result.notes)
    again = table(source, "t")
    assert not set(again["a"]) & set(rows["a"])
    assert not set(again["b"]) & set(rows["b"])
    assert differences(given) == {}
    with pytest.raises(ConfigError, match="no keys"):
        keys.rotate(given, ["bronze.bz_x"], reencrypt=False)
    monkeypatch.setenv("OLD", os.environ["BRONZE_MASTER_KEY"])
    monkeypatch.setenv("BRONZE_MASTER_KEY", base64.b64encode(bytes(32)).decode())
    keyring.unwrap.cache_clear()
    with pytest.raises(ConfigError, match="not one of those"):
        keys.rewrap(given)
    both = given.model_copy(
        update={"protection": ProtectionSettings(previous=(SecretName(secret="OLD"),))}
    )
    with monkeypatch.context() as failing:
        failing.setattr(vacuum, "purge", failed)
        with pytest.raises(LakeUnreachable):
            keys.rewrap(both)
    assert len(list((source.lake / "governance" / "keys").glob("*.parquet"))) > 1
    # The next call does what an earlier one could not.
    assert keys.rewrap(both) == 0
    assert len(list((source.lake / "governance" / "keys").glob("*.parquet"))) == 1
    assert keys.rewrap(both) == 0
    keyring.unwrap.cache_clear()
    assert clear(given, again, "bz_t")["a"].to_list() == [f"plant{i}" for i in range(1, 7)]
    assert landed(given).status == "unchanged"


def test_concurrent_runs_make_the_same_keys(source: Source) -> None:
    """Runs that begin at once agree on one key for each use."""
    given = settings(source)
    uses = [("bronze.bz_t", name, "encrypt") for name in "abc"]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: keys.ensure_keys(given, uses), range(4)))
    assert all(one == made[0] for one in made)
    assert [len(found) for found in made[0].values()] == [1, 1, 1]
    assert len(keys.stored_keys(given)[1]) == 3


def test_errors_do_not_quote_values(source: Source, capfd: pytest.CaptureFixture[str]) -> None:
    """The message of PostgreSQL about a row that it cannot read is not in results, logs and errors,
    and not in what libraries print.
    """
    source.execute(
        "CREATE FUNCTION shout(text) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no % here', $1; END $$"
    )
    source.execute("CREATE TABLE base (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO base VALUES (1, 'plant')")
    expressions = ("v::int", "shout(v)", "(v || '-01')::date", "('{' || v)::int[]")
    names = {f"t{number}": expression for number, expression in enumerate(expressions)}
    for name, expression in names.items():
        source.execute(f"CREATE VIEW {name} AS SELECT id, {expression} AS v FROM base")
    choices: list[dict[str, Any]] = [{"protect": {"v": "encrypt"}, "key": ["id"]}, {"key": ["v"]}]
    for own in choices:
        given = source.settings(source={"tables": [*names]}, tables=dict.fromkeys(names, own))
        results = {result.table: result for result in pipeline.run(given).tables}
        for name, expression in names.items():
            error = results[f"public.{name}"].error
            assert error is not None, expression
            assert f"public.{name}" in error.message, expression
        assert not PLANTED.search(repr(results).encode())
        assert not PLANTED.search("".join(capfd.readouterr()).encode())


def test_reveal_finds_a_row_in_whichever_file_it_is(source: Source) -> None:
    """Files without the row are passed over, and those after them are still read."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, mail text)")
    given = settings(source, "t", protect={"mail": "encrypt"})
    for number in (1, 2, 3):
        source.execute(f"INSERT INTO t VALUES ({number}, 'plant{number}')")
        landed(given)
    for number in (1, 2, 3):
        rows = reveal.reveal(given, "t", key={"id": str(number)}, columns=["mail"])
        assert rows.rows() == [(f"plant{number}",)]
    assert reveal.reveal(given, "t", key={"id": "4"}).is_empty()


def test_reveal_decrypts_rows_and_is_audited(
    source: Source,
) -> None:
    """Rows are decrypted, selected by a protected or a clear key, and each call is audited."""
    source.execute("CREATE TABLE t (mail text PRIMARY KEY, a date, b text)")
    source.execute(
        "INSERT INTO t SELECT 'plant' || i, '2020-01-01', i FROM generate_series(1, 5) i"
    )
    given = settings(source, "t", protect={"mail": "tokenize", "a": "encrypt", "b": "hash"})
    landed(given)
    rows = reveal.reveal(given, "t", key={"mail": "plant3"}, columns=["a"])
    assert rows.rows() == [(dt.date(2020, 1, 1),)]
    assert reveal.reveal(given, "bz_t").height == 5
    assert reveal.reveal(given, "public.t", limit=2).height == 2
    for key, said in (
        ({"a": "2020-01-01"}, "does not keep equal values equal"),
        ({"x": "1"}, "no column x"),
    ):
        with pytest.raises(ConfigError, match=said):
            reveal.reveal(given, "t", key=key)
    with pytest.raises(ConfigError, match="no column y"):
        reveal.reveal(given, "t", columns=["y"])
    with pytest.raises(ConfigError, match="no Bronze table nope"):
        reveal.reveal(given, "nope")
    book = pl.read_delta(str(source.lake / "governance" / "audit_log")).sort("sequence")
    revealed = book.filter(pl.col("action") == "reveal")
    assert revealed["result"].to_list() == ["succeeded"] * 3 + ["failed"] * 4
    details = revealed["details"].str.json_path_match("$.rows").to_list()
    assert details == ["1", "5", "2"] + [None] * 4
    assert not PLANTED.search(book.write_json().encode())


FORGETTING = [
    {},
    {"on_delete": "remove"},
    {"history": True},
    {"protect": {"id": "tokenize", "a": "encrypt"}, "pattern": "batch"},
]


@pytest.mark.soak
@pytest.mark.parametrize("own", FORGETTING)
def test_no_byte_of_an_erased_person_is_left(source: Source, own: dict[str, Any]) -> None:
    """Rows, older versions, the change data feed, the log and the records of rejected values have
    nothing of the person; everybody else's are unchanged.
    """
    source.execute("CREATE TABLE t (id text PRIMARY KEY, a text, day date)")
    source.execute(
        "INSERT INTO t SELECT 'id' || i, 'x' || i, '2020-01-01' FROM generate_series(1, 9) i"
    )
    source.execute(
        "INSERT INTO t VALUES ('plant', 'plant', 'infinity'), ('other', 'o', 'infinity')"
    )
    given = settings(source, "t", **{"protect": {}} | own)
    landed(given)
    source.execute("UPDATE t SET a = 'plant again' WHERE id = 'plant'")
    landed(given)
    with pytest.raises(TableRefused, match="still has such a row"):
        erasure.forget(given, "t", {"id": "plant"})
    source.execute("DELETE FROM t WHERE id = 'plant'")
    landed(given)
    before = pl.read_delta(str(source.table("t")))
    done = erasure.forget(given, "t", {"id": "plant"})
    # Two rejected values, and two scores with the key as an example, if it is not protected.
    assert (done.left, done.records) == (0, 2 if "protect" in own else 4)
    assert done.scanned >= 1
    after = pl.read_delta(str(source.table("t")))
    assert done.rows == before.height - after.height
    for name in {"plant", *before["id"]} - {*after["id"]}:
        assert planted(source.lake, re.compile(name.encode())) == []
    book = pl.read_delta(str(source.lake / "governance" / "rejected_values"))
    assert book.height == 1
    assert landed(given).status == "unchanged"
    again = erasure.forget(given, "t", {"id": "plant"})
    assert again.rows == 0
    source.execute("UPDATE t SET a = 'b' WHERE id = 'other'")
    landed(given)
    assert feed.faults(source.table("t"), since=again.version) == []
    with pytest.raises(ConfigError, match="No row is selected"):
        erasure.forget(given, "t", {})


@pytest.mark.soak
def test_erasure_by_a_column_outside_the_key_covers_the_records(source: Source) -> None:
    """Rows may be selected by any column; a file without other rows is removed. A file that a run
    may be about to commit is kept, and counted.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, owner int, day date)")
    source.execute("INSERT INTO t SELECT i, i % 3, 'infinity' FROM generate_series(1, 9) i")
    given = source.settings(tables={"t": {"cluster_by": ["id"]}})
    landed(given)
    source.execute("DELETE FROM t WHERE owner = 1")
    (file,) = source.table("t").glob("*.parquet")
    coming = file.with_name(re.sub("[0-9a-f]{32}", "0" * 32, file.name))
    coming.write_bytes(file.read_bytes())
    half = erasure.forget(given, "t", {"owner": "1"})
    assert (half.left, half.exit_code) == (3, 1)
    coming.unlink()
    source.execute("INSERT INTO t VALUES (1, 1, 'infinity')")
    landed(given)
    source.execute("DELETE FROM t WHERE owner = 1")
    done = erasure.forget(given, "t", {"owner": "1"}, ask=True)
    assert (done.rows, done.records, done.left) == (1, 1, 0)
    assert landed(given).deleted == 0
    for owner in ("0", "2"):
        assert erasure.forget(given, "t", {"owner": owner}, ask=False).left == 0
    assert pl.read_delta(str(source.table("t"))).is_empty()
    with pytest.raises(ConfigError, match="is not of type"):
        erasure.forget(given, "t", {"owner": "x"})


def test_check_warns_of_columns_that_look_personal(source: Source) -> None:
    """By name and by content, without values; not for columns that are protected or "clear"."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, email text, x text, city text)")
    source.execute("INSERT INTO t VALUES (1, 'p@plant.de', '+49 30 4242424242', 'Ulm')")
    report = check.check(source.settings())
    (note,) = report.tables[0].notes
    assert "email (e-mail, by name and content)" in note
    assert "x (phone, by content)" in note
    assert not PLANTED.search(repr(asdict(report)).encode())
    assert report.problems == ()
    given = settings(source, "t", protect={"email": "encrypt", "x": "clear"})
    (found,) = check.check(given).tables
    assert found.notes == ()
    assert [(c.delta_type, c.note) for c in found.columns if c.name == "email"] == [
        ("string", "encrypted with AES-256-GCM")
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": "encript"}, "tables.t.protect.a.method"),
        ({"a": {"method": "tokenize", "fromat": True}}, "did you mean format"),
        ({"a": {"method": "encrypt", "join": "x"}}, "join is only for"),
        ({"a": {"method": "hash", "format": True}}, "format is only for"),
        ({"a": {"method": "hash", "keep": 1}}, "keep is only for"),
    ],
)
def test_errors_in_protect_settings_name_the_place(given: dict[str, Any], said: str) -> None:
    """The message names the setting, and the nearest known one."""
    document = {
        "source": {"dsn": "postgresql://x/y"},
        "lake": {"root": "lake"},
        "tables": {"t": {"protect": given}},
    }
    with pytest.raises(ConfigError, match=said):
        parse(document)


def test_format_and_keep_are_refused_for_types_of_few_values(source: Source) -> None:
    """For booleans, enums, domains over them and arrays of them."""
    source.execute("CREATE TYPE mood AS ENUM ('happy', 'depressed'); CREATE DOMAIN flag AS boolean")
    shape: dict[str, Any] = {"method": "tokenize", "format": True}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("boolean", shape, "format = true"),
        ("mood", shape, "format = true"),
        ("flag", {"method": "mask", "keep": 2}, "keep = 2"),
        ("mood[]", {"method": "mask", "keep": 3}, "keep = 3"),
    ]
    own: dict[str, Any] = {}
    for number, (kind, how, _) in enumerate(cases):
        source.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY, v {kind})")
        own[f"t{number}"] = {"protect": {"v": how}}
    source.execute("CREATE TABLE u (id int PRIMARY KEY, v boolean)")
    own["u"] = {"protect": {"v": "tokenize"}}
    given = source.settings(tables=own)
    results = {one.table: one for one in pipeline.run(given).tables}
    problems = {one.table: one.problem for one in check.check(given).tables}
    assert results["public.u"].error is None
    for number, (kind, _, said) in enumerate(cases):
        error = results[f"public.t{number}"].error
        assert error, kind
        assert said in error.message
        assert "Leave" in error.hint
        assert problems[f"public.t{number}"] == error
        assert not source.table(f"t{number}").exists()


def test_a_name_that_several_tables_have_is_refused(source: Source) -> None:
    """No rows of another table are erased or shown: the user has to name the Bronze table."""
    source.execute(
        "CREATE SCHEMA crm; CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE crm.t (id int)"
    )
    source.execute("INSERT INTO t VALUES (42)")
    given = source.settings(
        source={"schema": ["public", "crm"]}, tables={"crm.t": {"target": "bz_crm_t"}}
    )
    assert pipeline.run(given).exit_code == 0
    for wrong in (erasure.forget, reveal.reveal):
        with pytest.raises(ConfigError, match="Several Bronze tables hold a table t"):
            wrong(given, "t", key={"id": "42"})
    with pytest.raises(ConfigError, match="Several Bronze tables hold a table t"):
        frame.active_rows(given, "t")
    for name, rows in {"bz_t": 1, "bronze.bz_t": 1, "public.t": 1, "crm.t": 0}.items():
        assert reveal.reveal(given, name, key={"id": "42"}).height == rows
        assert frame.active_rows(given, name).collect().height == rows
    # A table that cannot be read may be the one of this name, unless the name is a table's own.
    min((source.table("crm_t") / "_delta_log").glob("*.json")).write_text("{}")
    for name in ("public.t", "t", "crm.t", "nothing"):
        with pytest.raises(LakeError):
            reveal.reveal(given, name, key={"id": "42"})
    for name in ("bz_t", "bronze.bz_t"):
        assert reveal.reveal(given, name, key={"id": "42"}).height == 1


def test_a_text_that_is_not_read_exactly_selects_no_row(source: Source) -> None:
    """No other text than "false" is false, and no digit is lost."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, active bool, pay numeric(10, 2))")
    source.execute("INSERT INTO t VALUES (1, false, 12.34), (2, true, 5)")
    given = source.settings()
    landed(given)
    for name, wrong in (("active", "True"), ("active", "no"), ("pay", "12.345"), ("pay", "x")):
        with pytest.raises(ConfigError, match="is not of type"):
            reveal.reveal(given, "t", key={name: wrong})
    for name, right in (("active", "false"), ("pay", "12.34"), ("pay", "12.340")):
        assert reveal.reveal(given, "t", key={name: right})["id"].to_list() == [1]


def test_a_value_selects_its_own_row_and_not_the_row_with_that_token(source: Source) -> None:
    """The token of one row may be the value of another, or its token by an older key."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, code text)")
    source.execute("INSERT INTO t SELECT i, lpad(i::text, 6, '0') FROM generate_series(1, 20000) i")
    given = settings(source, "t", protect={"code": {"method": "tokenize", "format": True}})
    landed(given)
    keys.rotate(given, [], reencrypt=True)
    landed(given)
    rows = table(source, "t")
    taken = rows.filter(pl.col("code").is_in([f"{i:06}" for i in range(1, 20001)]))
    assert taken.height > 50
    for own, token in taken.select("id", "code").head(3).rows():
        shown = reveal.reveal(given, "t", key={"code": token})["id"].to_list()
        assert shown == [int(token)] != [own]


def test_records_are_matched_by_keys_of_any_type(source: Source) -> None:
    """A key with a timestamp, partly protected, and rows selected by another column."""
    source.execute(
        "CREATE TABLE t (at timestamptz, mail text, active bool, day date, PRIMARY KEY (at, mail))"
    )
    source.execute(
        "INSERT INTO t SELECT '2024-01-01Z'::timestamptz + i * interval '1 hour', 'plant' || i,"
        " i = 7, 'infinity' FROM generate_series(1, 9) i"
    )
    given = source.settings(tables={"t": {"protect": {"mail": "tokenize"}}})
    landed(given)
    source.execute("DELETE FROM t WHERE active")
    done = erasure.forget(given, "t", {"active": "true"})
    assert (done.rows, done.records, done.left) == (1, 1, 0)
    book = pl.read_delta(str(source.lake / "governance" / "rejected_values"))
    assert book.height == 8


def test_protection_is_refused_where_it_would_lose_rows_that_only_bronze_has(
    source: Source,
) -> None:
    """With deletes = "ignore" only the table has them: it is not reloaded."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, mail text)")
    source.execute("INSERT INTO t VALUES (1, 'plant'), (2, 'plant')")
    own = {"pattern": "batch", "deletes": "ignore"}
    landed(source.settings(tables={"t": own}))
    source.execute("DELETE FROM t WHERE id = 1")
    given = source.settings(tables={"t": {**own, "protect": {"mail": "hash"}}})
    refused = run(given).error
    assert refused is not None
    assert "only Bronze has" in refused.message
    assert table(source, "t")["id"].to_list() == [1, 2]
