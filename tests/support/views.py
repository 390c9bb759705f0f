"""Views as an operator could see them: the ten tables of an inventory in a night with faults, or as
many tables as wanted. ``python -m tests.support.views`` serves the night at 127.0.0.1:8080.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.governance.tables.controls import Action
from bronze.governance.tables.runs import RunRecord, RunStatus
from bronze.operate.alerts.life import Alert, Condition, Receipt
from bronze.operate.breaker import Breaker
from bronze.operate.freshness import Late
from bronze.operate.view import (
    Day,
    Live,
    Metric,
    Pause,
    PermitFacts,
    Resources,
    Running,
    StreamFacts,
    TableState,
    TableView,
    View,
)

Acted = tuple[Action, str, datetime | None, str, str]
_MINUTE, _HOUR = 60.0, 3600.0


def settings(lake: Path, **sections: Any) -> Settings:
    """A config with the windows of the inventory, whose lake is a folder."""
    document: dict[str, Any] = {
        "source": {"name": "PostgreSQL_DE", "dsn": "host=127.0.0.1 dbname=de", "schema": "tests"},
        "lake": {"root": str(lake), "schema": "inventory_bronze"},
        "serve": {
            "timezone": "Europe/Berlin",
            "windows": {
                "peak": {"when": "Mon-Fri 09:00-18:00", "workers": [4, 20]},
                "weekend": {"when": "Sat-Sun", "workers": [1, 4]},
                "off_peak": {"workers": [2, 8]},
            },
        },
        "web": {"listen": "127.0.0.1:8080"},
    }
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    return loading.parse(document)


@dataclass(frozen=True)
class _Shape:
    """A table as the inventory has it; times in seconds."""

    name: str
    pattern: str
    schedule: str
    priority: int
    sla: float
    takes: float
    rows: int
    state: TableState = "fresh"
    age: float = 2.0
    why: str = ""


_SHAPES = (
    _Shape("orders", "streaming", "continuous", 1, 5 * _MINUTE, 0, 480, "late", 41 * _MINUTE,
           "The source PostgreSQL_DE refuses connections: the database system is starting up."),
    _Shape("order_details", "streaming", "continuous", 1, 5 * _MINUTE, 0, 1900, "late",
           41 * _MINUTE, "The source PostgreSQL_DE refuses connections."),
    _Shape("inventory", "streaming", "continuous", 1, 15 * _MINUTE, 0, 120, "quiet", 3),
    _Shape("stock_levels", "micro_batch", "hourly", 2, 30 * _MINUTE, 11, 5200, "will be late",
           95 * _MINUTE, "It runs since 20:55 and takes 42 min at this rate; it is late at 21:30."),
    _Shape("shipments", "micro_batch", "hourly", 2, _HOUR, 7, 8100, "running", 62 * _MINUTE),
    _Shape("returns", "micro_batch", "hourly", 3, 2 * _HOUR, 4, 900, "waiting", 70 * _MINUTE,
           "All runs at once are taken ([serve] runs)."),
    _Shape("products", "batch", "daily 02:00", 2, 2 * _HOUR, 3, 10_400, "fresh", 19 * _HOUR),
    _Shape("suppliers", "batch", "daily 02:00", 3, 4 * _HOUR, 2, 1_080, "paused", 43 * _HOUR),
    _Shape("warehouses", "batch", "daily 02:00", 2, _HOUR, 2, 52, "quarantined", 43 * _HOUR,
           "It failed 5 times in a row; it is tried alone at 21:40."),
    _Shape("customers", "full_refresh", "daily 03:00", 2, 2 * _HOUR, 38, 104_000, "fresh",
           18 * _HOUR),
)  # fmt: skip


def night(now: datetime | None = None) -> View:
    """A night with faults: one stream is down, a table will be late, one is quarantined."""
    now = now or datetime.now(UTC)
    tables = tuple(_table(shape, now) for shape in _SHAPES)
    began = now - timedelta(minutes=36)
    unreachable = Alert(
        Condition(
            "source_unreachable",
            "PostgreSQL_DE",
            "critical",
            began,
            "PostgreSQL_DE refuses connections: the database system is starting up.",
        ),
        state="open",
        opened=began + timedelta(seconds=20),
        receipts=(Receipt("open", "on-call", began + timedelta(seconds=22), "ok"),),
        effects=4,
    )
    quarantined = Alert(
        Condition(
            "table_quarantined",
            "tests.warehouses",
            "critical",
            now - timedelta(hours=18),
            "tests.warehouses failed 5 times in a row: a column has a value that is not a date.",
        ),
        state="acknowledged",
        opened=now - timedelta(hours=18),
        acknowledged=now - timedelta(hours=17),
        by="ada",
        receipts=(Receipt("open", "data-team", now - timedelta(hours=18), "ok"),),
    )
    late = Alert(
        Condition(
            "will_be_late",
            "tests.stock_levels",
            "warning",
            now - timedelta(minutes=4),
            "tests.stock_levels will be late at 21:30: it takes 42 min at this rate.",
        ),
        state="open",
        opened=now - timedelta(minutes=3),
        receipts=(Receipt("open", "devops", now - timedelta(minutes=3), "ok"),),
    )
    sentence = (
        f"2 of 10 tables are late; orders since {began:%H:%M}, because PostgreSQL_DE refuses"
        f" connections; on-call was told at {began + timedelta(seconds=22):%H:%M}."
    )
    return View(
        now=now,
        sentence=sentence,
        metrics=_metrics(now),
        tables=tuple(sorted(tables, key=lambda t: t.slack if t.slack is not None else math.inf)),
        alerts=(unreachable, quarantined, late),
        live=_live(now),
        is_alive=True,
    )


def well(now: datetime | None = None, count: int = 10) -> View:
    """As many tables as wanted, all of them fresh."""
    now = now or datetime.now(UTC)
    shape = replace(_SHAPES[6], age=4 * _MINUTE)
    tables = tuple(_table(replace(shape, name=f"table_{n:04}"), now) for n in range(count))
    metrics = tuple(
        replace(metric, state="ok", why="", worst=tables[0].table if tables else "")
        for metric in _metrics(now)
    )
    return View(now, "All tables are fresh.", metrics, tables, (), _live(now), True)


def runs_of(table: TableView, now: datetime, count: int = 60) -> list[RunRecord]:
    """Runs of a table, the newest first."""
    random = Random(table.table)  # noqa: S311
    step = timedelta(hours=1 if table.schedule == "hourly" else 24)
    begin = now - timedelta(minutes=25)
    records = []
    for number in range(count):
        began = begin - step * number
        takes = (table.expected or 4.0) * random.uniform(0.7, 1.6)
        failed = random.random() < 0.05 or (table.state == "quarantined" and number < 5)
        status: RunStatus = "failed" if failed else "landed"
        rows = int(random.gauss(5000, 900))
        records.append(
            RunRecord(
                run_id=f"{table.table}-{number}",
                command="run",
                began=began,
                status=status,
                source_system=table.source,
                source_table=table.table,
                target_table=table.target,
                pattern=table.pattern,
                reason="schedule",
                scheduled=began.replace(minute=0, second=0, microsecond=0),
                ended=began + timedelta(seconds=takes),
                as_of=began,
                seconds=takes,
                stages='{"read": 2.1, "quality": 0.4, "write": 1.2, "commit": 0.3}',
                rows_read=0 if failed else rows,
                inserted=0 if failed else rows // 3,
                updated=0 if failed else rows // 2,
                deleted=0 if failed else rows // 50,
                quarantined=0 if failed else int(random.random() * 40),
                score=None if failed else 92 + random.random() * 8,
                error_kind="TableRefused" if failed else "",
                error_message="The column opened has a value that is not a date." if failed else "",
                error_hint="Correct the value, or add a rule for the column." if failed else "",
                sqlstate="22007" if failed else "",
            )
        )
    return records


def days_of(table: TableView, now: datetime) -> list[Day]:
    """The last 90 days of a table."""
    random = Random(table.table)  # noqa: S311
    days = []
    for back in range(80):
        swing = 1 + 0.3 * math.sin(back / 7 * 2 * math.pi)
        days.append(
            Day(
                (now - timedelta(days=back)).date(),
                runs=24,
                failed=int(random.random() < 0.06),
                seconds=(table.expected or 4) * swing * random.uniform(0.9, 1.4),
                rows=int(5000 * swing * random.uniform(0.8, 1.2)),
                score=100 - random.random() ** 3 * 22,
                late=random.random() * 2400 if random.random() < 0.1 else 0.0,
            )
        )
    return days


@dataclass
class Service:
    """What the dashboard asks, and what it had done. ``view`` may be exchanged."""

    view: View
    acted: list[Acted] = field(default_factory=list)
    delay: float = 0.0
    refuse: Exception | None = None

    def look(self) -> View:
        """The view, as it is."""
        time.sleep(self.delay)
        return self.view

    def runs(self, table: str) -> Sequence[RunRecord]:
        """Runs of a table."""
        known = next(view for view in self.view.tables if view.table == table)
        return runs_of(known, self.view.now)

    def days(self, table: str) -> Sequence[Day] | None:
        """Days of a table."""
        known = next(view for view in self.view.tables if view.table == table)
        return days_of(known, self.view.now)

    def act(
        self, action: Action, subject: str, until: datetime | None, reason: str, by: str
    ) -> None:
        """Keeps what was asked."""
        if self.refuse:
            raise self.refuse
        self.acted.append((action, subject, until, reason, by))


def _table(shape: _Shape, now: datetime) -> TableView:
    table, streamed = f"tests.{shape.name}", shape.pattern == "streaming"
    as_of = now - timedelta(seconds=shape.age)
    next_due = None if streamed else now.replace(minute=0, second=0, microsecond=0)
    if next_due:
        next_due += timedelta(hours=1 if shape.schedule == "hourly" else 6)
    deadline = as_of + timedelta(seconds=shape.sla)
    if next_due and shape.state not in ("will be late", "quarantined"):
        deadline = next_due + timedelta(seconds=shape.sla)
    if shape.state == "will be late":
        deadline = now + timedelta(minutes=9)
    slack = (deadline - now).total_seconds()
    running = None
    if shape.state in ("running", "will be late"):
        share = 0.42 if shape.state == "running" else 0.18
        running = Running("run", "r-1", now - timedelta(minutes=8), 3400, share)
    view = TableView(
        table=table,
        source="PostgreSQL_DE",
        target=f"inventory_bronze.bz_{shape.name}",
        pattern=shape.pattern,
        priority=shape.priority,
        schedule=shape.schedule,
        state=shape.state,
        why=shape.why,
        sla=shape.sla,
        as_of=as_of,
        deadline=deadline,
        slack=slack,
        late=Late(deadline, None) if slack < 0 else None,
        next_due=next_due,
        expected=shape.takes or None,
        expected_end=now + timedelta(minutes=11) if running else None,
        running=running,
        score=None if streamed else 97.4,
        failed=0.004,
    )
    if shape.state == "paused":
        since = now - timedelta(hours=26)
        view = replace(view, pause=Pause("ada", since, now + timedelta(hours=9), "new ERP release"))
        view = replace(view, why="Paused by ada: new ERP release.")
    if shape.state == "quarantined":
        until = now + timedelta(minutes=28)
        view = replace(view, breaker=Breaker(table, 5, now - timedelta(minutes=31), until))
    last = next((run for run in runs_of(view, now, 8)), None)
    return replace(view, last=None if streamed else last)


def _metrics(now: datetime) -> tuple[Metric, ...]:
    def day(form: Callable[[float], float]) -> tuple[tuple[datetime, float], ...]:
        return tuple((now - timedelta(minutes=15 * (96 - n)), form(n / 96)) for n in range(97))

    def wave(share: float) -> float:
        return 0.5 + 0.3 * math.sin(share * 19) + 0.2 * math.sin(share * 53)

    fresh = day(lambda s: 500 + 300 * wave(s) + (2000 * (s - 0.98) / 0.02 if s > 0.98 else 0))
    return (
        Metric("freshness", "critical", 41 * _MINUTE, 30 * _MINUTE, "critical", "tests.orders",
               "PostgreSQL_DE refuses connections.", fresh),
        Metric("quality", "ok", 97.4, 85, "warning", "tests.returns", "",
               day(lambda s: 96 + 3 * wave(s))),
        Metric("duration", "ok", 42 * _MINUTE, 2 * _HOUR, "warning", "tests.stock_levels", "",
               day(lambda s: 1200 + 1500 * wave(s))),
        Metric("failed", "ok", 0.004, 0.02, "critical", "tests.shipments", "",
               day(lambda s: 0.002 + 0.004 * wave(s))),
        Metric("resources", "warning", 0.83, 0.80, "warning", "memory",
               "Memory: 830 of 1000 MB for 3 min.", day(lambda s: 0.4 + 0.45 * wave(s))),
    )  # fmt: skip


def _live(now: datetime) -> Live:
    down = now - timedelta(minutes=36)
    streams = {
        "PostgreSQL_DE": StreamFacts(
            source="PostgreSQL_DE",
            began=now - timedelta(days=3),
            as_of=now - timedelta(minutes=41),
            heard=down,
            lag_bytes=812_000_000,
            lag_seconds=41 * _MINUTE,
            changes=48_211_904,
            slot="bronze_postgresql_de",
            retained=2_100_000_000,
            left=7_900_000_000,
            lost_in=3.1 * _HOUR,
            error="The source refuses connections: the database system is starting up.",
            error_kind="SourceUnreachable",
            retry_at=now + timedelta(seconds=44),
            tables=("tests.orders", "tests.order_details"),
        ),
        "PostgreSQL_EU": StreamFacts(
            source="PostgreSQL_EU",
            began=now - timedelta(days=3),
            as_of=now - timedelta(seconds=1),
            heard=now,
            lag_bytes=18_000,
            lag_seconds=0.4,
            changes=9_120_334,
            changes_per_second=412.0,
            slot="bronze_postgresql_eu",
            retained=31_000_000,
            tables=("tests.inventory",),
        ),
    }
    return Live(
        service="s-1",
        host="etl-01",
        pid=4711,
        version="0.1.0",
        began=now - timedelta(days=3, hours=4),
        at=now,
        waiting={"tests.returns": "All runs at once are taken ([serve] runs)."},
        streams=streams,
        breakers={
            "PostgreSQL_DE": Breaker("PostgreSQL_DE", 7, down, now + timedelta(seconds=44)),
            "lake": Breaker("lake"),
        },
        resources=Resources(0.34, 830_000_000, 10**9, 210 * 10**9, 500 * 10**9),
        permits=PermitFacts(6, 8, 14, "[run] memory has room for 8", "off_peak"),
    )


def _serve() -> None:
    import os
    import tempfile
    import threading

    from bronze.operate.web import server

    os.environ["BRONZE_OPERATE"] = "an operator's token"
    with tempfile.TemporaryDirectory() as lake:
        web = {"tokens": {"operator": {"secret": "BRONZE_OPERATE"}}}
        service = Service(night())
        begun = server.start(
            settings(Path(lake), web=web),
            view=lambda: night(),
            runs=service.runs,
            act=service.act,
            days=service.days,
        )
        print(begun.url, os.environ["BRONZE_OPERATE"])
        threading.Event().wait()


if __name__ == "__main__":
    _serve()
