"""A run: plan → read → enrich → files → commit → governance tables.

`run` plans all tables and hands their loads to an executor. `bronze.ingest.load` is the load of
one table: one transaction, as soon as its tasks have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from threading import Event

import tenacity
import uuid_utils

from bronze import failpoint, stopping
from bronze.config import fingerprint
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import log, store
from bronze.delta.log import State
from bronze.delta.storage import client
from bronze.errors import (
    BronzeError,
    CommitConflict,
    ConfigError,
    LakeError,
    Overtaken,
    SourceUnreachable,
    Stopped,
    TableContested,
    TableRefused,
)
from bronze.execution import budget, executors
from bronze.governance import audit, lineage, openlineage
from bronze.governance.tables import audit_log, data_lineage, quality, runs
from bronze.ingest import load, plan, quality_gate, table_run
from bronze.ingest.plan import Plan
from bronze.ingest.table_run import TableRun
from bronze.maintenance import maintain
from bronze.model.events import LoadEvent, TableFailed, TableLanded, TableProgress
from bronze.model.locations import Origin
from bronze.model.results import Failure, LateRecord, RunResult, TableResult
from bronze.model.stamp import AuditMark, RowStamp
from bronze.model.units import Unit, UnitResult
from bronze.postgres.connection import connect
from bronze.postgres.copy.snapshot import Snapshot
from bronze.tables import open_sources, selection
from bronze.tables.selection import Target

Notify = Callable[[LoadEvent], None]

_OVERTAKEN = (CommitConflict.__name__, Overtaken.__name__, TableContested.__name__)
_RELIEF_INTERVAL = 1.0


def run(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    pool: Executor | None = None,
    notify: Notify = lambda _: None,
    planned: Callable[[Sequence[TableRun]], None] = lambda _: None,
    ended: Callable[[RunResult], None] = lambda _: None,
    stop: Event | None = None,
) -> RunResult:
    """Loads tables from PostgreSQL into the lake, all tables of a source from one snapshot.

    When the connection to a source is lost, the run begins again from a new snapshot, for all its
    tables, at most max_retries times.

    Args:
        settings: the config.
        tables: the tables to load (``table`` or ``schema.table``); none means all of the config.
        pool: an executor for the units, instead of the config's engine.
        notify: is called with progress, in this thread.
        planned: is called with the tables before they are read; after a lost connection again.
        ended: is called with the result when all tables have ended, in any thread, while the run is
            recorded; its `BronzeError` is the result's ``unrecorded``.
        stop: ends the run when it is set, from any thread: reads are canceled, a commit that has
            begun is finished, and the other tables are stopped.

    Returns:
        The result of each table; a table that failed does not stop the others.

    Raises:
        ConfigError, SourceError, LakeError: no table could be loaded.
        Stopped: before the tables were known.
    """
    openlineage.check_package(settings)
    ledger, graded = lineage.LineageLedger(settings), list[TableRun]()
    try:
        with stopping.scope(stop):
            result = _run_with_retries(settings, tables, pool, notify, planned, ledger, graded)
    except BronzeError:
        # The tables that were committed before the error need their records, too.
        record_quality(settings, graded)
        ledger.write()
        openlineage.send(settings, ledger.entries)
        raise
    late, unrecorded = _record(settings, ledger, graded, partial(ended, result))
    notes = openlineage.send(settings, ledger.entries)
    if settings.maintain.auto and not (stop and stop.is_set()):
        notes += maintain.maintain_governance(settings)
    return replace(result, late=late, notes=notes, unrecorded=unrecorded)


def _record(
    settings: Settings,
    ledger: lineage.LineageLedger,
    graded: Sequence[TableRun],
    ended: Callable[[], None],
) -> tuple[tuple[LateRecord, ...], Failure | None]:
    """Records the quality, the lineage and the end of a run; where each takes round trips to an
    object store, at the same time. Returns the records of other runs, and the first failure.
    """

    def end() -> Failure | None:
        try:
            ended()
        except BronzeError as error:
            return error.failure()
        return None

    threads = 1 if client.is_local(lineage.place(settings)) else 3
    with ThreadPoolExecutor(threads) as side_by_side:
        quality = side_by_side.submit(record_quality, settings, graded)
        written = side_by_side.submit(ledger.write)
        end_recorded = side_by_side.submit(end)
        late, failure = written.result()
    return late, quality.result() or failure or end_recorded.result()


def _run_with_retries(
    settings: Settings,
    tables: Sequence[str],
    pool: Executor | None,
    notify: Notify,
    planned: Callable[[Sequence[TableRun]], None],
    ledger: lineage.LineageLedger,
    graded: list[TableRun],
) -> RunResult:
    began = time.monotonic()
    results: dict[str, TableResult] = {}
    table_runs: Sequence[TableRun] = ()

    def may_pass(error: BaseException) -> bool:
        # A source that was not reachable even once is more likely a wrong address.
        never_reached = not table_runs and isinstance(error, SourceUnreachable)
        return isinstance(error, BronzeError) and error.retry and not never_reached

    try:
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_pass),
            stop=tenacity.stop_after_attempt(settings.run.max_retries + 1),
            wait=tenacity.wait_exponential_jitter(multiplier=settings.run.retry_delay, max=60),
            sleep=stopping.sleep,
            reraise=True,
        ):
            with attempt, ExitStack() as stack:
                # Each attempt is a batch of its own: an earlier one may have committed some tables.
                table_runs = _plan_all(settings, tables, str(uuid_utils.uuid7()), stack)
                if not tables:
                    for result in _missing_tables(settings, table_runs):
                        results[result.table] = result
                        notify(_end_event(result))
                planned(table_runs)
                failpoint.reach("planned")
                overtaken = _load_all(settings, table_runs, pool, notify, ledger, results)
                graded += table_runs
                may_retry = attempt.retry_state.attempt_number <= settings.run.max_retries
                if overtaken and may_retry and not stopping.is_requested():
                    tables = overtaken
                    raise CommitConflict(f"{', '.join(overtaken)} changed during the run.")
    except Stopped:
        if not table_runs:
            raise
        for table in table_runs:
            former = results.get(table.target.full_name)
            if former is None or _is_overtaken(former):
                results[table.target.full_name] = load.stopped_result(table)
    stamp, position = table_runs[0].stamp, table_runs[0].snapshot.position
    seconds = time.monotonic() - began
    return RunResult(stamp.batch_id, position, seconds, tuple(results.values()))


def _load_all(
    settings: Settings,
    table_runs: Sequence[TableRun],
    pool: Executor | None,
    notify: Notify,
    ledger: lineage.LineageLedger,
    results: dict[str, TableResult],
) -> list[str]:
    """Loads tables, and adds their ``results`` by target; returns those that were overtaken."""
    overtaken = []
    entries = {table.entry.record.target_table: table.entry for table in table_runs}
    for result in load_tables(settings, table_runs, pool, notify):
        results[result.target] = result
        ledger.add(lineage.with_result(entries[result.target], result))
        if _is_overtaken(result):
            overtaken.append(result.table)
    return overtaken


def _is_overtaken(result: TableResult) -> bool:
    """Whether the table may land when the run begins again."""
    return result.error is not None and result.error.kind in _OVERTAKEN


def _missing_tables(settings: Settings, table_runs: Sequence[TableRun]) -> list[TableResult]:
    """The failures of tables that the config names and the source does not have."""
    errors = selection.missing_tables(settings, [table.target for table in table_runs])
    return [TableResult(e.table, "", "failed", error=e.failure()) for e in errors]


def _plan_all(
    settings: Settings, names: Sequence[str], batch_id: str, stack: ExitStack
) -> list[TableRun]:
    """Opens a snapshot of each source and plans each table, by priority, then by size."""
    place = settings.place(settings.lake.schema_, "")
    # An object store is asked while the source is.
    thread = ThreadPoolExecutor(1, thread_name_prefix="bronze lake")
    stack.callback(thread.shutdown, wait=False)
    is_remote = not client.is_local(place)
    opening = thread.submit(client.open_store, place) if is_remote else None
    relations, sources = open_sources.open_all(settings, batch_id, stack)
    targets = _without_streamed(selection.select_targets(settings, relations, names), names)
    if opening is not None:
        opening.result()
    proof = thread.submit(store.prove_writable, place)
    if not is_remote:
        proof.result()
    tables: list[TableRun] = []
    for name, source in sources.items():
        of_source = [target for target in targets if target.source == name]
        if of_source:
            snapshot = source.take_snapshot(settings, of_source, stack)
            tables += plan_tables(
                settings, source.origin, snapshot, of_source, batch_id, source.slots
            )
    proof.result()
    return sorted(tables, key=lambda table: (table.target.settings.priority, -table.size))


def _without_streamed(targets: Sequence[Target], names: Sequence[str]) -> list[Target]:
    """The tables that a run loads.

    Raises:
        ConfigError: no table is left, or a streamed one was asked for by name.
    """
    loaded = [target for target in targets if target.settings.pattern != "streaming"]
    if not loaded or (names and len(loaded) < len(targets)):
        labels = [target.label for target in targets if target not in loaded]
        raise ConfigError(
            f'`bronze run` does not load tables of the pattern "streaming": {", ".join(labels)}.',
            hint="Use `bronze stream`, or give them another pattern.",
        )
    return loaded


def plan_tables(
    settings: Settings,
    origin: Origin,
    snapshot: Snapshot,
    targets: Sequence[Target],
    batch_id: str,
    slots: int,
    adjust: Callable[[Target], Target] = lambda target: target,
    doubting: bool = False,
) -> list[TableRun]:
    """The tables of one source with their plans; a table that cannot be planned has an ``error``.

    ``adjust`` may change a table, as the snapshot shows it, before it is planned; ``doubting`` is
    as in `bronze.ingest.plan.plan_table`.
    """
    run = settings.run
    readers = budget.readers(run.memory, run.workers, slots, run.engine)
    now = datetime.now(UTC)
    relations = {relation.oid: relation for relation in snapshot.relations}
    config = fingerprint.fingerprint_of(fingerprint.imprint(settings))
    bronze_tables = _reading(settings, targets)
    audited = audit.mark(settings)
    tables = []
    for target, bronze_table in zip(targets, bronze_tables, strict=True):
        stopping.check()
        lineage_id = str(uuid_utils.uuid7())
        stamp = RowStamp(batch_id, now, origin.name, target.settings.method, lineage_id, audited)
        table_plan, refusal = None, None
        try:
            relation = open_sources.relation_in_snapshot(target, snapshot, relations)
            current = adjust(selection.with_relation(target, relation))
            table_plan = plan.plan_table(
                current,
                snapshot,
                origin,
                stamp,
                settings,
                readers,
                doubting,
                bronze_table if current.place == target.place else None,
            )
        except (TableRefused, LakeError) as error:
            refusal = error
        entry = table_run.lineage_entry(settings, config, target, stamp, snapshot, table_plan)
        tables.append(
            TableRun(target, origin, snapshot, stamp, readers, entry, table_plan, refusal)
        )
    _compare_audit_marks(settings, audited, tables)
    return tables


def _reading(settings: Settings, targets: Sequence[Target]) -> Iterator[Callable[[], State | None]]:
    """What `log.reads` yields for the Bronze tables of targets. Of an object store the governance
    tables that each run writes are read with them, for `log.recent`.
    """
    places = [target.place for target in targets]
    if all(map(client.is_local, places)):
        return log.reads(places)
    names = (audit_log.NAME, runs.NAME, data_lineage.NAME, quality.NAME)
    governance = [settings.place(GOVERNANCE, name) for name in names]
    readings = log.reads([*governance, *places])
    for _ in governance:
        # What writes into one that cannot be read reports it.
        with suppress(BronzeError):
            next(readings)()
    return readings


def _compare_audit_marks(
    settings: Settings, audited: AuditMark | None, tables: Sequence[TableRun]
) -> None:
    """Adds a note to the first table where Bronze tables name records that the audit log lacks."""
    states = {
        table.target.full_name: table.plan.state
        for table in tables
        if table.plan and table.plan.state
    }
    notes: tuple[str, ...] = ()
    if audited is not None:
        # An audit log that cannot be read fails the run's own record, which reports it.
        with suppress(BronzeError):
            notes = audit.records_lost(settings, audited, states)
    for table in tables:
        if notes and table.plan:
            table.plan = replace(table.plan, notes=(*table.plan.notes, *notes))
            return


def load_tables(
    settings: Settings,
    tables: Sequence[TableRun],
    pool: Executor | None,
    notify: Notify,
) -> Iterator[TableResult]:
    """Loads the tables side by side; yields the result of each as soon as it has ended."""
    limit = min(table.readers for table in tables)
    read: list[tuple[Plan | None, dict[int, UnitResult]]] = [(None, {}) for _ in tables]

    def report(number: int, outcome: object) -> None:
        table = tables[number]
        if isinstance(outcome, UnitResult) and table.plan:
            if read[number][0] is not table.plan:
                # A new plan that reads all rows of the table has other units.
                read[number] = (table.plan, {})
            results = read[number][1]
            results[outcome.unit] = outcome
            notify(_progress(table.target.label, table.plan.units, results))

    try:
        with worker_pool(settings, pool, limit, {table.origin for table in tables}) as workers:
            loads = [load.load_table(settings, table) for table in tables]
            relieve = lock_relief((table.snapshot, table.origin) for table in tables)
            priorities = [table.target.settings.priority for table in tables]
            for result in executors.drive(workers, loads, limit, report, relieve, priorities):
                notify(_end_event(result))
                yield result
    except BaseException:
        for table in tables:
            load.discard(table.target.place, table.stamp.batch_id)
        raise


def _end_event(result: TableResult) -> LoadEvent:
    return TableFailed(result.table, result.error) if result.error else TableLanded(result)


def _progress(table: str, units: Sequence[Unit], read: Mapping[int, UnitResult]) -> TableProgress:
    """The progress of a table; ``read`` are the results of its units so far, by number."""
    size = sum(unit.estimate for unit in units)
    done = sum(units[number].estimate for number in read)
    rows = sum(part.rows for number, part in read.items() if units[number].counts_rows)
    return TableProgress(table, rows, done / size if size else 0.0)


def lock_relief(held: Iterable[tuple[Snapshot, Origin]]) -> Callable[[], None]:
    """A function to call repeatedly while snapshots are open: see `Snapshot.give_way`. Once the
    work is asked to stop, it cancels the reads.
    """
    holders = {id(opened.holder): (opened, origin) for opened, origin in held}
    called = time.monotonic()

    def relieve() -> None:
        nonlocal called
        if stopping.is_requested():
            for opened, origin in holders.values():
                opened.cancel_reads(origin)
            return
        if time.monotonic() - called < _RELIEF_INTERVAL:
            return
        called = time.monotonic()
        for opened, origin in holders.values():
            opened.give_way(origin)

    return relieve


def record_quality(settings: Settings, tables: Sequence[TableRun]) -> Failure | None:
    """Records the quality of tables; returns the failure where that is not possible, as the tables
    are committed already.
    """
    try:
        with stopping.unstoppable():
            quality_gate.record_quality(settings, tables)
    except BronzeError as error:
        return error.failure()
    return None


@contextmanager
def worker_pool(
    settings: Settings, pool: Executor | None, limit: int, origins: Collection[Origin]
) -> Iterator[Executor]:
    """The executor of the units. An error inside the block cancels the running queries first."""
    run = settings.run
    context = nullcontext(pool) if pool else executors.executor(run.engine, limit, run.memory)
    with context as workers:
        try:
            yield workers
        except BaseException:
            for origin in origins:
                with suppress(BronzeError):
                    connect.cancel_queries(origin)
            raise
