"""Where tables hold positions: the names of their app transactions (Delta's ``txn`` actions).

A commit holds its position in the same log entry as its rows. ``timeline`` is the history of the
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
- ``bronze/{stream}/{oid}`` and ``…/held``: what a table had reached, and the position it held;
- ``bronze/{timeline}/{slot}/era``: how often the positions of the stream were given up.

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
    """A table's state in its log."""

    def position(self, name: str) -> int | None:
        """The value of an app transaction, None where there is none."""


@dataclass(frozen=True)
class Position:
    """What a commit leaves: ``value`` under ``bronze/{name}``, ``marks`` below that."""

    name: str
    value: int
    marks: tuple[tuple[str, int], ...] = ()

    @property
    def transactions(self) -> tuple[tuple[str, int], ...]:
        """The app transactions."""
        own = f"bronze/{self.name}"
        return ((own, self.value), *((f"{own}/{name}", value) for name, value in self.marks))


def read(state: HasPositions | None, name: str) -> int | None:
    """The value under ``bronze/{name}``; None without a state."""
    return state.position(f"bronze/{name}") if state else None


@dataclass(frozen=True)
class TablePosition:
    """How far a Bronze table has followed a table of the source."""

    timeline: str
    oid: int

    def watermark(self, state: HasPositions | None, name: str) -> int | None:
        """The value of a watermark, None where the table has none."""
        return read(state, f"{self.timeline}/{self.oid}/{name}")

    def watermarks(self, values: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
        """Watermarks as a `Position` has them."""
        return tuple((f"{self.oid}/{name}", value) for name, value in values)

    def streamed(self, state: HasPositions) -> int | None:
        """The LSN up to which the stream was applied; None where something else came after."""
        position = self.watermark(state, STREAM)
        return position if position is not None and position == read(state, self.timeline) else None

    def last_transaction(self, state: HasPositions) -> tuple[int, int] | None:
        """The end and the time of the last transaction that was applied; None where the table was
        copied or compared since.
        """
        end, committed = self.watermark(state, "last"), self.watermark(state, "last/committed")
        if end is None or committed is None or end != self.streamed(state):
            return None
        return end, committed

    def after_batch(self, position: int, committed: int) -> Position:
        """What a batch of a stream leaves, whose last transaction was committed at that time."""
        marks = self.watermarks(
            [(STREAM, position), ("last", position), ("last/committed", committed)]
        )
        return Position(self.timeline, position, marks)


@dataclass(frozen=True)
class StreamPosition:
    """The last checkpoint of a stream (``timeline/slot``)."""

    stream: str

    def position(self, state: HasPositions | None) -> int:
        """Its LSN; 0 where there is none."""
        return read(state, self.stream) or 0

    def recorded(self, state: HasPositions | None) -> int | None:
        """The server's clock when it was made, in microseconds since 1970."""
        return read(state, f"{self.stream}/recorded")

    def publication(self, state: HasPositions | None) -> int | None:
        """The oid of the publication that was followed."""
        return read(state, f"{self.stream}/publication")

    def table(self, state: HasPositions | None, oid: int) -> tuple[int, int] | None:
        """The position that a table had reached, and the one that it held itself."""
        reached = read(state, f"{self.stream}/{oid}")
        held = read(state, f"{self.stream}/{oid}/held")
        return None if reached is None or held is None else (reached, held)

    def checkpoint(
        self, position: int, clock: int, publication: int, tables: Sequence[tuple[int, int]]
    ) -> Position:
        """What a checkpoint leaves; ``tables`` are oids and the positions that tables hold."""
        marks = [(str(oid), max(position, held)) for oid, held in tables]
        marks += [(f"{oid}/held", held) for oid, held in tables]
        marks += [("recorded", clock), ("publication", publication)]
        return Position(self.stream, position, tuple(marks))


def era(state: HasPositions | None, timeline: str, slot: str) -> int:
    """How often the positions of a stream were given up."""
    return read(state, f"{timeline}/{slot}/era") or 0


def next_era(state: HasPositions | None, timeline: str, slot: str) -> Position:
    """What giving them up leaves."""
    return Position(f"{timeline}/{slot}/era", era(state, timeline, slot) + 1)


LINEAGE, AUDIT = "lineage", "audit"


def recorded_version(state: HasPositions | None, target: str) -> int | None:
    """The version up to which ``governance.data_lineage`` has all commits of a Bronze table."""
    return read(state, f"{LINEAGE}/{target}")
