"""The quality of each Bronze table: NULLs, duplicates, schema compliance, freshness, score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from bronze.config.sections.quality import QualitySettings
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.log import State
from bronze.errors import BronzeError, ConfigError
from bronze.operate import status
from bronze.operate.tables import catalog
from bronze.operate.validation import table_rows
from bronze.operate.validation.results import CheckResult, Measure
from bronze.operate.view import TableView
from bronze.printable import count
from bronze.quality import report

NULL_SHARE = 0.05
"""The share of NULLs that a table stays below where the config has no ``null_share``."""
_COMPLIANCE = "schema_compliance"
_NO_TABLE = "There is no Bronze table yet."


def checks(settings: Settings, tables: Sequence[TableView]) -> Iterator[CheckResult]:
    """The checks of all tables."""
    compliance = _compliance(settings, [table.target for table in tables])
    for table in tables:
        try:
            state = state_of(settings, table)
            reason: str | BronzeError = _NO_TABLE
        except BronzeError as error:
            state, reason = None, error
        yield from _rows(settings, table, state, reason)
        yield _compliance_result(settings, table, compliance)
        yield _freshness(table)
        yield from _last_run(settings, table)


def state_of(settings: Settings, table: TableView) -> State | None:
    """The Bronze table in the lake, None if it was never loaded.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    schema, _, name = table.target.partition(".")
    return log.read(settings.place(schema, name))


def tables_of(settings: Settings, names: Sequence[str], now: datetime) -> tuple[TableView, ...]:
    """The tables to validate, as `bronze.operate.status` knows them.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    found = status.status_of(settings, names, now)
    return found.tables or found.view.tables


def _demands(settings: Settings, table: TableView) -> QualitySettings:
    """The quality settings of a table."""
    known = catalog.recorded_table(settings, table.source, table.table)
    return settings.quality_of(known.settings) if known else settings.quality


def _rows(
    settings: Settings, table: TableView, state: State | None, reason: str | BronzeError
) -> Iterator[CheckResult]:
    """NULLs and duplicates, counted in the table."""
    demanded = _demands(settings, table)
    share = NULL_SHARE if demanded.null_share is None else demanded.null_share
    nulls = Measure("quality", "null share", "share", "below", share)
    duplicates = Measure("quality", "duplicates", "share", "below", demanded.duplicates)
    try:
        rows = table_rows.measure(settings, state, table.target) if state else None
    except BronzeError as error:
        rows, reason = None, error
    if rows is None:
        yield nulls.unknown(table.target, reason)
        yield duplicates.unknown(table.target, reason)
        return
    emptiest = f"; {rows.emptiest}" if rows.emptiest else ""
    yield nulls.result(
        table.target,
        rows.null_share,
        f"{count(sum(rows.nulls.values()), 'NULL')} in {count(rows.rows, 'row')}{emptiest}",
        "If the source means these NULLs, allow them: quality = { null_share = … } of the table.",
    )
    text = f"{rows.duplicates:,} of {count(rows.rows, 'row')} have the key of another row"
    if rows.duplicates <= demanded.allow_rows:
        yield duplicates.allowed(table.target, rows.duplicate_share, text)
        return
    yield duplicates.result(
        table.target, rows.duplicate_share, text, "`bronze verify --repair` compares and reloads."
    )


def _compliance(settings: Settings, targets: Sequence[str]) -> dict[str, float | None]:
    """The share of rows without a rejected value, by Bronze table, of the last run of each; empty
    where no run has recorded figures.
    """
    try:
        known = report.quality(settings)
    except ConfigError:
        return {}
    return {
        table.target: figure.measured
        for table in known.tables
        for figure in table.figures
        if figure.rule == _COMPLIANCE and table.target in targets
    }


def _compliance_result(
    settings: Settings, table: TableView, compliance: dict[str, float | None]
) -> CheckResult:
    demanded = _demands(settings, table)
    measure = Measure(
        "quality", "schema compliance", "share", "at least", demanded.schema_compliance
    )
    share = compliance.get(table.target)
    if share is None:
        return measure.unknown(table.target, "No run has recorded quality figures of this table.")
    return measure.result(
        table.target,
        share,
        "rows of the last run whose values all fit the column contract",
        "governance.rejected_values has the values; `bronze check` the columns.",
    )


def _freshness(table: TableView) -> CheckResult:
    measure = Measure("quality", "freshness", "seconds", "below", table.sla)
    if table.age is None:
        return measure.unknown(table.target, table.why or "Nothing is known of its runs.")
    shows = f"it shows {table.as_of:%F %T} UTC" if table.as_of else "it was never loaded"
    return measure.result(
        table.target,
        table.age,
        f"overdue for {table.age:.0f} s; {shows}",
        "`bronze status` says why; `bronze run` loads it.",
    )


def _last_run(settings: Settings, table: TableView) -> Iterator[CheckResult]:
    """The score and the share of failed records of the last run that read rows; streamed tables
    have no runs.
    """
    limits = settings.alerts
    score = Measure("quality", "score", "score", "at least", limits.quality.less_than)
    failed = Measure("quality", "failed records", "share", "at most", limits.failed.more_than)
    if table.score is not None:
        hint = "`bronze quality` has the rules that rows break."
        yield score.result(table.target, table.score, "average of the rows of the last run", hint)
    if table.failed is not None:
        yield failed.result(
            table.target,
            table.failed,
            "rows of the last run that were quarantined or have a rejected value",
            "`bronze runbook failed_records` has the steps.",
        )
