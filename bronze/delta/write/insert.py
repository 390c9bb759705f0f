"""Insert: adds the changed rows with keys that no file of the table has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.delta import files
from bronze.delta.partition import Outputs, column_of
from bronze.delta.write.changes import Changes, RowGroupBuffer, feed_rows, height, iterate_rows
from bronze.model.files import WrittenFile
from bronze.model.locations import Destination


@dataclass(frozen=True)
class Insert:
    """The rows to add to the table ``into``: the rows of each change with keys that no file has,
    and the rows that ``moved`` from another partition; with ``kept`` and ``fed`` of
    `bronze.delta.write.merge_job.Merged`.

    ``matched`` are masks as in `bronze.delta.write.merge_job.Merged`, joined over all files. With
    ``feed`` the rows are also written to the change data feed, where the commit has one.
    """

    into: Destination
    changes: tuple[Changes, ...] = field(repr=False)
    matched: tuple[bytes, ...] = field(repr=False)
    feed: bool = True
    moved: tuple[pl.DataFrame, ...] = field(default=(), repr=False)
    kept: tuple[pl.DataFrame, ...] = field(default=(), repr=False)
    fed: tuple[pl.DataFrame, ...] = field(default=(), repr=False)

    @cached_property
    def lines(self) -> tuple[npt.NDArray[np.int64], ...]:
        """The lines to insert, for each of the changes."""
        return tuple(
            unmatched_lines(mask, height(change))
            for change, mask in zip(self.changes, self.matched, strict=True)
        )


@dataclass(frozen=True)
class Inserted:
    """What an `Insert` wrote; ``rows`` is the number of new rows, without those of the table."""

    rows: int
    files: tuple[WrittenFile, ...]
    feed: tuple[WrittenFile, ...]


def unmatched_lines(mask: bytes, height: int) -> npt.NDArray[np.int64]:
    """The lines of changes that are not in a mask of `bronze.delta.write.merge_job.Merged`."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=height)
    return np.flatnonzero(bits == 0)


def join_masks(masks: Sequence[Sequence[bytes]], changes: Sequence[Changes]) -> tuple[bytes, ...]:
    """Joins the masks of several files: one mask for each of the changes."""
    joined = [np.zeros(-(-height(change) // 8), np.uint8) for change in changes]
    for file_masks in masks:
        for total, mask in zip(joined, file_masks, strict=True):
            total |= np.frombuffer(mask, np.uint8)
    return tuple(total.tobytes() for total in joined)


def insert(job: Insert) -> Inserted:
    """Writes the new and the moved rows into data files and into files of the change data feed.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    into, batch = job.into, job.into.stamp.batch_id
    date = column_of(into.dates_of) if into.dates_of else None
    with (
        Outputs(lambda values: files.data(into.place, batch, into.stats, values), date) as output,
        Outputs(lambda values: files.feed(into.place, batch, values), date) as feed,
    ):
        data_buffer, feed_buffer = RowGroupBuffer(output.add), RowGroupBuffer(feed.add)
        for change, lines in zip(job.changes, job.lines, strict=True):
            for rows in iterate_rows(into.place, change, lines, into.columns) if len(lines) else ():
                data_buffer.add(rows)
                if job.feed:
                    feed_buffer.add(feed_rows(rows, "insert"))
        for rows in job.moved:
            data_buffer.add(rows)
            feed_buffer.add(feed_rows(rows, "update_postimage"))
        data_buffer.add(*job.kept)
        feed_buffer.add(*job.fed)
        data_buffer.flush()
        feed_buffer.flush()
    return Inserted(sum(map(len, job.lines)), tuple(output.files), tuple(feed.files))
