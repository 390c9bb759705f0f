"""Keys that Delta cannot hold or compare: PostgreSQL's own text of them tells rows apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
import pytest

from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.delta.write.history import KIND
from bronze.ingest import pipeline
from bronze.model.columns import KEY_TEXT
from bronze.model.results import TableResult
from bronze.postgres.catalog.types import SourceType, TypeOptions, column_contract
from bronze.protection import erasure
from bronze.protection.key_text import row_key
from bronze.verify.verify import verify
from tests.conftest import Source
from tests.support import feed
from tests.support.streams import streaming, until

OPEN = '{"valid_to": "infinity"}'
PATTERNS: Mapping[str, Mapping[str, Any]] = {
    "xmin": {"pattern": "batch"},
    "cursor": {"pattern": "batch", "cursor": "at"},
    "whole": {"pattern": "full_refresh"},
    "removed": {"pattern": "batch", "on_delete": "remove"},
    "versions": {"pattern": "batch", "history": True},
    "whole_versions": {"pattern": "full_refresh", "history": True},
    "hidden": {
        "pattern": "batch",
        "protect": {"valid_to": "tokenize", "id": "encrypt_deterministic"},
    },
}
STREAMED: Mapping[str, Mapping[str, Any]] = {
    "streamed": {"pattern": "streaming"},
    "hidden": {"pattern": "streaming", "protect": {"valid_to": "tokenize"}},
}
# The life of an SCD2 table, in steps. The first step has only closed rows; an open row is valid to
# infinity.
STEPS = (
    """CREATE TABLE {t} (valid_to {kind}, id int, v text, at timestamptz DEFAULT now(),
       PRIMARY KEY (valid_to, id));
       INSERT INTO {t} SELECT '2024-01-01'::date + i, i, 'closed' FROM generate_series(1, 40) i""",
    "INSERT INTO {t} SELECT 'infinity', i, 'open' FROM generate_series(1, 40) i;"
    "INSERT INTO {t} SELECT '-infinity', i, 'never' FROM generate_series(1, 5) i",
    # The open row is closed, another one opened.
    "UPDATE {t} SET valid_to = '2025-05-05', at = now() WHERE valid_to = 'infinity' AND id <= 10;"
    "INSERT INTO {t} SELECT 'infinity', i, 'anew' FROM generate_series(1, 10) i",
    "UPDATE {t} SET v = 'other', at = now() WHERE NOT isfinite(valid_to) AND id <= 3;"
    "DELETE FROM {t} WHERE valid_to = 'infinity' AND id > 30;"
    "DELETE FROM {t} WHERE valid_to = '-infinity' AND id = 5;"
    "UPDATE {t} SET valid_to = 'infinity', at = now() WHERE v = 'closed' AND id = 31",
    "INSERT INTO {t} VALUES ('infinity', 40, 'back')",
)


def live(source: Source, name: str) -> pl.DataFrame:
    """The live rows of a Bronze table; of a history the last versions."""
    rows = pl.read_delta(str(source.table(name)))
    if KIND in rows.columns:
        key = [n for n in ("valid_to", "id", KEY_TEXT) if n in rows.columns]
        rows = rows.sort("update_timestamp", maintain_order=True)
        rows = rows.unique(key, keep="last", maintain_order=True)
    return rows.filter(pl.col("record_status") != "DELETED")


def check_equal(settings: Settings) -> None:
    """Checks that the tables equal their source, by hashes that PostgreSQL computes."""
    assert {(t.status, *t.notes) for t in verify(settings).tables} == {("equal",)}


def land(source: Source, tables: Mapping[str, Any]) -> dict[str, TableResult]:
    """Runs some tables; afterwards they equal their source."""
    settings = source.settings(source={"tables": list(tables)}, tables=tables)
    results = {r.table.removeprefix("public."): r for r in pipeline.run(settings).tables}
    assert {name: r.error for name, r in results.items() if r.error} == {}
    check_equal(settings)
    return results


def counts(result: TableResult) -> tuple[int, int, int]:
    """What a run inserted, updated and deleted."""
    return result.inserted, result.updated, result.deleted


FEW = ("xmin", "hidden")


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "chosen"), [("timestamptz", FEW), ("date", tuple(PATTERNS))])
def test_rows_with_infinite_keys_are_loaded_like_others(
    source: Source, kind: str, chosen: tuple[str, ...]
) -> None:
    """Rows valid to infinity land and are updated, closed and deleted like others, in every
    pattern. The key text column is added with the first of them, and existing rows stay.
    """
    tables = {name: PATTERNS[name] for name in chosen}
    for name in tables:
        source.execute(STEPS[0].format(t=name, kind=kind))
    land(source, tables)
    assert all(KEY_TEXT not in live(source, name).columns for name in tables)
    expected = [(45, 0, 0), (10, 10, 0), (0, 7, 11), (1, 0, 0)]
    for step, expect in zip(STEPS[1:], expected, strict=True):
        for name in tables:
            source.execute(step.format(t=name))
        results = land(source, tables)
        for name, result in results.items():
            counted = counts(result)
            if sum(expect) == 1:
                # A reinserted row replaces the one that is marked as deleted: an update.
                counted = (counted[0] + counted[1], 0, 0)
            assert (name, counted) == (name, expect)
            rows = live(source, name)
            if name != "hidden":
                text = {"infinity": OPEN, "-infinity": OPEN.replace("inf", "-inf")}
                source_rows = source.execute(f"SELECT id, valid_to::text FROM {name}")
                key_texts = sorted(((i, text.get(v)) for i, v in source_rows), key=str)
                assert sorted(rows.select("id", KEY_TEXT).rows(), key=str) == key_texts
                assert (rows["valid_to"].is_null() == rows[KEY_TEXT].is_not_null()).all()
    settings = source.settings(tables=tables)
    assert {t.status for t in verify(settings).tables} == {"equal"}
    assert {t.status for t in verify(settings, at_rest=True).tables} == {"equal"}
    assert all(counts(result) == (0, 0, 0) for result in land(source, tables).values())
    for name in tables.keys() & {"xmin", "whole", "removed"}:
        assert feed.faults(source.table(name), since=1) == []
    hidden = live(source, "hidden")[KEY_TEXT].drop_nulls().unique()
    assert len(hidden) == 2
    assert all("tok_" in text and "inf" not in text for text in hidden)


@pytest.mark.soak
def test_the_first_infinite_key_of_a_stream_resyncs_its_table(source: Source) -> None:
    """The first infinite key of a stream resyncs its table; later ones are merged."""
    settings = source.settings(tables=STREAMED, stream={"interval": 0})
    for name in STREAMED:
        source.execute(STEPS[0].format(t=name, kind="timestamptz"))
    compared = {f"public.{name}" for name in STREAMED}
    for step in STEPS[1:]:
        with streaming(settings) as steps:
            until(lambda: steps)
            for name in STREAMED:
                source.execute(step.format(t=name))
            until(
                lambda: all(has_source_rows(source, name) for name in STREAMED), told=lambda: steps
            )
        notes = [step.message for step in steps if step.message]
        assert {note.split(":")[0] for note in notes if ": resyncing" in note} == compared
        compared = set()
        check_equal(settings)
    open_ids = live(source, "streamed").filter(pl.col(KEY_TEXT) == OPEN)["id"].to_list()
    assert sorted(open_ids) == [*range(1, 32), 40]
    hidden = live(source, "hidden")[KEY_TEXT].drop_nulls()
    assert (hidden.n_unique(), len(hidden)) == (2, 32 + 4)
    assert not hidden.str.contains("inf").any()
    assert feed.faults(source.table("streamed"), since=2) == []


def has_source_rows(source: Source, name: str) -> bool:
    """Whether a Bronze table has the ids and texts of the source, each as often."""
    source_rows = source.execute(f"SELECT id, v FROM {name}")
    return sorted(live(source, name).select("id", "v").rows()) == sorted(source_rows)


def test_unchanged_toast_is_looked_up_by_an_infinite_key(source: Source) -> None:
    """An unchanged TOAST value that the stream does not send is found by the whole key."""
    source.execute(
        "CREATE TABLE t (id date, v int, big text, PRIMARY KEY (id));"
        " ALTER TABLE t ALTER big SET STORAGE EXTERNAL;"
        " INSERT INTO t VALUES ('infinity', 0, repeat('p', 9000)),"
        " ('-infinity', 0, repeat('m', 9000)), ('2024-02-02', 0, repeat('d', 9000))"
    )
    settings = source.settings(tables={"t": {"pattern": "streaming"}}, stream={"interval": 0})
    notes: list[str] = []
    for _ in range(2):
        result = stream.stream(
            settings, until_caught_up=True, notify=lambda step: notes.append(step.message)
        )
        assert [t.error for t in result.tables if t.error] == []
        check_equal(settings)
        source.execute("UPDATE t SET v = v + 1")
    assert not any("compared" in note for note in notes if note)
    assert feed.faults(source.table("t")) == []


KEYS = {
    "numeric(6,2)": ("'NaN'", "1.5", {"valid": "NaN"}),
    "float8": ("'NaN'", "1.5", None),
    "timestamp": ("'infinity'", "'2024-02-29 12:00'", {"valid": "infinity"}),
    "date": ("'20000-01-01'", "'2024-02-29'", {"valid": "20000-01-01"}),
    "int[]": ("'{1,NULL,2}'", "'{}'", {"valid": '{"v":["1",null,"2"]}'}),
    "numeric": ("'NaN'", "1.50", {"valid": "NaN"}),
    "text[]": ("'{{a,b},{c,d}}'", "'{\"a,b\",c}'", {"valid": "{{a,b},{c,d}}"}),
    "date[]": ("'{infinity}'", "'{2024-01-01}'", {"valid": "{infinity}"}),
}


@pytest.mark.soak
def test_keys_of_every_type_that_needs_key_text(source: Source) -> None:
    """A key of one column, first with a value that Delta can hold, then with one that it cannot."""
    tables = {
        f"k{i}": {"pattern": "batch", "decimals": {"valid": "decimal(10,2)"}}
        if kind == "numeric"
        else {"pattern": "batch"}
        for i, kind in enumerate(KEYS)
    }
    for i, (kind, (_, plain, _)) in enumerate(KEYS.items()):
        source.execute(f"CREATE TABLE k{i} (valid {kind} PRIMARY KEY, v int)")
        source.execute(f"INSERT INTO k{i} VALUES ({plain}, 1)")
    land(source, tables)
    for change, expect in (("INSERT", (1, 0, 0)), ("UPDATE", (0, 2, 0)), ("DELETE", (0, 0, 1))):
        for i, (odd, _, _) in enumerate(KEYS.values()):
            statements = {
                "INSERT": f"INSERT INTO k{i} VALUES ({odd}, 2)",
                "UPDATE": f"UPDATE k{i} SET v = v + 10",
                "DELETE": f"DELETE FROM k{i} WHERE v = 12",
            }
            source.execute(statements[change])
        for name, result in land(source, tables).items():
            assert (name, counts(result)) == (name, expect)
        if change == "UPDATE":
            for i, (_, _, text) in enumerate(KEYS.values()):
                rows = live(source, f"k{i}")
                expected = json.dumps(text, ensure_ascii=False) if text else None
                row = rows.filter(v=12)
                assert (row[KEY_TEXT].item() if KEY_TEXT in rows.columns else None) == expected
    assert {t.status for t in verify(source.settings(tables=tables)).tables} == {"equal"}


def test_verify_names_rows_by_their_key_text(source: Source) -> None:
    """`verify` names rows with infinite keys by their key text."""
    source.execute(STEPS[0].format(t="t", kind="date"))
    source.execute(STEPS[1].format(t="t"))
    options = {"t": {"pattern": "batch"}}
    land(source, options)
    source.execute(
        "UPDATE t SET v = 'x' WHERE valid_to = 'infinity' AND id = 7;"
        " DELETE FROM t WHERE valid_to = '-infinity' AND id = 5"
    )
    (table,) = verify(source.settings(tables=options)).tables
    assert {(row.fault, row.key) for row in table.rows} == {
        ("different", json.dumps({"id": 7, "valid_to": None, KEY_TEXT: OPEN})),
        (
            "extra",
            json.dumps({"id": 5, "valid_to": None, KEY_TEXT: '{"valid_to": "-infinity"}'}),
        ),
    }
    (table,) = verify(source.settings(tables=options), repair=True).tables
    assert table.status == "equal"
    check_equal(source.settings(tables=options))


def test_a_row_with_an_infinite_key_is_erased_alone(source: Source) -> None:
    """A row can be selected for erasure by the text of its key; other rows stay, and so do the
    records of their rejected values.
    """
    source.execute(STEPS[0].format(t="t", kind="date"))
    source.execute(STEPS[1].format(t="t"))
    options = {"t": {"pattern": "batch", "on_delete": "mark"}}
    land(source, options)
    settings = source.settings(tables=options)
    key = {"id": "7", "valid_to": "infinity"}
    with pytest.raises(Exception, match="still has such a row"):
        erasure.forget(settings, "t", key)
    source.execute("DELETE FROM t WHERE valid_to = 'infinity' AND id = 7")
    land(source, options)
    done = erasure.forget(settings, "t", key)
    assert (done.rows, done.records, done.left) == (1, 1, 0)
    rows = pl.read_delta(str(source.table("t")))
    assert rows.filter(id=7)[KEY_TEXT].to_list() == [None]
    assert rows.filter(pl.col(KEY_TEXT) == OPEN).height == 39


@pytest.mark.soak
def test_rows_without_key_text_get_it_with_their_key(source: Source) -> None:
    """Rows that landed without a key get their key text when the table gets a key."""
    source.execute(
        "CREATE TABLE t (id date, v int); INSERT INTO t VALUES ('infinity', 1), ('-infinity', 2)"
    )
    land(source, {"t": {"pattern": "full_refresh"}})
    source.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
    for options in ({"pattern": "full_refresh"}, {"pattern": "batch"}):
        land(source, {"t": options})
        texts = live(source, "t")[KEY_TEXT].to_list()
        assert sorted(texts) == ['{"id": "-infinity"}', '{"id": "infinity"}']
        source.execute("UPDATE t SET v = v + 1 WHERE id = 'infinity'")
        assert counts(land(source, {"t": options})["t"]) == (0, 1, 0)


def test_key_columns_that_are_never_null_come_first() -> None:
    """Data skipping goes by the first column of the key, which therefore must not be NULL."""
    types = {"at": "date", "tags": "_int4", "id": "int4"}
    element = SourceType("int4", -1, "int4")
    columns = [
        column_contract(
            name,
            f"bz_{name}",
            name,
            SourceType(kind, -1, kind, element=element if kind.startswith("_") else None),
            TypeOptions({}),
        )
        for name, kind in types.items()
    ]
    assert row_key(columns, False).names == ("bz_at", "bz_id")
    assert row_key(columns, True).names == ("bz_id", "bz_at", KEY_TEXT)
    assert row_key(columns, True).source_names == ("at", "tags", "id")
