"""Delivery: one courier for each channel sends what the channel is owed.

A courier has one entry for each alert with messages, not the messages: it asks for the first one
that is owed when it gets to it. So an alert that has changed meanwhile is sent as it is now, and
the queue is never longer than the list of alerts. A send has a deadline as a whole; what fails is
tried again for a day, with pauses that double; a channel that fails again and again rests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Protocol

from bronze import failpoint
from bronze.operate import breaker
from bronze.operate.alerts import deadline
from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.channels.sender import Send
from bronze.operate.alerts.life import Key, Message
from bronze.operate.alerts.notices import Notice
from bronze.operate.breaker import Breaker, Limits, Outcome

GIVEN_UP = timedelta(hours=24)
"""How long a message is tried."""
_LONGEST_PAUSE = 900.0
_LONGEST_WISH = 3600.0
_HANGING = 3
_JITTER = Random()  # noqa: S311 - no secret depends on it


@dataclass(frozen=True)
class Terms:
    """How a channel is tried: the seconds of a send as a whole, and of the first pause after a
    failure; when it rests.
    """

    deadline: float = 10
    pause: float = 5
    limits: Limits = field(default_factory=Limits)


TERMS = Terms()


class Outbox(Protocol):
    """Where couriers find what they send, and say what came of it."""

    def begin(self, channel: str, key: Key) -> tuple[Message, Notice] | None:
        """The first message of an alert that a channel is owed; None if there is none."""

    def end(self, key: Key, message: Message, answer: str) -> None:
        """A message was sent, or given up."""

    def failed(self, key: Key, message: Message, *, uncertain: bool) -> None:
        """A message could not be sent now; it is tried again."""


@dataclass(frozen=True)
class Trouble:
    """A channel that fails: since when, why, and how many alerts wait for it."""

    since: datetime
    error: str
    waiting: int


@dataclass
class _Entry:
    """An alert that a channel is owed messages of."""

    not_before: datetime
    attempts: int = 0
    failing_since: datetime | None = None
    error: str = ""


class SteadyClock:
    """The time of the wall at the start, and how much has passed since: it never jumps."""

    def __init__(self) -> None:
        self._began, self._zero = datetime.now(UTC), time.monotonic()

    def __call__(self) -> datetime:
        """The time now."""
        return self._began + timedelta(seconds=time.monotonic() - self._zero)


@dataclass
class Courier:
    """Sends the messages of one channel, in a thread of its own."""

    name: str
    send: Send
    outbox: Outbox
    terms: Terms = TERMS
    clock: Callable[[], datetime] = field(default_factory=SteadyClock)

    def __post_init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._current: _Entry | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._breaker = Breaker(self.name)
        self._rest_until: datetime | None = None
        self._hanging: list[Future[str]] = []
        self._thread = threading.Thread(
            target=self._run, name=f"bronze-channel-{self.name}", daemon=True
        )

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def offer(self, key: Key) -> None:
        """An alert may have messages for the channel."""
        with self._changed:
            self._entries.setdefault(key, _Entry(self.clock()))
            self._changed.notify_all()

    def trouble(self) -> Trouble | None:
        """What is wrong with the channel, as long as messages wait for it."""
        with self._changed:
            # What is being tried again has not been sent yet.
            waiting = [*self._entries.values(), *([self._current] if self._current else [])]
            failing = [entry for entry in waiting if entry.failing_since]
            if not failing:
                return None
            last = max(failing, key=lambda entry: entry.not_before)
            since = min(entry.failing_since for entry in failing if entry.failing_since)
            return Trouble(since, last.error, len(waiting))

    def stop(self) -> None:
        """Begins nothing more; what is not sent stays owed."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self, seconds: float) -> bool:
        """Waits for the message that is being sent; whether it has ended."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                self._deliver(*work)
            except BaseException as error:
                # Neither a fault of ours nor a panic of a library, which is no Exception, must end
                # the courier: nobody would be told any more.
                fault = f"{type(error).__name__} inside bronze"
                self._postpone(*work, ChannelError(fault, retry=True, uncertain=True))
            with self._changed:
                self._current = None

    def _next(self) -> tuple[Key, _Entry] | None:
        """The entry whose turn it is, taken out; None at the end."""
        with self._changed:
            while not self._stopping:
                now = self.clock()
                begins = self._next_begin(now)
                if begins is not None and begins <= now:
                    key = min(self._entries, key=lambda key: self._entries[key].not_before)
                    self._current = self._entries.pop(key)
                    return key, self._current
                self._changed.wait((begins - now).total_seconds() if begins else None)
        return None

    def _next_begin(self, now: datetime) -> datetime | None:
        """When the next message may be sent; None without any."""
        if not self._entries:
            return None
        first = min(entry.not_before for entry in self._entries.values())
        rests = [self._breaker.until if not self._breaker.may_begin(now) else None]
        return max([first, *filter(None, [self._rest_until, *rests])])

    def _deliver(self, key: Key, entry: _Entry) -> None:
        item = self.outbox.begin(self.name, key)
        if item is None:
            return
        message, notice = item
        began = self.clock()
        if began - message.at > GIVEN_UP:
            self.outbox.end(key, message, f"given up: {entry.error}")
            self._keep(key, _Entry(began))
            return
        self._breaker = breaker.begin(self._breaker, began)
        failpoint.reach("sending")
        try:
            answer = self._attempt(notice)
        except ChannelError as error:
            self._record(began, failed=error.retry)
            self._postpone(key, entry, error)
            self.outbox.failed(key, message, uncertain=error.uncertain)
            return
        failpoint.reach("answered")
        self._record(began, failed=False)
        entry.failing_since = None
        self.outbox.end(key, message, answer)
        # There may be another message, such as the resolution of what was just opened.
        self._keep(key, _Entry(self.clock()))

    def _attempt(self, notice: Notice) -> str:
        seconds = self.terms.deadline
        self._hanging = [future for future in self._hanging if not future.done()]
        if len(self._hanging) >= _HANGING:
            raise ChannelError(
                f"{_HANGING} earlier attempts have neither ended nor been answered", retry=True
            )
        future = deadline.start(lambda: self.send(notice, seconds), f"bronze-send-{self.name}")
        try:
            return future.result(seconds)
        except TimeoutError:
            self._hanging.append(future)
            raise ChannelError(
                f"no answer within {seconds:g} s", retry=True, uncertain=True
            ) from None

    def _record(self, began: datetime, *, failed: bool) -> None:
        # A channel that refuses one message has answered: it is not broken.
        outcome = Outcome(began, self.clock(), failed)
        self._breaker = breaker.end(self._breaker, outcome, self.terms.limits)

    def _postpone(self, key: Key, entry: _Entry, error: ChannelError) -> None:
        now = self.clock()
        entry.attempts += 1
        entry.failing_since = entry.failing_since or now
        entry.error = str(error)
        pause = min(self.terms.pause * 2.0 ** min(entry.attempts - 1, 32), _LONGEST_PAUSE)
        # What was refused may be accepted when somebody has mended the config of the other side.
        pause = pause if error.retry else _LONGEST_PAUSE
        entry.not_before = now + timedelta(seconds=pause * _JITTER.uniform(0.8, 1.2))
        if error.after is not None:
            self._rest_until = now + timedelta(seconds=min(error.after, _LONGEST_WISH))
        self._keep(key, entry)

    def _keep(self, key: Key, entry: _Entry) -> None:
        with self._changed:
            self._current = None
            self._entries[key] = entry
