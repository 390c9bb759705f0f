"""How long the last run of each table took, and how long a small read of it takes now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.operate.validation import quality_checks, table_rows
from bronze.operate.validation.results import CheckResult, Measure
from bronze.operate.view import TableView


def checks(
    settings: Settings, tables: Sequence[TableView], read_within: float
) -> Iterator[CheckResult]:
    """The checks of all tables; ``read_within`` is the limit of a small read, in seconds."""
    duration = Measure(
        "performance", "duration", "seconds", "at most", settings.alerts.duration.more_than
    )
    read = Measure("performance", "small read", "seconds", "below", read_within)
    for table in tables:
        # A streamed table has no runs: its lag is its freshness.
        if table.pattern != "streaming":
            yield _duration(duration, table)
        yield _read(settings, read, table)


def _duration(measure: Measure, table: TableView) -> CheckResult:
    last = table.last
    if last is None or last.seconds is None:
        return measure.unknown(table.target, "No run of it has ended.")
    return measure.result(
        table.target,
        last.seconds,
        f"the run that ended at {last.ended or last.began:%F %T} UTC",
        "`bronze runbook duration` has the steps.",
    )


def _read(settings: Settings, measure: Measure, table: TableView) -> CheckResult:
    try:
        if quality_checks.state_of(settings, table) is None:
            return measure.unknown(table.target, "There is no Bronze table yet.")
        seconds = table_rows.seconds_to_read(settings, table.target)
    except BronzeError as error:
        return measure.unknown(table.target, error)
    return measure.result(
        table.target,
        seconds,
        f"the first {table_rows.SMALL_READ:,} active rows, with the table's log",
        "`bronze maintain` joins small files.",
    )
