"""The job of merging changes into one file of a table, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.delta.write.changes import Changes
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Destination

OnDelete = Literal["mark", "remove"]


@dataclass(frozen=True)
class Merge:
    """The changes to merge into one file of the table ``into``.

    Deleted in the source are the rows with the numbers ``gone`` and with the keys ``deletes``; with
    ``delete_others`` also all rows that are not among the changes. ``rewrite`` rewrites the file
    even if none of its rows changes, as its columns changed. With ``doubting``, equal row hashes do
    not prove equal values: every row with a change is replaced. With ``vectors`` a few rows of a
    file are deleted by a deletion vector, and the file stays.
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
    vectors: bool = False


@dataclass(frozen=True)
class Merged:
    """The result of merging into one file.

    ``matched`` has a mask for each of the changes: its rows with keys that the file has. ``file``
    is None where nothing changed, or (with ``rewritten``) where no row is left. ``moved`` are
    updated rows that now belong to another partition; ``revived`` is the number of updated rows
    that were not live before.

    With a ``vector``, the bitmap and the number of all deleted rows, the old file stays in the
    table. Its changed rows are in ``file`` and ``feed``, or, if they are few, in ``kept`` and
    ``fed``: they are still to be written to a data file, and to a file of the change data feed.
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
    vector: tuple[bytes, int] | None = field(default=None, repr=False)
    kept: pl.DataFrame | None = field(default=None, repr=False)
    fed: pl.DataFrame | None = field(default=None, repr=False)

    @property
    def edits(self) -> int:
        """The number of rows that were updated or deleted."""
        return self.updated + self.deleted
