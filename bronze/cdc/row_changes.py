"""One piece of a table's changes, taken apart: what happens to which row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.cdc import replica_identity
from bronze.cdc.replica_identity import LINE, PART
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

UPSERT = "\0upsert"


class Part:
    """One piece of the changes, taken apart.

    Attributes:
        number: which of the pieces it is.
        names: the columns that the stream has.
        open: which of them were not sent with some changes, and which changes these are; known
            once the changes were looked at.
    """

    def __init__(
        self, gathered: TableChanges, number: int, floor: int, any_bytes: bool = False
    ) -> None:
        """Transactions before the position ``floor`` are in the table already; with ``any_bytes``,
        a text may be bytes that are no UTF-8.
        """
        self.number, self._any_bytes = number, any_bytes
        self.names = [name for name, _, _ in gathered.described.columns]
        self._piece, self._floor = gathered.pieces[number], floor
        self._kept: pgoutput.RowChanges | None = None
        self.open: tuple[tuple[str, npt.NDArray[np.bool_]], ...] = ()

    @property
    def changes(self) -> pgoutput.RowChanges:
        """The changes; those that are put aside are not kept in memory."""
        if self._kept is not None:
            return self._kept
        piece = self._piece
        taken = pgoutput.read_changes(piece.read(), piece.lengths, self.names, self._any_bytes)
        found = _completed(taken)
        flagged = zip(self.names, found.unchanged, strict=True)
        self.open = tuple((name, flags) for name, flags in flagged if flags is not None)
        if self._piece.aside is None:
            self._kept = found
        return found

    @cached_property
    def transactions(self) -> npt.NDArray[np.int64]:
        """For each change the number of its transaction."""
        starts = np.array([start for start, _, _ in self._piece.marks], np.int64)
        return np.searchsorted(starts, np.arange(len(self._piece.lengths)), side="right") - 1

    @cached_property
    def new(self) -> npt.NDArray[np.bool_]:
        """Which changes are not in the table yet."""
        positions = np.array([position for _, position, _ in self._piece.marks], np.int64)
        fresh: npt.NDArray[np.bool_] = positions[self.transactions] >= self._floor
        return fresh

    @property
    def count(self) -> int:
        """How many these are."""
        return int(self.new.sum())

    def committed(self, lines: npt.NDArray[np.int64]) -> pl.Series:
        """When the transactions of some changes were committed."""
        times = np.array([time for _, _, time in self._piece.marks], np.int64)
        moments = pl.Series(COMMIT_TIMESTAMP, times[self.transactions[lines]])
        return moments.cast(pl.Datetime("us", "UTC"))

    def events(self, key: Sequence[str]) -> pl.DataFrame:
        """What happens to which row: the columns ``key``, by which rows are told apart at any
        moment, `UPSERT`, and where it stands: `PART`, `LINE`.

        A row whose ``key`` changes goes under the old one, and comes under the new one.
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
            left = old.with_columns(pl.lit(False).alias(UPSERT)).with_row_index(LINE)
            left = left.filter(pl.Series(moved & other))
            both = pl.concat([left, both.select(left.columns)]).sort(LINE, maintain_order=True)
        return _copied(
            both.select(*key, UPSERT, pl.lit(self.number).alias(PART), pl.col(LINE).cast(pl.Int64))
        )

    def moves(self, known: Sequence[str], key: Sequence[str]) -> pl.DataFrame:
        """Which rows go and which come, for `bronze.cdc.replica_identity`; an update does both.

        Args:
            known: the columns by which rows are told apart at any moment.
            key: those of them that are the key.
        """
        found = self.changes
        before, after = found.kinds != pgoutput.INSERT, found.kinds != pgoutput.DELETE
        new = found.new.select(known)
        # Where no old row is sent, an update has left these columns alone.
        told = pl.Series(found.keyed | ~after)
        old = pl.DataFrame([found.old[n].zip_with(told, new[n]).alias(n) for n in known])
        both = []
        for rows, which, sign in ((old, before, -1), (new, after, 1)):
            lines = np.flatnonzero(which & self.new)
            both.append(replica_identity.moves(rows[lines], key, sign, self.number, lines))
        return _copied(pl.concat(both).sort(LINE, maintain_order=True))


def _copied(rows: pl.DataFrame) -> pl.DataFrame:
    # The texts are views into the messages, which would stay in memory with them. Arrow takes no
    # name that begins with \0.
    plain = rows.rename({name: str(i) for i, name in enumerate(rows.columns)})
    copied = pl.DataFrame(plain.to_arrow(compat_level=pl.CompatLevel.oldest()))
    copied.columns = rows.columns
    return copied


def _completed(found: pgoutput.RowChanges) -> pgoutput.RowChanges:
    """The changes with what the old row tells of unchanged values."""
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
    enrichment: Enrichment = NO_ENRICHMENT
    any_bytes: bool = False

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the key's columns in the source."""
        return self.row_key.source_names


@dataclass(frozen=True)
class NetChanges:
    """One change for each key: rows as they are now, and the keys of rows that are gone.

    ``emptied`` says that all other rows are gone, too; ``read`` counts the changes that came.
    """

    changes: tuple[Changes, ...] = field(repr=False)
    deletes: tuple[Changes, ...] = field(repr=False)
    emptied: bool
    rejected: tuple[RejectedValue, ...]
    read: int
    findings: Findings = NO_FINDINGS

    @property
    def empty(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.changes or self.deletes or self.emptied)


def stored_keys(job: NetTask, keys: pl.DataFrame) -> pl.DataFrame:
    """Keys as the stream has them, as the table has them."""
    clear, rejected = text_values.parse_texts(keys.select(job.key), key_texts(job))
    protection = job.enrichment.protection
    rows = protect.protect_rows(clear, protection)
    told = key_text.with_text(rows, clear, rejected, job.row_key, protection)
    return told.select(job.row_key.names)


Key = tuple[str, ...]
"""A row's key as the stream has it."""


def key_texts(job: NetTask) -> list[TextColumn]:
    """How the stream's texts of the key's columns become values."""
    named = {text.name: text for text in job.texts}
    return [named[name] for name in job.key]
