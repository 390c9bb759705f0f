"""What an operator sees: the values that the dashboard, ``bronze status``, the metrics and the
alerts are made from. `bronze.operate.current.view_of` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal, Protocol

from bronze.config.sections.tables import TableSettings
from bronze.governance.tables.runs import RunRecord
from bronze.model.results import Failure
from bronze.operate.alerts.life import Alert, Level
from bronze.operate.breaker import Breaker
from bronze.operate.freshness import Late

TableState = Literal[
    "fresh",
    "quiet",
    "running",
    "waiting",
    "late",
    "will be late",
    "failed",
    "quarantined",
    "paused",
    "never landed",
    "unknown",
]
"""A table is in the worst of the states that apply: a late one that runs is late. ``quiet`` is a
streamed table whose source is heard and has had nothing to say of late.
"""
MetricState = Literal["ok", "warning", "critical", "unknown"]
MetricName = Literal["freshness", "quality", "duration", "failed", "resources"]


class TableLike(Protocol):
    """A table of a source, as the view needs it."""

    @property
    def source(self) -> str:
        """The name of its source."""

    @property
    def label(self) -> str:
        """Its ``schema.name`` in the source."""

    @property
    def target(self) -> str:
        """The ``schema.name`` of its Bronze table."""

    @property
    def key(self) -> str:
        """Its name among the tables of all sources: ``source.schema.name``."""

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call it."""

    @property
    def settings(self) -> TableSettings:
        """What the config says about it."""


@dataclass(frozen=True)
class Running:
    """A table that is being worked on: by which command and run, since when, and how far it is.

    ``share`` is from 0 to 1, None before anything is known; ``due`` is the due time that it began
    for, if it did.
    """

    command: str
    run_id: str
    began: datetime
    rows: int = 0
    share: float | None = None
    due: datetime | None = None


@dataclass(frozen=True)
class StreamFacts:
    """A source's stream, as its process knows it.

    ``as_of`` is the moment up to which everything committed has landed, ``heard`` when the server
    last sent something. ``retained`` are the bytes of its log that the server keeps for the slot,
    ``left`` those before the slot is lost, None where there is no limit; ``lost_in`` the seconds
    until then at the present rate. ``error`` says why it is not connected.
    """

    source: str
    began: datetime
    as_of: datetime | None = None
    heard: datetime | None = None
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    changes: int = 0
    changes_per_second: float = 0.0
    slot: str = ""
    retained: int | None = None
    left: int | None = None
    lost_in: float | None = None
    error: str = ""
    error_kind: str = ""
    retry_at: datetime | None = None
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resources:
    """What the process takes of what it may take: shares from 0 to 1, memory and disk in bytes.

    ``memory_limit`` is the least of ``[run] memory``, the cgroup's and the machine's.
    """

    cpu: float
    memory: int
    memory_limit: int
    disk_free: int | None = None
    disk_total: int | None = None

    @property
    def worst(self) -> tuple[float, str]:
        """The larger one of the shares of CPU and memory, and which it is."""
        memory = self.memory / self.memory_limit if self.memory_limit else 0.0
        return max((self.cpu, "CPU"), (memory, "memory"))


@dataclass(frozen=True)
class PermitFacts:
    """Workers: how many tasks run, how many may, how many are wanted, and what caps them ("" if
    nothing does); the window of the config in force.
    """

    in_use: int
    limit: int
    wanted: int
    cap: str = ""
    window: str = ""


@dataclass(frozen=True)
class LakeSlow:
    """That the lake answers slowly: since when, and in how many seconds it did the last time."""

    since: datetime
    seconds: float

    @property
    def text(self) -> str:
        """A clause after "because"."""
        return f"the lake takes {self.seconds:.1f} s to answer a request"


@dataclass(frozen=True)
class DrillFacts:
    """The last drill of a recovery: when it ended, whether it passed, how many seconds it took, and
    how many seconds of changes the copy lacked.
    """

    at: datetime
    passed: bool
    recovery: float
    lost: float


@dataclass(frozen=True)
class Live:
    """What only the service itself knows; it writes it to the lake from time to time, so that
    ``bronze status`` has it without the service.

    ``at`` is when this was so. ``tables`` are the keys of the tables that it keeps, none where they
    are not known yet. ``running``, ``waiting`` (a sentence why a due table does not run)
    and ``retries`` (when a failed table is tried again) are by `TableLike.key`, ``streams``
    and ``source_errors`` (why a source cannot be reached) by source, ``breakers`` by their
    subjects: "lake", "source:NAME", "table:KEY". ``usage`` are the largest shares of the resources
    in the half hours of the last day, with the beginning of each: also those of the services before
    it. ``unread`` says why nothing begins yet, "" if it may.
    """

    service: str
    host: str
    pid: int
    version: str
    began: datetime
    at: datetime
    tables: tuple[str, ...] = ()
    running: Mapping[str, Running] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    retries: Mapping[str, datetime] = field(default_factory=dict)
    streams: Mapping[str, StreamFacts] = field(default_factory=dict)
    breakers: Mapping[str, Breaker] = field(default_factory=dict)
    resources: Resources | None = None
    usage: tuple[tuple[datetime, float], ...] = ()
    permits: PermitFacts | None = None
    config_error: str = ""
    lake_error: str = ""
    lake_slow: LakeSlow | None = None
    unread: str = ""
    source_errors: Mapping[str, Failure] = field(default_factory=dict)
    is_stopping: bool = False
    drill: DrillFacts | None = None


@dataclass(frozen=True)
class Pause:
    """A table that an operator has paused: by whom, since when, until when if known, and why."""

    by: str
    since: datetime
    until: datetime | None
    reason: str


@dataclass(frozen=True)
class TableView:
    """One table, now.

    ``table`` is its label in the source, ``target`` its Bronze table's full name, ``key`` as of
    `TableLike`. ``sla`` is its
    own, or [alerts] freshness; it, ``age`` (see `bronze.operate.metrics`), ``slack`` (negative when
    it is late) and ``expected`` (what a run takes) are in seconds. ``deadline`` is when it is late
    unless something lands before; ``late`` is its present lateness, ``lates`` are those of the last
    day that have ended, of a scheduled table. ``why`` says why it is in its state, "" where the
    state says all. ``score`` is that of the ``scored_rows`` of the last run that read any, or that
    its stream has recorded last, at the time ``scored_at``; ``failed`` is the share of the run's
    rows that were quarantined or had a rejected value; None where unknown. ``last`` is the last run
    that has ended, ``died`` one since that never ended, ``verified`` the last verification.
    """

    table: str
    source: str
    target: str
    key: str
    pattern: str
    priority: int
    schedule: str
    state: TableState
    why: str = ""
    sla: float = 0.0
    as_of: datetime | None = None
    age: float | None = None
    deadline: datetime | None = None
    slack: float | None = None
    late: Late | None = None
    lates: tuple[Late, ...] = ()
    next_due: datetime | None = None
    expected: float | None = None
    expected_end: datetime | None = None
    running: Running | None = None
    score: float | None = None
    scored_rows: int | None = None
    scored_at: datetime | None = None
    failed: float | None = None
    last: RunRecord | None = None
    last_read: RunRecord | None = None
    died: RunRecord | None = None
    verified: RunRecord | None = None
    pause: Pause | None = None
    breaker: Breaker | None = None


@dataclass(frozen=True)
class SourceView:
    """A source, now: ``error`` is why it cannot be reached, "" if it answered last; ``since`` when
    it first failed. ``tables`` are how many tables it has.
    """

    source: str
    tables: int
    error: str = ""
    error_kind: str = ""
    since: datetime | None = None
    breaker: Breaker | None = None


@dataclass(frozen=True)
class Day:
    """A day of one table: how many ``runs`` ended and how many of them ``failed``, the ``seconds``
    of the longest, the ``rows`` that landed, the lowest ``score`` of those that read rows, and for
    how many seconds it was ``late``.
    """

    day: date
    runs: int = 0
    failed: int = 0
    seconds: float | None = None
    rows: int = 0
    score: float | None = None
    late: float = 0.0


@dataclass(frozen=True)
class Metric:
    """One of the five metrics, for the worst table or the process.

    ``value`` and ``threshold`` have the unit of the name: freshness and duration seconds, quality a
    score from 0 to 100, failed and resources shares from 0 to 1. ``worst`` says of which table the
    value is. ``why`` says why it is unknown or beyond its threshold. ``recent`` are the worst
    values of the half hours of the last day that have one, with the beginning of each.
    """

    name: MetricName
    state: MetricState
    value: float | None
    threshold: float
    level: Level
    worst: str = ""
    why: str = ""
    recent: tuple[tuple[datetime, float], ...] = ()


@dataclass(frozen=True)
class View:
    """Everything, now. ``sentence`` says it in one sentence.

    ``tables`` are in the order of their slack, the least first; ``alerts`` are the open ones, the
    worst first, then those that were resolved within the last day. ``live`` is None where no
    service has ever run; ``is_alive`` whether it was heard within the last minute.
    """

    now: datetime
    sentence: str
    metrics: tuple[Metric, ...]
    tables: tuple[TableView, ...]
    alerts: tuple[Alert, ...]
    live: Live | None
    is_alive: bool
    sources: tuple[SourceView, ...] = ()

    @property
    def open_alerts(self) -> tuple[Alert, ...]:
        """The alerts that somebody has to see to."""
        return tuple(alert for alert in self.alerts if alert.is_open)

    @property
    def is_well(self) -> bool:
        """Whether no table is late and no alert is open."""
        return not any(table.late for table in self.tables) and not self.open_alerts
