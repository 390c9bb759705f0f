"""The positions that tables have, as app transactions (Delta's ``txn`` actions), and their names.

A commit has its position in the same log entry as its rows. ``timeline`` is the history of the
source that a position belongs to (system identifier, timeline, database), ``oid`` the source
table's, ``stream`` is ``timeline/slot``.

In a Bronze table:

- ``bronze/{timeline}``: the LSN up to which the source is in it;
- ``bronze/{timeline}/{oid}/{watermark}``: the xmin horizon, a cursor, ``deletes``, or ``stream``;
- ``bronze/{timeline}/{oid}/last`` and ``…/last/committed``: the last transaction's end and time;
- ``bronze/commit``: the version of our last commit (`bronze.delta.log.MARK`);
- ``bronze/audit/{log}`` and ``…/hash``: the newest audit record (`bronze.delta.audit_mark`).

In ``governance.streams``:

- ``bronze/{stream}``: the LSN of the last checkpoint;
- ``bronze/{stream}/recorded`` and ``…/publication``: the server's clock; the publication's oid;
- ``bronze/{stream}/{oid}`` and ``…/held``: the position that a table had reached, and the one in
  its own log;
- ``bronze/{timeline}/{slot}/era``: how often the positions of the stream were discarded.

In other governance tables:

- ``bronze/lineage`` and ``bronze/lineage/{target}`` (``data_lineage``): how many records there are;
  up to which version the commits of a Bronze table are recorded;
- ``bronze/audit`` (``audit_log``): how many records there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

STREAM = "stream"
"""The watermark of a table that is streamed: a position (LSN)."""


class HasPositions(Protocol):
    """The state of a table in its log."""

    def position(self, name: str) -> int | None:
        """The value of an app transaction, None if there is none."""


@dataclass(frozen=True)
class Position:
    """The position that a commit sets: ``value`` as ``bronze/{name}``, ``marks`` below it."""

    name: str
    value: int
    marks: tuple[tuple[str, int], ...] = ()

    @property
    def transactions(self) -> tuple[tuple[str, int], ...]:
        """The app transactions."""
        path = f"bronze/{self.name}"
        return ((path, self.value), *((f"{path}/{name}", value) for name, value in self.marks))


def read(state: HasPositions | None, name: str) -> int | None:
    """The value of ``bronze/{name}``; None without a state."""
    return state.position(f"bronze/{name}") if state else None


@dataclass(frozen=True)
class TablePosition:
    """The position of a Bronze table in the history of its source table."""

    timeline: str
    oid: int

    def watermark(self, state: HasPositions | None, name: str) -> int | None:
        """The value of a watermark, None if the table has none."""
        return read(state, f"{self.timeline}/{self.oid}/{name}")

    def watermarks(self, values: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
        """Watermarks as a `Position` has them."""
        return tuple((f"{self.oid}/{name}", value) for name, value in values)

    def stream_position(self, state: HasPositions) -> int | None:
        """The LSN up to which the stream was applied; None if a batch run came after."""
        position = self.watermark(state, STREAM)
        return position if position is not None and position == read(state, self.timeline) else None

    def last_transaction(self, state: HasPositions) -> tuple[int, int] | None:
        """The end and the time of the last transaction that was applied; None if the table was
        copied or compared since.
        """
        end, committed = self.watermark(state, "last"), self.watermark(state, "last/committed")
        if end is None or committed is None or end != self.stream_position(state):
            return None
        return end, committed

    def after_batch(self, position: int, committed: int) -> Position:
        """The position after a batch of a stream whose last transaction was ``committed`` then."""
        marks = self.watermarks(
            [(STREAM, position), ("last", position), ("last/committed", committed)]
        )
        return Position(self.timeline, position, marks)


@dataclass(frozen=True)
class StreamPosition:
    """The last checkpoint of a stream (``timeline/slot``)."""

    stream: str

    def position(self, state: HasPositions | None) -> int:
        """Its LSN; 0 if there is none."""
        return read(state, self.stream) or 0

    def checkpoint_time(self, state: HasPositions | None) -> int | None:
        """The time of the checkpoint by the server's clock, in microseconds since 1970."""
        return read(state, f"{self.stream}/recorded")

    def publication(self, state: HasPositions | None) -> int | None:
        """The oid of the publication of the stream."""
        return read(state, f"{self.stream}/publication")

    def table(self, state: HasPositions | None, oid: int) -> tuple[int, int] | None:
        """The position that a table had reached, and the one in its own log."""
        reached = read(state, f"{self.stream}/{oid}")
        held = read(state, f"{self.stream}/{oid}/held")
        return None if reached is None or held is None else (reached, held)

    def checkpoint(
        self, position: int, clock: int, publication: int, tables: Sequence[tuple[int, int]]
    ) -> Position:
        """The position that a checkpoint sets; ``tables`` are oids and positions."""
        marks = [(str(oid), max(position, held)) for oid, held in tables]
        marks += [(f"{oid}/held", held) for oid, held in tables]
        marks += [("recorded", clock), ("publication", publication)]
        return Position(self.stream, position, tuple(marks))


def era(state: HasPositions | None, timeline: str, slot: str) -> int:
    """How often the positions of a stream were discarded."""
    return read(state, f"{timeline}/{slot}/era") or 0


def next_era(state: HasPositions | None, timeline: str, slot: str) -> Position:
    """The position that discards those of a stream."""
    return Position(f"{timeline}/{slot}/era", era(state, timeline, slot) + 1)


LINEAGE, AUDIT = "lineage", "audit"


def recorded_version(state: HasPositions | None, target: str) -> int | None:
    """The version up to which ``governance.data_lineage`` has all commits of a Bronze table."""
    return read(state, f"{LINEAGE}/{target}")
