"""Merge: replaces stored rows by changed ones, in the files that have their keys.

Each file of the table that may have a changed key is a job of its own: its keys are joined with
those of the changes, and only if rows differ the file is rewritten, in its old row order. The job
also writes the change data feed (``cdc`` files, as in the Delta protocol): the images of a row
before and after an update, and deleted rows. `bronze.delta.write.insert` then inserts the changes
with keys that no file has, and `bronze.delta.commit` makes all of it visible in one commit.
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
    RowGroupBuffer,
    Rows,
    feed_rows,
    height,
    join_frames,
    mark_deleted,
    read,
    select_rows,
)
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Destination, Place
from bronze.model.units import DELETED

OnDelete = Literal["mark", "remove"]
# The number of keys from which the keys of changes are joined with those of a file.
_KEYS_PER_JOIN = 2_000_000
# The number of a row in its file, and of its change: which of the changes, and the line in it.
_ROW, _SOURCE, _LINE = "\0row", "\0source", "\0line"
# Up to this many rows of a row group are replaced without copying the others.
_MAX_SLICED = 100


@dataclass(frozen=True)
class Merge:
    """The changes to merge into one file of the table ``into``.

    Deleted in the source are the rows with the numbers ``gone`` and with the keys ``deletes``; with
    ``delete_others`` also all rows that are not among the changes. ``rewrite`` rewrites the file
    even if none of its rows changes, as its columns changed. With ``doubting``, equal row hashes do
    not prove equal values: every row with a change is replaced.
    """

    into: Destination
    file: StoredFile
    changes: tuple[Changes, ...] = field(repr=False)
    gone: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    deletes: tuple[Changes, ...] = field(default=(), repr=False)
    delete_others: bool = False
    on_delete: OnDelete = "mark"
    rewrite: bool = False
    doubting: bool = False


@dataclass(frozen=True)
class Merged:
    """The result of merging into one file.

    ``matched`` has a mask for each of the changes: its rows with keys that the file has. ``file``
    is None where nothing changed, or (with ``rewritten``) where no row is left. ``moved`` are
    updated rows that now belong to another partition; ``revived`` is the number of updated rows
    that were not live before.
    """

    old: StoredFile
    matched: tuple[bytes, ...] = field(repr=False)
    rewritten: bool = False
    file: WrittenFile | None = None
    feed: WrittenFile | None = None
    updated: int = 0
    deleted: int = 0
    moved: pl.DataFrame | None = field(default=None, repr=False)
    revived: int = 0

    @property
    def edits(self) -> int:
        """The number of rows that were updated or deleted."""
        return self.updated + self.deleted


def candidate_files(
    stored: Sequence[StoredFile], changes: Sequence[Changes], key: Sequence[str], place: Place
) -> list[StoredFile]:
    """The files that may have a key of the changes, by the statistics in the log."""
    first = key[0]
    remaining = list(stored)
    candidates: list[StoredFile] = []
    for change in changes:
        keys = read(place, change, [first])[first].unique().sort()
        overlapping = [file for file in remaining if _overlaps(file, first, keys)]
        candidates += overlapping
        remaining = [file for file in remaining if file not in overlapping]
    return candidates


def _overlaps(file: StoredFile, column: str, keys: pl.Series) -> bool:
    low, high = dict(file.low).get(column), dict(file.high).get(column)
    # A value that Delta cannot store is NULL, and statistics do not cover NULLs.
    if low is None or high is None or keys.null_count():
        return bool(len(keys))
    bounds = pl.Series([low, high], dtype=keys.dtype, strict=False)
    if bounds.null_count():
        return True
    start = keys.search_sorted(bounds[0], "left")
    return bool(keys.search_sorted(bounds[1], "right") > start)


def merge(job: Merge) -> Merged:
    """Merges changes into one file.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    parquet = files.open_parquet(job.into.place, job.file)
    matches = _matches(job, parquet, job.changes)
    matched = tuple(
        _mask(matches.filter(pl.col(_SOURCE) == i)[_LINE], height(change))
        for i, change in enumerate(job.changes)
    )
    edits, revived = _effective_edits(job, parquet, matches)
    if not edits.height and not job.rewrite:
        return Merged(job.file, matched)
    batch, partition = job.into.stamp.batch_id, job.file.partition
    cluster = files.cluster_of(job.file.path)
    # Updates leave the rows in place, so the file stays in its cluster.
    name = files.cluster_name(batch, *cluster) if cluster else batch
    moved: list[pl.DataFrame] = []
    weights = [changing.weights(job.into.place, change) for change in job.changes]
    with (
        files.data(job.into.place, name, job.into.stats, partition) as output,
        files.feed(job.into.place, batch, partition) as feed,
    ):
        feed_buffer = RowGroupBuffer(feed.add)
        for start, table in _file_parts(job, parquet):
            in_part = edits.filter(pl.col(_ROW).is_between(start, start + table.num_rows - 1))
            in_part = in_part.with_columns(pl.col(_ROW) - start)
            for rows, few in _split_by_size(table, in_part, weights):
                output.add(_apply_edits(job, rows, few, feed_buffer, moved) if few.height else rows)
            # Frees their memory before the next rows are read.
            del table, rows
        feed_buffer.flush()
    updated = int((edits[_LINE].is_not_null()).sum())
    return Merged(
        job.file,
        matched,
        rewritten=True,
        file=output.file,
        feed=feed.file,
        updated=updated,
        deleted=edits.height - updated,
        moved=pl.concat(moved) if moved else None,
        revived=revived,
    )


def _file_parts(
    job: Merge, parquet: pq.ParquetFile, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    return files.parts(parquet, job.into.columns, columns, None, dict(job.file.partition))


def _matches(job: Merge, parquet: pq.ParquetFile, changes: Sequence[Changes]) -> pl.DataFrame:
    """The rows of the file with a key of the changes: row number, change and line of each."""
    nothing = pl.DataFrame(schema=_EDITS)
    if not changes:
        return nothing
    parts = [pl.DataFrame(table) for _, table in _file_parts(job, parquet, job.into.key)]
    if not parts:
        return nothing
    stored = pl.concat(parts).with_row_index(_ROW)
    matches = [nothing]
    for keys in _key_batches(job, changes):
        joined = portion.join(stored, keys, job.into.key, "inner")
        matches.append(joined.select(pl.col(n).cast(t) for n, t in _EDITS.items()))
    return pl.concat(matches).sort(_ROW)


_EDITS: dict[str, Any] = {_ROW: pl.Int64, _SOURCE: pl.Int64, _LINE: pl.Int64}


def _key_batches(job: Merge, changes: Sequence[Changes]) -> Iterator[pl.DataFrame]:
    """The keys of the changes with the number of the change and the line, in portions."""
    frames: list[pl.DataFrame] = []
    for source, change in enumerate(changes):
        keys = read(job.into.place, change, job.into.key).with_row_index(_LINE)
        frames.append(keys.with_columns(pl.lit(source, pl.Int64).alias(_SOURCE)))
        if sum(frame.height for frame in frames) >= _KEYS_PER_JOIN:
            yield pl.concat(frames)
            frames = []
    if frames:
        yield pl.concat(frames)


def _effective_edits(
    job: Merge, parquet: pq.ParquetFile, matches: pl.DataFrame
) -> tuple[pl.DataFrame, int]:
    """The rows to replace (with change and line) and to delete; how many of them become live."""
    revived = 0
    edits = [pl.DataFrame(schema=_EDITS)]
    if matches.height:
        hashes = _changed_rows(job, matches, ["row_hash"])["row_hash"]
        old = _stored_rows(job, parquet, matches[_ROW], ["row_hash", "record_status"])
        live = old["record_status"].ne_missing(DELETED)
        live &= old["row_hash"].is_not_null() | job.doubting
        same = (old["row_hash"] == hashes) & live & (not job.doubting)
        revived = int((~live).sum())
        edits.append(matches.filter(~same.fill_null(False)))
    deleted = _deleted_rows(job, parquet)
    if len(deleted):
        gone = pl.DataFrame({_ROW: deleted}).cast(pl.Int64)
        gone = gone.join(matches, on=_ROW, how="anti")
        edits.append(
            gone.with_columns(pl.lit(None).alias(_SOURCE), pl.lit(None).alias(_LINE)).select(
                pl.col(name).cast(kind) for name, kind in _EDITS.items()
            )
        )
    return pl.concat(edits).sort(_ROW), revived


def _deleted_rows(job: Merge, parquet: pq.ParquetFile) -> Rows:
    """The numbers of the live rows that were deleted in the source."""
    deleted = [] if job.gone is None else [job.gone]
    if job.deletes and not job.delete_others:
        rows = _matches(job, parquet, job.deletes)[_ROW].unique().sort()
        if len(rows):
            deleted.append(rows.to_numpy()[_live(_stored_rows(job, parquet, rows, _STATUS))])
    if job.delete_others:
        parts = _file_parts(job, parquet, _STATUS)
        deleted += [start + np.flatnonzero(_live(pl.DataFrame(table))) for start, table in parts]
    return np.unique(_join_numbers(deleted))


_STATUS = ["record_status"]


def _live(rows: pl.DataFrame) -> npt.NDArray[np.bool_]:
    live: npt.NDArray[np.bool_] = rows["record_status"].ne_missing(DELETED).to_numpy()
    return live


def _stored_rows(
    job: Merge, parquet: pq.ParquetFile, rows: pl.Series, columns: Sequence[str]
) -> pl.DataFrame:
    """Some columns of some rows (sorted numbers) of the file."""
    numbers = rows.to_numpy()
    frames = []
    for start, table in _file_parts(job, parquet, columns):
        inside = numbers[(numbers >= start) & (numbers < start + table.num_rows)]
        if len(inside):
            frames.append(pl.DataFrame(table)[inside - start])
    selected: pl.DataFrame = pl.concat(frames)
    return selected


def _split_by_size(
    table: pa.Table, edits: pl.DataFrame, weights: Sequence[changing.Weights]
) -> Iterator[tuple[pa.Table, pl.DataFrame]]:
    """Splits a row group and its edits where the new rows are too large for the memory."""
    sizes = np.zeros(edits.height)
    for source, row_sizes in enumerate(weights):
        chosen = (edits[_SOURCE] == source).fill_null(False)
        sizes[chosen.to_numpy()] = row_sizes[edits[_LINE].filter(chosen).to_numpy()]
    runs = (np.cumsum(sizes) - sizes) // changing.BYTES
    starts = np.flatnonzero(np.diff(runs)) + 1
    rows = edits[_ROW].to_numpy()
    bounds = [0, *starts.tolist(), edits.height]
    lows = [0, *rows[starts].tolist(), table.num_rows]
    for i, (low, high) in enumerate(pairwise(lows)):
        few = edits[bounds[i] : bounds[i + 1]].with_columns(pl.col(_ROW) - low)
        yield table.slice(low, high - low), few


def _apply_edits(
    job: Merge,
    table: pa.Table,
    edits: pl.DataFrame,
    feed: RowGroupBuffer,
    moved: list[pl.DataFrame],
) -> pa.Table:
    """Applies edits to a row group, and writes them to the change data feed."""
    updates = edits.filter(pl.col(_LINE).is_not_null())
    gone = edits.filter(pl.col(_LINE).is_null())[_ROW].to_numpy()
    rows, after, removed = [], [], []
    if updates.height:
        before = pl.DataFrame(_take_rows(table, updates[_ROW].to_numpy()))
        dates_of = job.into.dates_of
        stored = before.select("load_timestamp", *([column_of(dates_of)] if dates_of else []))
        names = before.columns
        feed.add(feed_rows(before, "update_preimage"))
        # Large rows are not kept in memory longer than needed.
        del before
        new = _changed_rows(job, updates, names)
        first = stored["load_timestamp"]
        if job.doubting:
            # A load time that is missing, or later than the row's own update, is wrong.
            wrong = (first > new["load_timestamp"]).fill_null(True)
            first = first.set(wrong, None).fill_null(new["load_timestamp"])
        new.replace_column(new.get_column_index("load_timestamp"), first)
        stays = np.ones(new.height, np.bool_)
        if job.into.dates_of:
            new = dated(new, job.into.dates_of)
            date = column_of(job.into.dates_of)
            stays = new[date].eq_missing(stored[date]).to_numpy()
        if not stays.all():
            moved += [new.filter(~stays)]
            new = new.filter(stays)
        feed.add(feed_rows(new, "update_postimage"))
        rows.append(updates[_ROW].to_numpy()[stays])
        removed.append(updates[_ROW].to_numpy()[~stays])
        after.append(new)
        del new
    if len(gone):
        before = pl.DataFrame(_take_rows(table, gone))
        if job.on_delete == "remove":
            feed.add(feed_rows(before, "delete"))
            removed.append(gone)
        else:
            new = mark_deleted(before, job.into.stamp)
            feed.add(feed_rows(before, "update_preimage"))
            feed.add(feed_rows(new, "update_postimage"))
            rows.append(gone)
            after.append(new)
    changed = join_frames(after) if after else pl.DataFrame(table.slice(0, 0))
    after.clear()
    arrow = changed.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(table.schema)
    return _replace_rows(table, _join_numbers(rows), arrow, _join_numbers(removed))


def _take_rows(table: pa.Table, rows: Rows) -> pa.Table:
    return table if len(rows) == table.num_rows else table.take(pl.Series(rows).to_arrow())


def _join_numbers(rows: Sequence[Rows]) -> Rows:
    return np.concatenate([np.empty(0, np.int64), *rows])


def _replace_rows(table: pa.Table, rows: Rows, changed: pa.Table, removed: Rows) -> pa.Table:
    """Replaces some rows of a table, and removes others."""
    if len(rows) + len(removed) > _MAX_SLICED:
        order = np.arange(table.num_rows)
        order[rows] = table.num_rows + np.arange(len(rows))
        both = pl.concat([pl.DataFrame(table), pl.DataFrame(changed)])
        mixed = both[np.delete(order, removed)]
        return mixed.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(table.schema)
    # Slices copy nothing.
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


def _changed_rows(job: Merge, edits: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of the changed row of each of the ``edits``, in their order."""
    layout = [(name, kind) for name, kind in job.into.columns if name in columns]
    frames, order = [], []
    for source in edits[_SOURCE].unique(maintain_order=True):
        positions = np.flatnonzero((edits[_SOURCE] == source).to_numpy())
        lines = edits[_LINE].to_numpy()[positions]
        sequence = np.argsort(lines)
        frames.append(select_rows(job.into.place, job.changes[source], lines[sequence], layout))
        order.append(positions[sequence])
    if len(frames) == 1 and (np.diff(order[0]) > 0).all():
        return frames[0]
    return pl.concat(frames)[np.argsort(np.concatenate(order))]
