"""The quality report: each table by its own records, whatever other configs share the lake."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from deltalake import DeltaTable

from bronze.cdc import checkpoints, stream
from bronze.config.settings import Settings
from bronze.errors import ConfigError, LakeError
from bronze.governance import writer
from bronze.governance.tables import streams
from bronze.ingest import pipeline
from bronze.postgres.statement import quoted
from bronze.quality import report
from tests.conftest import Source

STREAMED = {"t": {"pattern": "streaming"}}


def _age(given: Settings) -> float:
    (table,) = report.quality(given).tables
    return table.age


def _make_older(given: Settings, name: str) -> None:
    """Makes all figures of a lake one day older."""
    place = given.place("governance", name)
    old = pl.read_delta(place.url).with_columns(
        pl.col("as_of_timestamp", "evaluated_timestamp") - timedelta(days=1)
    )
    old.write_delta(place.url, mode="overwrite")


def test_a_stream_makes_only_its_own_tables_fresh(source: Source) -> None:
    """Two schemas of one lake have a table of the same name: only the streamed one is fresh.
    Records of earlier releases, which have the name alone, count for the stream that wrote them.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    loaded = source.settings(lake={"schema": "a"})
    streamed = source.settings(lake={"schema": "b"}, tables=STREAMED, stream={"interval": 0})
    pipeline.run(loaded)
    stream.stream(streamed, until_caught_up=True)
    _make_older(loaded, "quality")
    assert _age(loaded) > 3600
    assert _age(streamed) < 3600
    place = checkpoints.place(streamed)
    records = pl.read_delta(place.url)
    # A record has the tables that changed since the one before.
    assert any("b.bz_t" in tables for tables in records["tables"])
    now = datetime.now(UTC) + timedelta(hours=1)
    old = records.head(1).with_columns(
        pl.lit('{"bz_t": 7}').alias("tables"),
        pl.lit(None, pl.String).alias("series"),
        pl.lit(None, pl.Int64).alias("number"),
        pl.lit(now).cast(pl.Datetime("us", "UTC")).alias("recorded_timestamp"),
    )
    rows = old.select(name for name, _ in streams.COLUMNS)
    writer.append_rows(place, streams.COLUMNS, rows, "b")
    assert _age(streamed) < 0
    elsewhere = source.settings(lake={"schema": "a"}, stream={"slot": "another"})
    assert _age(elsewhere) > 3600


DOTTED = {
    "a schema with a dot": ("my.app", "t"),
    "a table with dots": ("my", "app.t.u"),
    "both": ("my.app", "t.u"),
}


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize(
    "case", ["both", *(pytest.param(c, marks=pytest.mark.soak) for c in DOTTED if c != "both")]
)
def test_names_with_dots_find_their_settings(source: Source, case: str, landed: bool) -> None:
    """Schemas and tables with dots are found by name, and their section applies, even before the
    Bronze table exists, as its first run was refused.
    """
    schema, name = DOTTED[case]
    quality = {"freshness": "7s", "null_share": 0.6 if landed else 0.0, "on_failure": "stop"}
    section = {name: {"target": "bz_t", "quality": quality}}
    given = source.settings(source={"schema": [schema]}, tables=section)
    source.execute(f"CREATE SCHEMA {quoted(schema)}")
    source.execute(f"CREATE TABLE {quoted(schema, name)} (id int PRIMARY KEY, v int)")
    source.execute(f"INSERT INTO {quoted(schema, name)} VALUES (1, NULL)")
    (result,) = pipeline.run(given).tables
    assert (result.status == "landed") == landed, result
    assert (source.table("t") / "_delta_log").exists() == landed
    for argument in (name, f"{schema}.{name}", "bz_t", "bronze.bz_t"):
        (found,) = report.quality(given, [argument]).tables
        assert (found.table, found.allowed) == (f"{schema}.{name}", 7)
    with pytest.raises(ConfigError, match="has no quality figures"):
        report.quality(given, [name.rpartition(".")[2] + "x"])


def test_a_garbled_record_is_an_error_with_a_hint(source: Source) -> None:
    """Of figures and of streams: another writer has changed the JSON in them."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    given = source.settings(tables=STREAMED, stream={"interval": 0})
    stream.stream(given, until_caught_up=True)
    for name, column in (("quality", "examples"), ("streams", "tables")):
        table = DeltaTable(given.place("governance", name).url)
        before = table.version()
        for value in ("{", "null", "7"):
            table.update({column: f"'{value}'"})
            with pytest.raises(LakeError, match=f"A record of governance.{name} cannot") as caught:
                report.quality(given)
            assert "earlier version" in caught.value.hint
        table.restore(before)
    assert report.quality(given).tables


def test_an_emptied_table_of_figures_has_none(source: Source) -> None:
    """Its tables have no figures, as if it had never been written."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    given = source.settings()
    pipeline.run(given)
    DeltaTable(given.place("governance", "quality").url).delete()
    found = report.quality(given)
    assert (found.tables, found.missing, found.exit_code) == ((), ("bronze.bz_t",), 1)
