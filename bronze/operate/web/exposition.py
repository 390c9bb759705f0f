"""The metrics for Prometheus, made in a thread from the view, and kept for some seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Lock
from typing import TYPE_CHECKING

from bronze.operate.view import Live, TableView, View

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily, Metric
    from prometheus_client.registry import CollectorRegistry

KEPT = 5.0
_STATES = ("closed", "half-open", "open")


class Exposition:
    """The text of one server's metrics."""

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view
        self._lock = Lock()
        self._made = 0.0
        self._text = b""
        self._registry: CollectorRegistry | None = None

    def text(self) -> tuple[bytes, str]:
        """The text and its content type."""
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        with self._lock:
            if not self._text or time.monotonic() - self._made >= KEPT:
                self._registry = self._registry or _registry(self._view)
                self._text = generate_latest(self._registry)
                self._made = time.monotonic()
            return self._text, CONTENT_TYPE_PLAIN_0_0_4


def _registry(view: Callable[[], View]) -> CollectorRegistry:
    from prometheus_client.platform_collector import PlatformCollector
    from prometheus_client.process_collector import ProcessCollector
    from prometheus_client.registry import Collector, CollectorRegistry

    class ViewCollector(Collector):
        def collect(self) -> Iterator[Metric]:
            return families(view())

    registry = CollectorRegistry(auto_describe=False)
    registry.register(ViewCollector())
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def families(view: View) -> Iterator[Metric]:
    """All metrics of a view; what is unknown is left out."""
    yield _one("bronze_up", "Whether the service was heard within the last minute.", view.is_alive)
    yield from _tables(view)
    yield from _metrics(view)
    if view.live:
        yield from _live(view, view.live)
    alerts = _family("bronze_alerts_open", "Open alerts.", "level", "acknowledged")
    for level in ("warning", "critical"):
        for state in ("open", "acknowledged"):
            same = [a for a in view.alerts if (a.condition.level, a.state) == (level, state)]
            alerts.add_metric([level, str(state == "acknowledged").lower()], len(same))
    yield alerts


def _tables(view: View) -> Iterator[Metric]:
    now = view.now

    def age(table: TableView) -> float | None:
        return (now - table.as_of).total_seconds() if table.as_of else None

    values: tuple[tuple[str, str, Callable[[TableView], float | None]], ...] = (
        ("as_of_age_seconds", "The age of the state that the table has.", age),
        ("slack_seconds", "The time until the table is late; negative when it is.", _slack),
        ("late", "Whether the table is late.", lambda table: float(table.late is not None)),
        ("last_duration_seconds", "How long the last run took.", _seconds),
        ("last_rows", "Rows that the last run changed.", _rows),
        ("score", "The quality score of the last run that read rows.", lambda table: table.score),
        ("failed_ratio", "The share of failed records.", lambda table: table.failed),
    )
    for name, about, value in values:
        family = _family(f"bronze_table_{name}", about, "table", "source")
        for table in view.tables:
            if (known := value(table)) is not None:
                family.add_metric([table.table, table.source], known)
        yield family
    state = _family(
        "bronze_table_state", "1 for the state of the table.", "table", "source", "state"
    )
    for table in view.tables:
        state.add_metric([table.table, table.source, table.state.replace(" ", "_")], 1)
    yield state


def _slack(table: TableView) -> float | None:
    return table.slack


def _seconds(table: TableView) -> float | None:
    return table.last.seconds if table.last else None


def _rows(table: TableView) -> float | None:
    last = table.last
    return float(last.inserted + last.updated + last.deleted) if last else None


def _metrics(view: View) -> Iterator[Metric]:
    value = _family("bronze_metric", "The five metrics, of the worst table.", "name")
    limit = _family("bronze_metric_threshold", "The thresholds of the five metrics.", "name")
    for metric in view.metrics:
        limit.add_metric([metric.name], metric.threshold)
        if metric.value is not None:
            value.add_metric([metric.name], metric.value)
    yield value
    yield limit


def _live(view: View, live: Live) -> Iterator[Metric]:
    yield _one("bronze_running_tables", "Tables that are being worked on.", len(live.running))
    yield _one("bronze_waiting_tables", "Due tables that do not run.", len(live.waiting))
    yield _one("bronze_config_valid", "Whether the config file is valid.", not live.config_error)
    yield _one("bronze_lake_reachable", "Whether the lake is reached.", not live.lake_error)
    yield from _streams(live)
    if live.permits:
        workers = _family("bronze_workers", "Tasks at work, allowed and wanted.", "state")
        workers.add_metric(["running"], live.permits.in_use)
        workers.add_metric(["allowed"], live.permits.limit)
        workers.add_metric(["wanted"], live.permits.wanted)
        yield workers
    if live.resources:
        facts = live.resources
        yield _one("bronze_cpu_ratio", "CPU of what is allowed.", facts.cpu)
        yield _one("bronze_memory_bytes", "Memory of the service.", facts.memory)
        yield _one("bronze_memory_limit_bytes", "Memory that is allowed.", facts.memory_limit)
        if facts.disk_free is not None:
            yield _one("bronze_disk_free_bytes", "Free space of the lake's disk.", facts.disk_free)
    if live.drill:
        ended = (view.now - live.drill.at).total_seconds()
        yield _one("bronze_drill_passed", "Whether the last drill passed.", live.drill.passed)
        yield _one("bronze_drill_age_seconds", "The time since the last drill.", ended)
        yield _one("bronze_drill_recovery_seconds", "How long it took.", live.drill.recovery)
        yield _one("bronze_drill_lost_seconds", "Changes that it lacked.", live.drill.lost)
    breakers = _family(
        "bronze_breaker_state", "1 for the state of the breaker.", "subject", "state"
    )
    known = {**live.breakers, **{t.key: t.breaker for t in view.tables if t.breaker}}
    for subject, breaker in known.items():
        state = breaker.state(view.now)
        for name in _STATES:
            breakers.add_metric([subject, name], float(name == state))
    yield breakers


def _streams(live: Live) -> Iterator[Metric]:
    connected = _family("bronze_stream_connected", "Whether the stream is connected.", "source")
    seconds = _family("bronze_stream_lag_seconds", "How far the stream is behind.", "source")
    lag = _family("bronze_stream_lag_bytes", "Log that is not yet applied.", "source")
    kept = _family("bronze_slot_retained_bytes", "Log that is kept for the slot.", "source")
    left = _family("bronze_slot_left_bytes", "Log until the slot is lost.", "source")
    for source, stream in live.streams.items():
        connected.add_metric([source], float(not stream.error))
        seconds.add_metric([source], stream.lag_seconds)
        lag.add_metric([source], stream.lag_bytes)
        if stream.retained is not None:
            kept.add_metric([source], stream.retained)
        if stream.left is not None:
            left.add_metric([source], stream.left)
    yield from (connected, seconds, lag, kept, left)


def _family(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, about, labels=labels)


def _one(name: str, about: str, value: float) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, about, value=float(value))
