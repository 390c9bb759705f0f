"""History: a table that keeps every version of a row, and so is only ever appended to.

The latest version of a key is the one that landed last. A change of the source becomes one more
version, with the kind of change in the column `KIND`; a row that has vanished becomes a copy of
its last version, marked as deleted.
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
from bronze.delta.write.changes import Changes, Gathered, Rows, mark_deleted, picks, read
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Destination, Place
from bronze.model.units import DELETED
from bronze.portion import HELD

KIND = "change_type"
"""The column that says what a version is: an insert, an update, or a delete."""

ORDER = "update_timestamp"


@dataclass(frozen=True)
class Append:
    """The versions to add: changed rows of the source, and copies of the rows that have gone.

    ``gone`` gives, for each of the files of ``into``, the numbers of the last versions of vanished
    rows. With ``doubting``, a version that has the hash of its change may have other values.
    """

    into: Destination
    stored: tuple[StoredFile, ...]
    changes: tuple[Changes, ...] = field(repr=False)
    gone: tuple[tuple[StoredFile, Rows], ...] = field(default=(), repr=False)
    doubting: bool = False


@dataclass(frozen=True)
class Appended:
    """What was added."""

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
        gathered = Gathered(output.add)
        for rows in chain(_changed(job), _deleted_versions(job)):
            for kind, count in rows[KIND].value_counts().iter_rows():
                counts[kind] += count
            gathered.add(rows)
        gathered.flush()
    return Appended(tuple(output.files), counts["insert"], counts["update"], counts["delete"])


def _changed(job: Append) -> Iterator[pl.DataFrame]:
    """The rows of the source that differ from their last version."""
    for change in job.changes:
        keys = read(job.into.place, change, job.into.key)
        last = latest(job.into.place, job.stored, job.into.columns, job.into.key, keys)
        for rows in picks(job.into.place, change, np.arange(keys.height), job.into.columns):
            joined = portion.join(rows, last, job.into.key, "left")
            there = joined[f"record_status{HELD}"].is_not_null()
            live = there & joined[f"record_status{HELD}"].ne_missing(DELETED)
            same = live & joined["row_hash"].eq_missing(joined[f"row_hash{HELD}"])
            same &= not job.doubting
            first = pl.coalesce(f"load_timestamp{HELD}", "load_timestamp")
            kind = pl.when(live).then(pl.lit("update")).otherwise(pl.lit("insert"))
            told = joined.with_columns(first.alias("load_timestamp"), kind.alias(KIND))
            yield told.filter(~same).select(rows.columns)


def _deleted_versions(job: Append) -> Iterator[pl.DataFrame]:
    """Copies of the rows that have gone, marked as deleted; a changed row has not gone."""
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


def latest(
    place: Place,
    stored: Sequence[StoredFile],
    layout: Sequence[tuple[str, DeltaType]],
    key: Sequence[str],
    wanted: pl.DataFrame,
) -> pl.DataFrame:
    """When the row landed first, hash and status of the last version of each key in ``wanted``."""
    names = [*key, ORDER, "load_timestamp", "row_hash", "record_status"]
    found = []
    for file in stored:
        parquet = files.open_parquet(place, file)
        for _, table in files.parts(parquet, layout, names, None, dict(file.partition)):
            rows = pl.DataFrame(table).select(names)
            found.append(rows.join(wanted, on=list(key), how="semi", nulls_equal=True))
    if not found:
        return wanted.head(0).with_columns(
            pl.lit(None, pl.Datetime("us", "UTC")).alias("load_timestamp"),
            *(pl.lit(None, pl.String).alias(name) for name in ("row_hash", "record_status")),
        )
    ordered = pl.concat(found).sort(ORDER, maintain_order=True)
    return ordered.unique(list(key), keep="last", maintain_order=True).drop(ORDER)
