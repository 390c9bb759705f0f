"""A run: plan → read → enrich → files → commit → books.

`run` plans here and hands the landings of all tables to an executor; what happens to each is in
`bronze.ingest.load`: one transaction a table, as soon as its tasks have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import tenacity
import uuid_utils

from bronze import failpoint
from bronze.config import fingerprint
from bronze.config.settings import Settings
from bronze.delta import store
from bronze.errors import (
    BronzeError,
    CommitConflict,
    ConfigError,
    LakeError,
    Overtaken,
    SourceUnreachable,
    TableContested,
    TableRefused,
)
from bronze.execution import budget, executors
from bronze.governance import audit, lineage, openlineage
from bronze.ingest import load, plan, table_run
from bronze.ingest.table_run import TableRun
from bronze.maintenance import maintain
from bronze.model.events import LoadEvent, TableFailed, TableLanded, TableProgress
from bronze.model.locations import Origin
from bronze.model.results import Failure, RunResult, TableResult
from bronze.model.stamp import AuditMark, Stamp
from bronze.model.units import Unit, Written
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection import connect
from bronze.postgres.copy import snapshot
from bronze.tables import selection
from bronze.tables.selection import Target

Notify = Callable[[LoadEvent], None]

_BEATEN = (CommitConflict.__name__, Overtaken.__name__, TableContested.__name__)
_GIVE_WAY_EVERY = 1.0


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
    openlineage.ready(settings)
    ledger = lineage.Ledger(settings)
    try:
        result = _run_with_retries(settings, tables, pool, notify, ledger)
    except BronzeError:
        # What had landed by then is remembered all the same.
        ledger.closed()
        openlineage.tell(settings, ledger.entries)
        raise
    late, unrecorded = ledger.closed()
    notes = openlineage.tell(settings, ledger.entries)
    if settings.maintain.auto:
        notes += maintain.books(settings)
    return replace(result, late=late, notes=notes, unrecorded=unrecorded)


def _run_with_retries(
    settings: Settings,
    tables: Sequence[str],
    pool: Executor | None,
    notify: Notify,
    ledger: lineage.Ledger,
) -> RunResult:
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
            chosen = _plan_all(settings, tables, batch_id, stack)
            position = chosen[0].held.position
            if not tables:
                targets = [table.target for table in chosen]
                for error in selection.missing(settings, targets):
                    lost = TableResult(error.table, "", "failed", error=error.failure())
                    results[error.table] = lost
                    notify(TableFailed(error.table, error.failure()))
            failpoint.reach("planned")
            beaten = []
            entries = {table.entry.record.target_table: table.entry for table in chosen}
            for result in load_tables(settings, chosen, pool, notify):
                results[result.target] = result
                ledger.add(lineage.ended(entries[result.target], result))
                if result.error and result.error.kind in _BEATEN:
                    beaten.append(result.table)
            ledger.unwritten = record_quality(settings, chosen) or ledger.unwritten
            if beaten and attempt.retry_state.attempt_number <= settings.run.max_retries:
                tables = beaten
                raise CommitConflict(f"{', '.join(beaten)} changed while the run went on.")
    return RunResult(batch_id, position or 0, time.monotonic() - began, tuple(results.values()))


@dataclass(frozen=True)
class OpenSource:
    """A source with a connection to it, beside which ``slots`` reads may go on."""

    origin: Origin
    connection: connect.Connection
    slots: int

    def held(
        self,
        settings: Settings,
        targets: Sequence[Target],
        stack: ExitStack,
        consistency: snapshot.Consistency | None = None,
    ) -> snapshot.Snapshot:
        """A snapshot of these tables, for as long as the stack lasts; as consistent as the config
        says, if nothing else is said.
        """
        source = settings.source[self.origin.name]
        readable = [target.relation for target in targets if target.relation.readable]
        return stack.enter_context(
            snapshot.hold(
                self.origin,
                self.connection,
                readable,
                source.schema_,
                consistency or source.consistency,
            )
        )


def open_sources(
    settings: Settings, batch_id: str, stack: ExitStack
) -> tuple[list[tuple[str, Relation]], dict[str, OpenSource]]:
    """Connects to all sources, for as long as the stack lasts; what tables they have.

    Raises:
        ConfigError, SourceError
    """
    found: list[tuple[str, Relation]] = []
    sources: dict[str, OpenSource] = {}
    for name, source in settings.source.items():
        origin = replace(settings.origin(name), application_name=f"bronze {batch_id}")
        stack.callback(connect.forget, origin)
        pool = stack.enter_context(connect.pool(origin, source.pool.min, source.pool.max))
        with connect.mapped(origin):
            connection = stack.enter_context(pool.connection())
            found += [(name, r) for r in selection.found(connection, name, source.schema_)]
        connect.locate(origin, connection)
        sources[name] = OpenSource(origin, connection, source.pool.readers)
    return found, sources


def _plan_all(
    settings: Settings, wanted: Sequence[str], batch_id: str, stack: ExitStack
) -> list[TableRun]:
    """Opens a snapshot of each source and plans each table, most urgent first."""
    found, sources = open_sources(settings, batch_id, stack)
    chosen = _without_streamed(selection.targets(settings, found, wanted), wanted)
    store.prove_writable(settings.place(settings.lake.schema_, ""))
    tables: list[TableRun] = []
    for name, source in sources.items():
        mine = [target for target in chosen if target.source == name]
        if mine:
            held = source.held(settings, mine, stack)
            tables += plan_tables(settings, source.origin, held, mine, batch_id, source.slots)
    return sorted(tables, key=lambda table: (table.target.settings.priority, -table.size))


def _without_streamed(chosen: Sequence[Target], wanted: Sequence[str]) -> list[Target]:
    """Those that are not streamed."""
    left = [target for target in chosen if target.settings.pattern != "streaming"]
    if not left or (wanted and len(left) < len(chosen)):
        labels = [target.label for target in chosen if target not in left]
        raise ConfigError(
            f"The config has {', '.join(labels)} streamed: a run does not take what is streamed.",
            hint="Use `bronze stream`, or give it another pattern.",
        )
    return left


def plan_tables(
    settings: Settings,
    origin: Origin,
    held: snapshot.Snapshot,
    targets: Sequence[Target],
    batch_id: str,
    slots: int,
    fitted: Callable[[Target], Target] = lambda target: target,
    doubting: bool = False,
) -> list[TableRun]:
    """The tables of one source with their plans; what hinders one is in its ``error``.

    ``fitted`` may change a table, as the snapshot shows it, before it is planned; ``doubting`` is
    as in `bronze.ingest.plan.plan_table`.
    """
    readers = budget.readers(settings.run.memory, settings.run.workers, slots)
    now = datetime.now(UTC)
    seen = {relation.oid: relation for relation in held.relations}
    config = fingerprint.whole(fingerprint.imprint(settings))
    audited = audit.mark(settings)
    tables = []
    for target in targets:
        own = str(uuid_utils.uuid7())
        stamp = Stamp(batch_id, now, origin.name, target.settings.method, own, audited)
        found, refused = None, None
        try:
            current = fitted(selection.seen(target, relation_in_snapshot(target, held, seen)))
            found = plan.plan_table(current, held, origin, stamp, settings, readers, doubting)
        except (TableRefused, LakeError) as error:
            refused = error
        entry = table_run.lineage_entry(settings, config, target, stamp, held, found)
        tables.append(TableRun(target, origin, held, stamp, readers, entry, found, refused))
    _compare_audit_marks(settings, audited, tables)
    return tables


def _compare_audit_marks(
    settings: Settings, audited: AuditMark | None, tables: Sequence[TableRun]
) -> None:
    """Notes which tables know of more records than the audit log has."""
    held = {
        table.target.full_name: table.plan.state
        for table in tables
        if table.plan and table.plan.state
    }
    said: tuple[str, ...] = ()
    if audited is not None:
        # What cannot be recorded is said when the run itself is to be.
        with suppress(BronzeError):
            said = audit.compared(settings, audited, held)
    for table in tables:
        if said and table.plan:
            table.plan = replace(table.plan, notes=(*table.plan.notes, *said))
            return


def relation_in_snapshot(
    target: Target, held: snapshot.Snapshot, seen: Mapping[int, Relation]
) -> Relation:
    """A table as the snapshot shows it, where ``seen`` are all tables by their oid.

    Raises:
        SourceError: it cannot be read there.
    """
    for label, error in held.refused:
        if label == target.label:
            raise error
    if not target.relation.readable:
        raise selection.unreadable(target)
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


def load_tables(
    settings: Settings,
    tables: Sequence[TableRun],
    pool: Executor | None,
    notify: Notify,
) -> Iterator[TableResult]:
    """Reads and commits the tables; yields each one's result as soon as it is there."""
    limit = min(table.readers for table in tables)
    read: list[dict[int, Written]] = [{} for _ in tables]

    def show(number: int, outcome: object) -> None:
        table = tables[number]
        if isinstance(outcome, Written) and table.plan:
            read[number][outcome.unit] = outcome
            notify(_progress(table.target.label, table.plan.units, read[number]))

    try:
        with worker_pool(settings, pool, limit, {table.origin for table in tables}) as workers:
            loads = [load.load_table(settings, table) for table in tables]
            relieve = lock_relief((table.held, table.origin) for table in tables)
            for result in executors.drive(workers, loads, limit, show, relieve):
                notify(_ended(result))
                yield result
    except BaseException:
        for table in tables:
            load.discard(table.target.place, table.stamp.batch_id)
        raise


def _ended(result: TableResult) -> LoadEvent:
    return TableFailed(result.table, result.error) if result.error else TableLanded(result)


def _progress(table: str, units: Sequence[Unit], read: Mapping[int, Written]) -> TableProgress:
    """How far a table is, of whose units some have been ``read``."""
    size = sum(unit.estimate for unit in units)
    done = sum(units[number].estimate for number in read)
    rows = sum(part.rows for number, part in read.items() if units[number].counts_rows)
    return TableProgress(table, rows, done / size if size else 0.0)


def lock_relief(held: Iterable[tuple[snapshot.Snapshot, Origin]]) -> Callable[[], None]:
    """What to call again and again while tables are read in snapshots: see `Snapshot.give_way`."""
    holders = {id(taken.holder): (taken, origin) for taken, origin in held}
    called = time.monotonic()

    def meanwhile() -> None:
        nonlocal called
        if time.monotonic() - called < _GIVE_WAY_EVERY:
            return
        called = time.monotonic()
        for taken, origin in holders.values():
            taken.give_way(origin)

    return meanwhile


def record_quality(settings: Settings, tables: Sequence[TableRun]) -> Failure | None:
    """Enters how the rows of tables fared; why that cannot be done, if so: they have landed."""
    try:
        load.record_quality(settings, tables)
    except BronzeError as error:
        return error.failure()
    return None


@contextmanager
def worker_pool(
    settings: Settings, pool: Executor | None, limit: int, origins: Collection[Origin]
) -> Iterator[Executor]:
    """The executor; when it is left by an error, the reads that still go on are ended first."""
    given = nullcontext(pool) if pool else executors.executor(settings.run.engine, limit)
    with given as workers:
        try:
            yield workers
        except BaseException:
            for origin in origins:
                with suppress(BronzeError):
                    connect.cancel(origin)
            raise
