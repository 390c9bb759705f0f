"""When work is due, and in which hours how many workers are wanted: values of the config.

A schedule is written as "continuous", "every 15m", "hourly", "daily 02:00", "weekly Sun 05:00",
"monthly 1 03:00" or as the five fields of cron. It is of the wall clock of a time zone: where
summer time skips a time of day, what is due then runs when the hour has passed; where an hour comes
twice, it runs once, as in Debian's cron (the library cronsim). "every" counts from midnight of
1 January 1970 UTC, so that it is due at the same times whenever it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from cronsim import CronSim

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EVERY = re.compile(r"every (\d+)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME = r"([01]?\d|2[0-3]):([0-5]\d)"
_DAILY = re.compile(rf"daily {_TIME}")
_WEEKLY = re.compile(rf"weekly ([a-z]{{3}}) {_TIME}")
_MONTHLY = re.compile(rf"monthly (\d+) {_TIME}")
_WINDOW = re.compile(rf"([a-z]{{3}})(?:-([a-z]{{3}}))?(?: {_TIME}-(?:{_TIME}|24:00))?")
_SHORTEST = 10
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Longer than any change of the clocks: a time of the day that comes twice is behind this margin.
_MARGIN = timedelta(hours=3)
_FORMS = (
    'a schedule is "continuous", "every 15m", "hourly", "daily 02:00", "weekly Sun 05:00",'
    ' "monthly 1 03:00" or five fields of cron'
)


_PROBLEMS = {
    "bad minute": "the minute, its first field, is 0 to 59",
    "bad hour": "the hour, its second field, is 0 to 23",
    "bad day-of-month": "no date has the day of the month in its third field",
    "bad month": "the month, its fourth field, is 1 to 12",
    "bad day-of-week": "the day of the week, its fifth field, is 0 to 7, or sun to sat",
}
"""What the library says of a field, and the sentence about it."""


@dataclass(frozen=True)
class Schedule:
    """The times at which something is due. ``text`` is as the config has it.

    ``seconds`` is the interval of "every", ``cron`` the fields of all others; without both it is
    "continuous", which is never due.
    """

    text: str
    zone: str = "UTC"
    seconds: int = 0
    cron: str = ""

    @property
    def is_continuous(self) -> bool:
        """Whether it is for streams, which are never due."""
        return not self.seconds and not self.cron

    def after(self, moment: datetime) -> datetime:
        """The first due time after a moment, in UTC.

        Raises:
            ValueError: it is continuous.
        """
        if self.seconds:
            passed = (moment - _EPOCH) // timedelta(seconds=self.seconds)
            return _EPOCH + timedelta(seconds=self.seconds) * (passed + 1)
        # From before a time that comes twice, of which cron's is the first.
        return next(due for due in self._from(moment - _MARGIN) if due > moment)

    def before(self, moment: datetime) -> datetime:
        """The last due time that is not after a moment, in UTC.

        Raises:
            ValueError: it is continuous.
        """
        if self.seconds:
            passed = (moment - _EPOCH) // timedelta(seconds=self.seconds)
            return _EPOCH + timedelta(seconds=self.seconds) * passed
        return next(due for due in self._back_from(moment + _MARGIN) if due <= moment)

    def between(self, begin: datetime, end: datetime) -> Iterator[datetime]:
        """The due times after ``begin`` and up to ``end``."""
        due = self.after(begin)
        while due <= end:
            yield due
            due = self.after(due)

    def shortest_interval(self, now: datetime) -> timedelta:
        """The shortest time between the next eight due times."""
        return min(self._intervals(now, 8))

    def longest_interval(self, now: datetime) -> timedelta:
        """The longest time between the next thirty-two due times."""
        return max(self._intervals(now, 32))

    def _intervals(self, now: datetime, count: int) -> list[timedelta]:
        if self.seconds:
            return [timedelta(seconds=self.seconds)]
        times = [self.after(now)]
        while len(times) < count:
            times.append(self.after(times[-1]))
        return [later - due for due, later in pairwise(times)]

    def _from(self, moment: datetime) -> Iterator[datetime]:
        return (due.astimezone(UTC) for due in self._cron(moment, reverse=False))

    def _back_from(self, moment: datetime) -> Iterator[datetime]:
        return (due.astimezone(UTC) for due in self._cron(moment, reverse=True))

    def _cron(self, moment: datetime, *, reverse: bool) -> CronSim:
        if self.is_continuous:
            raise ValueError("a continuous schedule is never due")
        from cronsim import CronSim

        return CronSim(self.cron, moment.astimezone(ZoneInfo(self.zone)), reverse=reverse)


def parse_schedule(text: str, zone: str = "UTC") -> Schedule:
    """A schedule from its text.

    Raises:
        ValueError: it is not a schedule; the message says why.
    """
    words = " ".join(text.lower().split())
    if words == "continuous":
        return Schedule(text, zone)
    if match := _EVERY.fullmatch(words):
        seconds = int(match[1]) * _UNITS[match[2]]
        if seconds < _SHORTEST:
            raise ValueError(f"{text!r} is more often than every {_SHORTEST} seconds")
        return Schedule(text, zone, seconds=seconds)
    return Schedule(text, zone, cron=_cron_fields(text, words))


def _cron_fields(text: str, words: str) -> str:
    if words == "hourly":
        return "0 * * * *"
    if match := _DAILY.fullmatch(words):
        return f"{int(match[2])} {int(match[1])} * * *"
    if match := _WEEKLY.fullmatch(words):
        return f"{int(match[3])} {int(match[2])} * * {_weekday(match[1])}"
    if match := _MONTHLY.fullmatch(words):
        if not 1 <= int(match[1]) <= 28:
            raise ValueError(
                f"{text!r}: not every month has this day; take 1 to 28, or for the last day the"
                f' five fields "{int(match[3])} {int(match[2])} L * *"'
            )
        return f"{int(match[3])} {int(match[2])} {int(match[1])} * *"
    fields = words.split()
    if len(fields) != 5 or not all(re.fullmatch(r"[\d*/,\-#a-z]+", field) for field in fields):
        problem = "cron with seconds is not supported: " if len(fields) == 6 else ""
        raise ValueError(f"{text!r} is not a schedule: {problem}{_FORMS}")
    _check_cron(text, words)
    return words


def _check_cron(text: str, fields: str) -> None:
    """Refuses fields that are wrong, or that no day ever has."""
    from cronsim import CronSim, CronSimError

    try:
        next(CronSim(fields, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        problem = str(error).lower()
        problem = _PROBLEMS.get(problem, problem)
        raise ValueError(f"{text!r} is not a schedule: {problem}") from None
    except StopIteration:
        raise ValueError(f"{text!r} is never due: no such day comes") from None


def _weekday(name: str) -> int:
    """The number of a day as cron counts: Sunday is 0."""
    if name not in _DAYS:
        raise ValueError(f"{name!r} is not a day: write Mon, Tue, Wed, Thu, Fri, Sat or Sun")
    return (_DAYS.index(name) + 1) % 7


@dataclass(frozen=True)
class Window:
    """Hours of the week, in the wall clock of a time zone, and the ``least`` and ``most`` workers.

    ``days`` are numbers from 0 for Monday, ``begin`` and ``end`` minutes of the day. Without days
    it is all the time that no other window has.
    """

    name: str
    least: int
    most: int
    zone: str = "UTC"
    days: tuple[int, ...] = ()
    begin: int = 0
    end: int = 24 * 60

    def has(self, moment: datetime) -> bool:
        """Whether a moment is in it; false without days."""
        local = moment.astimezone(ZoneInfo(self.zone))
        minute = local.hour * 60 + local.minute
        return local.weekday() in self.days and self.begin <= minute < self.end


def parse_hours(text: str) -> tuple[tuple[int, ...], int, int]:
    """The days and the minutes of the day of "Mon-Fri 09:00-18:00", "Sat-Sun" or "Mon 08:00-24:00".

    Raises:
        ValueError: it is not such a text, or the end is not after the beginning.
    """
    match = _WINDOW.fullmatch(" ".join(text.lower().split()))
    if not match:
        raise ValueError(f'{text!r} is not hours: write "Mon-Fri 09:00-18:00" or "Sat-Sun"')
    first = (_weekday(match[1]) - 1) % 7
    last = (_weekday(match[2]) - 1) % 7 if match[2] else first
    days = tuple((first + step) % 7 for step in range((last - first) % 7 + 1))
    if match[3] is None:
        return days, 0, 24 * 60
    begin = int(match[3]) * 60 + int(match[4])
    end = int(match[5]) * 60 + int(match[6]) if match[5] else 24 * 60
    if end <= begin:
        raise ValueError(
            f"{text!r} ends before it begins; write two windows for hours around midnight"
        )
    return days, begin, end
