"""Insertion: changed rows whose keys no file of the table has are added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.delta import files
from bronze.delta.partition import Outputs, column_of
from bronze.delta.write.changes import Changes, Gathered, height, image, picks
from bronze.model.files import WrittenFile
from bronze.model.locations import Destination


@dataclass(frozen=True)
class Insert:
    """Rows to be added to the table ``into``: of each of the changes, those that no file had the
    key of, and the rows that have ``moved`` from another partition.

    ``found`` are masks as in `bronze.delta.write.merge.Merged`, joined over all files. ``feed``
    asks for the rows in the change data feed too, where the commit has one.
    """

    into: Destination
    changes: tuple[Changes, ...] = field(repr=False)
    found: tuple[bytes, ...] = field(repr=False)
    feed: bool = True
    moved: tuple[pl.DataFrame, ...] = field(default=(), repr=False)

    @cached_property
    def lines(self) -> tuple[npt.NDArray[np.int64], ...]:
        """For each of the changes the lines to insert."""
        return tuple(
            unfound(mask, height(change))
            for change, mask in zip(self.changes, self.found, strict=True)
        )


@dataclass(frozen=True)
class Inserted:
    """What an `Insert` wrote; ``rows`` counts those that are new."""

    rows: int
    files: tuple[WrittenFile, ...]
    feed: tuple[WrittenFile, ...]


def unfound(mask: bytes, height: int) -> npt.NDArray[np.int64]:
    """The lines of changes that a mask of `bronze.delta.write.merge.Merged` leaves out."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=height)
    return np.flatnonzero(bits == 0)


def join_masks(masks: Sequence[Sequence[bytes]], changes: Sequence[Changes]) -> tuple[bytes, ...]:
    """The masks of several files as one for each of the changes."""
    whole = [np.zeros(-(-height(change) // 8), np.uint8) for change in changes]
    for found in masks:
        for one, mask in zip(whole, found, strict=True):
            one |= np.frombuffer(mask, np.uint8)
    return tuple(one.tobytes() for one in whole)


def insert(job: Insert) -> Inserted:
    """Writes the rows that are new into files, and into some of the change data feed.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    into, batch = job.into, job.into.stamp.batch_id
    date = column_of(into.dates_of) if into.dates_of else None
    with (
        Outputs(lambda values: files.data(into.place, batch, into.stats, values), date) as output,
        Outputs(lambda values: files.feed(into.place, batch, values), date) as feed,
    ):
        kept, told = Gathered(output.add), Gathered(feed.add)
        for change, lines in zip(job.changes, job.lines, strict=True):
            for rows in picks(into.place, change, lines, into.columns) if len(lines) else ():
                kept.add(rows)
                if job.feed:
                    told.add(image(rows, "insert"))
        for rows in job.moved:
            kept.add(rows)
            told.add(image(rows, "update_postimage"))
        kept.flush()
        told.flush()
    return Inserted(sum(map(len, job.lines)), tuple(output.files), tuple(feed.files))
