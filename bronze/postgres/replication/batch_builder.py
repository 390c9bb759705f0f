"""Builds batches from the messages of a stream: groups row changes by table and transaction.

Thousands of messages are handled in one call. The usual ones, row changes and the begin and end of
transactions, are sorted with vectorised steps; the rare ones one by one, in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from bronze.errors import Mismatch
from bronze.postgres.replication import pgoutput
from bronze.postgres.replication.batch import Batch, Marks, Piece, Spool, TableChanges
from bronze.postgres.replication.messages import OVERSIZE, Messages
from bronze.postgres.replication.pgoutput import BEGIN, COMMIT, Flags, Numbers, RelationMessage
from bronze.postgres.replication.rewind import KnownTransactions

# The messages of a batch are packed into pieces of about this size.
_PIECE = 4 * 2**20
# The memory that a message takes beside its bytes, and the objects of a portion of messages that
# arrived together (measured), until they are packed.
_OVERHEAD, _PORTION = 8, 350
# By the kind of a message, whether it is one of those that are handled many at once.
_USUAL = np.isin(np.arange(256), [*pgoutput.CHANGES, BEGIN, COMMIT])


@dataclass
class _Unpacked:
    """Changes of one table that are not in a piece yet, as `Piece` has them, in portions."""

    messages: list[bytes] = field(default_factory=list)
    lengths: list[Numbers] = field(default_factory=list)
    marks: list[Marks] = field(default_factory=list)
    count: int = 0
    size: int = 0

    def add(self, messages: bytes, lengths: Numbers, marks: Marks) -> None:
        """Adds changes; ``marks`` count from the first of them."""
        if self.marks and self.marks[-1][-1, 1] == marks[0, 1]:
            # The last transaction goes on.
            marks = marks[1:]
        if len(marks):
            self.marks.append(np.add(marks, (self.count, 0, 0)))
        self.messages.append(messages)
        self.lengths.append(lengths)
        self.count += len(lengths)
        self.size += len(messages) + _OVERHEAD * len(lengths) + marks.nbytes + _PORTION

    def piece(self) -> Piece:
        """All of them in a piece."""
        return Piece(
            np.concatenate(self.lengths), np.concatenate(self.marks), b"".join(self.messages)
        )


class BatchBuilder:
    """Builds one batch after the other.

    Attributes:
        tables: the oids of the tables whose changes are gathered.
        batch: the batch that is being built; the last changes are not in its tables yet.
        past: the transactions that the server has to send again first (None: no more).
    """

    def __init__(
        self, tables: Iterable[int], memory: int, past: KnownTransactions | None = None
    ) -> None:
        """Begins an empty batch.

        Args:
            tables: the oids of the tables whose changes are gathered.
            memory: the bytes of messages that a batch keeps in memory; the others are spooled.
            past: the transactions that the server has to send again first.
        """
        self.tables, self.batch, self.past = frozenset(tables), Batch(), past
        self._memory = memory
        self._relations: dict[int, RelationMessage] = {}
        self._unpacked: dict[int, _Unpacked] = {}
        # Position and commit time of the transaction that is being received.
        self._begin: tuple[int, int] | None = None
        # Whether it changed our tables: servers before 15 send empty ones.
        self._is_relevant = False
        self._spools: list[Spool] = []

    @property
    def is_open(self) -> bool:
        """Whether the messages end within a transaction."""
        return self._begin is not None

    @property
    def size(self) -> int:
        """The bytes that the batch takes."""
        return self.batch.size + self._unpacked_size

    @property
    def _unpacked_size(self) -> int:
        return sum(unpacked.size for unpacked in self._unpacked.values())

    def add(self, messages: Messages) -> None:
        """Adds the next messages of the stream.

        Raises:
            Mismatch: they do not follow the protocol.
            SourceRewound: they are not the ones that the server has to send again.
        """
        unusual = np.flatnonzero(~_USUAL[messages.kinds]).tolist()
        for low, high in pairwise([-1, *unusual, len(messages)]):
            if low >= 0:
                self._add_unusual(messages, low)
            if high > low + 1:
                self._add_usual(messages.between(low + 1, high))
                if self._unpacked_size > _PIECE:
                    self._pack()

    def take(self) -> Batch:
        """The batch; the next one begins empty."""
        self._pack()
        batch, self.batch = self.batch, Batch()
        return batch

    def close(self) -> None:
        """Deletes the spools of all batches."""
        for spool in self._spools:
            spool.close()

    # Row changes, and the begin and the end of transactions

    def _add_usual(self, messages: Messages) -> None:
        begin, commit = messages.kinds == BEGIN, messages.kinds == COMMIT
        changes = np.flatnonzero(~(begin | commit))
        # The number of each message's transaction: 0 is the one that was open before.
        numbers = np.cumsum(begin)
        if (numbers - np.cumsum(commit) + self.is_open != 1)[changes].any():
            raise Mismatch("The stream has a change outside of a transaction.")
        begins = _parsed(pgoutput.read_begins, messages, begin)
        transactions = np.vstack([np.array([self._begin or (0, 0)], np.int64), begins])
        if len(begins) and not self.batch.position:
            self.batch.began = time.monotonic()
        relevant = np.zeros(len(transactions), np.bool_)
        relevant[0] = self._is_relevant
        for oid, places in _by_oid(messages.oids, changes):
            if oid not in self.tables:
                continue
            own = numbers[places]
            relevant[own] = True
            if not self._table_changes(oid).oversize:
                firsts = np.flatnonzero(np.diff(own, prepend=-1))
                marks = np.column_stack([firsts, transactions[own[firsts]]])
                unpacked = self._unpacked.setdefault(oid, _Unpacked())
                unpacked.add(messages.joined(places), messages.lengths[places], marks)
        ends = np.flatnonzero(commit)
        if len(ends):
            self._commit(
                _parsed(pgoutput.read_commits, messages, commit),
                transactions[numbers[ends]],
                relevant[numbers[ends]],
            )
        is_open = numbers[-1] - len(ends) + self.is_open > 0
        self._begin = tuple(transactions[-1].tolist()) if is_open else None
        self._is_relevant = bool(is_open and relevant[-1])

    def _commit(self, ends: Numbers, transactions: Numbers, relevant: Flags) -> None:
        """Ends transactions: where, their position and commit time, whether of our tables."""
        committed = transactions[:, 1]
        for end, moment in zip(ends.tolist(), committed.tolist(), strict=True):
            if self.past is None:
                break
            self.past = self.past.check_commit(end, moment)
        batch = self.batch
        batch.position, batch.committed = int(ends[-1]), int(committed[-1])
        batch.transactions += int(relevant.sum())

    def _table_changes(self, oid: int) -> TableChanges:
        if oid not in self.batch.tables:
            if oid not in self._relations:
                raise Mismatch(f"The stream did not describe the relation {oid}.")
            self.batch.tables[oid] = TableChanges(self._relations[oid])
        return self.batch.tables[oid]

    # Other messages

    def _add_unusual(self, messages: Messages, place: int) -> None:
        kind = messages.kinds[place]
        if kind == OVERSIZE:
            self._discard_oversize(int(messages.oids[place]), int(messages.lengths[place]))
        elif kind == pgoutput.RELATION:
            self._describe(pgoutput.read_relation(messages.body(place)))
        elif kind == pgoutput.TRUNCATE:
            for oid in pgoutput.read_truncate(messages.body(place)):
                self._truncate(oid)

    def _describe(self, described: RelationMessage) -> None:
        oid = described.oid
        gathered = self.batch.tables.get(oid)
        if gathered:
            known = gathered.described
            gathered.drifted |= known.columns != described.columns
            # Only the columns that are sent with every change of the batch can be used.
            common = known.identifying & described.identifying
            gathered.described = replace(known, identifying=common)
        self._relations[oid] = described

    def _truncate(self, oid: int) -> None:
        if oid in self.tables and self._begin:
            self._discard(oid).truncated = self._begin[0]

    def _discard_oversize(self, oid: int, size: int) -> None:
        """Discards the changes of a table with a change that is too large."""
        if oid in self.tables and self._begin:
            gathered = self._discard(oid)
            gathered.oversize = max(gathered.oversize, size)

    def _discard(self, oid: int) -> TableChanges:
        gathered = self._table_changes(oid)
        gathered.pieces.clear()
        self._unpacked.pop(oid, None)
        self._is_relevant = True
        return gathered

    # Pieces

    def _pack(self) -> None:
        """Packs the messages into pieces, and moves those beyond the memory into the spool."""
        batch = self.batch
        for oid, unpacked in self._unpacked.items():
            piece = unpacked.piece()
            batch.tables[oid].pieces.append(piece)
            batch.changes += unpacked.count
            batch.size += piece.size
            if batch.size > self._memory:
                piece.move_to_spool(self._spool())
        self._unpacked = {}

    def _spool(self) -> Spool:
        """The spool of the batch."""
        if self.batch.spool is None:
            self.batch.spool = Spool()
            self._spools = [spool for spool in self._spools if not spool.closed]
            self._spools.append(self.batch.spool)
        return self.batch.spool


def _parsed(
    parse: Callable[[bytes, Numbers], Numbers], messages: Messages, which: Flags
) -> Numbers:
    """Some of the messages, parsed."""
    places = np.flatnonzero(which)
    return parse(messages.joined(places), messages.lengths[places])


def _by_oid(oids: Numbers, places: Numbers) -> Iterator[tuple[int, Numbers]]:
    """The places of the row changes of each table, in their order."""
    if not len(places):
        return
    own = oids[places]
    order = np.argsort(own, kind="stable")
    bounds = np.flatnonzero(np.diff(own[order])) + 1
    for group in np.split(order, bounds):
        yield int(own[group[0]]), places[group]
