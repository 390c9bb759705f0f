"""Which records of runs are enough for the histories of tables and sources.

Of two million records some twenty of each table are, so that few have to become objects. Each rule
here is one of `bronze.operate.facts.table_history`: the histories of the chosen records are those
of all.
"""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from bronze.operate.facts.table_history import (
    AT_ONCE,
    LANDED,
    LANDED_WITHIN,
    LANDINGS,
    SOURCE_KINDS,
)
from bronze.operate.freshness import USUAL_RUNS

_BEFORE_ALL = datetime(1, 1, 1, tzinfo=UTC)
_ROW, _DUE, _BEGAN, _ENDED = (pl.col(name) for name in ("row", "due", "began", "ended"))
_IS_RUN, _HAS_ENDED = pl.col("command") == "run", ~pl.col("is_open")
# Strings would keep the memory of all that was read with them.
_COMMANDS = pl.Enum(["run", "verify", "maintain"])


def marks_of(rows: pl.DataFrame) -> pl.DataFrame:
    """What `is_essential` looks at, of rows with the columns of ``governance.runs``."""
    status = pl.col("status")
    return rows.select(
        pl.col("command").cast(_COMMANDS, strict=False),
        pl.col("source_system").hash().alias("source"),
        pl.struct("source_system", "source_table").hash().alias("table"),
        (pl.col("source_table") != "").alias("is_of_table"),
        pl.col("scheduled_timestamp").alias("due"),
        pl.col("began_timestamp").alias("began"),
        pl.coalesce("ended_timestamp", "began_timestamp").alias("ended"),
        (status == "began").alias("is_open"),
        status.is_in(LANDED).alias("has_landed"),
        (pl.col("rows_read") > 0).alias("has_rows"),
        status.is_in(["began", "stopped"]).not_().alias("tells"),
        pl.col("error_kind").is_in(list(SOURCE_KINDS)).alias("is_away"),
        ((status != "failed") & (pl.col("source_system") != "")).alias("has_read"),
    )


def is_essential(marks: pl.DataFrame) -> pl.Series:
    """Which rows are, by their marks in the order in which they were written, one of each run."""
    known = marks.with_row_index("row")
    of_tables = known.filter("is_of_table", pl.col("command") != "maintain")
    runs = of_tables.filter(_IS_RUN)
    verified = _ROW.filter(pl.col("command") == "verify", _HAS_ENDED).last()
    chosen = [
        *of_tables.group_by("table").agg(_ROW.first(), verified.alias("verified")).drop("table"),
        *runs.group_by("table").agg(*_runs_of_a_table()).drop("table"),
        _open(runs)["row"],
        _landings(runs)["row"],
        _of_last_day(runs)["row"],
        _chores(known)["row"],
        *_answers(known),
    ]
    rows = pl.concat([column.cast(pl.Int64).alias("row") for column in chosen]).drop_nulls()
    return pl.int_range(marks.height, eager=True).is_in(rows.unique().implode())


def _runs_of_a_table() -> tuple[pl.Expr, ...]:
    start = pl.when(_BEGAN - _DUE < AT_ONCE).then(_DUE).otherwise(_BEGAN)
    begun_for = pl.coalesce(_DUE, _BEGAN)
    return (
        _ROW.get(start.arg_min()).alias("first"),
        _ROW.get(begun_for.arg_max()).alias("begun_for"),
        _ROW.filter(_HAS_ENDED).last().alias("last"),
        _ROW.filter(_HAS_ENDED, pl.col("has_rows")).last().alias("last_read"),
    )


def _open(runs: pl.DataFrame) -> pl.DataFrame:
    """Those that have only begun, and none that did not begin before has ended after them."""
    began = (
        pl.when(_HAS_ENDED).then(_BEGAN).otherwise(pl.lit(_BEFORE_ALL, pl.Datetime("us", "UTC")))
    )
    return runs.filter("is_open", began.cum_max(reverse=True).over("table") < _BEGAN)


def _landings(runs: pl.DataFrame) -> pl.DataFrame:
    """The last ones that landed, and those of the day before the last one."""
    begin = (_ENDED.last() - LANDED_WITHIN).over("table")
    is_of_day = (_ENDED.shift(-1) >= pl.col("begin")).fill_null(value=True).cast(pl.Int8)
    place = pl.int_range(pl.len()).reverse().over("table")
    return (
        runs.filter("has_landed")
        .with_columns(begin.alias("begin"))
        .filter(
            (place < USUAL_RUNS)
            | ((place < LANDINGS) & (is_of_day.cum_max().over("table") > 0))
        )
    )  # fmt: skip


def _of_last_day(runs: pl.DataFrame) -> pl.DataFrame:
    ended = runs.filter(_HAS_ENDED)
    return ended.filter(_ENDED.max() - LANDED_WITHIN <= _ENDED)


def _chores(known: pl.DataFrame) -> pl.DataFrame:
    chores = known.filter(~_IS_RUN, _DUE.is_not_null())
    return chores.group_by("command", "source").agg(_ROW.get(_DUE.arg_max()))


def _answers(known: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """All that say that a source did not answer, and the last ones between them that say that it
    did.
    """
    answers = known.filter("tells", pl.col("command") != "maintain")
    answers = answers.with_columns(number=pl.col("is_away").cast(pl.Int64).cum_sum())
    has_read = answers.filter("has_read", ~pl.col("is_away"))
    last = has_read.group_by("source", "number").agg(_ROW.last())
    return answers.filter("is_away")["row"], last["row"]
