"""Reads ``governance.runs`` with little memory: the last records of each table, however many there
are.

Files come with the newest first, so that most tables have their last records after a few of them.
Of a row group, only the columns that tell tables and times apart are read at first, and the others
where a row may be among the last ones of its table.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow.parquet as pq

from bronze.delta import files
from bronze.governance.frames import schema_of
from bronze.governance.tables import runs
from bronze.governance.tables.runs import RunRecord
from bronze.model.files import StoredFile
from bronze.model.locations import Place

LAST = 100
"""How many records of each table and command are kept."""

_TABLE = ["command", "source_system", "target_table"]
_RUN = ["run_id", "source_table", *_TABLE]
_TIME = "recorded_timestamp"
_MERGED_ROWS = 40_000
_SMALL_ROWS = 5_000
_FIELDS = tuple(
    name.removesuffix("_timestamp") for name, _ in runs.COLUMNS if name != "recorded_timestamp"
)
_COLUMNS = [name for name, _ in runs.COLUMNS if name != _TIME]


def last_records(place: Place, stored: Sequence[StoredFile]) -> pl.DataFrame:
    """The last `LAST` records that count of each table and command, by the time of recording.

    Args:
        place: the table.
        stored: its files, the newest first.

    Raises:
        FileDamaged, LakeUnreachable: it cannot be read.
    """
    last = _Last()
    for file in stored:
        parquet = files.open_parquet(place, file)
        for group in range(parquet.num_row_groups):
            last.add(_candidates(parquet, group, last.floors))
    return last.rows()


def record_values(rows: pl.DataFrame) -> list[RunRecord]:
    """The rows as records, in their order."""
    return [
        RunRecord(**dict(zip(_FIELDS, row, strict=True))) for row in rows.select(_COLUMNS).rows()
    ]


def merge(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The last records of rows with `runs.COLUMNS`, in the order of their recording."""
    # The rows are sorted and chosen by narrow columns: the others would be copied several times.
    narrow = pl.concat([frame.select(*_RUN, _TIME) for frame in frames]).with_row_index("row")
    chosen = (
        narrow.sort(_TIME, maintain_order=True)
        .unique(_RUN, keep="last", maintain_order=True)
        .filter(pl.int_range(pl.len()).over(_TABLE) >= pl.len().over(_TABLE) - LAST)
    )
    return pl.concat(frames)[chosen["row"]]


class _Last:
    """Collects the last records of each table."""

    def __init__(self) -> None:
        self._kept = pl.DataFrame(schema=schema_of(runs.COLUMNS))
        self._new: list[pl.DataFrame] = []
        self._new_rows = 0
        self.floors: pl.DataFrame | None = None
        """The time of the earliest record of each table that has `LAST`: earlier ones are out."""

    def add(self, rows: pl.DataFrame | None) -> None:
        if rows is None or not rows.height:
            return
        self._new.append(rows)
        self._new_rows += rows.height
        if self._new_rows >= _MERGED_ROWS:
            self._merge()

    def rows(self) -> pl.DataFrame:
        self._merge()
        return self._kept

    def _merge(self) -> None:
        if self._new:
            self._kept = merge([self._kept, *self._new])
            self._new, self._new_rows = [], 0
            counts = self._kept.group_by(_TABLE).agg(pl.col(_TIME).min().alias("floor"), pl.len())
            self.floors = counts.filter(pl.col("len") >= LAST).drop("len")


def _candidates(
    parquet: pq.ParquetFile, group: int, floors: pl.DataFrame | None
) -> pl.DataFrame | None:
    """The rows of a row group that may be among the last ones, None if there is none."""
    if floors is None or parquet.metadata.row_group(group).num_rows <= _SMALL_ROWS:
        return _read(parquet, group, [name for name, _ in runs.COLUMNS])
    narrow = _read(parquet, group, [*_TABLE, _TIME]).with_row_index("row")
    rows = (
        narrow.join(floors, on=_TABLE, how="left", maintain_order="left")
        .filter(pl.col("floor").is_null() | (pl.col(_TIME) >= pl.col("floor")))
        .get_column("row")
    )
    return _read(parquet, group, [name for name, _ in runs.COLUMNS])[rows] if len(rows) else None


def _read(parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> pl.DataFrame:
    layout = [column for column in runs.COLUMNS if column[0] in columns]
    parts = [
        pl.DataFrame(part)
        for _, part in files.parts(parquet, layout, columns=columns, groups=[group])
    ]
    return pl.concat(parts)
