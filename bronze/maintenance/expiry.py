"""Expiry: deletes old records of the governance tables that grow for ever.

What is needed is never deleted, however old it is: `_TABLES` has the rules. All old records of a
table go in one commit, or none: without a later record, an earlier one of the same subject would
count again.

Files with nothing but old records are removed, the others rewritten; so it waits until the records
to delete are enough to be worth that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl
import uuid_utils

from bronze import stopping
from bronze.delta import commit, files, log, store
from bronze.delta.commit import Change
from bronze.delta.log import State
from bronze.errors import BronzeError, CommitConflict, Overtaken
from bronze.governance.frames import schema_of
from bronze.governance.records import bound
from bronze.governance.tables import alerts, controls, runs, streams
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

# Records are deleted when there are this many for each that has to be rewritten for that.
_SHARE = 0.25

Rule = Callable[[pl.DataFrame, datetime, datetime], pl.DataFrame]
"""Of records (and of those that it has returned before), the ones that are needed, by the time
before which records are old, and by now."""


@dataclass(frozen=True)
class _Table:
    """How records of a governance table expire: by ``time``; ``needed`` decides by the ``key``, of
    records, or of all together that have one key (``whole``).
    """

    columns: Sequence[tuple[str, DeltaType]]
    time: str
    key: tuple[str, ...]
    needed: Rule
    whole: bool = False

    def read(self, place: Place, file: StoredFile, names: Sequence[str]) -> Iterator[pl.DataFrame]:
        """These columns of a file, a part at a time."""
        for _, part in files.parts(files.open_parquet(place, file), self.columns, names):
            stopping.check()
            yield pl.DataFrame(part)

    def keep(self, rows: pl.DataFrame, old: datetime, needed: pl.DataFrame) -> pl.DataFrame:
        """The rows that are not ``old``, or are ``needed``."""
        columns = list(self.key) if self.whole else [*self.key, self.time]
        kept = rows.filter(pl.col(self.time) < old).join(
            needed, on=columns, how="semi", nulls_equal=True
        )
        return pl.concat([kept, rows.filter(pl.col(self.time) >= old)])


def _last(rows: pl.DataFrame, time: str, subject: Sequence[str]) -> pl.DataFrame:
    return rows.filter(pl.col(time) == pl.col(time).max().over(subject))


def _needed_runs(rows: pl.DataFrame, old: datetime, now: datetime) -> pl.DataFrame:
    """The last end and the last landing of each table."""
    ended = rows.filter(pl.col("status") != "began")
    landed = ended.filter(pl.col("status").is_in(["landed", "unchanged"]))
    subject = ["command", "source_system", "source_table", "target_table"]
    time = "recorded_timestamp"
    return pl.concat([_last(ended, time, subject), _last(landed, time, subject)]).unique()


def _needed_alerts(rows: pl.DataFrame, old: datetime, now: datetime) -> pl.DataFrame:
    """The last record of each alert: it may be open, and says that earlier ones are not."""
    return _last(rows, "recorded_timestamp", ["kind", "subject"])


def _needed_controls(rows: pl.DataFrame, old: datetime, now: datetime) -> pl.DataFrame:
    """What is in force, and the last request of each kind and subject."""
    # A table is paused until it is resumed.
    kind = pl.col("action").replace("resume", "pause")
    last = pl.col("requested_timestamp").max().over(kind, "subject")
    return rows.filter((pl.col("requested_timestamp") == last) | (pl.col("until_timestamp") > now))


def _needed_checkpoints(rows: pl.DataFrame, old: datetime, now: datetime) -> pl.DataFrame:
    """The series that are not all old, and the last one of each stream."""
    time, stream = "recorded_timestamp", ["stream", "source_system"]
    ends = rows.group_by(*stream, "series").agg(pl.col(time).max()).select(rows.columns)
    return ends.filter((pl.col(time) >= old) | (pl.col(time) == pl.col(time).max().over(stream)))


_TABLES = {
    runs.NAME: _Table(
        runs.COLUMNS,
        "recorded_timestamp",
        ("command", "source_system", "source_table", "target_table", "status"),
        _needed_runs,
    ),
    alerts.NAME: _Table(alerts.COLUMNS, "recorded_timestamp", ("kind", "subject"), _needed_alerts),
    controls.NAME: _Table(
        controls.COLUMNS,
        "requested_timestamp",
        ("action", "subject", "until_timestamp"),
        _needed_controls,
    ),
    streams.NAME: _Table(
        streams.COLUMNS,
        "recorded_timestamp",
        ("stream", "source_system", "series"),
        _needed_checkpoints,
        whole=True,
    ),
}


def expire_records(place: Place, name: str, history: float, now: datetime) -> int:
    """Deletes old records of a governance table; returns how many.

    Args:
        place: the table.
        name: its name; records of other tables than those above do not expire.
        history: for how many seconds records are kept.
        now: the time.

    Raises:
        CommitConflict, LakeError, LakeUnreachable: it cannot be read or written.
        Stopped: it was stopped; nothing was deleted.
    """
    table = _TABLES.get(name)
    state = log.recent(place) if table else None
    if table is None or state is None:
        return 0
    old = now - timedelta(seconds=history)
    if all((bound(file.low, table.time) or old) > old for file in state.files):
        return 0
    needed = _needed(state, table, old, now)
    deleted = {
        file: count
        for file in state.files
        if (bound(file.low, table.time) or old) <= old
        and (count := _count_deleted(state, table, file, old, needed))
    }
    kept = sum(max(0, file.rows - count) for file, count in deleted.items())
    if not deleted or sum(deleted.values()) < _SHARE * kept:
        return 0
    state.writable()
    try:
        _rewrite(state, table, tuple(deleted), old, needed)
    except Overtaken:
        # Another process has rewritten its files meanwhile: the next call deletes what is left.
        return 0
    return sum(deleted.values())


def _needed(state: State, table: _Table, old: datetime, now: datetime) -> pl.DataFrame:
    """The keys and times of the records that are needed however old they are."""
    columns = [*table.key, table.time]
    needed = pl.DataFrame(schema=schema_of([c for c in table.columns if c[0] in columns]))
    for file in state.files:
        for part in table.read(state.place, file, columns):
            rows = pl.concat([needed, part.select(needed.columns).unique()])
            needed = table.needed(rows, old, now)
    return needed if table.whole else needed.filter(pl.col(table.time) < old)


def _count_deleted(
    state: State, table: _Table, file: StoredFile, old: datetime, needed: pl.DataFrame
) -> int:
    parts = table.read(state.place, file, [*table.key, table.time])
    return sum(part.height - table.keep(part, old, needed).height for part in parts)


def _rewrite(
    state: State,
    table: _Table,
    stored: Sequence[StoredFile],
    old: datetime,
    needed: pl.DataFrame,
) -> None:
    """Replaces files by one with the records that stay."""
    place, batch_id = state.place, str(uuid_utils.uuid7())
    names = [name for name, _ in table.columns]
    frames = (
        kept
        for file in stored
        for part in table.read(place, file, names)
        if (kept := table.keep(part, old, needed)).height
    )
    written = files.write(frames, place, batch_id, (table.time,))
    parameters = {"predicate": json.dumps([f"{table.time} < {old.isoformat()}"])}
    change = Change("DELETE", [written] if written else [], stored, parameters=parameters)
    try:
        _commit(state, change, batch_id)
    except CommitConflict:
        if written:
            store.delete(place, [written.path])
        raise
    except BronzeError:
        # Without an answer from the store the commit may have succeeded.
        with suppress(BronzeError):
            commit.discard(place, batch_id)
        raise


def _commit(state: State, change: Change, batch_id: str) -> None:
    """Commits on top of what others have appended meanwhile."""
    for attempt in commit.attempts():
        with attempt:
            now = log.read(state.place)
            if now is None or not set(change.removed) <= set(now.files):
                raise Overtaken(
                    f"Another process has rewritten the table at {state.place.url} meanwhile.",
                    hint="The next maintenance deletes its old records.",
                )
            commit.commit(state.place, now, change, {"batch_id": batch_id})
