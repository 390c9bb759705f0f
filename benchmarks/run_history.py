"""Ninety days of ``governance.runs``, generated: a file a day, as maintenance leaves them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from bronze.config.settings import GOVERNANCE, Settings
from bronze.governance import writer
from bronze.governance.frames import schema_of
from bronze.governance.tables import runs

DAYS = 90


def write(config: Path, tables: int, records: int) -> int:
    """Writes about so many ``records`` of hourly-like runs of tables ``t00000…`` of the source
    ``bench``: one when each began, one when it landed; how many were written.
    """
    settings = Settings.from_file(config)
    each = max(1, round(records / 2 / DAYS / tables))
    today = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    written = 0
    for day in range(DAYS, 0, -1):
        frame = _day(today - timedelta(days=day), tables, each)
        place = settings.place(GOVERNANCE, runs.NAME)
        writer.append_rows(place, runs.COLUMNS, frame, "", stats=("recorded_timestamp",))
        written += frame.height
    return written


def _day(begin: datetime, tables: int, each: int) -> pl.DataFrame:
    """The records of one day, in the order in which they were written."""
    step = timedelta(days=1) / each
    number = pl.int_range(pl.len()) % tables
    turn = pl.int_range(pl.len()) // tables
    ids = np.random.default_rng(int(begin.timestamp())).integers(0, 2**62, tables * each)
    name = pl.format("t{}", number.cast(pl.String).str.zfill(5))
    scheduled = pl.lit(begin) + turn * pl.lit(step)
    began = scheduled + pl.duration(milliseconds=300 + number)
    ended = began + pl.duration(milliseconds=pl.lit(pl.Series(200 + ids % 800)))
    common = pl.DataFrame({"run_id": ids}).select(
        run_id=pl.format("01a00000-0000-7000-8000-{}", pl.col("run_id").cast(pl.String)),
        batch_id=pl.format("01b00000-0000-7000-8000-{}", turn),
        command=pl.lit("run"),
        source_system=pl.lit("bench"),
        source_table=pl.format("public.{}", name),
        target_table=pl.format("bronze.{}", name),
        pattern=pl.lit("full_refresh"),
        reason=pl.lit("schedule"),
        attempt=pl.lit(1),
        scheduled_timestamp=scheduled,
        began_timestamp=began,
        stages=pl.lit("{}"),
        status=pl.lit("began"),
        error_kind=pl.lit(""),
        error_message=pl.lit(""),
        error_hint=pl.lit(""),
        sqlstate=pl.lit(""),
        host=pl.lit("bench"),
        bronze_version=pl.lit("1"),
        recorded_timestamp=began,
    )
    landed = common.with_columns(
        ended_timestamp=ended,
        as_of_timestamp=pl.col("began_timestamp"),
        seconds=(ended - pl.col("began_timestamp")).dt.total_milliseconds() / 1000,
        rows_read=pl.lit(20),
        score=pl.lit(100.0),
        files=pl.lit(1),
        bytes=pl.lit(4096),
        status=pl.lit("landed"),
        recorded_timestamp=ended,
    )
    rows = pl.concat([common, landed], how="diagonal").sort("recorded_timestamp")
    schema = schema_of(runs.COLUMNS)
    missing = [pl.lit(None).alias(name) for name in schema if name not in rows.columns]
    counts = ("rows_read", "inserted", "updated", "deleted", "rejected", "quarantined")
    rows = rows.with_columns(missing).with_columns(
        pl.col(*counts, "anomalies", "files", "bytes").fill_null(0)
    )
    return rows.select(pl.col(name).cast(kind) for name, kind in schema.items())
