"""What an operator sees now, from the config, the history, the service's own facts and the time.

`view_of` reads nothing and changes nothing; it is made each second, also for 1,000 tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from bronze.config.settings import Settings
from bronze.governance.tables.controls import ControlRecord
from bronze.governance.tables.runs import RunRecord
from bronze.operate import beat, metrics
from bronze.operate.alerts.life import Alert
from bronze.operate.breaker import Breaker
from bronze.operate.facts import first_sentence
from bronze.operate.facts.half_hours import failed_share
from bronze.operate.facts.outlook import Outlook, Outlooks
from bronze.operate.facts.source_state import source_views
from bronze.operate.facts.table_history import TableHistory
from bronze.operate.facts.table_state import Facts, Times, reason_of, state_of
from bronze.operate.freshness import expected_end, late_stream
from bronze.operate.history import History
from bronze.operate.tables import requests
from bronze.operate.view import Live, Pause, Running, TableLike, TableView, View
from bronze.quality.latest import Score

_DIED_AFTER = 600.0
_RESOLVED_LATELY = timedelta(days=1)


def view_of(
    settings: Settings,
    tables: Sequence[TableLike],
    history: History | None,
    live: Live | None,
    controls: Sequence[ControlRecord],
    alerts: Iterable[Alert],
    now: datetime,
    outlooks: Outlooks | None = None,
) -> View:
    """Everything, now.

    Args:
        settings: the config.
        tables: the tables that exist; the same objects from call to call save time.
        history: what the governance tables tell; None if they cannot be read.
        live: what the service told last; None if none has ever run.
        controls: what operators have asked.
        alerts: the alerts that are open, or were resolved.
        now: an aware time.
        outlooks: kept from call to call, as it remembers what does not change with the time alone.
    """
    outlooks = outlooks or Outlooks()
    outlooks.use(settings)
    is_alive = live is not None and not live.is_stopping and now - live.at <= beat.ALIVE
    context = _Context(
        settings, history, live, is_alive, pauses_of(controls, tables, now), outlooks, now
    )
    sources = source_views(settings, tables, history, live if is_alive else None)
    by_source = {source.source: source for source in sources}
    views = [context.view(table, by_source[table.source].error) for table in tables]
    # What has no deadline comes after what is late.
    views.sort(key=lambda view: (view.slack if view.slack is not None else 0.0, view.key))
    figures = metrics.metrics_of(
        settings, views, history, live if is_alive else None, outlooks, now
    )
    view = View(now, "", figures, tuple(views), _ordered(alerts, now), live, is_alive, sources)
    return first_sentence.with_sentence(view, settings.serve.timezone)


def _ordered(alerts: Iterable[Alert], now: datetime) -> tuple[Alert, ...]:
    """The alerts that are open, the worst first, then those that were resolved lately."""
    known = tuple(alerts)
    is_open = sorted(
        (alert for alert in known if alert.is_open),
        key=lambda alert: (alert.condition.level != "critical", alert.opened or now, alert.key),
    )
    resolved = [
        (alert.resolved, alert.key, alert)
        for alert in known
        if alert.resolved and alert.opened and now - alert.resolved < _RESOLVED_LATELY
    ]
    lately = sorted(resolved, key=lambda entry: entry[:2], reverse=True)
    return (*is_open, *(alert for _, _, alert in lately))


def pauses_of(
    controls: Sequence[ControlRecord], tables: Iterable[TableLike], now: datetime
) -> Mapping[str, Pause]:
    """The tables that are paused now, by their keys: the last request about a table counts."""
    asked = requests.of_tables(tables, controls, now)
    return {
        key: Pause(pause.actor, pause.requested, pause.until, pause.reason)
        for key, request in asked.items()
        if (pause := request.pause)
    }


@dataclass(frozen=True)
class _Context:
    """What the views of all tables have in common."""

    settings: Settings
    history: History | None
    live: Live | None
    is_alive: bool
    pauses: Mapping[str, Pause]
    outlooks: Outlooks
    now: datetime

    def view(self, table: TableLike, source_error: str) -> TableView:
        """The view of a table."""
        key, own = table.key, table.settings
        known = self.history.tables.get(key) if self.history else None
        # Without its history a table is not known to be late.
        began = self.live.began if self.live and self.history else None
        outlook = self.outlooks.of(self.settings, table, known, began, self.now)
        running = self._running(key, known, outlook.expected)
        times = self._times(table, outlook, running)
        last_read = known.last_read if known else None
        score = self._score(table, last_read)
        facts = Facts(
            table=table,
            times=times,
            running=running,
            known=known,
            waiting=self._waiting(key),
            pause=self.pauses.get(key),
            breaker=self._breaker(key),
            source_error=source_error,
            lake_slow=self.live.lake_slow if self.live and self.is_alive else None,
            has_history=self.history is not None,
            is_alive=self.is_alive,
            now=self.now,
            zone=self.settings.serve.timezone,
        )
        state = state_of(facts)
        return TableView(
            table=table.label,
            source=table.source,
            target=table.target,
            key=key,
            pattern=own.pattern,
            priority=own.priority,
            schedule=outlook.schedule.text,
            state=state,
            why=reason_of(state, facts),
            sla=outlook.limit.total_seconds(),
            as_of=times.as_of,
            age=times.age,
            deadline=times.deadline,
            slack=None if times.deadline is None else (times.deadline - self.now).total_seconds(),
            late=times.late,
            lates=outlook.lates,
            next_due=times.next_due,
            expected=outlook.expected,
            expected_end=times.expected_end,
            running=running,
            score=score.score if score else None,
            scored_rows=score.rows if score else None,
            scored_at=score.evaluated if score else None,
            failed=failed_share(last_read) if last_read else None,
            last=known.last if known else None,
            last_read=last_read,
            died=facts.died,
            verified=known.verified if known else None,
            pause=facts.pause,
            breaker=facts.breaker,
        )

    def _score(self, table: TableLike, last_read: RunRecord | None) -> Score | None:
        """The score of the rows that a table's last run read, or its stream has recorded last."""
        if table.settings.pattern == "streaming":
            streamed = self.history.scores.get(table.target) if self.history else None
            if streamed:
                return streamed
        if last_read is None or last_read.score is None:
            return None
        return Score(last_read.ended or last_read.began, last_read.rows_read, last_read.score)

    def _waiting(self, key: str) -> str:
        return self.live.waiting.get(key, "") if self.live and self.is_alive else ""

    def _breaker(self, key: str) -> Breaker | None:
        return self.live.breakers.get(f"table:{key}") if self.live else None

    def _running(
        self, key: str, known: TableHistory | None, expected: float | None
    ) -> Running | None:
        """The run that goes on: as the service says, or else one that has begun lately."""
        begun = known.open[-1] if known and known.open else None
        if self.live and self.is_alive and key in self.live.running:
            running = self.live.running[key]
            is_same = begun is not None and begun.run_id == running.run_id
            return replace(running, due=begun.scheduled) if begun and is_same else running
        if begun is None or self._has_died(begun.began, expected):
            return None
        return Running(begun.command, begun.run_id, begun.began, due=begun.scheduled)

    def _has_died(self, began: datetime, expected: float | None) -> bool:
        longest = max(_DIED_AFTER, 3 * (expected or 0))
        return (self.now - began).total_seconds() > longest

    def _times(self, table: TableLike, outlook: Outlook, running: Running | None) -> Times:
        if table.settings.pattern == "streaming":
            return self._stream_times(table, outlook)
        now, due = self.now, outlook.due
        next_due = self.outlooks.times.around(outlook.schedule, now)[1]
        is_late = outlook.deadline is not None and outlook.deadline < now
        is_due = due is not None and due <= now
        end = None
        if outlook.expected is not None:
            begin = running.began if running else None if is_due else next_due
            end = expected_end(begin, outlook.expected, now)
        will_be_late = (
            not is_late
            and end is not None
            and outlook.deadline is not None
            and (is_due or running is not None)
            and end > outlook.deadline
        )
        return Times(
            as_of=outlook.as_of,
            due=due,
            age=max(0.0, (now - due).total_seconds()) if due else None,
            deadline=outlook.deadline,
            late=outlook.late if is_late else None,
            will_be_late=will_be_late,
            next_due=next_due,
            expected_end=end,
        )

    def _stream_times(self, table: TableLike, outlook: Outlook) -> Times:
        stream = self.live.streams.get(table.source) if self.live and self.is_alive else None
        point = self.history.streams.get(table.source) if self.history else None
        as_of, is_quiet = None, False
        if stream and (not stream.tables or {table.key, table.label} & set(stream.tables)):
            as_of = stream.as_of
            is_quiet = not stream.error and not stream.changes_per_second
        if as_of is None and point and table.target in point.targets:
            as_of = point.as_of
        if as_of is None:
            return Times(is_stream_known=stream is not None or point is not None)
        age = (self.now - as_of).total_seconds()
        late = late_stream(as_of, outlook.limit, self.now)
        return Times(
            as_of=as_of,
            age=age,
            deadline=as_of + outlook.limit,
            late=late,
            is_quiet=is_quiet,
            is_stream_known=True,
        )
