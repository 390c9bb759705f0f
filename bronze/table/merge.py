"""Merge: changed rows take the place of the old ones, in the files that hold them.

Each file of the table that may hold a changed key is a job of its own: its keys are joined with
those of the changes, and only if rows differ it is written anew, row by row in its old order. The
job also writes what happened to the change data feed (``cdc`` files, as in the Delta protocol):
the images of a row before and after an update, and deleted rows. Changes that no file has the key
of are inserted at the end, by `insert`. `bronze.table.commit` makes all of it visible at once.

A job's memory is bounded by the rows of one file's keys and by a few row groups, however many
changes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bronze.model import DELETED, DataFile, Kind, Place, Stamp, Stored
from bronze.table import files
from bronze.table.files import CHANGE
from bronze.table.partition import Outputs, column_of, dated

Rows = npt.NDArray[np.int64]
OnDelete = Literal["mark", "remove"]
Changes = pl.DataFrame | DataFile
"""Changed rows as they are stored: in memory where they are few, else in a file."""

# The keys of so many changes are joined at once.
_KEYS = 2_000_000
# Up to so many rows of a row group are replaced without copying the others.
_FEW = 100
_GROUP = 30_000


@dataclass(frozen=True)
class Merge:
    """What is to be done to one file.

    ``gone`` are the numbers of its rows that have vanished from the source. ``anew`` asks for the
    file to be written even if none of its rows changes, because its columns have. ``dates_of`` is
    the column whose dates are the table's partitions.
    """

    place: Place
    file: Stored
    layout: tuple[tuple[str, Kind], ...]
    key: tuple[str, ...]
    stats: tuple[str, ...]
    stamp: Stamp
    changes: tuple[Changes, ...] = field(repr=False)
    gone: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    on_delete: OnDelete = "mark"
    anew: bool = False
    dates_of: str | None = None


@dataclass(frozen=True)
class Merged:
    """What became of one file.

    ``found`` has for each of the changes a mask of its rows whose keys the file has. ``file`` is
    None where nothing changed, or (``rewritten`` being true) where no row is left. ``moved`` are
    updated rows that belong in another partition now; ``revived`` counts the updated rows that
    were not live before.
    """

    old: Stored
    found: tuple[bytes, ...] = field(repr=False)
    rewritten: bool = False
    file: DataFile | None = None
    feed: DataFile | None = None
    updated: int = 0
    deleted: int = 0
    moved: pl.DataFrame | None = field(default=None, repr=False)
    revived: int = 0

    @property
    def edits(self) -> int:
        """How many rows changed."""
        return self.updated + self.deleted


def candidates(
    stored: Sequence[Stored], changes: Sequence[Changes], key: Sequence[str], place: Place
) -> list[Stored]:
    """The files that may hold a key of the changes, by the bounds that the log has."""
    first = key[0]
    left = list(stored)
    found: list[Stored] = []
    for change in changes:
        keys = read(place, change, [first])[first].drop_nulls().unique().sort()
        hit = [file for file in left if _overlaps(file, first, keys)]
        found += hit
        left = [file for file in left if file not in hit]
    return found


def _overlaps(file: Stored, column: str, keys: pl.Series) -> bool:
    low, high = dict(file.low).get(column), dict(file.high).get(column)
    if low is None or high is None:
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
    parquet = files.opened(job.place, job.file)
    matches = _matches(job, parquet)
    found = tuple(
        _mask(matches.filter(pl.col("source") == i)["line"], _height(change))
        for i, change in enumerate(job.changes)
    )
    edits, revived = _effective(job, parquet, matches)
    if not edits.height and not job.anew:
        return Merged(job.file, found)
    batch, partition = job.stamp.batch_id, job.file.partition
    cluster = files.cluster_of(job.file.path)
    # Rows that take each other's places leave a cluster one.
    name = files.clustered(batch, *cluster) if cluster else batch
    moved: list[pl.DataFrame] = []
    with (
        files.data(job.place, name, job.stats, partition) as output,
        files.feed(job.place, batch, partition) as feed,
    ):
        told = Gathered(feed.add)
        for start, table in _parts(job, parquet):
            mine = edits.filter(pl.col("row").is_between(start, start + table.num_rows - 1))
            if mine.height:
                here = mine.with_columns(pl.col("row") - start)
                output.add(_edited(job, table, here, told, moved))
            else:
                output.add(table)
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
    return files.parts(parquet, job.layout, columns, None, dict(job.file.partition))


def _matches(job: Merge, parquet: pq.ParquetFile) -> pl.DataFrame:
    """The rows of the file whose keys are among the changes: row, source and line of each."""
    nothing = pl.DataFrame(schema=_EDITS)
    if not job.changes:
        return nothing
    parts = [pl.DataFrame(table) for _, table in _parts(job, parquet, job.key)]
    if not parts:
        return nothing
    held = pl.concat(parts).with_row_index("row")
    found = [nothing]
    for keys in _keys(job):
        joined = held.join(keys, on=list(job.key), how="inner")
        found.append(joined.select(pl.col(n).cast(t) for n, t in _EDITS.items()))
    return pl.concat(found).sort("row")


_EDITS: dict[str, Any] = {"row": pl.Int64, "source": pl.Int64, "line": pl.Int64}


def _keys(job: Merge) -> Iterator[pl.DataFrame]:
    """The keys of the changes with source and line, a bounded number at once."""
    gathered: list[pl.DataFrame] = []
    for source, change in enumerate(job.changes):
        keys = read(job.place, change, job.key).with_row_index("line")
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
        live = old["record_status"].ne_missing(DELETED) & old["row_hash"].is_not_null()
        same = (old["row_hash"] == hashes) & live
        revived = int((~live).sum())
        edits.append(matches.filter(~same.fill_null(False)))
    if job.gone is not None and len(job.gone):
        gone = pl.DataFrame({"row": job.gone}).cast(pl.Int64)
        gone = gone.join(matches, on="row", how="anti")
        edits.append(
            gone.with_columns(source=None, line=None).select(
                pl.col(name).cast(kind) for name, kind in _EDITS.items()
            )
        )
    return pl.concat(edits).sort("row"), revived


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


def _edited(
    job: Merge, table: pa.Table, edits: pl.DataFrame, told: Gathered, moved: list[pl.DataFrame]
) -> pa.Table:
    """One row group with its edits, which are told to the change data feed."""
    updates = edits.filter(pl.col("line").is_not_null())
    gone = edits.filter(pl.col("line").is_null())["row"].to_numpy()
    rows, after, removed = [], [], []
    if updates.height:
        before = pl.DataFrame(table.take(updates["row"].to_arrow()))
        new = _lines(job, updates, before.columns).with_columns(before["load_timestamp"])
        here = np.ones(new.height, np.bool_)
        if job.dates_of:
            new = dated(new, job.dates_of)
            date = column_of(job.dates_of)
            here = new[date].eq_missing(before[date]).to_numpy()
            moved += [new.filter(~here)] if not here.all() else []
        told.add(_image(before, "update_preimage"), _image(new.filter(here), "update_postimage"))
        rows.append(updates["row"].to_numpy()[here])
        removed.append(updates["row"].to_numpy()[~here])
        after.append(new.filter(here))
    if len(gone):
        before = pl.DataFrame(table.take(pa.array(gone)))
        if job.on_delete == "remove":
            told.add(_image(before, "delete"))
            removed.append(gone)
        else:
            new = marked(before, job.stamp)
            told.add(_image(before, "update_preimage"), _image(new, "update_postimage"))
            rows.append(gone)
            after.append(new)
    changed = pl.concat(after) if after else pl.DataFrame(table.slice(0, 0))
    arrow = changed.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(table.schema)
    return _replaced(table, _all(rows), arrow, _all(removed))


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


def marked(rows: pl.DataFrame, stamp: Stamp) -> pl.DataFrame:
    """The rows as what they are when the source has them no more."""
    return rows.with_columns(
        pl.lit(DELETED).alias("record_status"),
        pl.lit(stamp.loaded_at).cast(pl.Datetime("us", "UTC")).alias("update_timestamp"),
        pl.lit(stamp.batch_id).alias("batch_id"),
        pl.lit(stamp.method).alias("ingestion_method"),
    )


def _image(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    return rows.with_columns(pl.lit(kind).alias(CHANGE))


class Gathered:
    """Small frames on their way into a file, as row groups of a good size."""

    def __init__(self, add: Callable[[pl.DataFrame], None]) -> None:
        self._add = add
        self._frames: list[pl.DataFrame] = []

    def add(self, *frames: pl.DataFrame) -> None:
        """Keeps frames until they are enough."""
        self._frames += frames
        if sum(frame.height for frame in self._frames) >= _GROUP:
            self.flush()

    def flush(self) -> None:
        """Writes what is kept."""
        if self._frames:
            self._add(pl.concat(self._frames))
        self._frames = []


def _height(change: Changes) -> int:
    return change.rows if isinstance(change, DataFile) else change.height


def _mask(lines: pl.Series, height: int) -> bytes:
    mask = np.zeros(height, np.bool_)
    mask[lines.to_numpy()] = True
    return np.packbits(mask).tobytes()


def read(place: Place, change: Changes, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of all rows of the changes."""
    if isinstance(change, pl.DataFrame):
        return change.select(columns)
    return pl.DataFrame(files.opened(place, change).read(list(columns), use_threads=False))


def _lines(job: Merge, wanted: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of the changes, for each source and line in ``wanted``, in its order."""
    layout = [(name, kind) for name, kind in job.layout if name in columns]
    frames, order = [], []
    for source in wanted["source"].unique(maintain_order=True):
        here = np.flatnonzero((wanted["source"] == source).to_numpy())
        lines = wanted["line"].to_numpy()[here]
        sequence = np.argsort(lines)
        frames.append(picked(job.place, job.changes[source], lines[sequence], layout))
        order.append(here[sequence])
    return pl.concat(frames)[np.argsort(np.concatenate(order))]


def picked(
    place: Place,
    change: Changes,
    lines: npt.NDArray[np.int64],
    layout: Sequence[tuple[str, Kind]],
) -> pl.DataFrame:
    """Some rows (their lines sorted) of the changes."""
    names = [name for name, _ in layout]
    if isinstance(change, pl.DataFrame):
        return change.select(names)[lines]
    parquet = files.opened(place, change)
    counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    ends = np.cumsum(counts)
    groups = np.unique(np.searchsorted(ends, lines, side="right"))
    found = []
    for start, table in files.parts(parquet, layout, names, [int(g) for g in groups]):
        inside = lines[(lines >= start) & (lines < start + table.num_rows)]
        found.append(pl.DataFrame(table)[inside - start])
    gathered: pl.DataFrame = pl.concat(found)
    return gathered


@dataclass(frozen=True)
class Insert:
    """Rows to be added: of each of the changes, those that no file had the key of, and the rows
    that have ``moved`` from another partition.

    ``found`` are masks as in `Merged`, joined over all files. ``feed`` asks for the rows in the
    change data feed too, where the commit has one.
    """

    place: Place
    layout: tuple[tuple[str, Kind], ...]
    stats: tuple[str, ...]
    batch_id: str
    changes: tuple[Changes, ...] = field(repr=False)
    found: tuple[bytes, ...] = field(repr=False)
    feed: bool = True
    moved: tuple[pl.DataFrame, ...] = field(default=(), repr=False)
    dates_of: str | None = None

    @cached_property
    def lines(self) -> tuple[npt.NDArray[np.int64], ...]:
        """For each of the changes the lines to insert."""
        return tuple(
            unfound(mask, _height(change))
            for change, mask in zip(self.changes, self.found, strict=True)
        )


@dataclass(frozen=True)
class Inserted:
    """What an `Insert` wrote; ``rows`` counts those that are new."""

    rows: int
    files: tuple[DataFile, ...]
    feed: tuple[DataFile, ...]


def unfound(mask: bytes, height: int) -> npt.NDArray[np.int64]:
    """The lines of changes that a mask of `Merged` leaves out."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=height)
    return np.flatnonzero(bits == 0)


def joined(masks: Sequence[Sequence[bytes]], changes: Sequence[Changes]) -> tuple[bytes, ...]:
    """The masks of several files as one for each of the changes."""
    whole = [np.zeros(-(-_height(change) // 8), np.uint8) for change in changes]
    for found in masks:
        for one, mask in zip(whole, found, strict=True):
            one |= np.frombuffer(mask, np.uint8)
    return tuple(one.tobytes() for one in whole)


def insert(job: Insert) -> Inserted:
    """Writes the rows that are new into files, and into some of the change data feed.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    place, batch = job.place, job.batch_id
    date = column_of(job.dates_of) if job.dates_of else None
    with (
        Outputs(lambda values: files.data(place, batch, job.stats, values), date) as output,
        Outputs(lambda values: files.feed(place, batch, values), date) as feed,
    ):
        kept, told = Gathered(output.add), Gathered(feed.add)
        for change, lines in zip(job.changes, job.lines, strict=True):
            for start in range(0, len(lines), _GROUP):
                rows = picked(place, change, lines[start : start + _GROUP], job.layout)
                kept.add(rows)
                if job.feed:
                    told.add(_image(rows, "insert"))
        for rows in job.moved:
            kept.add(rows)
            told.add(_image(rows, "update_postimage"))
        kept.flush()
        told.flush()
    return Inserted(sum(map(len, job.lines)), tuple(output.files), tuple(feed.files))
