"""Verification of tables whose source goes on changing: a row counts that stays different."""

from __future__ import annotations

from collections.abc import Sequence

from bronze.ingest import pipeline
from bronze.verify import verify
from bronze.verify.confirmation import LOOKS
from tests.conftest import Source


def test_rows_that_change_while_tables_are_verified_are_no_faults(source: Source) -> None:
    """What has changed since the load is loaded; rows that change at each look differ each time,
    but Bronze has other values of them each time.
    """
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int);"
        "INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i;"
        "CREATE TABLE plain (v int); INSERT INTO plain VALUES (1), (1)"
    )
    settings = source.settings()
    pipeline.run(settings)
    looks: list[Sequence[str]] = []

    def change() -> None:
        source.execute("UPDATE t SET v = v + 1 WHERE id <= 2")
        source.execute("DELETE FROM t WHERE id = %s", 50 + len(looks))
        source.execute("INSERT INTO plain VALUES (%s)", 10 + len(looks))
        source.execute("INSERT INTO t VALUES (%s, 1)", 200 + len(looks))

    def refresh(labels: Sequence[str]) -> None:
        looks.append(labels)
        assert pipeline.run(settings).exit_code == 0
        change()

    change()
    result = verify.verify(settings, refresh=refresh)
    assert [(table.table, table.status) for table in result.tables] == [
        ("public.plain", "equal"),
        ("public.t", "equal"),
    ]
    assert result.exit_code == 0
    assert looks[0] == ["public.plain", "public.t"]
    assert len(looks) < LOOKS


def test_rows_that_stay_different_are_faults(source: Source) -> None:
    """A row that is missing after each load, beside one that changes; all looks are taken."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int);"
        "INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i"
    )
    settings = source.settings()
    pipeline.run(settings)
    source.execute("INSERT INTO t VALUES (500, 1); UPDATE t SET v = 9 WHERE id = 7")
    looks: list[Sequence[str]] = []

    def refresh(labels: Sequence[str]) -> None:
        # As if the load did not see these two rows.
        looks.append(labels)
        source.execute("UPDATE t SET v = v + 1 WHERE id = 1")

    (table,) = verify.verify(settings, refresh=refresh).tables
    assert (table.status, table.missing, len(looks)) == ("differs", 1, LOOKS - 1)
    assert {row.key for row in table.rows} >= {'{"id": 500}', '{"id": 7}'}


def test_what_no_lag_explains_is_a_fault_at_once(source: Source) -> None:
    """A file that is gone: nothing is loaded again."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    settings = source.settings()
    pipeline.run(settings)
    for path in source.table("t").glob("*.parquet"):
        path.unlink()

    def refresh(labels: Sequence[str]) -> None:
        raise AssertionError(labels)

    (table,) = verify.verify(settings, refresh=refresh).tables
    assert table.status == "differs"
