"""What is told of how tables fare: of each from its own records, whoever else shares the lake."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from bronze.cdc import checkpoints, stream
from bronze.config.settings import Settings
from bronze.governance import writer
from bronze.governance.tables import streams
from bronze.ingest import pipeline
from bronze.quality import report
from tests.conftest import Source

STREAMED = {"t": {"pattern": "streaming"}}


def _age(given: Settings) -> float:
    (table,) = report.quality(given).tables
    return table.age


def _aged(given: Settings, name: str) -> None:
    """All figures of a lake as if they were of yesterday."""
    place = given.place("governance", name)
    old = pl.read_delta(place.url).with_columns(
        pl.col("as_of_timestamp", "evaluated_timestamp") - timedelta(days=1)
    )
    old.write_delta(place.url, mode="overwrite")


def test_a_stream_proves_the_freshness_of_its_own_tables_alone(source: Source) -> None:
    """Of two schemas of one lake with tables of the same name, only the one is fresh whose stream
    has recorded it; records of earlier releases, which have the name alone, count for the stream
    that entered them.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    loaded = source.settings(lake={"schema": "a"})
    streamed = source.settings(lake={"schema": "b"}, tables=STREAMED, stream={"interval": 0})
    pipeline.run(loaded)
    stream.stream(streamed, until_caught_up=True)
    _aged(loaded, "quality")
    assert _age(loaded) > 3600
    assert _age(streamed) < 3600
    place = checkpoints.place(streamed)
    records = pl.read_delta(place.url)
    assert "b.bz_t" in records["tables"][0]
    now = datetime.now(UTC) + timedelta(hours=1)
    old = records.head(1).with_columns(
        pl.lit('{"bz_t": 7}').alias("tables"),
        pl.lit(now).cast(pl.Datetime("us", "UTC")).alias("recorded_timestamp"),
    )
    rows = old.select(name for name, _ in streams.COLUMNS)
    writer.append_rows(place, streams.COLUMNS, rows, "b")
    assert _age(streamed) < 0
    elsewhere = source.settings(lake={"schema": "a"}, stream={"slot": "another"})
    assert _age(elsewhere) > 3600
