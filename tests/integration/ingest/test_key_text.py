"""Keys that Delta cannot hold or compare: their rows are told apart by PostgreSQL's own text."""

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
from bronze.ingest.key_text import row_key
from bronze.model.columns import KEY_TEXT
from bronze.model.results import TableResult
from bronze.postgres.catalog.types import Choices, SourceType, contract
from bronze.protection import erasure
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
# What an SCD2 table goes through: steps of statements, of which the first has closed rows alone.
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
    """The rows that a Bronze table has of what is in the source."""
    rows = pl.read_delta(str(source.table(name)))
    if KIND in rows.columns:
        key = [n for n in ("valid_to", "id", KEY_TEXT) if n in rows.columns]
        rows = rows.sort("update_timestamp", maintain_order=True)
        rows = rows.unique(key, keep="last", maintain_order=True)
    return rows.filter(pl.col("record_status") != "DELETED")


def proven(given: Settings) -> None:
    """The tables equal their source, by hashes that PostgreSQL has made."""
    assert {(t.status, *t.notes) for t in verify(given).tables} == {("equal",)}


def landed(source: Source, tables: Mapping[str, Any]) -> dict[str, TableResult]:
    """A run of some tables, which then equal their source."""
    given = source.settings(source={"tables": list(tables)}, tables=tables)
    results = {r.table.removeprefix("public."): r for r in pipeline.run(given).tables}
    assert {name: r.error for name, r in results.items() if r.error} == {}
    proven(given)
    return results


def counts(result: TableResult) -> tuple[int, int, int]:
    """What a run inserted, updated and deleted."""
    return result.inserted, result.updated, result.deleted


FEW = ("xmin", "whole", "hidden")


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [("timestamptz", FEW), pytest.param("date", tuple(PATTERNS), marks=pytest.mark.soak)],
)
def test_open_rows_of_a_table_of_validity(
    source: Source, kind: str, chosen: tuple[str, ...]
) -> None:
    """Open rows land, are changed, closed and deleted like others, whatever the pattern; the
    column that tells them apart comes with the first of them, and rows that were there stay.
    """
    tables = {name: PATTERNS[name] for name in chosen}
    for name in tables:
        source.execute(STEPS[0].format(t=name, kind=kind))
    landed(source, tables)
    assert all(KEY_TEXT not in live(source, name).columns for name in tables)
    expected = [(45, 0, 0), (10, 10, 0), (0, 7, 11), (1, 0, 0)]
    for step, expect in zip(STEPS[1:], expected, strict=True):
        for name in tables:
            source.execute(step.format(t=name))
        results = landed(source, tables)
        for name, result in results.items():
            found = counts(result)
            # A row that comes back takes the place of the one that is marked.
            back = (found[0] + found[1], 0, 0) if sum(expect) == 1 else found
            assert (name, back) == (name, expect)
            rows = live(source, name)
            if name != "hidden":
                text = {"infinity": OPEN, "-infinity": OPEN.replace("inf", "-inf")}
                said = source.execute(f"SELECT id, valid_to::text FROM {name}")
                told = sorted(((i, text.get(v)) for i, v in said), key=str)
                assert sorted(rows.select("id", KEY_TEXT).rows(), key=str) == told
                assert (rows["valid_to"].is_null() == rows[KEY_TEXT].is_not_null()).all()
    given = source.settings(tables=tables)
    assert {t.status for t in verify(given).tables} == {"equal"}
    assert {t.status for t in verify(given, at_rest=True).tables} == {"equal"}
    assert all(counts(result) == (0, 0, 0) for result in landed(source, tables).values())
    for name in tables.keys() & {"xmin", "whole", "removed"}:
        assert feed.faults(source.table(name), since=1) == []
    hidden = live(source, "hidden")[KEY_TEXT].drop_nulls().unique()
    assert len(hidden) == 2
    assert all("tok_" in text and "inf" not in text for text in hidden)


def test_open_rows_that_come_by_a_stream(source: Source) -> None:
    """The first such row of a stream has the table compared; from then on it goes on as ever."""
    given = source.settings(tables=STREAMED, stream={"interval": 0})
    for name in STREAMED:
        source.execute(STEPS[0].format(t=name, kind="timestamptz"))
    compared = {f"public.{name}" for name in STREAMED}
    for step in STEPS[1:]:
        with streaming(given) as steps:
            until(lambda: steps)
            for name in STREAMED:
                source.execute(step.format(t=name))
            until(lambda: all(same(source, name) for name in STREAMED), told=lambda: steps)
        said = [step.message for step in steps if step.message]
        assert {note.split(":")[0] for note in said if ": resyncing" in note} == compared
        compared = set()
        proven(given)
    mine = live(source, "streamed").filter(pl.col(KEY_TEXT) == OPEN)["id"].to_list()
    assert sorted(mine) == [*range(1, 32), 40]
    hidden = live(source, "hidden")[KEY_TEXT].drop_nulls()
    assert (hidden.n_unique(), len(hidden)) == (2, 32 + 4)
    assert not hidden.str.contains("inf").any()
    assert feed.faults(source.table("streamed"), since=2) == []


def same(source: Source, name: str) -> bool:
    """Whether a Bronze table has the source's ids and texts, as often."""
    said = source.execute(f"SELECT id, v FROM {name}")
    return sorted(live(source, name).select("id", "v").rows()) == sorted(said)


def test_a_value_left_out_of_a_stream_is_found_by_such_a_key(source: Source) -> None:
    """What the stream leaves out, as it is large and the same, is looked up under the whole key."""
    source.execute(
        "CREATE TABLE t (id date, v int, big text, PRIMARY KEY (id));"
        " ALTER TABLE t ALTER big SET STORAGE EXTERNAL;"
        " INSERT INTO t VALUES ('infinity', 0, repeat('p', 9000)),"
        " ('-infinity', 0, repeat('m', 9000)), ('2024-02-02', 0, repeat('d', 9000))"
    )
    given = source.settings(tables={"t": {"pattern": "streaming"}}, stream={"interval": 0})
    notes: list[str] = []
    for _ in range(2):
        result = stream.stream(
            given, until_caught_up=True, notify=lambda step: notes.append(step.message)
        )
        assert [t.error for t in result.tables if t.error] == []
        proven(given)
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


def test_keys_of_every_kind_that_can_be_told_as_text_alone(source: Source) -> None:
    """A key of one column, first with a value that Delta holds, then with others as well."""
    tables = {
        f"k{i}": {"pattern": "batch", "decimals": {"valid": "decimal(10,2)"}}
        if kind == "numeric"
        else {"pattern": "batch"}
        for i, kind in enumerate(KEYS)
    }
    for i, (kind, (_, plain, _)) in enumerate(KEYS.items()):
        source.execute(f"CREATE TABLE k{i} (valid {kind} PRIMARY KEY, v int)")
        source.execute(f"INSERT INTO k{i} VALUES ({plain}, 1)")
    landed(source, tables)
    for change, expect in (("INSERT", (1, 0, 0)), ("UPDATE", (0, 2, 0)), ("DELETE", (0, 0, 1))):
        for i, (odd, _, _) in enumerate(KEYS.values()):
            statements = {
                "INSERT": f"INSERT INTO k{i} VALUES ({odd}, 2)",
                "UPDATE": f"UPDATE k{i} SET v = v + 10",
                "DELETE": f"DELETE FROM k{i} WHERE v = 12",
            }
            source.execute(statements[change])
        for name, result in landed(source, tables).items():
            assert (name, counts(result)) == (name, expect)
        if change == "UPDATE":
            for i, (_, _, text) in enumerate(KEYS.values()):
                rows = live(source, f"k{i}")
                told = json.dumps(text, ensure_ascii=False) if text else None
                found = rows.filter(v=12)
                assert (found[KEY_TEXT].item() if KEY_TEXT in rows.columns else None) == told
    assert {t.status for t in verify(source.settings(tables=tables)).tables} == {"equal"}


def test_rows_that_differ_are_named_by_such_keys(source: Source) -> None:
    """A proof names an open row and another one by what tells them apart."""
    source.execute(STEPS[0].format(t="t", kind="date"))
    source.execute(STEPS[1].format(t="t"))
    own = {"t": {"pattern": "batch"}}
    landed(source, own)
    source.execute(
        "UPDATE t SET v = 'x' WHERE valid_to = 'infinity' AND id = 7;"
        " DELETE FROM t WHERE valid_to = '-infinity' AND id = 5"
    )
    (table,) = verify(source.settings(tables=own)).tables
    assert {(row.fault, row.key) for row in table.rows} == {
        ("different", json.dumps({"id": 7, "valid_to": None, KEY_TEXT: OPEN})),
        (
            "extra",
            json.dumps({"id": 5, "valid_to": None, KEY_TEXT: '{"valid_to": "-infinity"}'}),
        ),
    }
    (table,) = verify(source.settings(tables=own), repair=True).tables
    assert table.status == "equal"
    proven(source.settings(tables=own))


def test_an_open_row_is_forgotten_alone(source: Source) -> None:
    """A row is named to be forgotten by the text of its key, too; its neighbours stay, and so do
    the records of theirs.
    """
    source.execute(STEPS[0].format(t="t", kind="date"))
    source.execute(STEPS[1].format(t="t"))
    own = {"t": {"pattern": "batch", "on_delete": "mark"}}
    landed(source, own)
    given = source.settings(tables=own)
    key = {"id": "7", "valid_to": "infinity"}
    with pytest.raises(Exception, match="still has such a row"):
        erasure.forget(given, "t", key)
    source.execute("DELETE FROM t WHERE valid_to = 'infinity' AND id = 7")
    landed(source, own)
    done = erasure.forget(given, "t", key)
    assert (done.rows, done.records, done.left) == (1, 1, 0)
    rows = pl.read_delta(str(source.table("t")))
    assert rows.filter(id=7)[KEY_TEXT].to_list() == [None]
    assert rows.filter(pl.col(KEY_TEXT) == OPEN).height == 39


def test_a_table_that_has_such_rows_without_the_column(source: Source) -> None:
    """Rows that landed when nothing told them apart are written anew with what does."""
    source.execute(
        "CREATE TABLE t (id date, v int); INSERT INTO t VALUES ('infinity', 1), ('-infinity', 2)"
    )
    landed(source, {"t": {"pattern": "full_refresh"}})
    source.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
    for own in ({"pattern": "full_refresh"}, {"pattern": "batch"}):
        landed(source, {"t": own})
        texts = live(source, "t")[KEY_TEXT].to_list()
        assert sorted(texts) == ['{"id": "-infinity"}', '{"id": "infinity"}']
        source.execute("UPDATE t SET v = v + 1 WHERE id = 'infinity'")
        assert counts(landed(source, {"t": own})["t"]) == (0, 1, 0)


def test_names_that_are_never_null_come_first() -> None:
    """Files are passed over by the first column: one that may be NULL says nothing of them."""
    types = {"at": "date", "tags": "_int4", "id": "int4"}
    element = SourceType("int4", -1, "int4")
    columns = [
        contract(
            name,
            f"bz_{name}",
            name,
            SourceType(kind, -1, kind, element=element if kind.startswith("_") else None),
            Choices({}),
        )
        for name, kind in types.items()
    ]
    assert row_key(columns, False).names == ("bz_at", "bz_id")
    assert row_key(columns, True).names == ("bz_id", "bz_at", KEY_TEXT)
    assert row_key(columns, True).source_names == ("at", "tags", "id")
