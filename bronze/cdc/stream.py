"""Streaming: a copy of the tables first, then what changes in them, batch after batch.

    slot → copy in its snapshot → receive → net → merge → commit → record → confirm

Each table's commit holds the position up to which it has followed. Once all tables have landed a
batch, one record in ``governance.streams`` says so, and only then the slot may forget it. After a
crash the source sends again what was not recorded, and each table leaves out what it has. A table
that the stream cannot bring up to date (its columns have changed, the slot was lost) is compared
with the source, in the snapshot of a slot of its own, and follows from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from random import uniform

from bronze.cdc.context import Notify, Stopped, StreamContext, StreamTotals
from bronze.cdc.session import Session
from bronze.config.settings import Settings
from bronze.errors import (
    BronzeError,
    ConfigError,
    LakeUnreachable,
    SourceRefused,
    SourceRewound,
)
from bronze.governance import openlineage
from bronze.ingest import pipeline
from bronze.model.events import Notice, Waiting
from bronze.model.results import StreamResult
from bronze.postgres.connection import connect, translation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication import publication, slot
from bronze.tables import selection
from bronze.tables.selection import Target

__all__ = ["Notify", "drop", "stream"]

_PATIENCE = 0.05
_LEAVING = 2.0
_LONGEST_LEAVING = 120.0
_LONGEST_PAUSE = 60.0
# A stream that has gone well for so long, or landed anything, counts its interruptions anew.
_STEADY = 60.0


def stream(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    until_caught_up: bool = False,
    stop: threading.Event | None = None,
    notify: Notify = lambda _: None,
    copied: pipeline.Notify = lambda _: None,
) -> StreamResult:
    """Follows the tables of one source whose pattern is "streaming".

    Args:
        settings: the config.
        tables: names to follow only; none follows all that the config has streamed.
        until_caught_up: ends when all is landed that was committed before the call.
        stop: ends the stream once it is set; the batch in hand is finished.
        notify: is told of each batch, from this thread.
        copied: is told of the progress of copies, from this thread.

    Raises:
        ConfigError: nothing is to be streamed, or it is of several sources.
        SourceRefused: something is missing at the source; the error says what, and the mend.
        SourceError, LakeError: nothing could be done at all.
    """
    openlineage.ready(settings)
    began, totals = time.monotonic(), StreamTotals()
    stop = stop or threading.Event()
    name = _source(settings, tables)
    failures, known = 0, False
    sessions: list[slot.Session] = []
    while not stop.is_set():
        started, landed = time.monotonic(), totals.batches
        try:
            with _connected(settings, name, stop, totals, notify, copied, sessions) as opened:
                targets = _streamed_targets(opened, tables)
                known = True
                Session(opened, targets, tables).follow(until_caught_up)
            break
        except Stopped:
            break
        except SourceRewound as error:
            notify(Notice(f"{error.message} {error.hint}"))
        except BronzeError as error:
            passing = error.retry or isinstance(error, LakeUnreachable)
            well = totals.batches > landed or time.monotonic() - started > _STEADY
            failures = 1 if well else failures + 1
            given_up = until_caught_up and failures > settings.run.max_retries
            if not known or not passing or given_up:
                raise
            pause = min(_LONGEST_PAUSE, settings.run.retry_delay * 2 ** (failures - 1))
            pause *= uniform(0.5, 1)  # noqa: S311 - so that many do not come back at once
            notify(Waiting(error.message, pause))
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
        SourceBusy: somebody streams from the slot.
        SourceError
    """
    name = _source(settings, tables)
    own, published = settings.stream.names(name)
    origin = settings.origin(name)
    with translation.source_errors(origin), connect.connect(origin) as connection:
        slot.drop(connection, own)
        publication.unpublish(connection, published)
    return own


def _source(settings: Settings, tables: Sequence[str]) -> str:
    """The one source that is meant."""
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


@contextmanager
def _connected(
    settings: Settings,
    name: str,
    stop: threading.Event,
    totals: StreamTotals,
    notify: Notify,
    copied: pipeline.Notify,
    sessions: list[slot.Session],
) -> Iterator[StreamContext]:
    """What a stream needs while it is connected. ``sessions`` are those that it had at the server,
    and then those of this connection.
    """
    own, published = settings.stream.names(name)
    with ExitStack() as stack:
        origin = replace(settings.origin(name), application_name=f"bronze stream {own}")
        stack.callback(connect.forget_server, origin)
        control = stack.enter_context(connect.connect(origin))
        connect.remember_server(origin, control)
        with translation.source_errors(origin):
            # Where a connection fell silent, the server keeps its session for hours.
            slot.end_sessions(control, sessions)
            _claim(control, own, bool(sessions), stop)
            sessions[:] = [slot.session_of(control)]
            yield StreamContext(
                settings, origin, control, own, published, stop, totals, notify, copied, sessions
            )


def _claim(control: Connection, own: str, known: bool, stop: threading.Event) -> None:
    # The server may take a moment to notice that a session has gone, and a while after a cut.
    cut = slot.sender_timeout(control) * 2 or _LONGEST_LEAVING
    patience = cut if known else _LEAVING
    until = time.monotonic() + patience
    while not slot.claim(control, own):
        if stop.wait(_PATIENCE):
            raise Stopped
        if time.monotonic() >= until:
            raise SourceRefused(
                f"Another copy of bronze is streaming from the slot {own}.",
                hint="Stop it first; or give this one a [stream] slot of its own.",
            )


def _streamed_targets(stream: StreamContext, wanted: Sequence[str]) -> list[Target]:
    found = [(stream.origin.name, relation) for relation in stream.found()]
    chosen = selection.select_targets(stream.settings, found, wanted)
    streamed = [target for target in chosen if target.settings.pattern == "streaming"]
    if not streamed or (wanted and len(streamed) < len(chosen)):
        others = ", ".join(target.label for target in chosen if target not in streamed)
        raise ConfigError(
            f"The config does not have {others if wanted else 'any table'} streamed.",
            hint='Say so for each table: [tables.orders] pattern = "streaming"',
        )
    for error in [] if wanted else selection.missing_tables(stream.settings, chosen, streamed=True):
        stream.tell(Notice(f"{error.message} It is followed once it is there. {error.hint}"))
    return streamed
