"""A stream: it copies tables first, then applies their changes, batch after batch.

    connect → start each table at its position → the apply loop → (after an error) connect again

`bronze.cdc.apply_loop` is the apply loop. This module connects, and starts the tables:

- with a new slot, all tables are copied or compared in its snapshot (`bronze.cdc.table_sync`);
- with the slot of an earlier stream, a table goes on from its position. If the slot no longer has
  the changes after it, the table is resynced (`bronze.cdc.resync`).

After an error that can pass, such as a lost connection, the stream connects again. It pauses
longer after each failure in a row.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from random import uniform

from bronze.cdc import apply_table, checkpoints, table_sync
from bronze.cdc.apply_loop import Session
from bronze.cdc.context import (
    FollowedTable,
    Notify,
    StartedTables,
    Stopped,
    StreamContext,
    StreamTotals,
)
from bronze.cdc.new_slot import NewSlot, publish
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.errors import (
    BronzeError,
    ConfigError,
    LakeUnreachable,
    SourceRefused,
    SourceRewound,
)
from bronze.governance import lineage, openlineage
from bronze.governance.lineage import LineageEntry
from bronze.ingest import pipeline
from bronze.model.events import Resynced, Rewound, TableMissing, TableNote, Waiting
from bronze.model.results import StreamResult
from bronze.postgres.connection import allowance, connect, translation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.copy import snapshot
from bronze.postgres.copy.snapshot import Snapshot
from bronze.postgres.replication import publication, slot
from bronze.tables import selection
from bronze.tables.selection import Target

__all__ = ["Notify", "drop", "stream"]

_CLAIM_PAUSE = 0.01
_LEAVING = 2.0
_LONGEST_LEAVING = 120.0
_LONGEST_PAUSE = 60.0
# A connection that lasted this long, or applied a batch, resets the count of failures in a row.
_STEADY = 60.0
# Why a table is resynced at the start.
_UNKNOWN_POSITION = "it has no position in the stream"
_ALTERED = "it was altered before it was locked"


def stream(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    until_caught_up: bool = False,
    stop: threading.Event | None = None,
    notify: Notify = lambda _: None,
    copied: pipeline.Notify = lambda _: None,
) -> StreamResult:
    """Follows the tables of one source that have the pattern "streaming".

    Args:
        settings: the config.
        tables: the names of the tables to follow; none means all that the config streams.
        until_caught_up: whether to end when all that was committed before the call is applied.
        stop: ends the stream once it is set, after the current batch.
        notify: is called with each event, in this thread.
        copied: is called with the progress of table syncs and resyncs, in this thread.

    Raises:
        ConfigError: the config streams no table, or tables of several sources.
        SourceRefused: a prerequisite is missing at the source; the error says how to meet it.
        SourceError, LakeError: no table could be streamed.
    """
    openlineage.check_package(settings)
    began, totals = time.monotonic(), StreamTotals()
    stop = stop or threading.Event()
    name = _source(settings, tables)
    failures, connected = 0, False
    sessions: list[slot.Session] = []
    while not stop.is_set():
        since, batches = time.monotonic(), totals.batches
        try:
            with _connection_context(
                settings, name, stop, totals, notify, copied, sessions
            ) as context:
                targets = _streamed_targets(context, tables)
                connected = True
                started = _start(context, targets)
                Session(context, targets, started, tables).follow(until_caught_up)
            break
        except Stopped:
            break
        except SourceRewound as error:
            notify(Rewound(f"{error.message} {error.hint}"))
        except BronzeError as error:
            can_pass = error.retry or isinstance(error, LakeUnreachable)
            steady = totals.batches > batches or time.monotonic() - since > _STEADY
            failures = 1 if steady else failures + 1
            given_up = until_caught_up and failures > settings.run.max_retries
            if not connected or not can_pass or given_up:
                raise
            pause = min(_LONGEST_PAUSE, settings.run.retry_delay * 2 ** (failures - 1))
            pause *= uniform(0.5, 1)  # noqa: S311 - so that many do not come back at once
            notify(Waiting(error.message, pause, error.failure()))
            stop.wait(pause)
    return StreamResult(
        stream=settings.stream.names(name)[0],
        position=totals.position,
        seconds=time.monotonic() - began,
        batches=totals.batches,
        transactions=totals.transactions,
        changes=totals.changes,
        tables=tuple(totals.tables.values()),
        late=tuple(totals.late),
        unrecorded=totals.unrecorded,
    )


def drop(settings: Settings, tables: Sequence[str] = ()) -> str:
    """Drops slot and publication; returns the slot's name. The Bronze tables stay as they are.

    Raises:
        SourceBusy: a session streams from the slot.
        SourceError
    """
    name = _source(settings, tables)
    slot_name, publication_name = settings.stream.names(name)
    origin = settings.origin(name)
    with translation.source_errors(origin), connect.connect(origin) as connection:
        slot.drop(connection, slot_name)
        publication.unpublish(connection, publication_name)
    return slot_name


def stream_name(settings: Settings, tables: Sequence[str] = ()) -> str:
    """The name of the replication slot that a stream of these tables has.

    Raises:
        ConfigError: they are of several sources.
    """
    return settings.stream.names(_source(settings, tables))[0]


def _source(settings: Settings, tables: Sequence[str]) -> str:
    """The one source of the stream."""
    if len(settings.source) == 1:
        return next(iter(settings.source))
    named = {name for name in settings.source for t in tables if t.startswith(f"{name}.")}
    named |= {
        name
        for name in settings.source
        for t, own in settings.tables.items()
        if not tables and own.pattern == "streaming" and t.startswith(f"{name}.")
    }
    if len(named) == 1:
        return named.pop()
    raise ConfigError(
        "One stream follows one source, and the config has several.",
        hint="Name its tables as source.schema.table; run a stream for each source.",
    )


# The connection


@contextmanager
def _connection_context(
    settings: Settings,
    name: str,
    stop: threading.Event,
    totals: StreamTotals,
    notify: Notify,
    copied: pipeline.Notify,
    sessions: list[slot.Session],
) -> Iterator[StreamContext]:
    """The stream's context, for the life of a connection. ``sessions`` are those of the last
    connection at the server, and then those of this one.
    """
    slot_name, publication_name = settings.stream.names(name)
    with ExitStack() as stack:
        origin = replace(settings.origin(name), application_name=f"bronze stream {slot_name}")
        stack.callback(connect.forget_origin, origin)
        allowance.check_least(origin, commands=0, streams=1)
        control = stack.enter_context(connect.connect(origin, lasting=True))
        connect.remember_server(origin, control)
        with translation.source_errors(origin):
            # If a connection was lost without an end, the server keeps its session for hours.
            slot.end_sessions(control, sessions)
            _claim(control, slot_name, bool(sessions), stop)
            sessions[:] = [slot.session_of(control)]
            yield StreamContext(
                settings=settings,
                origin=origin,
                control=control,
                slot=slot_name,
                publication=publication_name,
                stop=stop,
                totals=totals,
                on_event=notify,
                on_load_event=copied,
                sessions=sessions,
            )


def _claim(control: Connection, slot_name: str, had_session: bool, stop: threading.Event) -> None:
    # The server may notice only after a moment that a session has ended, later after a cut.
    after_cut = slot.sender_timeout(control) * 2 or _LONGEST_LEAVING
    until = time.monotonic() + (after_cut if had_session else _LEAVING)
    while not slot.claim(control, slot_name):
        if stop.wait(_CLAIM_PAUSE):
            raise Stopped
        if time.monotonic() >= until:
            raise SourceRefused(
                f"Another copy of bronze is streaming from the slot {slot_name}.",
                hint="Stop it first; or give this one a [stream] slot of its own.",
            )


def _streamed_targets(stream: StreamContext, names: Sequence[str]) -> list[Target]:
    relations = [(stream.origin.name, relation) for relation in stream.relations()]
    chosen = selection.select_targets(stream.settings, relations, names)
    streamed = [target for target in chosen if target.settings.pattern == "streaming"]
    if not streamed or (names and len(streamed) < len(chosen)):
        others = ", ".join(target.label for target in chosen if target not in streamed)
        raise ConfigError(
            f"The config does not stream {others if names else 'any table'}.",
            hint='Set the pattern of each table: [tables.orders] pattern = "streaming"',
        )
    if not names:
        for error in selection.missing_tables(stream.settings, chosen, streamed=True):
            stream.notify(TableMissing(error.table, error.failure()))
    return streamed


# The start of the tables


def _start(stream: StreamContext, targets: Sequence[Target]) -> StartedTables:
    """Creates publication and slot if they are missing, and starts each table at its position.

    The errors of tables that cannot be streamed are reported.

    Raises:
        Stopped: the stream is to end, while it waits for the slot.
        SourceRefused: a prerequisite of all tables is missing.
        TableRefused: no table can be streamed; this is the first one's error.
    """
    fit = table_sync.fit_tables(stream, targets)
    slot.end_abandoned(stream.control, stream.slot)
    existing = slot.find(stream.control, stream.slot)
    why = ""
    if existing and existing.is_invalidated:
        why = f"the slot {stream.slot} was lost"
    elif existing and _is_publication_recreated(stream):
        # Older servers cannot decode what was written while there was no publication.
        why = f"the publication {stream.publication} was created again"
    if why:
        stream.notify(Resynced((), why))
        slot.drop(stream.control, stream.slot)
        existing = None
    if existing is None:
        return _start_with_new_slot(stream, fit)
    refused, published = publish(stream.origin, stream.control, stream.publication, fit)
    stream.progress.published = published.oid
    publishable = table_sync.without_refused(stream, published.targets, refused)
    return _resume(stream, publishable, existing.confirmed or 0)


def _is_publication_recreated(stream: StreamContext) -> bool:
    """Whether the publication is not the one of the last checkpoint."""
    records = log.read(checkpoints.place(stream.settings))
    history = checkpoints.history(records, snapshot.timeline_of(stream.control), stream.slot)
    recorded = checkpoints.publication(records, f"{history}/{stream.slot}")
    now = publication.oid_of(stream.control, stream.publication)
    return now is None or recorded not in (None, now)


def _start_with_new_slot(stream: StreamContext, targets: Sequence[Target]) -> StartedTables:
    with closing(NewSlot(stream, targets, stream.slot, temporary=False)) as new:
        new.wait_or_stop("The stream waits")
        why = dict.fromkeys((target.label for target in targets), "the slot is new")
        synced = table_sync.sync_tables(stream, new, why)
    stream.progress.done = synced.position
    changed = [target for target in targets if target.label in synced.changed]
    return StartedTables(synced.history, synced.joined, {_ALTERED: changed})


def _resume(stream: StreamContext, targets: Sequence[Target], confirmed: int) -> StartedTables:
    """Starts tables at their positions; ``confirmed`` is that of the slot."""
    followed: dict[int, FollowedTable] = {}
    to_resync: list[Target] = []
    last_transactions: set[tuple[int, int]] = set()
    failed: list[LineageEntry] = []
    with _unlocked_snapshot(stream) as current:
        placed, records, tables = table_sync.plan_tables(stream, current, targets)
        stream_id = f"{placed.timeline}/{stream.slot}"
        # The last checkpoint may not have been confirmed.
        stream.progress.done = max(confirmed, checkpoints.position(records, stream_id))
        for table in tables:
            plan, target, oid = table.plan, table.target, table.target.relation.oid
            if plan is None:
                error = table.error or BronzeError("There is no plan.")
                stream.notify_failure(target, error)
                failed.append(lineage.end_stream(table.entry, error))
                continue
            position = (
                apply_table.table_position(plan).stream_position(plan.state) if plan.state else None
            )
            if plan.mode != "changes" or plan.state is None or position is None:
                for note in plan.notes if plan.state else ():
                    stream.notify(TableNote(target.label, note))
                to_resync.append(target)
                continue
            floor = checkpoints.floor(records, stream_id, oid, position, stream.progress.done)
            if floor is None:
                stream.notify(Resynced((target.label,), "its position is behind the slot's"))
                to_resync.append(target)
                continue
            followed[oid] = table_sync.followed_table(
                stream, placed, table, floor=floor, position=position, version=plan.state.version
            )
            last = apply_table.table_position(plan).last_transaction(plan.state)
            last_transactions |= {last} if last and last[0] > confirmed else set()
        stream.progress.past = replace(
            checkpoints.known_transactions(records, stream_id),
            ends=tuple(sorted(last_transactions)),
        )
        stream.record_lineage([*failed, *(f.entry for f in followed.values())], begins=True)
        return StartedTables(placed.timeline, followed, {_UNKNOWN_POSITION: to_resync})


@contextmanager
def _unlocked_snapshot(stream: StreamContext) -> Iterator[Snapshot]:
    """A snapshot of the source without locks on tables, as no table is read."""
    schemas = stream.settings.source[stream.origin.name].schema_
    with (
        connect.connect(stream.origin) as holder,
        snapshot.hold(stream.origin, holder, [], schemas, "per-table") as current,
    ):
        yield current
