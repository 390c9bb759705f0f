"""Drift: whatever becomes of a table's columns, its Bronze table goes on, or says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from bronze.ingest import pipeline
from bronze.model.results import TableResult
from tests.conftest import Source
from tests.integration.ingest.test_patterns import (
    BATCH,
    FULL,
    THING,
    counts,
    entry,
    feed,
    files,
    land,
    row,
    updates,
)
from tests.support.content import differences
from tests.support.together import Case, Story, Unproven, together

ALL = range(1, 51)


def schema(source: Source, name: str = "t") -> dict[str, str]:
    """The Bronze table's columns and their Delta types."""
    fields = json.loads(DeltaTable(str(source.table(name))).schema().to_json())["fields"]
    return {field["name"]: field["type"] for field in fields}


def values(source: Source, column: str, version: int | None = None) -> dict[Any, Any]:
    """A column of the Bronze table by id."""
    frame = pl.read_delta(str(source.table("t")), version=version)
    return dict(frame.select("id", column).rows())


COMPARED = "all rows are compared: its columns have changed"


def quietly(source: Source, own: dict[str, Any], *notes: str) -> Story:
    """The next run of a story changes nothing but the position: no row, no file, no word but the
    notes.
    """
    before = files(source)
    result = yield own
    assert (counts(result), result.notes) == ((0, 0, 0), notes)
    assert files(source) == before
    assert feed(source, result.version) == []


# --- columns come and go ---------------------------------------------------------------------


def an_added_column_is_null_in_old_rows(source: Case) -> Story:
    """Without a default no row changes and no file; a later value arrives as an update."""
    source.execute(THING)
    yield BATCH
    before = files(source)
    source.execute("ALTER TABLE t ADD c numeric(8,2)")
    result = yield BATCH
    assert counts(result) == (0, 0, 0)
    assert "column c was added" in result.notes
    assert files(source) == before
    assert feed(source, result.version) == []
    assert set(values(source, "c").values()) == {None}
    source.execute("UPDATE t SET c = 1.50 WHERE id = 3; INSERT INTO t (id, c) VALUES (51, 2)")
    result = yield BATCH
    assert (counts(result), result.notes) == ((1, 1, 0), ())
    assert feed(source, result.version) == sorted([("insert", 51), *updates(3)])
    assert str(row(source, 3)["c"]) == "1.50"
    yield from quietly(source, BATCH)


@together("7", "(random() * 100)::int")
def test_an_added_column_with_a_default_is_filled(source: Case, default: str) -> Story:
    """Old rows have the value too, whether PostgreSQL rewrites them or not."""
    source.execute(THING)
    yield BATCH
    source.execute(f"ALTER TABLE t ADD c int NOT NULL DEFAULT {default}")
    result = yield BATCH
    assert counts(result) == (0, 50, 0)
    assert feed(source, result.version) == updates(*ALL)
    assert None not in values(source, "c").values()
    yield from quietly(source, BATCH)


def a_dropped_column_stays_and_is_null(source: Case) -> Story:
    """Rows that had a value there have it no more, which is said once; others do not change."""
    source.execute(THING)
    source.execute("UPDATE t SET v = NULL WHERE id > 10")
    yield BATCH
    source.execute("ALTER TABLE t DROP v")
    result = yield BATCH
    assert counts(result) == (0, 10, 0)
    assert "column v was dropped: it is NULL from now on" in result.notes
    assert feed(source, result.version) == updates(*range(1, 11))
    assert list(schema(source))[:3] == ["id", "v", "at"]
    assert values(source, "v", 0)[1] == "v1"
    yield from quietly(source, BATCH)
    source.execute("INSERT INTO t VALUES (51)")
    assert counts((yield BATCH)) == (1, 0, 0)


@together(
    (FULL, "DEFAULT 'again'", False),
    (BATCH, "", False),
    (BATCH, "DEFAULT 'again'", False),
    (BATCH, "DEFAULT 'again'", True),
)
def test_a_column_that_is_dropped_and_added_again(
    source: Case, own: dict[str, Any], default: str, between: bool
) -> Story:
    """It is another column of the same name: what the old one held is there no more."""
    source.execute(THING)
    yield own
    source.execute("ALTER TABLE t DROP v")
    if between:
        yield own
    source.execute(f"ALTER TABLE t ADD v text {default}")
    yield own
    assert set(values(source, "v").values()) == {"again" if default else None}
    yield from quietly(source, own)


def a_column_that_comes_back_with_a_wider_type(source: Case) -> Story:
    """It is widened; with a type that does not fit it is refused."""
    source.execute(THING)
    source.execute("ALTER TABLE t ADD c int DEFAULT 5")
    yield BATCH
    source.execute("ALTER TABLE t DROP c; ALTER TABLE t ADD c bigint DEFAULT 1::int8 << 40")
    assert counts((yield BATCH)) == (0, 50, 0)
    assert schema(source)["c"] == "long"
    assert set(values(source, "c").values()) == {1 << 40}
    source.execute("ALTER TABLE t DROP c; ALTER TABLE t ADD c text")
    error = (yield Unproven(BATCH)).error
    assert error is not None
    assert source.named("Column c of table public.t has become text") in error.message
    assert set(values(source, "c").values()) == {1 << 40}


def columns_come_and_go_with_rows(source: Case) -> Story:
    """One run takes dropped and added columns, inserts, updates and deletes together."""
    source.execute(THING)
    yield BATCH
    source.execute(
        "ALTER TABLE t DROP v; ALTER TABLE t ADD a int; ALTER TABLE t ADD b text DEFAULT 'b';"
        " UPDATE t SET a = id WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (51)"
    )
    result = yield BATCH
    assert counts(result) == (1, 49, 1)
    assert feed(source, result.version) == sorted([("insert", 51), *updates(*ALL)])
    assert row(source, 2)["v"] == "v2"
    yield from quietly(source, BATCH)


# --- types -----------------------------------------------------------------------------------

WIDER = {
    "short": ("smallint", "int", "integer", "i * 100"),
    "int": ("int", "bigint", "long", "i * -1000000"),
    "real": ("real", "float8", "double", "i / 10.0"),
    "decimal": ("numeric(10,2)", "numeric(14,4)", "decimal(14,4)", "i + 0.25"),
    "long decimal": ("numeric(10,2)", "numeric(30,2)", "decimal(30,2)", "i + 0.25"),
    "digits": ("numeric(6,4)", "numeric(10,2)", "decimal(12,4)", "i + 0.25"),
}


@together((BATCH, "int"), (BATCH, "real"), (BATCH, "digits"), (FULL, "decimal"))
def test_a_widened_column_keeps_all_values(source: Case, own: dict[str, Any], kind: str) -> Story:
    """One commit, all values as they were; the version before is read as it was."""
    yield from widened(source, own, kind)


@pytest.mark.soak
@together(*((BATCH, kind) for kind in ("short", "decimal", "long decimal")), (FULL, "int"))
def test_columns_of_more_types_keep_all_values(
    source: Case, own: dict[str, Any], kind: str
) -> Story:
    """When they are widened: like those of the other types."""
    yield from widened(source, own, kind)


def widened(source: Case, own: dict[str, Any], kind: str) -> Story:
    """A column of a table is widened between runs."""
    old, new, delta, value = WIDER[kind]
    source.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, c {old});"
        f" INSERT INTO t SELECT i, {value} FROM generate_series(1, 50) i;"
        " INSERT INTO t VALUES (51, NULL)"
    )
    yield own
    # A file of its own, in which no row is in the source any more.
    for change in ("INSERT INTO t VALUES (52, 1)", "DELETE FROM t WHERE id = 52"):
        source.execute(change)
        yield own
    before = pl.read_delta(str(source.table("t")))
    source.execute(f"ALTER TABLE t ALTER c TYPE {new}")
    result = yield own
    assert result.version == 3
    assert any(note.startswith("column c is widened from") for note in result.notes)
    assert schema(source)["c"] == delta
    after = pl.read_delta(str(source.table("t")))
    both = before.select("id", old="c").join(after.select("id", new="c"), on="id", validate="1:1")
    assert both.height == 52
    assert both.select(
        (pl.col("old").cast(after.schema["c"]).eq_missing(pl.col("new"))).all()
    ).item()
    assert pl.read_delta(str(source.table("t")), version=2).equals(before)
    assert {kind for kind, _ in feed(source, 3)} <= {"update_preimage", "update_postimage"}
    assert after.filter(pl.col("record_status") == "DELETED")["id"].to_list() == [52]
    for file in files(source):
        assert pl.read_parquet(file, columns=["c"]).schema["c"] == after.schema["c"]
    yield from quietly(source, own)
    source.execute("UPDATE t SET c = -c WHERE id = 4")
    assert counts((yield own)) == (0, 1, 0)


@together(FULL, BATCH, {**FULL, "rename": {"V": "v2"}})
def test_a_name_that_changes_its_case_only(source: Case, own: dict[str, Any]) -> Story:
    """The column goes on under the table's own spelling: no table can have both."""
    source.execute(THING)
    yield {key: value for key, value in own.items() if key != "rename"}
    source.execute('ALTER TABLE t RENAME v TO "V"; UPDATE t SET "V" = \'new\' WHERE id = 1')
    yield own
    assert values(source, "v2" if "rename" in own else "v")[1] == "new"
    yield from quietly(source, own)
    source.execute("ALTER TABLE t RENAME \"V\" TO v; UPDATE t SET v = 'newer' WHERE id = 2")
    yield {key: value for key, value in own.items() if key != "rename"}
    assert values(source, "v")[2] == "newer"
    assert [name for name in schema(source) if name.lower() == "v"] == ["v"]


@together(FULL, BATCH)
def test_a_column_that_is_dropped_and_added_in_another_case(
    source: Case, own: dict[str, Any]
) -> Story:
    """It takes the dropped one's place; of another type it is refused, and nothing is changed."""
    source.execute(THING)
    yield own
    source.execute("ALTER TABLE t DROP v; ALTER TABLE t ADD \"V\" text DEFAULT 'again'")
    result = yield own
    assert "column v was dropped and added again" in result.notes
    assert set(values(source, "v").values()) == {"again"}
    yield from quietly(source, own)
    source.execute('ALTER TABLE t DROP "V"; ALTER TABLE t ADD "V" int')
    error = (yield Unproven(own)).error
    assert error is not None
    assert "has become integer" in error.message


@together("varchar(50)", "text")
def test_a_longer_varchar_is_not_a_change(source: Case, new: str) -> Story:
    """Delta knows one type of text: nothing is rewritten."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, c varchar(10)); INSERT INTO t VALUES (1)")
    yield BATCH
    source.execute(f"ALTER TABLE t ALTER c TYPE {new}")
    yield from quietly(source, BATCH)


def a_narrower_type_keeps_the_wider_one(source: Case) -> Story:
    """The Bronze table's column can hold it: no row changes, now or later."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, c bigint, d numeric(14,4), e float8);"
        " INSERT INTO t SELECT i, i, i, i FROM generate_series(1, 50) i"
    )
    yield BATCH
    source.execute("ALTER TABLE t ALTER c TYPE int, ALTER d TYPE numeric(8,2), ALTER e TYPE float4")
    yield from quietly(source, BATCH, COMPARED)
    types = schema(source)
    assert (types["c"], types["d"], types["e"]) == ("long", "decimal(14,4)", "double")
    source.execute("UPDATE t SET c = 7, d = 7.25, e = 0.5 WHERE id = 1")
    assert counts((yield BATCH)) == (0, 1, 0)


def test_a_narrower_decimal_in_the_config_rounds_nothing(source: Source) -> None:
    """A table keeps its wider decimals; numerics that do not fit them are rejected values."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, n numeric)")
    land(source, {"decimals": {"n": "decimal(8,4)"}})
    source.execute("INSERT INTO t VALUES (1, 1.2345), (2, 1.23456), (3, 10000), (4, 'NaN')")
    narrower = source.settings(tables={"t": {"decimals": {"n": "decimal(5,2)"}}})
    (result,) = pipeline.run(narrower).tables
    assert result.rejected == 3
    assert str(row(source, 1)["n"]) == "1.2345"
    assert [row(source, id_)["n"] for id_ in (2, 3, 4)] == [None, None, None]


def the_key_itself_is_widened(source: Case) -> Story:
    """Rows are found by it all the same, with changes and deletes in the same run."""
    source.execute(THING)
    yield BATCH
    source.execute(
        "ALTER TABLE t ALTER id TYPE bigint; UPDATE t SET v = 'new' WHERE id = 1;"
        " DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (1::int8 << 40, 'far')"
    )
    result = yield BATCH
    assert (result.inserted, result.deleted) == (1, 1)
    told = feed(source, result.version)
    assert ("insert", 1 << 40) in told
    assert {kind for kind, _ in told} == {"insert", "update_preimage", "update_postimage"}
    assert pl.read_delta(str(source.table("t"))).height == 51
    yield from quietly(source, BATCH)
    source.execute("UPDATE t SET v = 'newer' WHERE id IN (1, 1::int8 << 40)")
    assert counts((yield BATCH)) == (0, 2, 0)


REFUSED = {
    "whole": (FULL, "text", "c::text"),
    "texts": (BATCH, "text", "c::text"),
    "numbers": (BATCH, "numeric(20,0)", "c::numeric"),
    "floats": (BATCH, "float8", "c::float8"),
    "arrays": (BATCH, "int[]", "ARRAY[c]"),
}


def test_another_type_is_refused(source: Source) -> None:
    """The choices are spelled out, nothing changes, and the other tables of the run land."""
    source.execute("CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE w (id int PRIMARY KEY)")
    for name in REFUSED:
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, c int)")
        source.execute(f"INSERT INTO {name} VALUES (1, 10)")
    own = {name: own for name, (own, _, _) in REFUSED.items()}
    config = source.settings(tables={**own, "u": FULL, "w": BATCH})
    pipeline.run(config)
    before = {name: pl.read_delta(str(source.table(name))) for name in REFUSED}
    for name, (_, new, using) in REFUSED.items():
        source.execute(f"ALTER TABLE {name} ALTER c TYPE {new} USING {using}")
    source.execute("INSERT INTO u VALUES (1); INSERT INTO w VALUES (1)")
    result = pipeline.run(config)
    assert result.exit_code == 1
    results = {one.table.removeprefix("public."): one for one in result.tables}
    assert {name: counts(results[name]) for name in "uw"} == dict.fromkeys("uw", (1, 0, 0))
    for name in REFUSED:
        error = results[name].error
        assert results[name].status == "failed", name
        assert error is not None, name
        assert f"Column c of table public.{name} has become" in error.message
        for choice in ('rename = { "c" = "c_new" }', "target = ", "move the Bronze table away"):
            assert choice in error.hint, name
        assert pl.read_delta(str(source.table(name))).equals(before[name]), name
        assert DeltaTable(str(source.table(name))).version() == 0, name


def the_choices_after_a_refusal_work(source: Case) -> Story:
    """The new type as a column beside the old one, or in a new table."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, c int); INSERT INTO t VALUES (1, 10)")
    yield BATCH
    source.execute("ALTER TABLE t ALTER c TYPE text USING 'x' || c")
    assert (yield Unproven(BATCH)).status == "failed"
    assert counts((yield {**BATCH, "target": "bz_other"})) == (1, 0, 0)
    beside = {**BATCH, "rename": {"c": "c_new"}}
    result = yield beside
    assert counts(result) == (0, 1, 0)
    assert (row(source, 1)["c"], row(source, 1)["c_new"]) == (None, "x10")
    assert not [note for note in result.notes if "was renamed to c" in note]
    yield from quietly(source, beside)


# --- names -----------------------------------------------------------------------------------


def a_renamed_column_is_told_with_the_way_to_keep_its_name(source: Case) -> Story:
    """As it is, it goes on under the new name, and the old one is NULL."""
    source.execute(THING)
    yield BATCH
    source.execute("ALTER TABLE t RENAME v TO w")
    result = yield BATCH
    assert counts(result) == (0, 50, 0)
    (note,) = [note for note in result.notes if "rename" in note]
    assert note.startswith("column v was renamed to w")
    assert 'rename = { "w" = "v" }' in note
    assert set(values(source, "v").values()) == {None}
    assert values(source, "w")[1] == "v1"
    yield from quietly(source, BATCH)


def a_renamed_column_can_keep_its_name(source: Case) -> Story:
    """With rename in the config nothing changes at all."""
    source.execute(THING)
    yield BATCH
    source.execute("ALTER TABLE t RENAME v TO w")
    own = {**BATCH, "rename": {"w": "v"}}
    yield from quietly(source, own)
    source.execute("UPDATE t SET w = 'new' WHERE id = 1")
    result = yield own
    assert counts(result) == (0, 1, 0)
    assert list(schema(source))[:3] == ["id", "v", "at"]


def a_renamed_key(source: Case) -> Story:
    """Under its old name it goes on; without that every row is another one."""
    source.execute(THING)
    yield BATCH
    source.execute("ALTER TABLE t RENAME id TO number")
    kept = {**BATCH, "rename": {"number": "id"}}
    yield from quietly(source, kept)
    source.execute("UPDATE t SET v = 'new' WHERE number = 1")
    assert counts((yield kept)) == (0, 1, 0)
    assert counts((yield BATCH)) == (50, 0, 50)


def test_a_renamed_table_is_a_new_one(source: Source) -> None:
    """It becomes a Bronze table of its BATCH; the old one stays, and the config's is missed."""
    source.execute(THING)
    land(source, BATCH)
    source.execute("ALTER TABLE t RENAME TO u; UPDATE u SET v = 'new' WHERE id = 1")
    config = source.settings(tables={"u": BATCH})
    (result,) = pipeline.run(config).tables
    assert (result.target, counts(result)) == ("bronze.bz_u", (50, 0, 0))
    assert differences(config) == {}
    assert row(source, 1)["v"] == "v1"
    assert pipeline.run(source.settings(tables={"t": BATCH})).exit_code == 1


def test_a_renamed_table_continues_in_its_old_target(source: Source) -> None:
    """It is the same table still: only what changed is read."""
    source.execute(THING)
    land(source, BATCH)
    source.execute("ALTER TABLE t RENAME TO u; UPDATE u SET v = 'new' WHERE id = 1")
    own = {**BATCH, "target": "bz_t"}
    result = land(source, own, "u")
    assert (result.rows_read, counts(result)) == (1, (0, 1, 0))
    assert feed(source, result.version) == updates(1)
    source.execute("INSERT INTO u VALUES (51)")
    result = land(source, own, "u")
    assert (result.rows_read, counts(result)) == (1, (1, 0, 0))


def a_table_that_was_made_anew(source: Case) -> Story:
    """All rows are compared, whatever their xmin; only true differences land."""
    source.execute(THING)
    yield BATCH
    source.execute(f"DROP TABLE t; {THING}; DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (51)")
    source.execute("UPDATE t SET v = 'new' WHERE id = 2")
    result = yield BATCH
    assert counts(result) == (1, 1, 1)
    assert feed(source, result.version) == sorted([("insert", 51), *updates(1, 2)])
    assert result.rows_read == 50
    assert "all rows are compared: the table was recreated in the source" in result.notes
    yield from quietly(source, BATCH)


@together(
    an_added_column_is_null_in_old_rows,
    a_dropped_column_stays_and_is_null,
    a_column_that_comes_back_with_a_wider_type,
    columns_come_and_go_with_rows,
    the_choices_after_a_refusal_work,
    a_narrower_type_keeps_the_wider_one,
    the_key_itself_is_widened,
    a_renamed_column_is_told_with_the_way_to_keep_its_name,
    a_renamed_column_can_keep_its_name,
    a_renamed_key,
    a_table_that_was_made_anew,
)
def test_a_table_survives_a_change_of_its_columns(
    source: Case, story: Callable[[Case], Story]
) -> Story:
    """After each change of its columns the table equals the source; all cases share runs."""
    yield from story(source)


def test_a_table_that_took_the_name_of_another(source: Source) -> None:
    """Rows of the new one are older than the last run, and are no rows of the old one."""
    source.execute(THING)
    source.execute("CREATE TABLE u (LIKE t INCLUDING ALL); INSERT INTO u SELECT 100 + id FROM t")
    only = source.settings(source={"tables": ["t"]}, tables={"t": BATCH})
    pipeline.run(only)
    source.execute("ALTER TABLE t RENAME TO old; ALTER TABLE u RENAME TO t")
    (result,) = pipeline.run(only).tables
    assert counts(result) == (50, 0, 50)
    assert differences(only) == {}


def test_two_tables_are_not_loaded_into_one(source: Source) -> None:
    """A Bronze table that holds another table of the source is refused, and stays."""
    source.execute(f"{THING}; CREATE TABLE u (LIKE t INCLUDING ALL)")

    def only(name: str) -> TableResult:
        own_target = {name: {**BATCH, "target": "bz_t"}}
        config = source.settings(source={"tables": [name]}, tables=own_target)
        (result,) = pipeline.run(config).tables
        return result

    assert counts(only("t")) == (50, 0, 0)
    error = only("u").error
    assert error is not None
    assert "The Bronze table bz_t holds public.t, not public.u" in error.message
    assert "another target" in error.hint
    assert counts(only("t")) == (0, 0, 0)
    assert pl.read_delta(str(source.table("t"))).height == 50
    assert not {"add", "remove"} & set(entry(source, 1))
