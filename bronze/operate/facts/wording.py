"""Times and numbers in the sentences that operators read."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """A time in at most two units: "42 s", "18 min", "3 h 12 min", "2 d 4 h"."""
    seconds = abs(seconds)
    if seconds < 1:
        return f"{seconds:.1f} s" if seconds else "0 s"
    # Each unit is rounded before the larger one is tried, so that there is no "60 min".
    whole, minutes, hours = (round(seconds / unit) for unit in (1, _MINUTE, _HOUR))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < 10 * _MINUTE:
        return _two(whole, _MINUTE, "min", "s")
    if minutes < 60:
        return f"{minutes} min"
    if minutes < _DAY // _MINUTE:
        return _two(minutes, 60, "h", "min")
    return _two(hours, 24, "d", "h")


def _two(smaller: int, factor: int, unit: str, rest: str) -> str:
    whole, left = divmod(smaller, factor)
    return f"{whole} {unit} {left} {rest}" if left else f"{whole} {unit}"


def moment(time: datetime, now: datetime, zone: str = "UTC") -> str:
    """A time of the wall clock: with the date where it is not within half a day."""
    local = time.astimezone(ZoneInfo(zone))
    form = "%H:%M" if abs(now - time) < timedelta(hours=12) else "%Y-%m-%d %H:%M"
    return local.strftime(form)


def clause(text: str) -> str:
    """A sentence as it stands inside of another one: without its full stop."""
    return " ".join(text.split()).rstrip(".")
