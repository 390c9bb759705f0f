"""The life of alerts: pending → open → acknowledged → resolved.

`step` is a pure function: from the alerts that are known, what is wrong now and the time, it makes
the alerts that are known next. Each alert has the list of those who are owed a message, so that
messages are sent after the alerts were stored, and a restart neither repeats nor forgets one.

- One alert is open per key (kind and subject).
- A condition opens its alert at its second evaluation, and after its ``hold`` time. It resolves
  when it was absent at two evaluations and for a minute. A process that has just started knows
  nothing of the time before: its minute begins with it. One that has looked at everything and ends
  (`bronze serve --once`) resolves what is absent then.
- What comes again soon after it was resolved comes and goes: that is told once, and it is resolved
  when it has stayed away for longer.
- A condition whose cause has an open alert opens none: one outage is one message.
- An alert that nobody acknowledges is told to the next step of its path, when its time is over.
- A message is owed to a channel until it was sent. One that has become pointless is not sent: who
  never heard of an alert hears neither that somebody sees to it, nor that it is over.
- Nothing is told under a silence; what is still open when the silence ends is told then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Literal

State = Literal["pending", "open", "acknowledged", "resolved"]
Act = Literal["open", "acknowledge", "resolve"]
Level = Literal["warning", "critical"]
Key = tuple[str, str]

EVALUATIONS = 2
CLEAR = timedelta(seconds=60)
"""How long a condition has to be absent before its alert is resolved."""
RELAPSE = timedelta(minutes=15)
"""How soon after it was resolved a condition comes again to be called one that comes and goes; and
how long it has to stay away then.
"""


@dataclass(frozen=True)
class Condition:
    """Something that is wrong at an evaluation.

    ``kind`` and ``subject`` (a table, a source, a channel …) are its key. ``since`` is when it
    began, ``text`` a sentence that says what is wrong, ``hold`` for how long it has to be so before
    anybody is told. ``causes`` are keys of what would explain it.
    """

    kind: str
    subject: str
    level: Level
    since: datetime
    text: str
    hold: timedelta = timedelta()
    causes: tuple[Key, ...] = ()

    @property
    def key(self) -> Key:
        """Its kind and its subject."""
        return self.kind, self.subject


@dataclass(frozen=True)
class Message:
    """What a channel is owed: ``opening`` is when the alert opened that it is about."""

    act: Act
    channel: str
    at: datetime
    opening: datetime


@dataclass(frozen=True)
class Receipt:
    """A message that was sent by a channel at a time, and what was answered."""

    act: Act
    channel: str
    at: datetime
    answer: str


@dataclass(frozen=True)
class Alert:
    """One alert.

    ``present`` and ``absent`` count evaluations in a row with and without its condition, which was
    ``seen`` last at a time; None if only a process before this one has seen it. ``recurring`` says
    that it comes and goes. ``step`` is the last step of the path that was told, -1 for nobody,
    ``told`` when that was. ``owed`` are the messages that are to be sent, in their order; ``heard``
    are the channels that know, or may know, that it is open; ``receipts`` what was sent.
    ``effects`` is how many conditions it explains.
    """

    condition: Condition
    state: State = "pending"
    present: int = 1
    absent: int = 0
    seen: datetime | None = None
    opened: datetime | None = None
    acknowledged: datetime | None = None
    by: str = ""
    resolved: datetime | None = None
    recurring: bool = False
    step: int = -1
    told: datetime | None = None
    owed: tuple[Message, ...] = ()
    heard: tuple[str, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    effects: int = 0

    @property
    def key(self) -> Key:
        """Its kind and its subject."""
        return self.condition.key

    @property
    def is_open(self) -> bool:
        """Whether somebody has to see to it: open, or acknowledged."""
        return self.state in ("open", "acknowledged")

    def next_message(self, channel: str) -> Message | None:
        """The first message that a channel is owed."""
        return next((message for message in self.owed if message.channel == channel), None)


@dataclass(frozen=True)
class Silence:
    """Nothing is told of alerts whose kind and subject match these patterns, until a time."""

    kind: str
    subject: str
    until: datetime
    reason: str

    def covers(self, key: Key, now: datetime) -> bool:
        """Whether it silences an alert now."""
        return (
            now < self.until
            and fnmatchcase(key[0], self.kind)
            and fnmatchcase(key[1], self.subject)
        )


@dataclass(frozen=True)
class Path:
    """Who is told: the channels of each of the ``steps``, and after how much time without an
    acknowledgement the next one is told. Without a step nobody is told.
    """

    steps: tuple[tuple[str, ...], ...] = ()
    respond: timedelta = timedelta(minutes=15)


@dataclass(frozen=True)
class Evaluation:
    """What is known at one evaluation. ``paths`` are by key, or for all other keys of a kind by the
    kind and ""; without one nobody is told. ``clear`` and ``relapse`` are as
    `CLEAR` and `RELAPSE`. ``since`` is when this process began to know what is wrong; None for one
    that has looked at everything and ends: what is absent is over, or, if it comes and goes, when
    this process has never seen it, and it was opened a ``relapse`` ago.
    """

    now: datetime
    conditions: Sequence[Condition]
    silences: Sequence[Silence] = ()
    paths: Mapping[Key, Path] = field(default_factory=dict)
    clear: timedelta = CLEAR
    relapse: timedelta = RELAPSE
    since: datetime | None = None

    def is_silenced(self, key: Key) -> bool:
        """Whether nothing is told of an alert now."""
        return any(silence.covers(key, self.now) for silence in self.silences)

    def path(self, alert: Alert) -> Path:
        """Who is told of an alert."""
        kind, _ = alert.key
        return self.paths.get(alert.key) or self.paths.get((kind, ""), Path())

    def is_over(self, alert: Alert) -> bool:
        """Whether an alert has been absent for long enough to be resolved."""
        if self.since is None and not alert.recurring:
            return True
        last = alert.seen or self.since or alert.opened or self.now
        return self.now - last >= (self.relapse if alert.recurring else self.clear)


def step(alerts: Mapping[Key, Alert], evaluation: Evaluation) -> dict[Key, Alert]:
    """The alerts after an evaluation; those that were resolved long ago are left out."""
    wrong = {condition.key: condition for condition in evaluation.conditions}
    after: dict[Key, Alert] = {}
    for key in _causes_first({**dict.fromkeys(alerts), **dict.fromkeys(wrong)}, wrong):
        alert = _next(alerts.get(key), wrong.get(key), evaluation, after)
        if alert is not None:
            after[key] = alert
    explained = [
        cause for condition in wrong.values() if (cause := _cause(condition, after)) is not None
    ]
    return {
        key: _with_messages(replace(alert, effects=explained.count(key)), evaluation)
        for key, alert in after.items()
    }


def _causes_first(keys: Iterable[Key], wrong: Mapping[Key, Condition]) -> Iterator[Key]:
    """The keys, each after those that explain it: an effect at the same evaluation finds its cause,
    also where that has a cause itself.
    """
    done: set[Key] = set()

    def visit(key: Key) -> Iterator[Key]:
        if key in done:
            return
        done.add(key)
        for cause in wrong[key].causes if key in wrong else ():
            if cause in wrong:
                yield from visit(cause)
        yield key

    for key in keys:
        yield from visit(key)


def acknowledge(alert: Alert, by: str, now: datetime) -> Alert:
    """The alert after somebody has said that they see to it."""
    if alert.state != "open" or alert.opened is None:
        return alert
    messages = [Message("acknowledge", channel, now, alert.opened) for channel in alert.heard]
    owed = [message for message in alert.owed if not _is_news(alert, message)]
    return replace(alert, state="acknowledged", acknowledged=now, by=by, owed=(*owed, *messages))


def begin(alert: Alert, message: Message) -> Alert:
    """The alert when a message begins to be sent: from now on its channel may know of it."""
    if message.act != "open" or message.channel in alert.heard:
        return alert
    return replace(alert, heard=(*alert.heard, message.channel))


def sent(alert: Alert, message: Message, answer: str, now: datetime) -> Alert:
    """The alert after a message was sent, or given up."""
    receipt = Receipt(message.act, message.channel, now, answer)
    owed = tuple(other for other in alert.owed if other != message)
    return replace(alert, owed=owed, receipts=(*alert.receipts, receipt))


def unsent(alert: Alert, message: Message) -> Alert:
    """The alert after a message certainly did not arrive, which was the first attempt of its
    channel: the opposite of `begin`.
    """
    if message.act != "open":
        return alert
    heard = alert.heard
    if alert.opened == message.opening:
        heard = tuple(channel for channel in heard if channel != message.channel)
    about = message.channel, message.opening
    owed = tuple(m for m in alert.owed if m == message or (m.channel, m.opening) != about)
    return replace(alert, heard=heard, owed=owed)


def restart(alert: Alert) -> Alert:
    """A stored alert in a process that has just started: what was owed may have been sent, and
    nothing is known of the time since.
    """
    channels = [m.channel for m in alert.owed if m.act == "open" and m.opening == alert.opened]
    heard = tuple(dict.fromkeys([*alert.heard, *channels]))
    return replace(alert, heard=heard, seen=None, present=0, absent=0)


def merge(
    stored: Mapping[Key, Alert],
    current: Mapping[Key, Alert],
    channels: Collection[str],
    now: datetime,
) -> dict[Key, Alert]:
    """The alerts of a process that could read the stored ones only now, when it has its own.

    An alert that is stored as open goes on, unless it was opened here again: then those who know of
    the stored opening are owed its end. Channels that no longer exist are owed nothing.
    """
    merged = {key: restart(alert) for key, alert in stored.items()}
    for key, alert in current.items():
        earlier = merged.get(key)
        if earlier and earlier.is_open and not alert.is_open and alert.opened != earlier.opened:
            continue
        if earlier and alert.opened and alert.opened == earlier.opened:
            merged[key] = alert
            continue
        ends: tuple[Message, ...] = ()
        if earlier:
            ends = _ends(earlier, now) if earlier.is_open else earlier.owed
        merged[key] = replace(alert, owed=(*ends, *alert.owed))
    return only_for(merged, channels)


def only_for(alerts: Mapping[Key, Alert], channels: Collection[str]) -> dict[Key, Alert]:
    """The alerts without messages to channels that no longer exist."""
    return {
        key: replace(alert, owed=tuple(m for m in alert.owed if m.channel in channels))
        for key, alert in alerts.items()
    }


def _ends(alert: Alert, now: datetime) -> tuple[Message, ...]:
    """What is owed at the end of an alert."""
    if alert.opened is None:
        return alert.owed
    earlier = [message for message in alert.owed if message.opening != alert.opened]
    ends = [Message("resolve", channel, now, alert.opened) for channel in alert.heard]
    return (*earlier, *ends)


def _is_news(alert: Alert, message: Message) -> bool:
    """Whether a message of the present opening is the first that its channel would hear of it."""
    return message.opening == alert.opened and message.channel not in alert.heard


def _next(
    alert: Alert | None,
    condition: Condition | None,
    evaluation: Evaluation,
    after: Mapping[Key, Alert],
) -> Alert | None:
    """The alert's state at this evaluation, before messages; None if it is forgotten."""
    if condition is None:
        return _without(alert, evaluation) if alert else None
    if _cause(condition, after) is not None and (alert is None or not alert.is_open):
        return alert if alert is not None and alert.state == "resolved" else None
    return _with(alert, condition, evaluation)


def _cause(condition: Condition, alerts: Mapping[Key, Alert]) -> Key | None:
    """The key of the open or pending alert that explains a condition."""
    return next((key for key in condition.causes if _is_live(alerts.get(key))), None)


def _is_live(alert: Alert | None) -> bool:
    # What is about to open explains its effects already.
    return alert is not None and (alert.is_open or (alert.state == "pending" and not alert.absent))


def _with(alert: Alert | None, condition: Condition, evaluation: Evaluation) -> Alert:
    now = evaluation.now
    if alert is None:
        return Alert(condition, seen=now)
    if alert.state == "resolved":
        returned = alert.resolved is not None and now - alert.resolved < evaluation.relapse
        return Alert(condition, seen=now, recurring=returned, owed=alert.owed)
    present = alert.present + 1
    condition = replace(condition, since=min(alert.condition.since, condition.since))
    alert = replace(alert, condition=condition, present=present, absent=0, seen=now)
    holds = now - condition.since >= condition.hold
    if alert.state == "pending" and present >= EVALUATIONS and holds:
        return replace(alert, state="open", opened=now)
    return alert


def _without(alert: Alert, evaluation: Evaluation) -> Alert | None:
    now = evaluation.now
    if alert.state == "resolved":
        old = alert.resolved is None or now - alert.resolved >= RELAPSE
        return None if old and not alert.owed else alert
    absent = alert.absent + 1
    if alert.state == "pending":
        return (
            None
            if absent >= EVALUATIONS and not alert.owed
            else replace(alert, absent=absent, present=0)
        )
    if absent < EVALUATIONS or not evaluation.is_over(alert):
        return replace(alert, absent=absent, present=0)
    return replace(alert, state="resolved", resolved=now, absent=absent, present=0)


def _with_messages(alert: Alert, evaluation: Evaluation) -> Alert:
    """The alert with the messages that have become due."""
    now = evaluation.now
    if alert.state == "resolved":
        if alert.opened is None or alert.resolved != now:
            return alert
        return replace(alert, owed=_ends(alert, now))
    if alert.state != "open" or evaluation.is_silenced(alert.key):
        return alert
    path = evaluation.path(alert)
    waited = alert.told is None or now - alert.told >= path.respond
    if waited and alert.step + 1 < len(path.steps):
        return _tell(alert, path.steps[alert.step + 1], now)
    return alert


def _tell(alert: Alert, channels: Iterable[str], now: datetime) -> Alert:
    """The alert after the channels of the next step are owed its opening."""
    opening = alert.opened or now
    known = {*alert.heard, *(m.channel for m in alert.owed if m.opening == opening)}
    news = [Message("open", channel, now, opening) for channel in channels if channel not in known]
    return replace(alert, step=alert.step + 1, told=now, owed=(*alert.owed, *news))
