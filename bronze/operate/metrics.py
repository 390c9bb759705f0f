"""The five metrics. Each is that of the worst table, or of the process.

- **freshness**: for how long a table's state has been overdue. Of a scheduled table, the time since
  the first due time after which nothing has landed that shows a state since then, 0 if there is
  none; of a streamed one, the time since the moment up to which everything committed has landed
  (as_of). Its threshold is the table's sla, or [alerts] freshness where it has none; the worst
  table is the one with the largest share of it used. A table is late exactly while it is beyond it.
- **quality**: the average score of the rows that the last run of a table read which read any, or of
  a streamed table those that its stream has recorded last; below [alerts] quality it is bad.
- **duration**: the time from due to landed (from begun, for a run that a command began) of the last
  run of a table that landed, or of the run that goes on up to now, whichever is longer. The first
  run of a table is due when the service first knows the table.
- **failed**: the rows that were quarantined and the values that were rejected, each for itself, by
  the rows that were read, at most 1, of the last run of a table that read any, if it read at least
  100. A row that is quarantined and has a rejected value counts for both.
- **resources**: the larger one of two shares of the service's process: of CPU, its use by the CPUs
  that it may use (affinity and the cgroup's quota); of memory, its size by the least of
  [run] memory, the cgroup's limit and the machine's.

What cannot be known is unknown, with the reason: never ok.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from bronze.config.settings import Settings
from bronze.operate.facts.half_hours import (
    LEAST_ROWS,
    Figures,
    half_hour,
    processing_seconds,
    worst_values,
)
from bronze.operate.facts.outlook import Outlooks
from bronze.operate.facts.wording import duration
from bronze.operate.history import History
from bronze.operate.view import Live, Metric, MetricName, TableView
from bronze.printable import count

_DAY = timedelta(hours=24)
Recent = tuple[tuple[datetime, float], ...]


def metrics_of(
    settings: Settings,
    tables: Sequence[TableView],
    history: History | None,
    live: Live | None,
    outlooks: Outlooks,
    now: datetime,
) -> tuple[Metric, ...]:
    """The five metrics, in the order of the module's text.

    Args:
        settings: the config, which has the thresholds.
        tables: the tables now.
        history: what the governance tables tell, None if they cannot be read.
        live: what the service tells, None if none lives.
        outlooks: has the lateness of the last day.
        now: an aware time.
    """
    metrics = (
        _freshness(settings, tables),
        _quality(settings, tables),
        _duration(settings, tables, now),
        _failed(settings, tables),
        _resources(settings, live),
    )
    figures = history.half_hours if history else {}
    recent: Mapping[MetricName, Recent] = {
        "freshness": outlooks.ages_by_half_hour(now),
        "quality": _recent(figures, now, lambda one: one.score),
        "duration": _recent(figures, now, lambda one: one.processing),
        "failed": _recent(figures, now, lambda one: one.failed),
        "resources": worst_values(live.usage, now) if live else (),
    }
    return tuple(replace(metric, recent=recent.get(metric.name, ())) for metric in metrics)


def processing_of(table: TableView, now: datetime) -> float | None:
    """The seconds of the metric duration of a table, None if it has neither run nor runs."""
    last = processing_seconds(table.last) if table.last else None
    going = None
    if table.running and table.pattern != "streaming":
        going = (now - (table.running.due or table.running.began)).total_seconds()
    return max((value for value in (last, going) if value is not None), default=None)


def _freshness(settings: Settings, tables: Sequence[TableView]) -> Metric:
    limit = settings.alerts.freshness
    known = [table for table in tables if table.age is not None]
    unknown = [table for table in tables if table.age is None or _is_unproven(table)]
    if not known:
        return _unknown("freshness", limit.more_than, limit.level, _none_known(tables))
    worst = max(known, key=lambda table: ((table.age or 0) / table.sla, table.key))
    metric = Metric("freshness", "ok", worst.age, worst.sla, limit.level, worst.table)
    if worst.late:
        return replace(metric, state=limit.level, why=_sentence(worst))
    if unknown:
        return replace(metric, state="unknown", why=_nothing_known(unknown))
    return metric


def _is_unproven(table: TableView) -> bool:
    return table.state in ("never landed", "unknown")


def _quality(settings: Settings, tables: Sequence[TableView]) -> Metric:
    limit = settings.alerts.quality
    known = [table for table in tables if table.score is not None]
    why = _unscored([table for table in tables if table.score is None])
    if not known:
        why = why or "no run has read rows yet"
        return _unknown("quality", limit.less_than, limit.level, why)
    worst = min(known, key=lambda table: (table.score or 0.0, table.key))
    metric = Metric("quality", "ok", worst.score, limit.less_than, limit.level, worst.table, why)
    if worst.score is not None and worst.score < limit.less_than:
        low = [table for table in known if (table.score or 0.0) < limit.less_than]
        return replace(metric, state=limit.level, why=_also(low, worst, "is below it"))
    return metric


def _unscored(tables: Sequence[TableView]) -> str:
    """What is not known of streamed tables, which have rows as soon as they have landed."""
    streamed = [table for table in tables if table.pattern == "streaming"]
    if not streamed:
        return ""
    first = min(streamed, key=lambda table: table.key)
    others = len(streamed) - 1
    more = f" and {count(others, 'other table')}" if others else ""
    return f"no quality of the streamed rows of {first.table}{more} is recorded yet"


def _duration(settings: Settings, tables: Sequence[TableView], now: datetime) -> Metric:
    limit = settings.alerts.duration
    values = {table.key: processing_of(table, now) for table in tables}
    known = [table for table in tables if values[table.key] is not None]
    if not known:
        return _unknown("duration", limit.more_than, limit.level, "no table's last run has landed")
    worst = max(known, key=lambda table: (values[table.key] or 0.0, table.key))
    value = values[worst.key]
    metric = Metric("duration", "ok", value, limit.more_than, limit.level, worst.table)
    if value is not None and value > limit.more_than:
        long = [table for table in known if (values[table.key] or 0.0) > limit.more_than]
        verb = "still goes on" if worst.running else "took longer"
        return replace(metric, state=limit.level, why=_also(long, worst, verb))
    return metric


def _failed(settings: Settings, tables: Sequence[TableView]) -> Metric:
    limit = settings.alerts.failed
    known = [table for table in tables if table.failed is not None]
    if not known:
        why = f"no last run of a table has read {LEAST_ROWS} rows"
        return _unknown("failed", limit.more_than, limit.level, why)
    worst = max(known, key=lambda table: (table.failed or 0.0, table.key))
    metric = Metric("failed", "ok", worst.failed, limit.more_than, limit.level, worst.table)
    if worst.failed is not None and worst.failed > limit.more_than:
        many = [table for table in known if (table.failed or 0.0) > limit.more_than]
        return replace(metric, state=limit.level, why=_also(many, worst, "has more"))
    return metric


def _resources(settings: Settings, live: Live | None) -> Metric:
    limit = settings.alerts.resources
    if live is None or live.resources is None:
        why = "no service runs" if live is None else "the service has not measured them yet"
        return _unknown("resources", limit.more_than, limit.level, why)
    value, name = live.resources.worst
    metric = Metric("resources", "ok", value, limit.more_than, limit.level, name)
    if value > limit.more_than:
        return replace(metric, state=limit.level, why=f"{name} is at {value:.0%}")
    return metric


def _unknown(name: MetricName, threshold: float, level: str, why: str) -> Metric:
    return Metric(name, "unknown", None, threshold, level, why=why)  # type: ignore[arg-type]


def _none_known(tables: Sequence[TableView]) -> str:
    return _nothing_known(tables) if tables else "no table is known"


def _nothing_known(tables: Sequence[TableView]) -> str:
    first = min(tables, key=lambda table: table.key)
    others = f" and {len(tables) - 1:,} more" if len(tables) > 1 else ""
    return f"{first.table}{others}: {first.why or first.state}"


def _sentence(table: TableView) -> str:
    age = duration(table.age or 0.0)
    because = f": {table.why}" if table.why else ""
    return f"{table.table} is {age} overdue{because}"


def _also(tables: Sequence[TableView], worst: TableView, verb: str) -> str:
    others = len(tables) - 1
    return f"{worst.table} {verb}" + (f", {count(others, 'other table')} too" if others else "")


def _recent(
    figures: Mapping[datetime, Figures], now: datetime, value: Callable[[Figures], float | None]
) -> Recent:
    first = half_hour(now - _DAY)
    values = ((time, value(one)) for time, one in sorted(figures.items()) if time >= first)
    return tuple((time, known) for time, known in values if known is not None)
