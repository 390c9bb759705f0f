"""History: appends to a table that keeps every version of a row.

The latest version of a key is the one that was written last. A change in the source adds a version,
with the kind of change in the column `KIND`. A deletion adds a copy of the latest version, marked
as deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import polars as pl

from bronze import portion
from bronze.delta import files
from bronze.delta.partition import Outputs, column_of
from bronze.delta.write.changes import (
    Changes,
    RowGroupBuffer,
    Rows,
    iterate_rows,
    mark_deleted,
    read,
)
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Destination, Place
from bronze.model.units import DELETED
from bronze.portion import JOINED

KIND = "change_type"
"""The column with the kind of a version: insert, update or delete."""

ORDER = "update_timestamp"


@dataclass(frozen=True)
class Append:
    """The versions to append: changed rows of the source, and copies of deleted rows.

    ``gone`` has, by file of ``into``, the numbers of the latest versions of rows that were deleted
    in the source. With ``doubting``, equal row hashes do not prove equal values: every changed row
    is appended.
    """

    into: Destination
    stored: tuple[StoredFile, ...]
    changes: tuple[Changes, ...] = field(repr=False)
    gone: tuple[tuple[StoredFile, Rows], ...] = field(default=(), repr=False)
    doubting: bool = False


@dataclass(frozen=True)
class Appended:
    """The files of an `Append`, and how many versions of each kind it wrote."""

    files: tuple[WrittenFile, ...]
    inserted: int
    updated: int
    deleted: int


def append(job: Append) -> Appended:
    """Writes the new versions.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    counts = dict.fromkeys(("insert", "update", "delete"), 0)
    date = column_of(job.into.dates_of) if job.into.dates_of else None
    place, batch = job.into.place, job.into.stamp.batch_id
    with Outputs(lambda values: files.data(place, batch, job.into.stats, values), date) as output:
        buffer = RowGroupBuffer(output.add)
        for rows in chain(_changed_versions(job), _deleted_versions(job)):
            for kind, count in rows[KIND].value_counts().iter_rows():
                counts[kind] += count
            buffer.add(rows)
        buffer.flush()
    return Appended(tuple(output.files), counts["insert"], counts["update"], counts["delete"])


def _changed_versions(job: Append) -> Iterator[pl.DataFrame]:
    """The rows of the source that differ from their latest version."""
    for change in job.changes:
        keys = read(job.into.place, change, job.into.key)
        stored = latest_versions(job.into.place, job.stored, job.into.columns, job.into.key, keys)
        for rows in iterate_rows(job.into.place, change, np.arange(keys.height), job.into.columns):
            joined = portion.join(rows, stored, job.into.key, "left")
            exists = joined[f"record_status{JOINED}"].is_not_null()
            live = exists & joined[f"record_status{JOINED}"].ne_missing(DELETED)
            same = live & joined["row_hash"].eq_missing(joined[f"row_hash{JOINED}"])
            same &= not job.doubting
            first = pl.coalesce(f"load_timestamp{JOINED}", "load_timestamp")
            kind = pl.when(live).then(pl.lit("update")).otherwise(pl.lit("insert"))
            versions = joined.with_columns(first.alias("load_timestamp"), kind.alias(KIND))
            yield versions.filter(~same).select(rows.columns)


def _deleted_versions(job: Append) -> Iterator[pl.DataFrame]:
    """Copies of the latest versions of deleted rows, marked as deleted, without changed rows."""
    keys = [read(job.into.place, change, job.into.key) for change in job.changes]
    columns = job.into.columns
    for file, numbers in job.gone:
        parquet = files.open_parquet(job.into.place, file)
        for start, table in files.parts(parquet, columns, None, None, dict(file.partition)):
            inside = numbers[(numbers >= start) & (numbers < start + table.num_rows)]
            if len(inside):
                rows = pl.DataFrame(table)[inside - start]
                for changed in keys:
                    rows = rows.join(changed, on=list(job.into.key), how="anti", nulls_equal=True)
                yield mark_deleted(rows, job.into.stamp).with_columns(pl.lit("delete").alias(KIND))


def latest_versions(
    place: Place,
    stored: Sequence[StoredFile],
    layout: Sequence[tuple[str, DeltaType]],
    key: Sequence[str],
    keys: pl.DataFrame,
) -> pl.DataFrame:
    """First load time, row hash and status of the latest version of each of the ``keys``."""
    names = [*key, ORDER, "load_timestamp", "row_hash", "record_status"]
    frames = []
    for file in stored:
        parquet = files.open_parquet(place, file)
        for _, table in files.parts(parquet, layout, names, None, dict(file.partition)):
            rows = pl.DataFrame(table).select(names)
            frames.append(rows.join(keys, on=list(key), how="semi", nulls_equal=True))
    if not frames:
        return keys.head(0).with_columns(
            pl.lit(None, pl.Datetime("us", "UTC")).alias("load_timestamp"),
            *(pl.lit(None, pl.String).alias(name) for name in ("row_hash", "record_status")),
        )
    ordered = pl.concat(frames).sort(ORDER, maintain_order=True)
    return ordered.unique(list(key), keep="last", maintain_order=True).drop(ORDER)
