"""What commands record in ``governance.runs``: the outcomes of tables, from their results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError, Stopped
from bronze.governance import run_log
from bronze.governance.run_log import Cause, Outcome, RunLog, RunTable
from bronze.governance.tables.runs import Command
from bronze.model.events import RunPlanned
from bronze.model.results import Failure, MaintainedTable, TableResult

if TYPE_CHECKING:
    from bronze.ingest.table_run import TableRun
    from bronze.verify.results import VerifiedTable

_FIGURES = (
    "rows_read",
    "inserted",
    "updated",
    "deleted",
    "rejected",
    "quarantined",
    "anomalies",
    "score",
    "files",
    "bytes",
    "as_of",
)


class _Result(Protocol):
    @property
    def tables(self) -> Iterable[Any]: ...

    @property
    def unrecorded(self) -> Failure | None: ...


R = TypeVar("R", bound=_Result)


def logged(
    settings: Settings,
    command: Command,
    cause: Cause | None,
    work: Callable[[RunLog], R],
    outcome_of: Callable[[Any], Outcome],
) -> Callable[[], R]:
    """The work of a command with its records in ``governance.runs``.

    If they cannot be written at the end, the result says so. Errors of config and arguments are
    not recorded.

    Args:
        settings: the config.
        command: the command.
        cause: what began it; None is a command.
        work: does it, and gives the log the tables that it works on.
        outcome_of: the outcome of a table of the result.
    """

    def run() -> R:
        log = run_log.begin(settings, command, cause or Cause())
        try:
            done = work(log)
        except ConfigError:
            raise
        except BaseException as error:
            log.fail(error)
            raise
        if log.is_ended:
            return done
        try:
            log.end([outcome_of(table) for table in done.tables])
        except BronzeError as error:
            return replace(done, unrecorded=done.unrecorded or error.failure())  # type: ignore[type-var]
        return done

    return run


def plan(log: RunLog, tables: Sequence[TableRun]) -> None:
    """Records that the tables of a run begin."""
    targets = [table.target for table in tables]
    begun = [RunTable(t.source, t.label, t.full_name, t.settings.pattern) for t in targets]
    log.plan(tables[0].stamp.batch_id, begun)


def of_loaded(table: TableResult) -> Outcome:
    """The outcome of a table that was loaded."""
    figures = {name: getattr(table, name) for name in _FIGURES}
    figures["stages"] = json.dumps(dict(table.stages))
    return Outcome(table.table, table.target, table.status, table.seconds, table.error, figures)


def of_verified(table: VerifiedTable) -> Outcome:
    """The outcome of a table that was verified: as rows read those of the source, at rest those of
    Bronze; and how it differs as its message.
    """
    read = table.source_rows if table.source_rows >= 0 else table.bronze_rows
    figures: dict[str, Any] = {"rows_read": read}
    if table.status == "differs":
        figures["error_message"] = _difference(table)
    return Outcome(table.table, table.target, table.status, table.seconds, table.error, figures)


def _difference(table: VerifiedTable) -> str:
    names = ("missing", "extra", "different", "altered")
    counts = [f"{getattr(table, name):,} {name}" for name in names if getattr(table, name)]
    parts = [f"Rows: {', '.join(counts)}"] if counts else []
    parts += [f"Damaged files: {len(table.files):,}"] if table.files else []
    parts += [*table.columns, *table.foreign]
    return f"{'; '.join(parts) or 'There is no Bronze table'}."


def of_maintained(table: MaintainedTable) -> Outcome:
    """The outcome of a table that was maintained: as bytes those that were rewritten."""
    stopped = table.error is not None and table.error.kind == Stopped.__name__
    return Outcome(
        "",
        table.target,
        "stopped" if stopped else "failed" if table.error else "done",
        table.seconds,
        table.error,
        {"bytes": table.rewritten},
    )


def plan_event(table_runs: Sequence[TableRun]) -> RunPlanned:
    """The event of a run that has planned its tables."""
    relations = [table.plan.target.relation for table in table_runs if table.plan]
    return RunPlanned(
        table_runs[0].stamp.batch_id if table_runs else "",
        tuple(table.target.label for table in table_runs),
        sum(max(relation.rows, 0) for relation in relations),
    )
