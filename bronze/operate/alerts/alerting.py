"""Alerting: evaluates conditions, stores the alerts, and has couriers send what is owed.

Alerts are stored before anything of them is sent, and again when it was. Where the lake is what is
broken, they are sent all the same, and stored as soon as it can be written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bronze import failpoint
from bronze.config.settings import Settings
from bronze.governance.tables.controls import ControlRecord
from bronze.operate import controls
from bronze.operate.alerts import deadline, kinds, life, store
from bronze.operate.alerts.channels.sender import sender
from bronze.operate.alerts.delivery import TERMS, Courier, Terms, Trouble
from bronze.operate.alerts.kinds import CHANNEL, KINDS
from bronze.operate.alerts.life import (
    CLEAR,
    RELAPSE,
    Alert,
    Condition,
    Evaluation,
    Key,
    Message,
    Path,
    Silence,
)
from bronze.operate.alerts.notices import Notice, alert_id, notice
from bronze.operate.alerts.storage import Storage
from bronze.printable import count

_STORED_WITHIN = 5.0
_ADVISED_WITHIN = 5.0
Advice = Callable[[Condition], Sequence[str]]


def _nothing(_: Condition) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Advisors:
    """What is known beside an alert: ``why`` says what checks found out about its cause, ``steps``
    are the first commands of its runbook, ``url`` is its page. ``why`` may take up to 5 s.
    """

    why: Advice = _nothing
    steps: Advice = _nothing
    url: Callable[[Condition], str] = lambda _: ""


_NO_ADVISORS = Advisors()


class Alerting:
    """The alerts of one process. All methods may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        terms: Terms = TERMS,
        advisors: Advisors = _NO_ADVISORS,
        only: Callable[[Key], bool] = lambda key: key[0] != kinds.TEST,
        known: Mapping[Key, Alert] | None = None,
    ) -> None:
        """Alerts of a config.

        Args:
            settings: the config.
            terms: when messages are tried again.
            advisors: what notices say beside what is wrong.
            only: which stored alerts are those of this process.
            known: the alerts of this process under the config before, stored or not.
        """
        self._settings, self._advisors, self._only = settings, advisors, only
        self._paths = kinds.paths(settings.alerts)
        channels = tuple(channel.name for channel in settings.alerts.channels)
        self._alerts = life.only_for(known or {}, channels)
        self._since = datetime.now(UTC)
        self._first: dict[tuple[Key, Message], bool] = {}
        self._advice: dict[tuple[Key, datetime], tuple[str, ...]] = {}
        self.changed = threading.Condition(threading.RLock())
        self._storage = Storage(settings, self._restore, terms.pause)
        self._couriers = {
            channel.name: Courier(channel.name, sender(settings, channel), self, terms)
            for channel in settings.alerts.channels
        }
        self._storage.put(store.changes({}, self._alerts))

    @property
    def alerts(self) -> Mapping[Key, Alert]:
        """The alerts as they are now."""
        with self.changed:
            return dict(self._alerts)

    @property
    def storage_error(self) -> str:
        """Why alerts cannot be stored now, "" if they can."""
        return self._storage.error

    def troubles(self) -> dict[str, Trouble]:
        """The channels that fail while messages wait for them."""
        found = {name: courier.trouble() for name, courier in self._couriers.items()}
        return {name: trouble for name, trouble in found.items() if trouble}

    def start(self) -> None:
        """Reads the stored alerts, if the lake can be read within 5 s, and sends what is owed."""
        self._storage.start()
        self._storage.wait(_STORED_WITHIN)
        for courier in self._couriers.values():
            courier.start()

    def evaluate(
        self,
        conditions: Sequence[Condition],
        silences: Sequence[Silence] = (),
        now: datetime | None = None,
        *,
        at_once: bool = False,
        is_whole: bool = False,
    ) -> None:
        """Makes the alerts of what is wrong now, stores them, and has sent what they owe.

        Args:
            conditions: what is wrong; channels that fail are added.
            silences: of which alerts nobody is told.
            now: the time.
            at_once: whether what is right again is resolved without waiting for a minute.
            is_whole: whether this process has looked at everything and ends, so that what is
                absent is over.
        """
        now = now or datetime.now(UTC)
        wrong = [*conditions, *self._channel_conditions()]
        with self.changed:
            waits = (timedelta(), timedelta()) if at_once else (CLEAR, RELAPSE)
            since = None if is_whole else self._since
            evaluation = Evaluation(now, wrong, silences, self._paths, *waits, since)
            self._replace(life.step(self._alerts, evaluation))
        self._send()

    def follow(self, requests: Iterable[ControlRecord]) -> None:
        """Does what operators have asked about the present openings of alerts: acknowledges them.

        Requests that were followed before change nothing.
        """
        root = self._settings.lake.root
        for request in requests:
            key = controls.key_of(request.subject)
            alert = self.alerts.get(key) if request.action == "acknowledge" else None
            if alert and alert.opened and alert_id(root, key, alert.opened) in request.details:
                self.acknowledge(key, request.actor, request.requested)

    def acknowledge(self, key: Key, by: str, now: datetime) -> bool:
        """Has an alert acknowledged by somebody; whether it is one that was open."""
        with self.changed:
            alert = self._alerts.get(key)
            if alert is None or alert.state != "open":
                return False
            self._replace({**self._alerts, key: life.acknowledge(alert, by, now)})
        self._send()
        return True

    def stop(self, grace: float) -> bool:
        """Ends within a time: what is being sent or stored may end, what is owed stays so.

        Returns:
            Whether everything has been stored and no message hangs.
        """
        end = time.monotonic() + grace
        for courier in self._couriers.values():
            courier.stop()
        ended = [courier.join(end - time.monotonic()) for courier in self._couriers.values()]
        return self._storage.stop(end - time.monotonic()) and all(ended)

    # What couriers call.

    def begin(self, channel: str, key: Key) -> tuple[Message, Notice] | None:
        """`bronze.operate.alerts.delivery.Outbox.begin`."""
        with self.changed:
            alert = self._alerts.get(key)
            message = alert.next_message(channel) if alert else None
            if alert is None or message is None:
                return None
            self._first[key, message] = channel not in alert.heard
            alert = life.begin(alert, message)
            self._alerts[key] = alert
        return message, self._notice(alert, message)

    def end(self, key: Key, message: Message, answer: str) -> None:
        """`bronze.operate.alerts.delivery.Outbox.end`."""
        with self.changed:
            self._first.pop((key, message), None)
            alert = self._alerts.get(key)
            if alert is not None:
                after = life.sent(alert, message, answer, datetime.now(UTC))
                self._replace({**self._alerts, key: after})

    def failed(self, key: Key, message: Message, *, uncertain: bool) -> None:
        """`bronze.operate.alerts.delivery.Outbox.failed`."""
        with self.changed:
            first = self._first.pop((key, message), False)
            alert = self._alerts.get(key)
            if alert is not None and first and not uncertain:
                self._replace({**self._alerts, key: life.unsent(alert, message)})
            self.changed.notify_all()

    def _replace(self, alerts: dict[Key, Alert]) -> None:
        """Keeps alerts, and hands what has changed to the storage; under the lock."""
        self._storage.put(store.changes(self._alerts, alerts))
        self._alerts = alerts
        self.changed.notify_all()

    def _send(self) -> None:
        self._storage.wait(_STORED_WITHIN)
        failpoint.reach("alerted")
        self._offer()

    def _offer(self) -> None:
        for key, alert in self.alerts.items():
            for channel in dict.fromkeys(message.channel for message in alert.owed):
                if channel in self._couriers:
                    self._couriers[channel].offer(key)

    def _restore(self, stored: Mapping[Key, Alert]) -> None:
        """Goes on with the alerts that were stored by the process before this one."""
        now = datetime.now(UTC)
        with self.changed:
            known = {key: alert for key, alert in stored.items() if self._only(key)}
            merged = life.merge(known, self._alerts, tuple(self._couriers), now)
            self._storage.put(store.changes(known, merged))
            self._alerts, self._since = merged, now
        self._offer()

    def _channel_conditions(self) -> list[Condition]:
        return [
            Condition(
                CHANNEL,
                name,
                KINDS[CHANNEL].level,
                trouble.since,
                f"Channel {name} fails: {trouble.error};"
                f" {count(trouble.waiting, 'alert waits', 'alerts wait')} for it",
            )
            for name, trouble in self.troubles().items()
        ]

    def _notice(self, alert: Alert, message: Message) -> Notice:
        kind = KINDS.get(alert.condition.kind)
        return notice(
            self._settings.lake.root,
            alert,
            message,
            why=self._why(alert, message),
            by_itself=kind.by_itself if kind else "",
            steps=tuple(self._advisors.steps(alert.condition))[:3],
            told_next=self._told_next(alert),
            url=self._advisors.url(alert.condition),
        )

    def _why(self, alert: Alert, message: Message) -> tuple[str, ...]:
        """What is known about the cause, found out once for each opening."""
        if message.act != "open":
            return ()
        key = alert.key, message.opening
        if key not in self._advice:
            with self.changed:
                known = {(key, alert.opened) for key, alert in self._alerts.items()}
                self._advice = {k: why for k, why in self._advice.items() if k in known}
            work = deadline.start(lambda: tuple(self._advisors.why(alert.condition)), "bronze-why")
            try:
                self._advice[key] = work.result(_ADVISED_WITHIN)
            except Exception as error:
                # A notice without its cause is better than none.
                self._advice[key] = (f"The cause was not found out ({type(error).__name__}).",)
        return self._advice[key]

    def _told_next(self, alert: Alert) -> str:
        path = self._paths.get(alert.key) or self._paths.get((alert.key[0], ""), Path())
        following = path.steps[alert.step + 1 : alert.step + 2]
        if not following or alert.told is None:
            return ""
        until = (alert.told + path.respond).astimezone(UTC)
        return f"If nobody acknowledges it until {until:%H:%M:%S} UTC, {following[0][0]} is told."
