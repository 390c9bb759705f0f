"""What is wrong now, as conditions of alerts, from what an operator sees.

The cause of a condition is what would explain it: an outage of a source explains what its tables
and its stream suffer, so that one outage is one alert. Where more than `CROWD` tables of a source
have the same trouble, that is one condition of the source, which explains those of its tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bronze.config.sections.alerts import Threshold
from bronze.config.settings import Settings
from bronze.governance.tables.runs import RunRecord
from bronze.operate.alerts import kinds
from bronze.operate.alerts.life import Condition, Key
from bronze.operate.facts.wording import clause, duration, moment
from bronze.operate.metrics import processing_of
from bronze.operate.tables.guards import LAKE_KINDS
from bronze.operate.view import StreamFacts, TableView, View
from bronze.printable import count

CROWD = 5
"""More tables than these with the same trouble are one condition."""
SERVICE = "service"
"""The subject of what is about the service itself."""
_RETRIED = timedelta(minutes=5)
# Longer than two evaluations take.
_TOLD_FOR = timedelta(seconds=20)
# Longer than three looks at the lake: a single slow answer is told to nobody.
_SLOW_FOR = timedelta(seconds=15)
_SLOT_LOST_WITHIN = 6 * 3600
_FULL_BYTES, _FULL_SHARE = 5 * 10**9, 0.05
_REFUSED_STATES = ("", "42P01", "42703", "42P10")
_GB = 10**9


@dataclass(frozen=True)
class Finding:
    """Something wrong that the view does not have, such as an audit log that was changed: its kind,
    what it is about ("service" for the service itself), since when, and a sentence.
    """

    kind: str
    subject: str
    since: datetime
    text: str


def conditions_of(
    settings: Settings,
    view: View,
    findings: Iterable[Finding] = (),
    unseen_since: datetime | None = None,
) -> list[Condition]:
    """Everything that is wrong now, and what was late and nobody saw.

    A lateness that has ended is told for a while: also one that was shorter than it takes to open
    an alert is then in the alerts.

    Args:
        settings: the config.
        view: what an operator sees.
        findings: what else is wrong.
        unseen_since: for a service that has begun lately, when the one before was last heard: a
            table that was late since then is told, too.
    """
    told_from = view.now - _TOLD_FOR if unseen_since is None else unseen_since
    maker = _Maker(settings, view, min(told_from, view.now - _TOLD_FOR))
    return [
        *maker.ends(),
        *maker.streams(),
        *maker.tables(),
        *maker.process(),
        *(maker.make(f.kind, f.subject, f.since, f.text) for f in findings),
    ]


@dataclass(frozen=True)
class _Maker:
    """Makes the conditions of a view."""

    settings: Settings
    view: View
    told_from: datetime

    @property
    def lake(self) -> Key:
        """What explains everything that needs the lake."""
        return "lake_unreachable", self.settings.lake.root

    @property
    def lake_causes(self) -> tuple[Key, ...]:
        """The same, and that it is full where it cannot be written."""
        live = self.view.live
        full: Key = ("lake_full", self.settings.lake.root)
        return (self.lake, full) if live and live.lake_error else (self.lake,)

    @property
    def lake_slow(self) -> Key:
        """What explains that something takes long, or that the lake has not answered in time."""
        return "lake_slow", self.settings.lake.root

    def make(
        self,
        kind: str,
        subject: str,
        since: datetime,
        text: str,
        causes: Sequence[Key] = (),
        hold: timedelta = timedelta(),
    ) -> Condition:
        """A condition at the level of its kind."""
        level = kinds.level(self.settings.alerts, kind)
        return Condition(kind, subject, level, since, f"{clause(text)}.", hold, tuple(causes))

    def ends(self) -> Iterator[Condition]:
        """The sources and the lake."""
        view, live = self.view, self.view.live
        if live and view.is_alive and live.lake_error:
            text = f"The lake cannot be reached: {live.lake_error}"
            yield self.make(*self.lake, live.at, text, [("lake_full", self.settings.lake.root)])
        if live and view.is_alive and live.lake_slow:
            text = f"The lake is slow: {live.lake_slow.text}"
            yield self.make(*self.lake_slow, live.lake_slow.since, text, hold=_SLOW_FOR)
        for source in view.sources:
            if source.error:
                is_config = source.error_kind == "ConfigError"
                kind = "config_invalid" if is_config else "source_unreachable"
                text = f"{source.source} {source.error}"
                yield self.make(kind, source.source, source.since or view.now, text)

    def process(self) -> Iterator[Condition]:
        """The process of the service, and its disk."""
        live, now = self.view.live, self.view.now
        if live is None or not self.view.is_alive:
            return
        if live.config_error:
            text = f"The config is not valid, the one before stays in force: {live.config_error}"
            yield self.make("config_invalid", SERVICE, now, text)
        metric = next(metric for metric in self.view.metrics if metric.name == "resources")
        if metric.state in ("warning", "critical"):
            hold = timedelta(seconds=self.settings.alerts.resources.for_)
            text = f"The service takes too much: {metric.why}, above {metric.threshold:.0%}"
            yield self.make("resources", SERVICE, now, text, hold=hold)
        used = live.resources
        if used and used.disk_free is not None:
            least = min(_FULL_BYTES, _FULL_SHARE * (used.disk_total or 0))
            if used.disk_free < least:
                text = f"The disk of the lake has {used.disk_free / _GB:.1f} GB left"
                yield self.make("lake_full", self.settings.lake.root, now, text)

    def streams(self) -> Iterator[Condition]:
        """The streams and their slots, as the service knows them."""
        live = self.view.live
        for stream in live.streams.values() if live and self.view.is_alive else ():
            source: Key = ("source_unreachable", stream.source)
            if stream.error:
                loss = f"; {_slot_loss(stream)}" if _is_in_danger(stream) else ""
                text = f"The stream of {stream.source} is down: {clause(stream.error)}{loss}"
                causes = [*self.lake_causes, source]
                causes += [self.lake_slow] if stream.error_kind in LAKE_KINDS else []
                yield self.make("stream_down", stream.source, self.view.now, text, causes)
            if stream.left is not None and stream.left <= 0:
                text = f"The replication slot {stream.slot} of {stream.source} is lost"
                yield self.make("slot_lost", stream.source, self.view.now, text)
            elif _is_in_danger(stream) or (stream.retained or 0) > self.settings.stream.wal_budget:
                causes = [*self.lake_causes, self.lake_slow, source, ("stream_down", stream.source)]
                text = _slot_loss(stream)
                yield self.make("slot_retains", stream.source, self.view.now, text, causes)

    def tables(self) -> Iterator[Condition]:
        """The tables; of a crowd with the same trouble first that of the source."""
        found: dict[tuple[str, str], list[tuple[TableView, Condition]]] = defaultdict(list)
        for table in self.view.tables:
            for condition in self._table(table):
                found[condition.kind, table.source].append((table, condition))
        for (kind, source), pairs in found.items():
            conditions = [condition for _, condition in pairs]
            if len(conditions) > CROWD:
                yield self._crowd(kind, source, conditions)
            yield from conditions

    def _crowd(self, kind: str, source: str, conditions: Sequence[Condition]) -> Condition:
        first = min(conditions, key=lambda condition: (condition.since, condition.subject))
        text = (
            f"{len(conditions):,} tables of {source} have the same trouble, such as: {first.text}"
        )
        hold = min(condition.hold for condition in conditions)
        causes = [cause for cause in self._causes(kind, source) if cause != (kind, source)]
        return self.make(kind, source, first.since, text, causes, hold)

    def _causes(self, kind: str, source: str) -> list[Key]:
        """What explains a trouble of all tables of a source; the crowd's own condition is last."""
        causes: list[Key] = [*self.lake_causes, ("source_unreachable", source)]
        if kind in ("freshness", "will_be_late", "duration"):
            causes.append(self.lake_slow)
        if kind in ("freshness", "will_be_late"):
            causes.append(("stream_down", source))
        return [*causes, (kind, source)]

    def _table(self, table: TableView) -> Iterator[Condition]:
        yield from self._lateness(table)
        yield from self._failure(table)
        yield from self._figures(table)
        verified = table.verified
        if verified and verified.status == "differs":
            since = verified.ended or verified.began
            text = f"{table.table} differs from its source: {verified.error_message}"
            yield self._of_table("verify_differs", table, since, text)

    def _of_table(
        self,
        kind: str,
        table: TableView,
        since: datetime,
        text: str,
        *,
        more: Sequence[Key] = (),
        hold: timedelta = timedelta(),
        explained: bool = False,
    ) -> Condition:
        crowd: list[Key] = [(kind, table.source)]
        causes = self._causes(kind, table.source) if explained else crowd
        if explained and table.pattern != "streaming":
            causes = [cause for cause in causes if cause[0] != "stream_down"]
        return self.make(kind, table.key, since, text, (*causes, *more), hold)

    def _lateness(self, table: TableView) -> Iterator[Condition]:
        # A pause with an end is known to end; one without may have been forgotten.
        if table.pause and table.pause.until:
            return
        own: list[Key] = [("table_quarantined", table.key), ("table_failed", table.key)]
        own.append(("schema_refused", table.key))
        past = table.lates[-1] if table.lates else None
        if past and past.end and past.end > self.told_from and not table.late:
            zone = self.settings.serve.timezone
            begin, end = (moment(time, self.view.now, zone) for time in (past.begin, past.end))
            text = f"{table.table} was late from {begin} until {end}"
            yield self._of_table("freshness", table, past.begin, text, more=own, explained=True)
        elif table.late:
            since = moment(table.late.begin, self.view.now, self.settings.serve.timezone)
            because = f", because {table.why}" if table.why else ""
            text = f"{table.table} is late since {since}{because}"
            hold = _hold(self.settings.alerts.freshness)
            yield self._of_table(
                "freshness", table, table.late.begin, text, more=own, hold=hold, explained=True
            )
        elif table.state == "will be late":
            text = f"{table.table} is about to be late: it {table.why}"
            yield self._of_table(
                "will_be_late", table, self.view.now, text, more=own, explained=True
            )

    def _failure(self, table: TableView) -> Iterator[Condition]:
        last = table.last
        breaker = table.breaker
        is_resting = breaker is not None and breaker.state(self.view.now) != "closed"
        since = (last.ended or last.began) if last else self.view.now
        if is_resting and breaker:
            failures = f"it failed {count(breaker.failures, 'time')} in a row"
            text = f"{table.table} is quarantined: {failures}{_message(table)}"
            begin, more = breaker.failed_at or since, self._error_causes(last)
            yield self._of_table("table_quarantined", table, begin, text, more=more, explained=True)
        elif table.pattern == "streaming":
            yield from self._not_followed(table)
        elif table.died:
            begun = moment(table.died.began, self.view.now, self.settings.serve.timezone)
            text = f"{table.table}: its run of {begun} on {table.died.host} has never ended"
            crash: list[Key] = [("process_crashed", SERVICE)]
            yield self._of_table(
                "table_failed", table, table.died.began, text, more=crash, explained=True
            )
        elif last and last.status == "failed":
            is_schema = last.error_kind == "TableRefused" and last.sqlstate in _REFUSED_STATES
            kind = "schema_refused" if is_schema else "table_failed"
            text = f"{table.table} failed{_message(table)}"
            is_retried = bool(self.view.live and table.key in self.view.live.retries)
            hold = _RETRIED if is_retried else timedelta()
            more = self._error_causes(last)
            yield self._of_table(kind, table, since, text, more=more, hold=hold, explained=True)

    def _error_causes(self, last: RunRecord | None) -> list[Key]:
        """What would explain the error of a run, by the error's class."""
        if last is None:
            return []
        is_secret = last.error_kind in ("ConfigError", "SecretsUnreachable")
        causes: list[Key] = [("keys_missing", SERVICE)] if is_secret else []
        return [*causes, *([self.lake_slow] if last.error_kind in LAKE_KINDS else [])]

    def _not_followed(self, table: TableView) -> Iterator[Condition]:
        live = self.view.live
        why = live.waiting.get(table.key) if live and self.view.is_alive else None
        if why:
            text = f"{table.table} is not streamed: {why}"
            yield self._of_table("table_failed", table, self.view.now, text, explained=True)

    def _figures(self, table: TableView) -> Iterator[Condition]:
        alerts, read = self.settings.alerts, table.last_read
        read_at = (read.ended or read.began) if read else self.view.now
        if table.score is not None and table.score < alerts.quality.less_than:
            text = (
                f"The rows of {table.table} have a score of {table.score:.1f},"
                f" less than {alerts.quality.less_than:g}"
            )
            scored_at = table.scored_at or self.view.now
            yield self._of_table("quality", table, scored_at, text, hold=_hold(alerts.quality))
        if table.failed is not None and table.failed > alerts.failed.more_than:
            text = (
                f"{table.failed:.1%} of the rows of {table.table} were quarantined or have rejected"
                f" values, more than {alerts.failed.more_than:.1%}"
            )
            yield self._of_table("failed_records", table, read_at, text, hold=_hold(alerts.failed))
        limit = alerts.duration
        took = processing_of(table, self.view.now)
        if took is not None and took > limit.more_than:
            since = self.view.now - timedelta(seconds=took - limit.more_than)
            if not table.running and table.last:
                since = table.last.ended or table.last.began
            verb = "takes" if table.running else "took"
            text = (
                f"{table.table} {verb} {duration(took)} from due to landed,"
                f" more than {duration(limit.more_than)}"
            )
            yield self._of_table("duration", table, since, text, hold=_hold(limit), explained=True)


def _hold(threshold: Threshold) -> timedelta:
    return timedelta(seconds=threshold.for_)


def _message(table: TableView) -> str:
    message = table.last.error_message if table.last else ""
    return f": {clause(message)}" if message else ""


def _is_in_danger(stream: StreamFacts) -> bool:
    return stream.lost_in is not None and stream.lost_in < _SLOT_LOST_WITHIN


def _slot_loss(stream: StreamFacts) -> str:
    kept = f"{(stream.retained or 0) / _GB:.1f} GB"
    text = f"{stream.source} keeps {kept} of its log for the slot {stream.slot}"
    if stream.lost_in is None:
        return text
    rate = (stream.left or 0) / _GB / max(stream.lost_in / 3600, 1e-9)
    return f"{text}, which is lost in about {duration(stream.lost_in)} at {rate:.1f} GB/h"
