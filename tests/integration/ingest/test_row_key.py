"""Keys of PostgreSQL tables: which of them bronze uses, and what it reports where there is none."""

from __future__ import annotations

from typing import Any

import polars as pl
import psycopg
import pytest

from bronze.api import check
from bronze.cdc import stream
from bronze.errors import TableRefused
from bronze.ingest import pipeline
from bronze.model.results import TableResult
from bronze.verify.verify import verify
from tests.conftest import Source
from tests.support import feed
from tests.support.content import differences

BATCH = {"pattern": "batch"}
KEYLESS = {
    "a int UNIQUE, v int": "unique index t_a_key is over a, which may be NULL",
    "a int, b int NOT NULL, UNIQUE NULLS NOT DISTINCT (a, b)": "over a, which may be NULL",
    "a int NOT NULL; CREATE UNIQUE INDEX u ON t (a) WHERE a > 0": "index u is partial",
    "a int NOT NULL; CREATE UNIQUE INDEX u ON t (abs(a), a)": "index u is over an expression",
    "a int; CREATE UNIQUE INDEX u ON t (a); CREATE UNIQUE INDEX w ON t (a) WHERE a > 0": (
        "unique index u is over a, which may be NULL; its unique index w is partial"
    ),
    "a int": "",
}


def land(source: Source, options: dict[str, Any], table: str = "t") -> TableResult:
    """Runs one table; afterwards its Bronze table equals its source."""
    settings = source.settings(source={"tables": [table]}, tables={table: options})
    (result,) = pipeline.run(settings).tables
    assert result.error is None
    assert differences(settings) == {}
    return result


def counts(result: TableResult) -> tuple[int, int, int]:
    """What a run inserted, updated and deleted."""
    return result.inserted, result.updated, result.deleted


def test_a_missing_key_is_explained(source: Source) -> None:
    """A unique index that is no key is named, with the reason, by a run and by a check, and in the
    notes of a full refresh.
    """
    for definition, reason in KEYLESS.items():
        source.execute("DROP TABLE IF EXISTS t")
        head, *rest = definition.split(";")
        source.execute(";".join([f"CREATE TABLE t ({head})", *rest]))
        settings = source.settings(tables={"t": BATCH})
        (ran,) = pipeline.run(settings).tables
        (checked,) = check.check(settings).tables
        assert ran.error is not None
        assert ran.error == checked.problem
        assert 'Table public.t has no key, which the pattern "batch" needs.' in ran.error.message
        assert reason in ran.error.message
        assert "key = […]" in ran.error.hint
        (refreshed,) = pipeline.run(source.settings(tables={"t": {"target": "bz_w"}})).tables
        assert any(reason in note for note in refreshed.notes) == bool(reason)


def test_an_invalid_index_is_no_key(source: Source) -> None:
    """The invalid index of a failed CREATE INDEX CONCURRENTLY is not used as a key."""
    source.execute("CREATE TABLE t (a int NOT NULL); INSERT INTO t VALUES (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        source.execute("CREATE UNIQUE INDEX CONCURRENTLY u ON t (a)")
    (ran,) = pipeline.run(source.settings(tables={"t": BATCH})).tables
    assert ran.error is not None
    assert "index u is not valid" in ran.error.message


def test_a_deferrable_key_is_a_key_for_runs(source: Source) -> None:
    """It is unique in every committed state, and runs see no other: rows that exchange their keys
    are updated, in every pattern.
    """
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);"
        " INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 10) i"
    )
    tables: list[dict[str, Any]] = [
        BATCH,
        {"pattern": "full_refresh", "target": "bz_w"},
        {"pattern": "batch", "history": True, "target": "bz_h"},
    ]
    for options in tables:
        land(source, options)
    source.execute(
        "UPDATE t SET id = 11 - id WHERE id <> 3 AND id <> 8; DELETE FROM t WHERE id = 3"
    )
    for options in tables:
        assert counts(land(source, options)) == (0, 8, 1)


def test_a_deferrable_key_needs_full_replica_identity_in_a_stream(source: Source) -> None:
    """It cannot be a replica identity, which is reported; REPLICA IDENTITY FULL lets it stream."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text)")
    settings = source.settings(tables={"t": {"pattern": "streaming"}}, stream={"interval": 0})
    message = "has no replica identity, as a DEFERRABLE key cannot be one"
    with pytest.raises(TableRefused, match=message) as refused:
        stream.stream(settings, until_caught_up=True)
    (checked,) = check.check(settings).tables
    assert checked.problem is not None
    assert message in checked.problem.message
    source.execute(refused.value.hint)
    source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    for change in ("UPDATE t SET v = v || id; DELETE FROM t WHERE id = 2", "SELECT"):
        result = stream.stream(settings, until_caught_up=True)
        assert [table.error for table in result.tables if table.error] == []
        assert differences(settings) == {}
        source.execute(change)
    assert feed.faults(source.table("t")) == []


INHERITING = """
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE "Heir" (more int, PRIMARY KEY (id)) INHERITS (t);
CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS ("Heir");
INSERT INTO t SELECT i, 'own' FROM generate_series(1, 20) i;
INSERT INTO "Heir" SELECT i, 'heir' FROM generate_series(1, 20) i;
INSERT INTO grandchild SELECT i, 'grand' FROM generate_series(15, 25) i
"""


@pytest.mark.soak
def test_inheriting_tables_that_share_keys_need_tableoid(source: Source) -> None:
    """The tables are named in the error; with tableoid in the key every row lands."""
    source.execute(INHERITING)
    settings = source.settings(source={"tables": ["t"]}, tables={"t": BATCH})
    (ran,) = pipeline.run(settings).tables
    assert ran.error is not None
    assert "They are in public.Heir, public.grandchild, public.t:" in ran.error.message
    assert '[tables."t"] key = ["tableoid", "id"]' in ran.error.hint
    key = ["tableoid", "id"]
    patterns: dict[str, dict[str, Any]] = {
        "bz_t": {"pattern": "batch", "key": key},
        "bz_w": {"pattern": "full_refresh", "key": key},
        "bz_h": {"pattern": "batch", "history": True, "key": ["id", "tableoid"]},
        "bz_r": {"pattern": "batch", "key": key, "rename": {"tableoid": "heir"}},
    }
    changes = [
        "SELECT 1",
        "UPDATE t SET v = v || '!' WHERE id = 16; DELETE FROM ONLY t WHERE id = 17;"
        " DELETE FROM grandchild WHERE id = 15; INSERT INTO \"Heir\" VALUES (21, 'new')",
        "ALTER TABLE grandchild RENAME TO youngest",
    ]
    for change, expect in zip(changes, ((51, 0, 0), (1, 3, 2), (0, 0, 0)), strict=True):
        source.execute(change)
        for name, options in patterns.items():
            result = land(source, {**options, "target": name})
            assert (name, counts(result)) == (name, expect)
    rows = pl.read_delta(str(source.table("t"))).filter(pl.col("record_status") == "ACTIVE")
    source_rows = source.execute("SELECT tableoid::int8, id, v FROM t")
    assert sorted(rows.select("tableoid", "id", "v").rows()) == sorted(source_rows)
    settings = source.settings(source={"tables": ["t"]}, tables={"t": patterns["bz_t"]})
    assert [table.status for table in verify(settings).tables] == ["equal"]
    assert [table.problem for table in check.check(settings).tables] == [None]


def test_tableoid_is_refused_in_views_and_streams(source: Source) -> None:
    """A view has no tableoid, and no stream sends it: both errors say so."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE VIEW v AS SELECT * FROM t")
    key = {"key": ["tableoid", "id"]}
    settings = source.settings(source={"tables": ["v"]}, tables={"v": key})
    (ran,) = pipeline.run(settings).tables
    assert ran.error is not None
    assert "Table public.v has no column tableoid." in ran.error.message
    streamed = source.settings(
        source={"tables": ["t"]}, tables={"t": {"pattern": "streaming", **key}}
    )
    with pytest.raises(TableRefused, match="its key contains tableoid, which is not streamed"):
        stream.stream(streamed, until_caught_up=True)


def test_a_temporal_primary_key_is_a_key(source: Source) -> None:
    """A primary key WITHOUT OVERLAPS is a key: its ranges are compared by their texts."""
    source.execute(
        "CREATE EXTENSION btree_gist; CREATE TABLE t (id int, at daterange, v int,"
        " PRIMARY KEY (id, at WITHOUT OVERLAPS));"
        " INSERT INTO t SELECT i, daterange('2024-01-01', '2025-01-01'), 0 FROM"
        " generate_series(1, 5) i;"
        " INSERT INTO t VALUES (1, '[2025-01-01,)', 1)"
    )
    land(source, BATCH)
    source.execute("UPDATE t SET at = '[2025-01-01,2026-01-01)' WHERE upper_inf(at)")
    assert counts(land(source, BATCH)) == (1, 0, 1)
