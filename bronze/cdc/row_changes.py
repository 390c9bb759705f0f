"""The changes of a table in a batch, parsed: what happens to which row.

`NetTask` is what a worker gets to compute the `NetChanges`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.delta.write.changes import Changes
from bronze.model.columns import Column, RowKey
from bronze.model.files import StoredFile
from bronze.model.locations import Destination
from bronze.model.units import NO_ENRICHMENT, NO_FINDINGS, Enrichment, Findings, RejectedValue
from bronze.postgres.replication import pgoutput, text_values
from bronze.postgres.replication.batch import TableChanges
from bronze.postgres.replication.text_values import TextColumn
from bronze.protection import key_text, protect
from bronze.rows.metadata import COMMIT_TIMESTAMP

# Columns of a change: whether it is an upsert, the number of its part, and its number in the part.
UPSERT, PART, LINE = "\0upsert", "\0part", "\0line"


class Part:
    """A piece of the changes, parsed.

    Attributes:
        number: the number of the piece.
        names: the columns that the stream describes.
        open: the columns that some changes lack (unchanged TOAST), and which changes these are;
            known once `changes` was read.
    """

    def __init__(
        self, gathered: TableChanges, number: int, floor: int, any_bytes: bool = False
    ) -> None:
        """The table has the transactions before the position ``floor`` already. With ``any_bytes``,
        texts may be invalid UTF-8.
        """
        self.number, self._any_bytes = number, any_bytes
        self.names = [name for name, _, _ in gathered.described.columns]
        self._piece, self._floor = gathered.pieces[number], floor
        self._kept: pgoutput.RowChanges | None = None
        self.open: tuple[tuple[str, npt.NDArray[np.bool_]], ...] = ()

    @property
    def changes(self) -> pgoutput.RowChanges:
        """The changes. Those in a spool are read each time, and not kept in memory."""
        if self._kept is not None:
            return self._kept
        piece = self._piece
        received = pgoutput.read_changes(piece.read(), piece.lengths, self.names, self._any_bytes)
        found = _with_old_values(received)
        flagged = zip(self.names, found.unchanged, strict=True)
        self.open = tuple((name, flags) for name, flags in flagged if flags is not None)
        if self._piece.spooled is None:
            self._kept = found
        return found

    @cached_property
    def transactions(self) -> npt.NDArray[np.int64]:
        """The number of each change's transaction."""
        starts = self._piece.marks[:, 0]
        return np.searchsorted(starts, np.arange(len(self._piece.lengths)), side="right") - 1

    @cached_property
    def new(self) -> npt.NDArray[np.bool_]:
        """Which changes the table does not have yet."""
        positions = self._piece.marks[:, 1]
        fresh: npt.NDArray[np.bool_] = positions[self.transactions] >= self._floor
        return fresh

    @property
    def count(self) -> int:
        """How many changes the table does not have yet."""
        return int(self.new.sum())

    def commit_times(self, lines: npt.NDArray[np.int64]) -> pl.Series:
        """The commit times of some changes' transactions."""
        times = self._piece.marks[:, 2]
        moments = pl.Series(COMMIT_TIMESTAMP, times[self.transactions[lines]])
        return moments.cast(pl.Datetime("us", "UTC"))

    def events(self, key: Sequence[str]) -> pl.DataFrame:
        """The changes by key: the columns ``key``, which identify a row at any moment, `UPSERT`,
        `PART` and `LINE`.

        If an UPDATE changes the key, the old key is deleted, and the new one upserted.
        """
        found = self.changes
        deleted = pl.Series(found.kinds == pgoutput.DELETE)
        old, new = found.old.select(key), found.new.select(key)
        both = pl.DataFrame(
            [new[name].zip_with(~deleted, old[name]).alias(name) for name in key]
        ).with_columns((~deleted).alias(UPSERT))
        both = both.with_row_index(LINE).filter(pl.Series(self.new))
        moved = found.keyed & (found.kinds == pgoutput.UPDATE) & self.new
        if moved.any():
            other = np.zeros(len(moved), np.bool_)
            for name in key:
                other |= old[name].ne_missing(new[name]).to_numpy()
            deletes = old.with_columns(pl.lit(False).alias(UPSERT)).with_row_index(LINE)
            deletes = deletes.filter(pl.Series(moved & other))
            both = pl.concat([deletes, both.select(deletes.columns)]).sort(
                LINE, maintain_order=True
            )
        return copy_rows(
            both.select(*key, UPSERT, pl.lit(self.number).alias(PART), pl.col(LINE).cast(pl.Int64))
        )


def copy_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """A copy: the texts are views into the messages, which would stay in memory with them."""
    # Arrow does not accept a name that begins with \0.
    plain = rows.rename({name: str(i) for i, name in enumerate(rows.columns)})
    copied = pl.DataFrame(plain.to_arrow(compat_level=pl.CompatLevel.oldest()))
    copied.columns = rows.columns
    return copied


def _with_old_values(found: pgoutput.RowChanges) -> pgoutput.RowChanges:
    """The changes, with unchanged values from the old row if it was sent."""
    columns: list[pl.Series] = []
    unchanged: list[npt.NDArray[np.bool_] | None] = []
    for series, flags in zip(found.new.get_columns(), found.unchanged, strict=True):
        if flags is None:
            columns.append(series)
            unchanged.append(None)
            continue
        old = found.old[series.name]
        columns.append(series.zip_with(~pl.Series(flags), old))
        left = flags & old.is_null().to_numpy()
        unchanged.append(left if left.any() else None)
    new = pl.DataFrame(columns) if columns else found.new
    return pgoutput.RowChanges(found.kinds, new, tuple(unchanged), found.old, found.keyed)


@dataclass(frozen=True)
class NetTask:
    """What is to be netted.

    Attributes:
        table: the table's label.
        gathered: its changes.
        floor: transactions before this position are in the table already.
        columns: the table's contract; ``texts`` are those of them that the stream has.
        row_key: what tells rows apart at the end of a transaction.
        identity: the names of the columns that tell rows apart at any moment: the key, where
            PostgreSQL keeps it unique; else others, the key among them.
        any_bytes: whether a text may be bytes that are no UTF-8.
        into: the Bronze table; ``stored`` are its files, to look unchanged values up.
        in_memory: net changes beyond these bytes are written into files.
    """

    table: str
    gathered: TableChanges = field(repr=False)
    floor: int
    columns: tuple[Column, ...]
    texts: tuple[TextColumn, ...]
    row_key: RowKey
    identity: tuple[str, ...]
    into: Destination
    stored: tuple[StoredFile, ...] = field(repr=False)
    base: int
    in_memory: int
    enrichment: Enrichment = NO_ENRICHMENT
    any_bytes: bool = False

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the key's columns in the source."""
        return self.row_key.source_names


@dataclass(frozen=True)
class NetChanges:
    """One change for each key: the new rows, and the keys of deleted ones.

    ``truncated`` says that all other rows were deleted too, ``read`` how many changes there were.
    """

    changes: tuple[Changes, ...] = field(repr=False)
    deletes: tuple[Changes, ...] = field(repr=False)
    truncated: bool
    rejected: tuple[RejectedValue, ...]
    read: int
    findings: Findings = NO_FINDINGS

    @property
    def empty(self) -> bool:
        """Whether there is no change."""
        return not (self.changes or self.deletes or self.truncated)


def stored_keys(job: NetTask, keys: pl.DataFrame) -> pl.DataFrame:
    """The keys of the Bronze table, from those of the stream."""
    clear, rejected = text_values.parse_texts(keys.select(job.key), key_texts(job))
    protection = job.enrichment.protection
    rows = protect.protect_rows(clear, protection)
    keyed = key_text.add_key_text(rows, clear, rejected, job.row_key, protection)
    return keyed.select(job.row_key.names)


Key = tuple[str, ...]
"""A row's key, as the stream sends it."""


def key_texts(job: NetTask) -> list[TextColumn]:
    """How the texts of the key's columns are parsed."""
    named = {text.name: text for text in job.texts}
    return [named[name] for name in job.key]
