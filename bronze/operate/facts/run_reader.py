"""Reads ``governance.runs`` with little memory: the last records of each table, however many there
are.

First only the columns that tell records, tables and times apart are read, of the newest files
first: most tables have their last records after a few of them, and of older records only those of
other tables are looked at. Then the chosen records are read whole, in the order of their times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from bronze import portion
from bronze.delta import files
from bronze.governance.tables import runs
from bronze.governance.tables.runs import RunRecord
from bronze.model.files import StoredFile
from bronze.model.locations import Place

LAST = 100
"""How many records of each table and command are kept."""

TABLE = ("command", "source_system", "target_table")
RUN = ("run_id", "source_table", *TABLE)
TIME = "recorded_timestamp"
KEY = pl.concat_str("source_system", "source_table", separator=".")
"""The name of a record's table among those of all sources."""
_NAMES = [name for name, _ in runs.COLUMNS]
_COLUMN_OF = {name.removesuffix("_timestamp"): name for name in _NAMES}
_COLUMNS = [_COLUMN_OF[field.name] for field in fields(RunRecord)]
_MERGED_ROWS = 40_000
_Group = tuple[StoredFile, int]
"""A row group of a file."""


def last_records(place: Place, stored: Sequence[StoredFile]) -> Iterator[pl.DataFrame]:
    """The last `LAST` records of each table and command, with all columns, in the order in which
    they were written; of a run of a table only the last record.

    Args:
        place: the table.
        stored: its files, the newest first.

    Raises:
        FileDamaged, LakeUnreachable: it cannot be read.
    """
    last, groups = _Last(), list[_Group]()
    for file in stored:
        parquet = files.open_parquet(place, file)
        for group in range(parquet.num_row_groups):
            if last.is_known(parquet, group):
                continue
            last.add(_keys(parquet, group, len(groups), last.floors))
            groups.append((file, group))
    portion.release()
    chosen = last.keys().partition_by("group", as_dict=True)
    begins = sorted((keys[TIME].min(), number) for (number,), keys in chosen.items())
    parts = (_chosen(place, groups[number], chosen[number,]["row"]) for _, number in begins)
    yield from _in_order(parts)


def of_rows(rows: pl.DataFrame) -> list[RunRecord]:
    """The rows as records, in their order."""
    return [RunRecord(*row) for row in rows.select(_COLUMNS).rows()]


def merge(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The records that count of rows with all columns, in the order in which they were written."""
    rows = pl.concat(frames).sort(TIME, maintain_order=True)
    return rows.unique(RUN, keep="last", maintain_order=True)


class _Last:
    """Collects the keys of the last records of each table."""

    def __init__(self) -> None:
        self._kept: list[pl.DataFrame] = []
        self._new_rows = 0
        self._lowest: Any = None
        self.floors: pl.DataFrame | None = None
        """The time of the earliest record of each table that has `LAST`: earlier ones are out."""

    def add(self, keys: pl.DataFrame) -> None:
        self._kept.append(keys)
        self._new_rows += keys.height
        if self._new_rows >= _MERGED_ROWS:
            self._merge()

    def is_known(self, parquet: pq.ParquetFile, group: int) -> bool:
        """Whether a row group has only records of tables that have later ones enough."""
        newest = _newest(parquet, group)
        is_old = newest is not None and self._lowest is not None and newest < self._lowest
        if self.floors is None or not is_old:
            return False
        tables = _read(parquet, group, TABLE).select(hash_of(TABLE).unique().alias("table"))
        return tables.join(self.floors, on="table", how="anti").is_empty()

    def keys(self) -> pl.DataFrame:
        self._merge()
        return self._kept[0]

    def _merge(self) -> None:
        empty = pl.DataFrame(schema=_KEY_SCHEMA)
        kept = (
            pl.concat([empty, *self._kept])
            .sort(TIME, maintain_order=True)
            .unique("run", keep="last", maintain_order=True)
            .filter(pl.int_range(pl.len()).reverse().over("table") < LAST)
        )
        counts = kept.group_by("table").agg(pl.col(TIME).min().alias("floor"), pl.len())
        self.floors = counts.filter(pl.col("len") >= LAST).drop("len")
        self._lowest = self.floors["floor"].min()
        self._kept, self._new_rows = [kept], 0


_KEY_SCHEMA = {
    "group": pl.UInt32(),
    "row": pl.UInt32(),
    "run": pl.UInt64(),
    "table": pl.UInt64(),
    TIME: pl.Datetime("us", "UTC"),
}


def _keys(
    parquet: pq.ParquetFile, group: int, number: int, floors: pl.DataFrame | None
) -> pl.DataFrame:
    """The keys of the rows of a row group that may be among the last ones."""
    table = _read(parquet, group, (*TABLE, TIME))
    keys = table.select(
        pl.int_range(pl.len(), dtype=pl.UInt32()).alias("row"), hash_of(TABLE).alias("table"), TIME
    )
    if floors is not None:
        keys = keys.join(floors, on="table", how="left", maintain_order="left").filter(
            pl.col("floor").is_null() | (pl.col(TIME) >= pl.col("floor"))
        )
    if not keys.height:
        return pl.DataFrame(schema=_KEY_SCHEMA)
    runs_of_rows = _read(parquet, group, RUN).select(hash_of(RUN).alias("run"))["run"]
    return keys.with_columns(
        pl.lit(number, pl.UInt32()).alias("group"), runs_of_rows[keys["row"]].alias("run")
    ).select(list(_KEY_SCHEMA))


def _newest(parquet: pq.ParquetFile, group: int) -> datetime | None:
    """The time of the latest record of a row group, if its statistics tell it."""
    found = parquet.metadata.row_group(group)
    for number in range(found.num_columns):
        column = found.column(number)
        if column.path_in_schema == TIME and column.is_stats_set and column.statistics.has_min_max:
            newest = column.statistics.max
            return newest if isinstance(newest, datetime) else None
    return None


def hash_of(names: Sequence[str]) -> pl.Expr:
    """A number for the values of some columns of text."""
    return pl.concat_str(*names, separator="\0").hash()


def _chosen(place: Place, group: _Group, rows: pl.Series) -> pl.DataFrame:
    file, number = group
    # The parts that are not chosen are not kept in memory.
    chosen = _read(files.open_parquet(place, file), number, _NAMES)[rows.sort()]
    portion.release()
    return chosen


def _in_order(parts: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The rows of parts in the order of their times; the parts are in the order of their first."""
    waiting: pl.DataFrame | None = None
    for part in parts:
        if waiting is not None:
            is_before = pl.col(TIME) < part[TIME].min()
            yield waiting.filter(is_before)
            part = pl.concat([waiting.filter(~is_before), part])
        waiting = part.sort(TIME, maintain_order=True)
    if waiting is not None:
        yield waiting


def _read(parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> pl.DataFrame:
    layout = [column for column in runs.COLUMNS if column[0] in columns]
    parts = [
        pl.DataFrame(part)
        for _, part in files.parts(parquet, layout, columns=columns, groups=[group])
    ]
    return pl.concat(parts)
