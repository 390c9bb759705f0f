"""What `bronze status` prints: the first page as text, and that of a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from bronze.governance.tables.runs import RunRecord
    from bronze.operate.alerts.life import Alert
    from bronze.operate.status import Status
    from bronze.operate.view import Metric, TableView, View

_MOST_TABLES = 50
_NAME = 22
_RED, _YELLOW = "red", "yellow"
_BAD = ("late", "quarantined", "failed")
_NONE = "-"


class StatusPage:
    """Prints a view; times are in the zone of the config."""

    def __init__(self, view: View, zone: str) -> None:
        self._view, self._zone = view, zone

    def show(self, found: Status) -> None:
        """Prints the first page, or the pages of tables."""
        from bronze.cli.output import print_line

        if found.tables:
            for number, table in enumerate(found.tables):
                if number:
                    print_line("")
                self._table(table, found.runs[table.key])
            return
        view = self._view
        print_line(view.sentence, None if view.is_well else _RED)
        print_line("")
        for metric in view.metrics:
            self._metric(metric)
        for alert in view.open_alerts:
            self._alert(alert)
        if found.copy:
            print_line(f"\n{found.copy}", _YELLOW)
        print_line("")
        self._tables(view.tables)
        print_line(f"Times are of {self._zone}; it is {self._time(view.now)}.")

    def _metric(self, metric: Metric) -> None:
        from bronze.cli.output import print_line

        value = _value(metric, metric.value)
        limit = (
            f"{'least' if metric.name == 'quality' else 'most'} {_value(metric, metric.threshold)}"
        )
        detail = metric.why or metric.worst
        style = {"critical": _RED, "warning": _YELLOW}.get(metric.state)
        print_line(f"{metric.name:<10} {metric.state:<9} {value:>7}  {limit:<12} {detail}", style)

    def _alert(self, alert: Alert) -> None:
        from bronze.cli.output import print_line

        condition = alert.condition
        seen = f", {alert.by} sees to it" if alert.state == "acknowledged" else ""
        style = _RED if condition.level == "critical" and not seen else None
        print_line(f"\n{':'.join(alert.key)}  {condition.level}{seen}", style)
        told = dict.fromkeys(receipt.channel for receipt in alert.receipts if receipt.act == "open")
        who = f"told: {', '.join(told)}" if told else "nobody was told"
        print_line(f"  {condition.text} Since {self._time(condition.since)}; {who}.")

    def _tables(self, tables: Sequence[TableView]) -> None:
        from bronze.cli.output import print_figures, print_line

        names = ("table", "state", "age", "deadline", "next due", "last run")
        rows = [
            (
                _short(table.table),
                table.state,
                self._age(table.as_of),
                self._time(table.deadline),
                self._time(table.next_due),
                self._last(table.last),
            )
            for table in tables[:_MOST_TABLES]
        ]
        if rows:
            print_figures(names, rows, texts=("table", "state"))
        if len(tables) > _MOST_TABLES:
            print_line(f"and {len(tables) - _MOST_TABLES:,} more, which have more time")

    def _table(self, table: TableView, runs: Sequence[RunRecord]) -> None:
        from bronze.cli.output import print_facts, print_figures, print_line

        because = f": {table.why}" if table.why else ""
        style = _RED if table.state in _BAD else None
        print_line(f"{table.source}.{table.table} is {table.state}{because}.", style)
        print_facts(self._facts(table))
        names = ("began", "status", "reason", "due", "seconds", "rows read", "score")
        rows = [self._run(run) for run in runs]
        if rows:
            print_line("")
            print_figures(names, rows, texts=("began", "status", "reason", "due"))
        for run in runs:
            if run.error_message:
                print_line(f"{self._time(run.began)} {run.error_kind}: {run.error_message}", _RED)
                if run.error_hint:
                    print_line(f"  {run.error_hint}")

    def _facts(self, table: TableView) -> list[tuple[str, str]]:
        from bronze.operate.facts.wording import duration

        late = f"since {self._time(table.late.begin)}" if table.late else ""
        facts = [
            ("Bronze table", table.target),
            ("pattern", f"{table.pattern}, {table.schedule}, priority {table.priority}"),
            ("sla", duration(table.sla)),
            ("as of", f"{self._time(table.as_of)} ({self._age(table.as_of)} ago)"),
            ("late", late),
            ("deadline", self._time(table.deadline)),
            ("next due", self._time(table.next_due)),
            ("takes", duration(table.expected) if table.expected is not None else ""),
            ("ends at", self._time(table.expected_end) if self._runs(table) else ""),
            ("failed", f"{table.failed:.1%} of the rows" if table.failed is not None else ""),
            ("verified", self._verified(table.verified)),
        ]
        return [(name, value) for name, value in facts if value and not value.startswith(_NONE)]

    def _runs(self, table: TableView) -> bool:
        """Whether the table runs, or somebody will run it."""
        return table.running is not None or self._view.is_alive

    def _verified(self, run: RunRecord | None) -> str:
        return f"{run.status} at {self._time(run.ended or run.began)}" if run else ""

    def _run(self, run: RunRecord) -> tuple[str, ...]:
        seconds = "" if run.seconds is None else f"{run.seconds:.1f}"
        score = "" if run.score is None else f"{run.score:.1f}"
        again = f" {run.attempt}" if run.attempt > 1 else ""
        due = self._time(run.scheduled) if run.scheduled else ""
        reason = f"{run.reason}{again}"
        return (
            self._time(run.began), run.status, reason, due, seconds, f"{run.rows_read:,}", score,
        )  # fmt: skip

    def _last(self, run: RunRecord | None) -> str:
        if run is None:
            return _NONE
        time = self._time(run.ended or run.began)
        return time if run.status in ("landed", "unchanged") else f"{run.status} {time}"

    def _age(self, moment: datetime | None) -> str:
        from bronze.operate.facts.wording import duration

        return duration((self._view.now - moment).total_seconds()) if moment else _NONE

    def _time(self, moment: datetime | None) -> str:
        if moment is None:
            return _NONE
        local, distance = moment.astimezone(ZoneInfo(self._zone)), abs(self._view.now - moment)
        if distance < timedelta(hours=12):
            return f"{local:%H:%M}"
        return f"{local:%a %H:%M}" if distance < timedelta(days=6) else f"{local:%Y-%m-%d}"


def _value(metric: Metric, value: float | None) -> str:
    from bronze.cli.output import quality_score
    from bronze.operate.facts.wording import duration

    if value is None:
        return _NONE
    if metric.name in ("freshness", "duration"):
        return duration(value)
    return quality_score(value) if metric.name == "quality" else f"{value:.1%}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
