"""The commands that change or prove something, with their records in ``governance.audit_log``.

What a command did is recorded when it ends, in one commit; that a stream begins is a record of its
own. A command that was refused for its config or arguments has touched nothing, and leaves none.
When the record of what was done cannot be written, the result says so: the data stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, replace
from threading import Event as Stop
from typing import Any, TypeVar

from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError
from bronze.governance import audit
from bronze.governance.audit import Event
from bronze.ingest import pipeline
from bronze.maintenance import maintain as maintenance
from bronze.model.results import Late, MaintainResult, RunResult, StreamResult, TableResult
from bronze.protection import erasure
from bronze.protection.erasure import Forgotten
from bronze.verify import verify as proof
from bronze.verify.results import VerifyResult

R = TypeVar("R", RunResult, StreamResult, MaintainResult, VerifyResult, Forgotten)


def run(
    settings: Settings, tables: Sequence[str], *, pool: Executor | None, notify: pipeline.Notify
) -> RunResult:
    """`bronze.ingest.pipeline.run`."""

    def events(done: RunResult) -> list[Event]:
        details = {
            "position": done.position,
            "seconds": round(done.seconds, 3),
            **_asked(tables),
            **_summary(done.tables),
        }
        own = Event("run", "", _result(done), details, done.batch_id)
        return [*_lately(done.late), *_schemas(done.tables, done.batch_id), own]

    work = lambda: pipeline.run(settings, tables, pool=pool, notify=notify)  # noqa: E731
    return _recorded(settings, "run", tables, work, events)


def follow(
    settings: Settings,
    tables: Sequence[str],
    *,
    until_caught_up: bool,
    stop: Stop | None,
    notify: stream.Notify,
    copied: pipeline.Notify,
) -> StreamResult:
    """`bronze.cdc.stream.stream`."""
    began: list[Event] = []

    def told(step: stream.Step) -> None:
        if not began:
            began.append(Event("stream", "", "started", _asked(tables)))
            # A lake that cannot be written is what the stream itself waits for.
            with suppress(BronzeError):
                audit.enter(settings, began)
        notify(step)

    def events(done: StreamResult) -> list[Event]:
        details = {
            "position": done.position,
            "seconds": round(done.seconds, 3),
            "transactions": done.transactions,
            **_asked(tables),
            **_summary(done.tables),
        }
        own = Event("stream", done.stream, _result(done), details)
        return [*_lately(done.late), *_schemas(done.tables, ""), own]

    def work() -> StreamResult:
        return stream.stream(
            settings,
            tables,
            until_caught_up=until_caught_up,
            stop=stop,
            notify=told,
            copied=copied,
        )

    return _recorded(settings, "stream", tables, work, events)


def drop(settings: Settings, tables: Sequence[str]) -> str:
    """`bronze.cdc.stream.drop`.

    Raises:
        LakeError, LakeUnreachable: it is done, and cannot be recorded.
    """
    dropped = stream.drop(settings, tables)
    audit.record(settings, "drop stream", dropped, "succeeded")
    return dropped


def maintain(
    settings: Settings, tables: Sequence[str], *, pool: Executor | None, notify: maintenance.Notify
) -> MaintainResult:
    """`bronze.maintenance.maintain.maintain`."""

    def events(done: MaintainResult) -> list[Event]:
        failed = {t.target: t.error.kind for t in done.tables if t.error}
        details = {
            "seconds": round(done.seconds, 3),
            **_asked(tables),
            "tables": len(done.tables),
            "rewritten_bytes": sum(table.rewritten for table in done.tables),
            "expired_files": sum(table.expired_files for table in done.tables),
            **({"failed": failed} if failed else {}),
        }
        return [Event("maintain", "", _result(done), details)]

    work = lambda: maintenance.maintain(settings, tables, pool=pool, notify=notify)  # noqa: E731
    return _recorded(settings, "maintain", tables, work, events)


def verify(
    settings: Settings,
    tables: Sequence[str],
    *,
    repair: bool,
    at_rest: bool,
    trust_hashes: bool,
    pool: Executor | None,
    notify: pipeline.Notify,
) -> VerifyResult:
    """`bronze.verify.verify.verify`."""

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
            **_asked(tables),
            **({"at_rest": True} if at_rest else {}),
            **({"trust_hashes": True} if trust_hashes else {}),
            **({"repair": True} if repair else {}),
            "rows": sum(t.bronze_rows for t in done.tables),
            "files": sum(t.bronze_files for t in done.tables),
            "equal": sum(t.status == "equal" for t in done.tables),
            **({"differing": differing} if differing else {}),
            **({"failed": failed} if failed else {}),
        }
        return [Event("verify", "", _result(done), details)]

    def work() -> VerifyResult:
        return proof.verify(
            settings,
            tables,
            repair=repair,
            at_rest=at_rest,
            trust_hashes=trust_hashes,
            pool=pool,
            notify=notify,
        )

    return _recorded(settings, "verify", tables, work, events)


def forget(settings: Settings, table: str, key: Mapping[str, str], *, ask: bool) -> Forgotten:
    """`bronze.protection.erasure.forget`. The values of the key are not recorded."""

    def events(done: Forgotten) -> list[Event]:
        details = {
            "by": ", ".join(key),
            "rows": done.rows,
            "records": done.records,
            "left": done.left,
            "version": done.version,
            **({"source": done.source.table} if done.source else {}),
            **({"looked_at": asdict(done.before)} if done.before else {}),
        }
        return [Event("forget", done.target, _result(done), details)]

    work = lambda: erasure.forget(settings, table, key, ask=ask)  # noqa: E731
    return _recorded(settings, "forget", [table], work, events)


def old_versions(settings: Settings, table: str) -> Forgotten:
    """`bronze.protection.erasure.old_versions`."""

    def events(done: Forgotten) -> list[Event]:
        details = {"old_versions": True, "files": done.files, "version": done.version}
        return [Event("forget", done.target, _result(done), details)]

    work = lambda: erasure.old_versions(settings, table)  # noqa: E731
    return _recorded(settings, "forget", [table], work, events)


def _recorded(
    settings: Settings,
    action: str,
    tables: Sequence[str],
    work: Callable[[], R],
    events: Callable[[R], Sequence[Event]],
) -> R:
    try:
        done = work()
    except ConfigError:
        raise
    except BaseException as error:
        with suppress(BronzeError):
            audit.enter(settings, [_failed(action, tables, error)])
        raise
    try:
        audit.enter(settings, events(done))
    except BronzeError as error:
        return replace(done, unrecorded=error.failure())
    return done


def _failed(action: str, tables: Sequence[str], error: BaseException) -> Event:
    kind = type(error).__name__
    # An interrupt within polars comes out of it as a panic.
    interrupted = "KeyboardInterrupt" in f"{kind} {error}"
    said = {"message": error.message} if isinstance(error, BronzeError) else {}
    result = "interrupted" if interrupted else "failed"
    return Event(action, "", result, {"error": kind, **said, **_asked(tables)})


def _result(done: R) -> str:
    return "incomplete" if done.exit_code else "succeeded"


def _asked(tables: Sequence[str]) -> dict[str, Any]:
    return {"asked": list(tables)} if tables else {}


def _summary(tables: Iterable[TableResult]) -> dict[str, Any]:
    """What a run did in all; what it did to each table is in ``governance.data_lineage``."""
    results = list(tables)
    failed = {one.table: one.error.kind for one in results if one.error}
    counts = {
        status: sum(one.status == status for one in results) for status in ("landed", "unchanged")
    }
    sums = {
        name: sum(getattr(one, name) for one in results)
        for name in ("rows_read", "inserted", "updated", "deleted", "rejected")
    }
    return {**counts, **sums, **({"failed": failed} if failed else {})}


def _schemas(tables: Iterable[TableResult], batch_id: str) -> list[Event]:
    return [
        Event("schema", one.table, "changed", {"changes": one.schema_changes}, batch_id)
        for one in tables
        if one.schema_changes
    ]


def _lately(late: Iterable[Late]) -> list[Event]:
    """What was done by runs that died before they could tell of it."""
    events = []
    for one in late:
        details: dict[str, Any] = {"target": one.target, "version": one.version}
        events.append(Event("run", one.table, "died", details, one.batch_id))
        if one.schema_changes:
            details = {"changes": one.schema_changes}
            events.append(Event("schema", one.table, "changed", details, one.batch_id))
    return events
