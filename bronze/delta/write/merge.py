"""Merge: changed rows take the place of the old ones, in the files that hold them.

Each file of the table that may hold a changed key is a job of its own: its keys are joined with
those of the changes, and only if rows differ it is written anew, row by row in its old order. The
job also writes what happened to the change data feed (``cdc`` files, as in the Delta protocol): the
images of a row before and after an update, and deleted rows. Changes that no file has the key of
are inserted at the end, by `bronze.delta.write.insert`. `bronze.delta.commit` makes all of it
visible at once.

A job's memory is bounded by the rows of one file's keys and by a few row groups, however many
changes there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bronze import portion
from bronze.delta import files
from bronze.delta.partition import column_of, dated
from bronze.delta.write import changes as changing
from bronze.delta.write.changes import (
    Changes,
    Gathered,
    Rows,
    height,
    image,
    join_frames,
    mark_deleted,
    picked,
    read,
)
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Destination, Place
from bronze.model.units import DELETED

OnDelete = Literal["mark", "remove"]
# The keys of so many changes are joined at once.
_KEYS = 2_000_000
# Up to so many rows of a row group are replaced without copying the others.
_FEW = 100


@dataclass(frozen=True)
class Merge:
    """What is to be done to one file of the table ``into``.

    ``gone`` are the numbers of its rows that are deleted in the source, ``deletes`` the keys of
    such rows; with ``delete_others`` all rows are that are not among the changes. ``anew`` rewrites
    the file even if none of its rows changes, because its columns have. With ``doubting``, a row
    that has the hash of its change may have other values, and is replaced.
    """

    into: Destination
    file: StoredFile
    changes: tuple[Changes, ...] = field(repr=False)
    gone: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    deletes: tuple[Changes, ...] = field(default=(), repr=False)
    delete_others: bool = False
    on_delete: OnDelete = "mark"
    anew: bool = False
    doubting: bool = False


@dataclass(frozen=True)
class Merged:
    """What became of one file.

    ``found`` has for each of the changes a mask of its rows whose keys the file has. ``file`` is
    None where nothing changed, or (``rewritten`` being true) where no row is left. ``moved`` are
    updated rows that belong in another partition now; ``revived`` counts the updated rows that
    were not live before.
    """

    old: StoredFile
    found: tuple[bytes, ...] = field(repr=False)
    rewritten: bool = False
    file: WrittenFile | None = None
    feed: WrittenFile | None = None
    updated: int = 0
    deleted: int = 0
    moved: pl.DataFrame | None = field(default=None, repr=False)
    revived: int = 0

    @property
    def edits(self) -> int:
        """How many rows changed."""
        return self.updated + self.deleted


def candidates(
    stored: Sequence[StoredFile], changes: Sequence[Changes], key: Sequence[str], place: Place
) -> list[StoredFile]:
    """The files that may hold a key of the changes, by the bounds that the log has."""
    first = key[0]
    left = list(stored)
    found: list[StoredFile] = []
    for change in changes:
        keys = read(place, change, [first])[first].unique().sort()
        hit = [file for file in left if _overlaps(file, first, keys)]
        found += hit
        left = [file for file in left if file not in hit]
    return found


def _overlaps(file: StoredFile, column: str, keys: pl.Series) -> bool:
    low, high = dict(file.low).get(column), dict(file.high).get(column)
    # A value that Delta cannot hold is NULL, of which bounds say nothing.
    if low is None or high is None or keys.null_count():
        return bool(len(keys))
    bounds = pl.Series([low, high], dtype=keys.dtype, strict=False)
    if bounds.null_count():
        return True
    start = keys.search_sorted(bounds[0], "left")
    return bool(keys.search_sorted(bounds[1], "right") > start)


def merge(job: Merge) -> Merged:
    """Does one job.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    parquet = files.open_parquet(job.into.place, job.file)
    matches = _matches(job, parquet, job.changes)
    found = tuple(
        _mask(matches.filter(pl.col("source") == i)["line"], height(change))
        for i, change in enumerate(job.changes)
    )
    edits, revived = _effective(job, parquet, matches)
    if not edits.height and not job.anew:
        return Merged(job.file, found)
    batch, partition = job.into.stamp.batch_id, job.file.partition
    cluster = files.cluster_of(job.file.path)
    # Rows that take each other's places leave a cluster one.
    name = files.clustered(batch, *cluster) if cluster else batch
    moved: list[pl.DataFrame] = []
    weights = [changing.weights(job.into.place, change) for change in job.changes]
    with (
        files.data(job.into.place, name, job.into.stats, partition) as output,
        files.feed(job.into.place, batch, partition) as feed,
    ):
        told = Gathered(feed.add)
        for start, table in _parts(job, parquet):
            mine = edits.filter(pl.col("row").is_between(start, start + table.num_rows - 1))
            here = mine.with_columns(pl.col("row") - start)
            for rows, few in _bounded(table, here, weights):
                output.add(_edited(job, rows, few, told, moved) if few.height else rows)
            # They would stay while the next ones are read.
            del table, rows
        told.flush()
    updated = int((edits["line"].is_not_null()).sum())
    return Merged(
        job.file,
        found,
        rewritten=True,
        file=output.file,
        feed=feed.file,
        updated=updated,
        deleted=edits.height - updated,
        moved=pl.concat(moved) if moved else None,
        revived=revived,
    )


def _parts(
    job: Merge, parquet: pq.ParquetFile, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    return files.parts(parquet, job.into.columns, columns, None, dict(job.file.partition))


def _matches(job: Merge, parquet: pq.ParquetFile, changes: Sequence[Changes]) -> pl.DataFrame:
    """The rows of the file whose keys are among the changes: row, source and line of each."""
    nothing = pl.DataFrame(schema=_EDITS)
    if not changes:
        return nothing
    parts = [pl.DataFrame(table) for _, table in _parts(job, parquet, job.into.key)]
    if not parts:
        return nothing
    held = pl.concat(parts).with_row_index("row")
    found = [nothing]
    for keys in _keys(job, changes):
        joined = portion.join(held, keys, job.into.key, "inner")
        found.append(joined.select(pl.col(n).cast(t) for n, t in _EDITS.items()))
    return pl.concat(found).sort("row")


_EDITS: dict[str, Any] = {"row": pl.Int64, "source": pl.Int64, "line": pl.Int64}


def _keys(job: Merge, changes: Sequence[Changes]) -> Iterator[pl.DataFrame]:
    """The keys of the changes with source and line, a bounded number at once."""
    gathered: list[pl.DataFrame] = []
    for source, change in enumerate(changes):
        keys = read(job.into.place, change, job.into.key).with_row_index("line")
        gathered.append(keys.with_columns(pl.lit(source, pl.Int64).alias("source")))
        if sum(frame.height for frame in gathered) >= _KEYS:
            yield pl.concat(gathered)
            gathered = []
    if gathered:
        yield pl.concat(gathered)


def _effective(
    job: Merge, parquet: pq.ParquetFile, matches: pl.DataFrame
) -> tuple[pl.DataFrame, int]:
    """The rows to replace (with source and line) and to delete (without); how many revive."""
    revived = 0
    edits = [pl.DataFrame(schema=_EDITS)]
    if matches.height:
        hashes = _lines(job, matches, ["row_hash"])["row_hash"]
        old = _rows(job, parquet, matches["row"], ["row_hash", "record_status"])
        live = old["record_status"].ne_missing(DELETED)
        live &= old["row_hash"].is_not_null() | job.doubting
        same = (old["row_hash"] == hashes) & live & (not job.doubting)
        revived = int((~live).sum())
        edits.append(matches.filter(~same.fill_null(False)))
    vanished = _deleted_rows(job, parquet)
    if len(vanished):
        gone = pl.DataFrame({"row": vanished}).cast(pl.Int64)
        gone = gone.join(matches, on="row", how="anti")
        edits.append(
            gone.with_columns(source=None, line=None).select(
                pl.col(name).cast(kind) for name, kind in _EDITS.items()
            )
        )
    return pl.concat(edits).sort("row"), revived


def _deleted_rows(job: Merge, parquet: pq.ParquetFile) -> Rows:
    """The numbers of the live rows that have gone from the source."""
    found = [] if job.gone is None else [job.gone]
    if job.deletes and not job.delete_others:
        rows = _matches(job, parquet, job.deletes)["row"].unique().sort()
        if len(rows):
            found.append(rows.to_numpy()[_live(_rows(job, parquet, rows, _STATUS))])
    if job.delete_others:
        parts = _parts(job, parquet, _STATUS)
        found += [start + np.flatnonzero(_live(pl.DataFrame(table))) for start, table in parts]
    return np.unique(_all(found))


_STATUS = ["record_status"]


def _live(rows: pl.DataFrame) -> npt.NDArray[np.bool_]:
    live: npt.NDArray[np.bool_] = rows["record_status"].ne_missing(DELETED).to_numpy()
    return live


def _rows(
    job: Merge, parquet: pq.ParquetFile, rows: pl.Series, columns: Sequence[str]
) -> pl.DataFrame:
    """The values of some columns in some rows (sorted) of the file."""
    wanted = rows.to_numpy()
    found = []
    for start, table in _parts(job, parquet, columns):
        inside = wanted[(wanted >= start) & (wanted < start + table.num_rows)]
        if len(inside):
            found.append(pl.DataFrame(table)[inside - start])
    gathered: pl.DataFrame = pl.concat(found)
    return gathered


def _bounded(
    table: pa.Table, edits: pl.DataFrame, weights: Sequence[changing.Weights]
) -> Iterator[tuple[pa.Table, pl.DataFrame]]:
    """One row group with its edits, cut where the new rows are too large to be there at once."""
    sizes = np.zeros(edits.height)
    for source, known in enumerate(weights):
        mine = (edits["source"] == source).fill_null(False)
        sizes[mine.to_numpy()] = known[edits["line"].filter(mine).to_numpy()]
    runs = (np.cumsum(sizes) - sizes) // changing.BYTES
    starts = np.flatnonzero(np.diff(runs)) + 1
    rows = edits["row"].to_numpy()
    bounds = [0, *starts.tolist(), edits.height]
    lows = [0, *rows[starts].tolist(), table.num_rows]
    for i, (low, high) in enumerate(pairwise(lows)):
        few = edits[bounds[i] : bounds[i + 1]].with_columns(pl.col("row") - low)
        yield table.slice(low, high - low), few


def _edited(
    job: Merge, table: pa.Table, edits: pl.DataFrame, told: Gathered, moved: list[pl.DataFrame]
) -> pa.Table:
    """One row group with its edits, which are told to the change data feed."""
    updates = edits.filter(pl.col("line").is_not_null())
    gone = edits.filter(pl.col("line").is_null())["row"].to_numpy()
    rows, after, removed = [], [], []
    if updates.height:
        before = pl.DataFrame(_take(table, updates["row"].to_numpy()))
        dates_of = job.into.dates_of
        held = before.select("load_timestamp", *([column_of(dates_of)] if dates_of else []))
        names = before.columns
        told.add(image(before, "update_preimage"))
        # Of large rows there are never more copies than it takes.
        del before
        new = _lines(job, updates, names)
        first = held["load_timestamp"]
        if job.doubting:
            # No row landed after its own update, or never.
            wrong = (first > new["load_timestamp"]).fill_null(True)
            first = first.set(wrong, None).fill_null(new["load_timestamp"])
        new.replace_column(new.get_column_index("load_timestamp"), first)
        here = np.ones(new.height, np.bool_)
        if job.into.dates_of:
            new = dated(new, job.into.dates_of)
            date = column_of(job.into.dates_of)
            here = new[date].eq_missing(held[date]).to_numpy()
        if not here.all():
            moved += [new.filter(~here)]
            new = new.filter(here)
        told.add(image(new, "update_postimage"))
        rows.append(updates["row"].to_numpy()[here])
        removed.append(updates["row"].to_numpy()[~here])
        after.append(new)
        del new
    if len(gone):
        before = pl.DataFrame(_take(table, gone))
        if job.on_delete == "remove":
            told.add(image(before, "delete"))
            removed.append(gone)
        else:
            new = mark_deleted(before, job.into.stamp)
            told.add(image(before, "update_preimage"))
            told.add(image(new, "update_postimage"))
            rows.append(gone)
            after.append(new)
    changed = join_frames(after) if after else pl.DataFrame(table.slice(0, 0))
    after.clear()
    arrow = changed.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(table.schema)
    return _replaced(table, _all(rows), arrow, _all(removed))


def _take(table: pa.Table, rows: Rows) -> pa.Table:
    return table if len(rows) == table.num_rows else table.take(pl.Series(rows).to_arrow())


def _all(rows: Sequence[Rows]) -> Rows:
    return np.concatenate([np.empty(0, np.int64), *rows])


def _replaced(table: pa.Table, rows: Rows, changed: pa.Table, removed: Rows) -> pa.Table:
    """A table with some rows replaced, and others removed."""
    if len(rows) + len(removed) > _FEW:
        order = np.arange(table.num_rows)
        order[rows] = table.num_rows + np.arange(len(rows))
        both = pl.concat([pl.DataFrame(table), pl.DataFrame(changed)])
        mixed = both[np.delete(order, removed)]
        return mixed.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(table.schema)
    # Slices of what is there copy nothing.
    new = {int(row): changed.slice(i, 1) for i, row in enumerate(rows)}
    pieces, start = [], 0
    for row in np.sort(np.concatenate([rows, removed])).tolist():
        pieces.append(table.slice(start, row - start))
        pieces += [new[row]] if row in new else []
        start = row + 1
    return pa.concat_tables([*pieces, table.slice(start)])


def _mask(lines: pl.Series, height: int) -> bytes:
    mask = np.zeros(height, np.bool_)
    mask[lines.to_numpy()] = True
    return np.packbits(mask).tobytes()


def _lines(job: Merge, wanted: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of the changes, for each source and line in ``wanted``, in its order."""
    layout = [(name, kind) for name, kind in job.into.columns if name in columns]
    frames, order = [], []
    for source in wanted["source"].unique(maintain_order=True):
        here = np.flatnonzero((wanted["source"] == source).to_numpy())
        lines = wanted["line"].to_numpy()[here]
        sequence = np.argsort(lines)
        frames.append(picked(job.into.place, job.changes[source], lines[sequence], layout))
        order.append(here[sequence])
    if len(frames) == 1 and (np.diff(order[0]) > 0).all():
        return frames[0]
    return pl.concat(frames)[np.argsort(np.concatenate(order))]
