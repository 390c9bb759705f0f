"""A run: plan → read → enrich → files → commit → books.

`run` plans here, hands units of work to an executor, and commits here what they wrote: one
transaction a table, as soon as all units of the table have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import tenacity
import uuid_utils

from bronze import engine, prepare
from bronze.books import rejected as book
from bronze.config import Settings
from bronze.errors import (
    BronzeError,
    SnapshotLost,
    SourceUnreachable,
    TableRefused,
)
from bronze.model import (
    DataFile,
    Origin,
    Rejected,
    RunResult,
    Stamp,
    TableResult,
    Unit,
    Written,
)
from bronze.prepare import Plan, Target
from bronze.source import connect, snapshot
from bronze.source.catalog import Relation
from bronze.table import commit, files, store
from bronze.work import work

GOVERNANCE = "governance"


@dataclass(frozen=True)
class Progress:
    """How far a table is, for whoever shows it: ``share`` of its work, from 0 to 1."""

    table: str
    rows: int
    share: float
    result: TableResult | None = None


Notify = Callable[[Progress], None]


@dataclass
class _Table:
    """A table on its way through a run."""

    target: Target
    origin: Origin
    held: snapshot.Snapshot
    stamp: Stamp
    readers: int
    plan: Plan | None = None
    written: list[Written] = field(default_factory=list)
    error: BronzeError | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.plan.units if self.plan else ()

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.written)

    @property
    def files(self) -> list[DataFile]:
        return [part.file for part in self.written if part.file]

    @property
    def rejected(self) -> list[Rejected]:
        return [record for part in self.written for record in part.rejected]

    @property
    def size(self) -> int:
        return sum(unit.estimate for unit in self.units)


def run(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    pool: Executor | None = None,
    notify: Notify = lambda _: None,
) -> RunResult:
    """Takes tables of the source into the lake, all as of one snapshot of it.

    When the source goes away in the middle, the run begins again from a new snapshot, for all its
    tables, as often as the config's max_retries says.

    Args:
        settings: the config.
        tables: names (``table`` or ``schema.table``) to take only; none takes all of the config.
        pool: where to run the units instead of the config's engine.
        notify: is told of progress, from this thread.

    Returns:
        What happened to each table; a table that failed does not stop the others.

    Raises:
        ConfigError, SourceError, LakeError: nothing could be done at all.
    """
    began = time.monotonic()
    batch_id = ""
    results: dict[str, TableResult] = {}
    position: int | None = None

    def passing(error: BaseException) -> bool:
        # A source that was never there is a matter for the user, not for patience.
        absent = position is None and isinstance(error, SourceUnreachable)
        return isinstance(error, BronzeError) and error.retry and not absent

    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception(passing),
        stop=tenacity.stop_after_attempt(settings.run.max_retries + 1),
        wait=tenacity.wait_exponential_jitter(multiplier=settings.run.retry_delay, max=60),
        reraise=True,
    ):
        with attempt, ExitStack() as stack:
            # Each attempt is a batch of its own: what an earlier one landed is told from it.
            batch_id = str(uuid_utils.uuid7())
            planned = _planned(settings, tables, batch_id, stack)
            position = planned[0].held.position
            if not tables:
                targets = [table.target for table in planned]
                for error in prepare.missing(settings, targets):
                    lost = TableResult(error.table, "", "failed", error=error.failure())
                    results[error.table] = lost
                    notify(Progress(error.table, 0, 1.0, lost))
            for result in _landed(settings, planned, pool, notify):
                results[result.target] = result
    return RunResult(batch_id, position or 0, time.monotonic() - began, tuple(results.values()))


def _planned(
    settings: Settings, wanted: Sequence[str], batch_id: str, stack: ExitStack
) -> list[_Table]:
    """Opens a snapshot of each source and plans each table, most urgent first."""
    found: list[tuple[str, Relation]] = []
    sources: dict[str, tuple[Origin, connect.Connection, int]] = {}
    for name, source in settings.source.items():
        origin = replace(settings.origin(name), application_name=f"bronze {batch_id}")
        stack.callback(connect.forget, origin)
        pool = stack.enter_context(connect.pool(origin, source.pool.min, source.pool.max))
        with connect.mapped(origin):
            connection = stack.enter_context(pool.connection())
            found += [(name, r) for r in prepare.found(connection, name, source.schema_)]
        connect.locate(origin, connection)
        sources[name] = (origin, connection, source.pool.readers)
    chosen = prepare.targets(settings, found, wanted)
    store.prove_writable(settings.place(settings.lake.schema_, ""))
    tables: list[_Table] = []
    for name, (origin, connection, slots) in sources.items():
        mine = [target for target in chosen if target.source == name]
        if mine:
            held = _held(settings, origin, connection, mine, stack)
            tables += _of_source(settings, origin, held, mine, batch_id, slots)
    return sorted(tables, key=lambda table: (table.target.settings.priority, -table.size))


def _held(
    settings: Settings,
    origin: Origin,
    connection: connect.Connection,
    targets: Sequence[Target],
    stack: ExitStack,
) -> snapshot.Snapshot:
    source = settings.source[origin.name]
    readable = [target.relation for target in targets if target.relation.readable]
    return stack.enter_context(
        snapshot.hold(origin, connection, readable, source.schema_, source.consistency)
    )


def _of_source(
    settings: Settings,
    origin: Origin,
    held: snapshot.Snapshot,
    targets: Sequence[Target],
    batch_id: str,
    slots: int,
) -> list[_Table]:
    readers = prepare.readers(settings.run, slots)
    now = datetime.now(UTC)
    seen = {relation.oid: relation for relation in held.relations}
    tables = []
    for target in targets:
        stamp = Stamp(batch_id, now, origin.name, target.settings.method)
        table = _Table(target, origin, held, stamp, readers)
        tables.append(table)
        try:
            current = replace(target, relation=_still_there(target, held, seen))
            table.plan = prepare.plan_table(current, held, origin, stamp, settings.run, readers)
        except TableRefused as error:
            table.error = error
    return tables


def _still_there(target: Target, held: snapshot.Snapshot, seen: Mapping[int, Relation]) -> Relation:
    for label, error in held.refused:
        if label == target.label:
            raise error
    if not target.relation.readable:
        raise prepare.unreadable(target)
    if target.relation.oid not in seen:
        raise TableRefused(
            f"Table {target.label} was dropped while the run began.",
            hint="Its Bronze table stays as it was.",
            table=target.label,
            sqlstate="42P01",
        )
    if seen[target.relation.oid].rewritten:
        raise TableRefused(
            f"Table {target.label} was refreshed or rewritten while the run began.",
            hint="Run again; its Bronze table stays as it was.",
            table=target.label,
        )
    return seen[target.relation.oid]


def _landed(
    settings: Settings,
    tables: Sequence[_Table],
    pool: Executor | None,
    notify: Notify,
) -> Iterator[TableResult]:
    """Reads and commits the tables; yields each one's result as soon as it is there."""
    by_place = {table.target.place: table for table in tables}
    units = [unit for table in tables for unit in table.units]
    limit = min(table.readers for table in tables)
    yield from (_result(table, None, notify) for table in tables if table.error)

    def wanted(unit: Unit) -> bool:
        return by_place[unit.place].error is None

    try:
        with _running(settings, pool, limit, tables) as running:
            for unit, outcome in engine.dispatch(running, work, units, limit, wanted):
                table = by_place[unit.place]
                if table.plan and _taken(table, outcome):
                    yield _result(table, _committed(settings, table, table.plan), notify)
                elif table.error and isinstance(outcome, BronzeError):
                    yield _result(table, None, notify)
                else:
                    notify(_progress(table))
    except BaseException:
        for table in tables:
            _discard(table)
        raise


@contextmanager
def _running(
    settings: Settings, pool: Executor | None, limit: int, tables: Sequence[_Table]
) -> Iterator[Executor]:
    """The executor; when it is left by an error, the reads that still go on are ended first."""
    given = nullcontext(pool) if pool else engine.executor(settings.run.engine, limit)
    with given as running:
        try:
            yield running
        except BaseException:
            for origin in {table.origin for table in tables}:
                with suppress(BronzeError):
                    connect.cancel(origin)
            raise


def _discard(table: _Table) -> None:
    """Deletes what was written for a table and will not land; what did land is kept."""
    with suppress(BronzeError):
        commit.discard(table.target.place, table.stamp.batch_id)


def _taken(table: _Table, outcome: engine.Outcome) -> bool:
    """Notes a unit's outcome; true when it was the table's last one and all went well."""
    if isinstance(outcome, BronzeError):
        if outcome.retry and not table.held.alive():
            raise SnapshotLost(
                f"The source {table.origin.name} went away in the middle of the run:"
                f" {outcome.message}",
                hint=outcome.hint,
            ) from outcome
        table.error = table.error or outcome
        return False
    table.written.append(outcome)
    if table.error:
        _discard(table)
        return False
    return len(table.written) == len(table.units)


def _committed(settings: Settings, table: _Table, plan: Plan) -> int | None:
    """Makes the table's rows visible; returns the new version, None when it failed."""
    reached = commit.Position(table.held.timeline, table.held.position)
    facts = {
        "batch_id": table.stamp.batch_id,
        "source": table.origin.name,
        "table": table.target.label,
        "snapshot": table.held.name,
        "position": reached.value,
        "loaded_at": table.stamp.loaded_at.isoformat(),
        "rows": table.rows,
        "rejected": len(table.rejected),
    }
    try:
        _book_rejected(settings, table)
        commit.sweep(table.target.place, time.time())
        return commit.replace(
            table.target.place,
            commit.Shape(plan.layout, plan.stats),
            table.files,
            reached,
            facts,
        )
    except BronzeError as error:
        table.error = error
        return None


def _book_rejected(settings: Settings, table: _Table) -> None:
    if not table.rejected:
        return
    place = settings.place(GOVERNANCE, book.NAME)
    frame = book.frame(
        table.rejected,
        stamp=table.stamp,
        source_table=table.target.label,
        target_table=table.target.name,
    )
    file = files.write([frame], place, table.stamp.batch_id, ())
    if file:
        commit.append(place, book.COLUMNS, file, {"batch_id": table.stamp.batch_id})


def _progress(table: _Table, result: TableResult | None = None) -> Progress:
    done = sum(table.units[part.unit].estimate for part in table.written)
    share = 1.0 if result or not table.size else done / table.size
    return Progress(table.target.label, table.rows, share, result)


def _result(table: _Table, version: int | None, notify: Notify) -> TableResult:
    error = table.error
    result = TableResult(
        table=table.target.label,
        target=f"{table.target.schema}.{table.target.name}",
        status="failed" if error else "landed",
        rows_read=table.rows,
        inserted=0 if error else table.rows,
        rejected=0 if error else len(table.rejected),
        version=version,
        files=0 if error else len(table.files),
        bytes=0 if error else sum(file.size for file in table.files),
        seconds=time.monotonic() - table.began,
        error=error.failure() if error else None,
    )
    notify(_progress(table, result))
    if error:
        _discard(table)
    return result
