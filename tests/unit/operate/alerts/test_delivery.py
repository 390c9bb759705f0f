"""Couriers: what is tried, when, how often; on a clock of the test where a day has to pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.delivery import Courier, SteadyClock, Terms
from bronze.operate.alerts.life import Key, Message
from bronze.operate.alerts.notices import Notice
from bronze.operate.breaker import Limits

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
ORDERS, ITEMS = ("table_failed", "orders"), ("table_failed", "items")


class Owed:
    """An outbox with one message for each alert."""

    def __init__(self, at: datetime, *keys: Key) -> None:
        self.messages = {key: Message("open", "team", at, at) for key in keys}
        self.ends: list[tuple[Key, str]] = []
        self.failures: list[tuple[Key, bool]] = []
        self.changed = threading.Condition()

    def begin(self, channel: str, key: Key) -> tuple[Message, Notice] | None:
        """The message and its notice."""
        message = self.messages.get(key)
        if message is None or message.channel != channel:
            return None
        notice = Notice(key[1], "open", "critical", *key, "failed", (), message.at)
        return message, notice

    def end(self, key: Key, message: Message, answer: str) -> None:
        """It was sent."""
        with self.changed:
            del self.messages[key]
            self.ends.append((key, answer))
            self.changed.notify_all()

    def failed(self, key: Key, message: Message, *, uncertain: bool) -> None:
        """It was not."""
        with self.changed:
            self.failures.append((key, uncertain))
            self.changed.notify_all()

    def wait(self, is_so: Callable[[], bool]) -> None:
        """Until something is so."""
        with self.changed:
            assert self.changed.wait_for(is_so, 10)


class Channel:
    """A channel that answers, or raises, as the test wants; it notes what it is asked, and when."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, float]] = []

    def send(self, notice: Notice, timeout: float) -> str:
        """The next answer; the last one is repeated."""
        self.asked.append((notice.id, time.monotonic()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def retried(message: str = "down", **more: float) -> ChannelError:
    """A failure that passes."""
    return ChannelError(message, retry=True, **more)  # type: ignore[arg-type]


@contextmanager
def running(
    outbox: Owed, channel: Channel, *keys: Key, clock: Callable[[], datetime] | None = None
) -> Iterator[Courier]:
    """A courier with entries."""
    terms = Terms(1, 0.02, Limits(threshold=3, pause=0.3, longest=0.3))
    courier = Courier("team", channel.send, outbox, terms, clock or SteadyClock())
    courier.start()
    for key in keys:
        courier.offer(key)
    try:
        yield courier
    finally:
        courier.stop()
        assert courier.join(5)


def test_failures_are_tried_again_after_pauses_that_double() -> None:
    """Until it is sent; then nothing is wrong with the channel any more."""
    outbox, channel = Owed(datetime.now(UTC), ORDERS), Channel(retried(), retried(), "fine")
    with running(outbox, channel, ORDERS) as courier:
        outbox.wait(lambda: bool(outbox.ends))
        assert courier.trouble() is None
    first, second, third = (at for _, at in channel.asked)
    assert second - first >= 0.016
    assert third - second >= 0.032
    assert outbox.failures == [(ORDERS, False)] * 2


def test_a_channel_that_fails_again_and_again_rests() -> None:
    """After three failures nothing is tried for the rest, then one message at a time."""
    keys = [("table_failed", f"t{n}") for n in range(20)]
    outbox, channel = Owed(datetime.now(UTC), *keys), Channel(*[retried()] * 4, "fine")
    with running(outbox, channel, *keys) as courier:
        outbox.wait(lambda: len(outbox.failures) == 3)
        trouble = courier.trouble()
        assert trouble is not None
        assert (trouble.error, trouble.waiting) == ("down", 20)
        outbox.wait(lambda: len(outbox.ends) == 20)
    times = [at for _, at in channel.asked]
    assert times[3] - times[2] >= 0.23
    assert times[4] - times[3] >= 0.23
    assert len(times) == 24


def test_the_other_side_says_when_to_try_again() -> None:
    """That holds for all messages of the channel."""
    outbox = Owed(datetime.now(UTC), ORDERS, ITEMS)
    channel = Channel(retried("slow down", after=0.4), "fine")
    with running(outbox, channel, ORDERS, ITEMS):
        outbox.wait(lambda: len(outbox.ends) == 2)
    times = [at for _, at in channel.asked]
    assert times[1] - times[0] >= 0.38


def test_a_message_that_is_refused_does_not_hold_back_others() -> None:
    """It is not tried again soon, and does not count as a failure of the channel."""
    refused = ChannelError("no such key", retry=False)
    outbox = Owed(datetime.now(UTC), ORDERS)
    channel = Channel(refused, "fine")
    with running(outbox, channel, ORDERS) as courier:
        outbox.wait(lambda: bool(outbox.failures))
        others = [("table_failed", f"t{n}") for n in range(5)]
        outbox.messages |= Owed(datetime.now(UTC), *others).messages
        for key in others:
            courier.offer(key)
        outbox.wait(lambda: len(outbox.ends) == 5)
        trouble = courier.trouble()
        assert trouble is not None
        assert (trouble.error, trouble.waiting) == ("no such key", 1)
        assert courier._entries[ORDERS].not_before > datetime.now(UTC) + timedelta(minutes=10)
    assert len(channel.asked) == 6


def test_a_message_is_given_up_after_a_day() -> None:
    """With why it could not be sent; before that it is tried."""
    outbox, channel = Owed(NOON, ORDERS, ITEMS), Channel(retried("down"))
    now = [NOON]

    def clock() -> datetime:
        # Each look at the clock is an hour later.
        now[0] += timedelta(hours=1)
        return now[0]

    with running(outbox, channel, ORDERS, clock=clock):
        outbox.wait(lambda: bool(outbox.ends))
    assert outbox.ends == [(ORDERS, "given up: down")]
    assert len(channel.asked) >= 3
    assert now[0] - NOON > timedelta(hours=24)


def test_a_channel_is_in_trouble_while_it_is_tried_again() -> None:
    """An attempt that takes long hides nothing."""
    begun, release, fails = threading.Event(), threading.Event(), [True]

    def send(notice: Notice, timeout: float) -> str:
        if fails.pop() if fails else False:
            raise retried()
        begun.set()
        release.wait(10)
        return "fine"

    outbox = Owed(datetime.now(UTC), ORDERS)
    courier = Courier("team", send, outbox, Terms(deadline=10, pause=0.01))
    courier.start()
    courier.offer(ORDERS)
    assert begun.wait(5)
    trouble = courier.trouble()
    assert trouble is not None
    assert (trouble.error, trouble.waiting) == ("down", 1)
    release.set()
    outbox.wait(lambda: bool(outbox.ends))
    courier.stop()
    assert courier.join(5)
    assert courier.trouble() is None


def test_a_fault_ends_no_courier() -> None:
    """It is a failure like others, and the message is tried again."""
    outbox, channel = Owed(datetime.now(UTC), ORDERS), Channel(ZeroDivisionError("x"), "fine")
    with running(outbox, channel, ORDERS):
        outbox.wait(lambda: bool(outbox.ends))
    assert len(channel.asked) == 2


def test_a_courier_ends_though_a_message_hangs() -> None:
    """What is being sent may end; nothing else is begun."""
    begun, release = threading.Event(), threading.Event()

    def hang(notice: Notice, timeout: float) -> str:
        begun.set()
        release.wait(10)
        return "fine"

    outbox = Owed(datetime.now(UTC), ORDERS, ITEMS)
    courier = Courier("team", hang, outbox, Terms(deadline=10))
    courier.start()
    courier.offer(ORDERS)
    courier.offer(ITEMS)
    assert begun.wait(5)
    courier.stop()
    assert not courier.join(0.05)
    release.set()
    assert courier.join(5)
    assert [key for key, _ in outbox.ends] == [ORDERS]
