"""The commands that change or verify data, with their records in ``governance.audit_log``.

A command is recorded when it ends, in one commit; a stream also when it starts. A command that was
refused because of its config or arguments changed nothing, and is not recorded. If the record
cannot be written, the result says so, and the data stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, replace
from threading import Event as Stop
from typing import TYPE_CHECKING, Any, TypeVar

from bronze.api import drift, run_records
from bronze.api.traces import spans
from bronze.backup.recovery import takeover
from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError, Stopped
from bronze.execution import permits as shared_permits
from bronze.execution.memory_shares import Share
from bronze.execution.permits import Permits
from bronze.governance import audit
from bronze.governance.audit import Event
from bronze.governance.run_log import Cause, RunLog
from bronze.model.events import LoadEvent, Notice, RunPlanned, StreamEvent, TableLanded
from bronze.model.results import (
    EXIT_CODES,
    LateRecord,
    MaintainedTable,
    MaintainResult,
    RunResult,
    StreamResult,
    TableResult,
)

# Each command imports only what it needs: all together take half a second.
if TYPE_CHECKING:
    from bronze.cdc import stream
    from bronze.ingest import pipeline
    from bronze.ingest.table_run import TableRun
    from bronze.maintenance import maintain as maintenance
    from bronze.protection.erasure_result import ErasureResult
    from bronze.unity.results import RegisterResult
    from bronze.verify.confirmation import Refresh
    from bronze.verify.results import VerifyResult

R = TypeVar(
    "R",
    RunResult,
    StreamResult,
    MaintainResult,
    "VerifyResult",
    "ErasureResult",
    "RegisterResult",
)


def run(
    settings: Settings,
    tables: Sequence[str],
    *,
    pool: Executor | None,
    notify: pipeline.Notify,
    cause: Cause | None = None,
    stop: Stop | None = None,
    permits: Permits | None = None,
    share: Share | None = None,
    planned: Callable[[RunPlanned], None] = lambda _: None,
) -> RunResult:
    """`bronze.ingest.pipeline.run`, with its records in ``governance.runs``; its tasks share
    ``permits`` with those of others, and keep within its ``share`` of the memory. ``planned`` is
    called before tables are read, after a lost connection again.
    """
    from bronze.ingest import pipeline

    settings = _within_share(settings, share)

    def events(done: RunResult) -> list[Event]:
        details = {
            "position": done.position,
            "seconds": round(done.seconds, 3),
            **arguments(tables),
            **_summary(done.tables),
        }
        event = Event("run", "", outcome(done), details, done.batch_id)
        return [*_late_events(done.late), *_schema_events(done.tables, done.batch_id), event]

    def work(log: RunLog) -> RunResult:
        def remember(event: LoadEvent) -> None:
            if isinstance(event, TableLanded):
                log.note(run_records.of_loaded(event.result))
            trace.note(event)
            notify(event)

        def record_plan(table_runs: Sequence[TableRun]) -> None:
            run_records.plan(log, table_runs)
            trace.plan(len(table_runs))
            planned(run_records.plan_event(table_runs))

        with shared_permits.sharing(permits):
            return pipeline.run(
                settings,
                tables,
                pool=pool,
                notify=remember,
                planned=record_plan,
                ended=lambda done: log.end(map(run_records.of_loaded, done.tables)),
                stop=stop,
            )

    notes: list[str] = []
    with spans.run_trace(notes) as trace:
        logged = run_records.logged(settings, "run", cause, work, run_records.of_loaded)
        done = run_and_record(settings, "run", tables, logged, events)
        trace.end(done)
    done = replace(done, notes=(*done.notes, *notes))
    if not any(catalog.after_runs for catalog in settings.catalog.values()):
        return done
    from bronze.api import registration

    return registration.after_run(settings, done, stop)


def follow(
    settings: Settings,
    tables: Sequence[str],
    *,
    until_caught_up: bool,
    stop: Stop | None,
    notify: stream.Notify,
    copied: pipeline.Notify,
    share: Share | None = None,
) -> StreamResult:
    """`bronze.cdc.stream.stream`, within its ``share`` of the memory."""
    from bronze.cdc import stream

    settings = _within_share(settings, share)
    started: list[Event] = []

    def record_start(event: StreamEvent) -> None:
        if not started:
            details = {**arguments(tables), **drift.config_version(settings)}
            started.append(Event("stream", "", "started", details))
            # If the lake cannot be written, the stream itself reports it and waits.
            with suppress(BronzeError):
                audit.record_events(settings, started)
            for note in trace.notes:
                notify(Notice(note))
        trace.note(event)
        notify(event)

    def events(done: StreamResult) -> list[Event]:
        details = {
            "position": done.position,
            "seconds": round(done.seconds, 3),
            "transactions": done.transactions,
            **arguments(tables),
            **_summary(done.tables),
        }
        event = Event("stream", done.stream, outcome(done), details)
        return [*_late_events(done.late), *_schema_events(done.tables, ""), event]

    def work() -> StreamResult:
        return stream.stream(
            settings,
            tables,
            until_caught_up=until_caught_up,
            stop=stop,
            notify=record_start,
            copied=copied,
        )

    with spans.stream_trace() as trace:
        return run_and_record(settings, "stream", tables, work, events)


def drop(settings: Settings, tables: Sequence[str]) -> str:
    """`bronze.cdc.stream.drop`.

    Raises:
        LakeError, LakeUnreachable: slot and publication are dropped, but it cannot be recorded.
    """
    from bronze.cdc import stream

    dropped = stream.drop(settings, tables)
    audit.record(settings, "drop stream", dropped, "succeeded")
    return dropped


def maintain(
    settings: Settings,
    tables: Sequence[str],
    *,
    upgrade: bool = False,
    pool: Executor | None,
    notify: maintenance.Notify,
    cause: Cause | None = None,
    stop: Stop | None = None,
    permits: Permits | None = None,
    share: Share | None = None,
) -> MaintainResult:
    """`bronze.maintenance.maintain.maintain`, with its records in ``governance.runs``; ``permits``
    and ``share`` are as for a run.
    """
    from bronze.maintenance import maintain as maintenance

    settings = _within_share(settings, share)

    def events(done: MaintainResult) -> list[Event]:
        failed = {t.target: t.error.kind for t in done.tables if t.error}
        upgraded = [table.target for table in done.tables if table.upgraded]
        details = {
            "seconds": round(done.seconds, 3),
            **arguments(tables),
            "tables": len(done.tables),
            **({"upgraded": upgraded} if upgraded else {}),
            "rewritten_bytes": sum(table.rewritten for table in done.tables),
            "expired_files": sum(table.expired_files for table in done.tables),
            **({"failed": failed} if failed else {}),
        }
        return [Event("maintain", "", outcome(done), details)]

    def work(log: RunLog) -> MaintainResult:
        def remember(table: MaintainedTable) -> None:
            log.note(run_records.of_maintained(table))
            notify(table)

        with shared_permits.sharing(permits):
            return maintenance.maintain(
                settings,
                tables,
                upgrade=upgrade,
                pool=pool,
                notify=remember,
                planned=lambda planned: log.plan("", planned),
                stop=stop,
            )

    logged = run_records.logged(settings, "maintain", cause, work, run_records.of_maintained)
    return run_and_record(settings, "maintain", tables, logged, events)


def verify(
    settings: Settings,
    tables: Sequence[str],
    *,
    repair: bool,
    at_rest: bool,
    trust_hashes: bool,
    pool: Executor | None,
    notify: pipeline.Notify,
    cause: Cause | None = None,
    stop: Stop | None = None,
    permits: Permits | None = None,
    share: Share | None = None,
    refresh: Refresh | None = None,
) -> VerifyResult:
    """`bronze.verify.verify.verify`, with its records in ``governance.runs``; ``permits`` and
    ``share`` are as for a run.
    """
    from bronze.verify import verify as proof

    settings = _within_share(settings, share)

    def events(done: VerifyResult) -> list[Event]:
        counts = ("missing", "extra", "different", "altered", "repaired")
        differing = {
            t.target: {name: getattr(t, name) for name in counts if getattr(t, name)}
            for t in done.tables
            if t.status == "differs" or t.repaired
        }
        failed = {t.target: t.error.kind for t in done.tables if t.error}
        details = {
            "seconds": round(done.seconds, 3),
            **arguments(tables),
            **({"at_rest": True} if at_rest else {}),
            **({"trust_hashes": True} if trust_hashes else {}),
            **({"repair": True} if repair else {}),
            "rows": sum(t.bronze_rows for t in done.tables),
            "files": sum(t.bronze_files for t in done.tables),
            "equal": sum(t.status == "equal" for t in done.tables),
            **({"differing": differing} if differing else {}),
            **({"failed": failed} if failed else {}),
        }
        return [Event("verify", "", outcome(done), details)]

    def work(log: RunLog) -> VerifyResult:
        with shared_permits.sharing(permits):
            return proof.verify(
                settings,
                tables,
                repair=repair,
                at_rest=at_rest,
                trust_hashes=trust_hashes,
                pool=pool,
                notify=notify,
                planned=lambda planned: log.plan("", planned),
                stop=stop,
                refresh=refresh,
            )

    logged = run_records.logged(settings, "verify", cause, work, run_records.of_verified)
    return run_and_record(settings, "verify", tables, logged, events)


def forget(
    settings: Settings, table: str, key: Mapping[str, str], *, ask: bool, dry_run: bool = False
) -> ErasureResult:
    """`bronze.protection.erasure.forget`. The values of the key are not recorded."""
    from bronze.protection import erasure

    def events(done: ErasureResult) -> list[Event]:
        details = {
            "by": ", ".join(key),
            "rows": done.rows,
            "records": done.records,
            "left": done.left,
            "version": done.version,
            **({"dry_run": True} if dry_run else {}),
            **({"source": done.source.table} if done.source else {}),
            **({"looked_at": asdict(done.before)} if done.before else {}),
        }
        return [Event("forget", done.target, outcome(done), details)]

    work = lambda: erasure.forget(settings, table, key, ask=ask, dry_run=dry_run)  # noqa: E731
    return run_and_record(settings, "forget", [table], work, events, is_final=True)


def old_versions(settings: Settings, table: str) -> ErasureResult:
    """`bronze.protection.old_versions.delete_old_versions`."""
    from bronze.protection.old_versions import delete_old_versions

    def events(done: ErasureResult) -> list[Event]:
        details = {"old_versions": True, "files": done.files, "version": done.version}
        return [Event("forget", done.target, outcome(done), details)]

    work = lambda: delete_old_versions(settings, table)  # noqa: E731
    return run_and_record(settings, "forget", [table], work, events, is_final=True)


def _within_share(settings: Settings, share: Share | None) -> Settings:
    """The config of a command that has a share of the process's memory, or all of it."""
    return settings.with_memory(share.memory, share.parts) if share else settings


def run_and_record(
    settings: Settings,
    action: str,
    tables: Sequence[str],
    work: Callable[[], R],
    events: Callable[[R], Sequence[Event]],
    *,
    is_final: bool = False,
) -> R:
    """The result of a command, after it was recorded.

    Args:
        settings: the config.
        action: the command.
        tables: what it was called with.
        work: does it.
        events: the records of a result.
        is_final: whether what it does cannot be undone: then it does nothing if the audit log
            cannot be read, as it could not be recorded.

    Raises:
        BaseException: that of ``work``, which is recorded unless it is a `ConfigError`.
    """
    audit.refuse_newer_lake(settings, is_needed=is_final)
    takeover.take_over(settings, action)
    try:
        done = work()
    except ConfigError:
        raise
    except BaseException as error:
        with suppress(BronzeError):
            failed = _failure_event(action, tables, error)
            audit.record_events(settings, _with_config_version(settings, action, [failed]))
        raise
    try:
        audit.record_events(settings, _with_config_version(settings, action, events(done)))
    except BronzeError as error:
        return replace(done, unrecorded=error.failure())
    return done


def _with_config_version(settings: Settings, action: str, events: Sequence[Event]) -> list[Event]:
    """The events, those of the command itself with the version of the config."""
    version = drift.config_version(settings)
    return [
        replace(event, details={**event.details, **version}) if event.action == action else event
        for event in events
    ]


def _failure_event(action: str, tables: Sequence[str], error: BaseException) -> Event:
    kind = type(error).__name__
    # polars raises an interrupt as a panic.
    interrupted = isinstance(error, Stopped) or "KeyboardInterrupt" in f"{kind} {error}"
    message = {"message": error.message} if isinstance(error, BronzeError) else {}
    result = "interrupted" if interrupted else "failed"
    return Event(action, "", result, {"error": kind, **message, **arguments(tables)})


def outcome(done: R) -> str:
    """The result of a command in a word."""
    if done.exit_code == EXIT_CODES[Stopped.__name__]:
        return "interrupted"
    return "incomplete" if done.exit_code else "succeeded"


def arguments(tables: Sequence[str]) -> dict[str, Any]:
    """The tables that the command was called with, if any."""
    return {"asked": list(tables)} if tables else {}


def _summary(tables: Iterable[TableResult]) -> dict[str, Any]:
    """The totals of a run; the figures of each table are in ``governance.data_lineage``."""
    results = list(tables)
    failed = {result.table: result.error.kind for result in results if result.error}
    counts = {
        status: sum(result.status == status for result in results)
        for status in ("landed", "unchanged")
    }
    sums = {
        name: sum(getattr(result, name) for result in results)
        for name in ("rows_read", "inserted", "updated", "deleted", "rejected")
    }
    return {**counts, **sums, **({"failed": failed} if failed else {})}


def _schema_events(tables: Iterable[TableResult], batch_id: str) -> list[Event]:
    """One event for each table with changed columns."""
    return [
        Event("schema", result.table, "changed", {"changes": result.schema_changes}, batch_id)
        for result in tables
        if result.schema_changes
    ]


def _late_events(late: Iterable[LateRecord]) -> list[Event]:
    """The events of earlier runs that died before they were recorded."""
    events = []
    for run in late:
        details: dict[str, Any] = {"target": run.target, "version": run.version}
        events.append(Event("run", run.table, "died", details, run.batch_id))
        if run.schema_changes:
            details = {"changes": run.schema_changes}
            events.append(Event("schema", run.table, "changed", details, run.batch_id))
    return events
