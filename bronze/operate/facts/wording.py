"""Times and numbers in the sentences that operators read."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """A time in its largest unit that it has at least two of: "25 min", "3 h", "2 d"."""
    seconds = abs(seconds)
    for unit, name in _UNITS:
        if seconds >= 2 * unit or unit == 1:
            return f"{seconds / unit:.0f} {name}"
    raise AssertionError


def moment(time: datetime, now: datetime, zone: str = "UTC") -> str:
    """A time of the wall clock: with the date where it is not within half a day."""
    local = time.astimezone(ZoneInfo(zone))
    form = "%H:%M" if abs(now - time) < timedelta(hours=12) else "%Y-%m-%d %H:%M"
    return local.strftime(form)


def count(number: int, noun: str) -> str:
    """A number of things: "1 table", "1,000 tables"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def clause(text: str) -> str:
    """A sentence as it stands inside of another one: without its full stop."""
    return " ".join(text.split()).rstrip(".")
