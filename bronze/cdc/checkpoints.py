"""The record of a stream: which position all its tables have reached, and at which versions.

Its position, and what each table had then, are app transactions of ``governance.streams``. A table
that did not change since has reached that position too, though its own says less.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from bronze.cdc.apply import FollowedTable
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, log, positions
from bronze.delta.commit import Change, Shape
from bronze.delta.log import State
from bronze.delta.positions import StreamPosition
from bronze.errors import LakeUnreachable
from bronze.governance import writer
from bronze.governance.tables import streams as book
from bronze.model.locations import Place
from bronze.postgres.replication.rewind import KnownTransactions


def place(settings: Settings) -> Place:
    """Where the records are."""
    return settings.place(GOVERNANCE, book.NAME)


def lake_gone_error(settings: Settings) -> LakeUnreachable:
    """The error of a lake that had this stream's records, and has none any more."""
    return LakeUnreachable(
        f"The lake at {settings.lake.root} is gone: the records of this stream are not there.",
        hint="Mount it, or move it back. If it was deleted on purpose, start the stream again.",
    )


def exists(settings: Settings) -> bool:
    """Whether there are records.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    return log.read(place(settings)) is not None


def position(state: State | None, stream: str) -> int:
    """How far a stream was recorded; 0 if it was not.

    Args:
        state: the table of records.
        stream: the history of the source's positions and the slot, as ``history/slot``.
    """
    return StreamPosition(stream).position(state)


def history(state: State | None, identity: str, slot: str) -> str:
    """The name of the history that a stream's positions belong to.

    Args:
        state: the table of records.
        identity: the source's, as `bronze.postgres.copy.snapshot.timeline_of` gives it.
        slot: the slot's name.
    """
    era = positions.era(state, identity, slot)
    return f"{identity}+{era}" if era else identity


@commit.retried
def give_up_positions(settings: Settings, identity: str, slot: str) -> None:
    """Begins another `history`: from now on no position of before counts.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    books = place(settings)
    state = log.read(books)
    reached = positions.next_era(state, identity, slot)
    shape = None if state else Shape(book.COLUMNS, ())
    commit.commit(books, state, Change("WRITE"), {}, shape=shape, reached=reached)


def known_transactions(state: State | None, stream: str) -> KnownTransactions:
    """What the records know of a stream's past; ``stream`` as for `position`."""
    recorded = StreamPosition(stream).recorded(state)
    return KnownTransactions(position(state, stream), recorded) if recorded else KnownTransactions()


def publication(state: State | None, stream: str) -> int | None:
    """The oid of the publication that was followed last; ``stream`` as for `position`."""
    return StreamPosition(stream).publication(state)


def floor(state: State | None, stream: str, oid: int, at: int, confirmed: int) -> int | None:
    """Where a table goes on; None if the slot has moved on without it.

    Args:
        state: the table of records.
        stream: as for `position`.
        oid: the source table's.
        at: the position that the Bronze table itself has.
        confirmed: the position that the slot has, or that was recorded, if that is later.
    """
    if at >= confirmed:
        return at
    recorded = StreamPosition(stream).table(state, oid)
    if recorded is None:
        return None
    reached, held = recorded
    # A table that was put back to an earlier version has less than it had then.
    return reached if reached >= confirmed and held <= at else None


@commit.retried
def record(
    settings: Settings,
    history: str,
    record: book.Checkpoint,
    clock: int,
    followings: Iterable[FollowedTable],
    published: int,
    first: bool,
) -> None:
    """Enters a record, for the tables that follow.

    Args:
        settings: the config.
        history: that of the source's positions.
        record: the record.
        clock: the server's, as of now.
        followings: the tables.
        published: the publication's oid.
        first: no record was entered before by this process: there may be none.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    reached = StreamPosition(f"{history}/{record.stream}").checkpoint(
        record.position, clock, published, [(f.oid, f.held) for f in followings]
    )
    books = place(settings)
    state = log.read(books)
    if state is None and not first:
        raise lake_gone_error(settings)
    facts = {"batch_id": record.batch_id}
    writer.commit_rows(books, state, book.COLUMNS, book.frame(record), facts, reached=reached)


def versions(
    followings: Iterable[FollowedTable], position: int, set_aside: Iterable[str] = ()
) -> str:
    """A JSON object of the tables' versions at a position, by their full names; null for one that
    is ahead of it, and for those that are ``set_aside`` (full names of Bronze tables).
    """
    known = {f.plan.target.full_name: f.version if f.held <= position else None for f in followings}
    return json.dumps({**dict.fromkeys(set_aside), **known})
