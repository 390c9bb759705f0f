"""A lake that an earlier version wrote is read, continued and verified."""

from __future__ import annotations

import polars as pl
import pytest

import bronze
from tests.conftest import Source
from tests.support.former_lake import SHORT_NAMES, make_former

TABLES = """
CREATE TABLE orders (id int PRIMARY KEY, customer text NOT NULL, amount numeric, at timestamptz);
INSERT INTO orders SELECT g, 'c' || g % 7, g * 1.5, '2026-01-01' FROM generate_series(1, 400) g;
UPDATE orders SET at = 'infinity' WHERE id = 3;
CREATE TABLE prices (id int PRIMARY KEY, price int);
INSERT INTO prices SELECT g, g FROM generate_series(1, 30) g;
CREATE TABLE events (id int PRIMARY KEY, v text);
INSERT INTO events SELECT g, 'e' || g FROM generate_series(1, 50) g;
"""
SECTIONS = {
    "orders": {
        "anomalies": True,
        "rules": [{"name": "positive", "column": "id", "range": {"min": 4}}],
        "protect": {"customer": "encrypt"},
    },
    "prices": {"pattern": "batch", "history": True},
    "events": {"pattern": "streaming"},
}


def checkpoints(source: Source) -> pl.DataFrame:
    """The checkpoints of the stream."""
    return pl.read_delta(str(source.lake / "governance" / "streams"))


def names(source: Source, table: str) -> set[str]:
    """The names of Bronze tables in a governance table."""
    frame = pl.read_delta(str(source.lake / "governance" / table))
    return set(frame["target_table"].to_list())


@pytest.mark.soak
def test_a_lake_of_an_earlier_version_stays_usable(source: Source) -> None:
    """Runs, streams, verify, quality and erasure find what earlier versions wrote."""
    source.execute(TABLES)
    lake = bronze.Bronze(source.settings(tables=SECTIONS))
    assert lake.run().exit_code == lake.stream(until_caught_up=True).exit_code == 0
    make_former(source.lake)
    for table in SHORT_NAMES[1:]:
        assert names(source, table) <= {"bz_orders", "bz_prices", "bz_events"}, table

    assert {t.status: not t.error for t in lake.verify().tables} == {"equal": True}
    assert lake.verify(at_rest=True).exit_code == 0
    report = lake.quality()
    assert [table.target for table in report.tables], report
    assert not report.missing
    assert lake.audit(verify=True).count > 0

    source.execute("DELETE FROM orders WHERE id = 3; UPDATE prices SET price = 0 WHERE id = 1")
    source.execute("INSERT INTO events VALUES (100, 'new')")
    ran = {table.table: table for table in lake.run().tables}
    assert (ran["public.orders"].deleted, ran["public.prices"].updated) == (1, 1)
    assert not any(table.error for table in ran.values())
    assert "series" not in checkpoints(source)
    streamed = lake.stream(until_caught_up=True)
    assert checkpoints(source)["series"].null_count() < checkpoints(source).height
    assert [(t.inserted, t.deleted, t.error) for t in streamed.tables] == [(1, 0, None)]
    assert {t.status for t in lake.verify().tables} == {"equal"}
    (orders,) = lake.quality(["orders"], trend=5).tables
    assert len(orders.runs) == 2
    assert "bz_orders" in names(source, "rejected_values")

    erased = lake.forget("orders", {"id": "3"})
    assert (erased.exit_code, erased.left) == (0, 0), erased
    assert erased.records > 0
    assert "bz_orders" not in names(source, "rejected_values")
    assert lake.audit(verify=True).problems == ()
