"""Merge: replaces stored rows by changed ones, in the files that have their keys.

Each file of the table that may have a changed key is a job of its own: its keys are joined with
those of the changes, and only if rows differ the file is rewritten, in its old row order; or, where
the table has deletion vectors and few rows differ, these are deleted by one, and written elsewhere.
The job also writes the change data feed (``cdc`` files, as in the Delta protocol): the images of a
row before and after an update, and deleted rows. `bronze.delta.write.insert` then inserts the
changes with keys that no file has, and `bronze.delta.commit` makes all of it visible in one commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bronze import portion
from bronze.delta import file_names, files
from bronze.delta.read import deletion_vectors, single_rows
from bronze.delta.write import changes as changing
from bronze.delta.write import row_edits
from bronze.delta.write.changes import Changes, RowGroupBuffer, Rows, height, read
from bronze.delta.write.merge_job import Merge, Merged
from bronze.delta.write.row_edits import EDITS, LINE, ROW, SOURCE
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.model.units import DELETED

# The number of keys from which the keys of changes are joined with those of a file.
_KEYS_PER_JOIN = 2_000_000
# A smaller file is rewritten rather than given a deletion vector, and so is one of whose rows this
# share would be deleted: readers would go on reading them.
_SMALLEST_FILE, _MOST_DELETED = 2**20, 0.2
# Up to this many changed rows of a file, and bytes, are written with those of other files.
_FEW, _FEW_BYTES = 1_000, 2**20

# The sorted numbers of some rows of a file, and these rows.
_Held = tuple[Rows, pa.Table]


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
        _mask(matches.filter(pl.col(SOURCE) == i)[LINE], height(change))
        for i, change in enumerate(job.changes)
    )
    held = _held_rows(job, parquet, matches[ROW].to_numpy())
    edits, revived = _effective_edits(job, parquet, matches, held)
    if not edits.height and not job.rewrite:
        return Merged(job.file, matched)
    if _can_stay(job, parquet, edits):
        return _mark(job, parquet, matched, edits, revived, held)
    return _rewrite(job, parquet, matched, edits, revived)


def _rewrite(
    job: Merge,
    parquet: pq.ParquetFile,
    matched: tuple[bytes, ...],
    edits: pl.DataFrame,
    revived: int,
) -> Merged:
    """Writes the file again, with its edits."""
    batch, partition = job.into.stamp.batch_id, job.file.partition
    cluster = file_names.cluster_of(job.file.path)
    # Updates leave the rows in place, so the file stays in its cluster.
    name = file_names.cluster_name(batch, *cluster) if cluster else batch
    moved: list[pl.DataFrame] = []
    weights = [changing.weights(job.into.place, change) for change in job.changes]
    with (
        files.data(job.into.place, name, job.into.stats, partition) as output,
        files.feed(job.into.place, batch, partition) as feed,
    ):
        feed_buffer = RowGroupBuffer(feed.add)
        for start, table in _file_parts(job, parquet):
            in_part = _edits_of(edits, start, table)
            for rows, few in row_edits.split_by_size(table, in_part, weights):
                output.add(
                    row_edits.apply_edits(job, rows, few, feed_buffer, moved)
                    if few.height
                    else rows
                )
            # Frees their memory before the next rows are read.
            del table, rows
        feed_buffer.flush()
    updated = _count_updates(edits)
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


def _can_stay(job: Merge, parquet: pq.ParquetFile, edits: pl.DataFrame) -> bool:
    """Whether the file keeps its rows, and a deletion vector deletes those that are edited."""
    if not job.vectors or job.rewrite or job.file.size < _SMALLEST_FILE or job.file.rows < 0:
        return False
    stored = parquet.metadata.num_rows
    deleted = stored - sum(files.row_counts(parquet)) + edits.height
    return bool(deleted <= stored * _MOST_DELETED)


def _mark(
    job: Merge,
    parquet: pq.ParquetFile,
    matched: tuple[bytes, ...],
    edits: pl.DataFrame,
    revived: int,
    held: _Held | None,
) -> Merged:
    """Deletes the edited rows by a deletion vector, and writes what they are now, or returns it."""
    batch, partition = job.into.stamp.batch_id, job.file.partition
    moved: list[pl.DataFrame] = []
    kept: list[pl.DataFrame] = []
    fed: list[pl.DataFrame] = []
    weights = [changing.weights(job.into.place, change) for change in job.changes]
    is_small = edits.height <= _FEW and edits.height * _width(parquet) <= _FEW_BYTES
    with (
        files.data(job.into.place, batch, job.into.stats, partition) as output,
        files.feed(job.into.place, batch, partition) as feed,
    ):
        buffer = RowGroupBuffer(kept.append if is_small else output.add)
        feed_buffer = RowGroupBuffer(fed.append if is_small else feed.add)
        for edited, numbered in _edited_rows(job, parquet, edits, held):
            for rows, few in row_edits.split_by_size(edited, numbered, weights):
                now = row_edits.apply_edits(job, rows, few, feed_buffer, moved)
                buffer.add(*([pl.DataFrame(now)] if now.num_rows else []))
        buffer.flush()
        feed_buffer.flush()
    updated = _count_updates(edits)
    deleted = files.all_deleted(parquet, edits[ROW].to_numpy())
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
        vector=(deletion_vectors.bitmap_of(deleted), len(deleted)),
        kept=pl.concat(kept) if kept else None,
        fed=pl.concat(fed) if fed else None,
    )


def _edited_rows(
    job: Merge, parquet: pq.ParquetFile, edits: pl.DataFrame, held: _Held | None
) -> Iterator[tuple[pa.Table, pl.DataFrame]]:
    """The rows of the file that are edited, of many row groups at a time, with their edits."""
    numbers = edits[ROW].to_numpy()
    if held is None or not np.isin(numbers, held[0]).all():
        held = _held_rows(job, parquet, numbers)
    if held is not None:
        yield _numbered([held[1].take(pa.array(np.searchsorted(held[0], numbers)))], edits)
        return
    rows: list[pa.Table] = []
    first = last = weight = 0
    for start, table in _file_parts(job, parquet, None, _groups_of(parquet, numbers)):
        end = last + int(np.searchsorted(numbers[last:], start + table.num_rows))
        if end > last:
            part = table.take(pa.array(numbers[last:end] - start))
            rows.append(part)
            last, weight = end, weight + part.nbytes
        del table
        if last - first >= changing.GROUP or weight >= changing.BYTES:
            yield _numbered(rows, edits[first:last])
            rows, first, weight = [], last, 0
    if rows:
        yield _numbered(rows, edits[first:last])


def _numbered(rows: Sequence[pa.Table], edits: pl.DataFrame) -> tuple[pa.Table, pl.DataFrame]:
    """Rows as one table, and their edits with the numbers in it."""
    numbers = pl.int_range(pl.len(), dtype=pl.Int64).alias(ROW)
    return pa.concat_tables(rows).combine_chunks(), edits.with_columns(numbers)


def _groups_of(parquet: pq.ParquetFile, numbers: Rows) -> list[int]:
    """The row groups that some rows are in."""
    ends = np.cumsum(files.row_counts(parquet))
    groups: list[int] = np.unique(np.searchsorted(ends, numbers, side="right")).tolist()
    return groups


def _width(parquet: pq.ParquetFile) -> float:
    """The bytes of a row, uncompressed."""
    groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
    size = sum(int(group.total_byte_size) for group in groups)
    return size / max(1, int(parquet.metadata.num_rows))


def _edits_of(edits: pl.DataFrame, start: int, table: pa.Table) -> pl.DataFrame:
    """The edits of a part of the file, with the numbers of its rows."""
    in_part = edits.filter(pl.col(ROW).is_between(start, start + table.num_rows - 1))
    return in_part.with_columns(pl.col(ROW) - start)


def _count_updates(edits: pl.DataFrame) -> int:
    return int(edits[LINE].is_not_null().sum())


def _file_parts(
    job: Merge,
    parquet: pq.ParquetFile,
    columns: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
) -> Iterator[tuple[int, pa.Table]]:
    return files.parts(parquet, job.into.columns, columns, groups, dict(job.file.partition))


def _matches(job: Merge, parquet: pq.ParquetFile, changes: Sequence[Changes]) -> pl.DataFrame:
    """The rows of the file with a key of the changes: row number, change and line of each."""
    nothing = pl.DataFrame(schema=EDITS)
    if not changes:
        return nothing
    parts = [pl.DataFrame(table) for _, table in _file_parts(job, parquet, job.into.key)]
    if not parts:
        return nothing
    stored = pl.concat(parts).with_row_index(ROW)
    matches = [nothing]
    for keys in _key_batches(job, changes):
        joined = portion.join(stored, keys, job.into.key, "inner")
        matches.append(joined.select(pl.col(n).cast(t) for n, t in EDITS.items()))
    return pl.concat(matches).sort(ROW)


def _key_batches(job: Merge, changes: Sequence[Changes]) -> Iterator[pl.DataFrame]:
    """The keys of the changes with the number of the change and the line, in portions."""
    frames: list[pl.DataFrame] = []
    for source, change in enumerate(changes):
        keys = read(job.into.place, change, job.into.key).with_row_index(LINE)
        frames.append(keys.with_columns(pl.lit(source, pl.Int64).alias(SOURCE)))
        if sum(frame.height for frame in frames) >= _KEYS_PER_JOIN:
            yield pl.concat(frames)
            frames = []
    if frames:
        yield pl.concat(frames)


def _effective_edits(
    job: Merge, parquet: pq.ParquetFile, matches: pl.DataFrame, held: _Held | None
) -> tuple[pl.DataFrame, int]:
    """The rows to replace (with change and line) and to delete; how many of them become live."""
    revived = 0
    edits = [pl.DataFrame(schema=EDITS)]
    if matches.height:
        hashes = row_edits.changed_rows(job, matches, ["row_hash"])["row_hash"]
        names = ["row_hash", "record_status"]
        old = (
            pl.DataFrame(held[1].select(names))
            if held is not None
            else _stored_rows(job, parquet, matches[ROW], names)
        )
        live = old["record_status"].ne_missing(DELETED)
        live &= old["row_hash"].is_not_null() | job.doubting
        same = (old["row_hash"] == hashes) & live & (not job.doubting)
        revived = int((~live).sum())
        edits.append(matches.filter(~same.fill_null(False)))
    deleted = _deleted_rows(job, parquet)
    if len(deleted):
        gone = pl.DataFrame({ROW: deleted}).cast(pl.Int64)
        gone = gone.join(matches, on=ROW, how="anti")
        edits.append(
            gone.with_columns(pl.lit(None).alias(SOURCE), pl.lit(None).alias(LINE)).select(
                pl.col(name).cast(kind) for name, kind in EDITS.items()
            )
        )
    return pl.concat(edits).sort(ROW), revived


def _deleted_rows(job: Merge, parquet: pq.ParquetFile) -> Rows:
    """The numbers of the live rows that were deleted in the source."""
    deleted = [] if job.gone is None else [job.gone]
    if job.deletes and not job.delete_others:
        rows = _matches(job, parquet, job.deletes)[ROW].unique().sort()
        if len(rows):
            deleted.append(rows.to_numpy()[_live(_stored_rows(job, parquet, rows, _STATUS))])
    if job.delete_others:
        parts = _file_parts(job, parquet, _STATUS)
        deleted += [start + np.flatnonzero(_live(pl.DataFrame(table))) for start, table in parts]
    return np.unique(row_edits.join_numbers(deleted))


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
    for start, table in _file_parts(job, parquet, columns, _groups_of(parquet, numbers)):
        inside = numbers[(numbers >= start) & (numbers < start + table.num_rows)]
        if len(inside):
            frames.append(pl.DataFrame(table)[inside - start])
    selected: pl.DataFrame = pl.concat(frames)
    return selected


def _mask(lines: pl.Series, height: int) -> bytes:
    mask = np.zeros(height, np.bool_)
    mask[lines.to_numpy()] = True
    return np.packbits(mask).tobytes()


def _held_rows(job: Merge, parquet: pq.ParquetFile, numbers: Rows) -> _Held | None:
    """A few rows of the file, which may get a vector; None where its row groups are to be read."""
    if not job.vectors or not 0 < len(numbers) <= min(_FEW, _FEW_BYTES / _width(parquet)):
        return None
    if (np.diff(numbers) <= 0).any():
        return None
    first = job.into.key[0]
    values = _stored_rows(job, parquet, pl.Series(numbers), [first])[first]
    rows = single_rows.read(
        job.into.place, job.file, parquet, job.into.columns, numbers, first, values
    )
    return None if rows is None else (numbers, rows)
