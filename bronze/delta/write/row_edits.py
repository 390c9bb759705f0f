"""Edits of some rows: which are replaced by which changes, and which are deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from bronze.delta.partition import column_of, dated
from bronze.delta.write import changes as changing
from bronze.delta.write.changes import (
    RowGroupBuffer,
    Rows,
    feed_rows,
    join_frames,
    mark_deleted,
    select_rows,
)
from bronze.delta.write.merge_job import Merge

ROW, SOURCE, LINE = "\0row", "\0source", "\0line"
"""The number of a row in its file, and of its change: which of the changes, and the line in it. A
row without a change is deleted."""
EDITS: dict[str, Any] = {ROW: pl.Int64, SOURCE: pl.Int64, LINE: pl.Int64}
# Up to this many rows of a row group are replaced without copying the others.
_MAX_SLICED = 100


def split_by_size(
    table: pa.Table, edits: pl.DataFrame, weights: Sequence[changing.Weights]
) -> Iterator[tuple[pa.Table, pl.DataFrame]]:
    """Splits a row group and its edits where the new rows are too large for the memory."""
    sizes = np.zeros(edits.height)
    for source, row_sizes in enumerate(weights):
        chosen = (edits[SOURCE] == source).fill_null(False)
        sizes[chosen.to_numpy()] = row_sizes[edits[LINE].filter(chosen).to_numpy()]
    runs = (np.cumsum(sizes) - sizes) // changing.BYTES
    starts = np.flatnonzero(np.diff(runs)) + 1
    rows = edits[ROW].to_numpy()
    bounds = [0, *starts.tolist(), edits.height]
    lows = [0, *rows[starts].tolist(), table.num_rows]
    for i, (low, high) in enumerate(pairwise(lows)):
        few = edits[bounds[i] : bounds[i + 1]].with_columns(pl.col(ROW) - low)
        yield table.slice(low, high - low), few


def apply_edits(
    job: Merge,
    table: pa.Table,
    edits: pl.DataFrame,
    feed: RowGroupBuffer,
    moved: list[pl.DataFrame],
) -> pa.Table:
    """Applies edits to a row group, and writes them to the change data feed."""
    updates = edits.filter(pl.col(LINE).is_not_null())
    gone = edits.filter(pl.col(LINE).is_null())[ROW].to_numpy()
    rows, after, removed = [], [], []
    if updates.height:
        before = pl.DataFrame(take_rows(table, updates[ROW].to_numpy()))
        dates_of = job.into.dates_of
        stored = before.select("load_timestamp", *([column_of(dates_of)] if dates_of else []))
        names = before.columns
        feed.add(feed_rows(before, "update_preimage"))
        # Large rows are not kept in memory longer than needed.
        del before
        new = changed_rows(job, updates, names)
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
        rows.append(updates[ROW].to_numpy()[stays])
        removed.append(updates[ROW].to_numpy()[~stays])
        after.append(new)
        del new
    if len(gone):
        before = pl.DataFrame(take_rows(table, gone))
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
    return _replace_rows(table, join_numbers(rows), arrow, join_numbers(removed))


def take_rows(table: pa.Table, rows: Rows) -> pa.Table:
    """Some rows of a table, by their numbers."""
    return table if len(rows) == table.num_rows else table.take(pl.Series(rows).to_arrow())


def join_numbers(rows: Sequence[Rows]) -> Rows:
    """All numbers, those of the first array first."""
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


def changed_rows(job: Merge, edits: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of the changed row of each of the ``edits``, in their order."""
    layout = [(name, kind) for name, kind in job.into.columns if name in columns]
    frames, order = [], []
    for source in edits[SOURCE].unique(maintain_order=True):
        positions = np.flatnonzero((edits[SOURCE] == source).to_numpy())
        lines = edits[LINE].to_numpy()[positions]
        sequence = np.argsort(lines)
        frames.append(select_rows(job.into.place, job.changes[source], lines[sequence], layout))
        order.append(positions[sequence])
    if len(frames) == 1 and (np.diff(order[0]) > 0).all():
        return frames[0]
    return pl.concat(frames)[np.argsort(np.concatenate(order))]
