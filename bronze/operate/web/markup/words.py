"""Times, durations, sizes and counts as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from bronze.operate.facts import wording
from bronze.operate.web.markup.tags import Safe, tag

UNKNOWN = "unknown"
_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def span(seconds: float | None) -> str:
    """A duration as `wording.duration` has it."""
    return UNKNOWN if seconds is None else wording.duration(seconds)


def size(count: float | None) -> str:
    """Bytes with a decimal prefix: "1.2 GB"."""
    if count is None:
        return UNKNOWN
    for unit, name in _UNITS:
        if count >= unit:
            value = count / unit
            return f"{value:.0f} {name}" if value >= 100 else f"{value:.1f} {name}"
    return f"{count:.0f} B"


def number(count: int | None) -> str:
    """A count with separators of thousands."""
    return UNKNOWN if count is None else f"{count:,}"


def share(value: float | None, digits: int = 0) -> str:
    """A share from 0 to 1 in per cent."""
    if value is None:
        return UNKNOWN
    digits = max(digits, 1) if 0 < value < 0.01 else digits
    return f"{value * 100:.{digits}f} %"


def clock(moment: datetime, zone: ZoneInfo, now: datetime) -> str:
    """The time of the day, with the date if it is another day: "03:12", "26 Nov 03:12"."""
    local, today = moment.astimezone(zone), now.astimezone(zone)
    if local.date() == today.date():
        return f"{local:%H:%M}"
    if abs(local.date() - today.date()) < timedelta(days=300):
        return f"{local.day} {local:%b %H:%M}"
    return f"{local.day} {local:%b %Y}"


def time(moment: datetime | None, zone: ZoneInfo, now: datetime, absent: str = "–") -> Safe:
    """A moment as `clock` has it, which machines read as well."""
    if moment is None:
        return tag("span", absent)
    full = f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"
    return tag("time", clock(moment, zone, now), datetime=stamp(moment), title=full)


def age(moment: datetime | None, now: datetime, absent: str = UNKNOWN) -> Safe:
    """How long ago a moment was; or until then, "in 3 min"."""
    if moment is None:
        return tag("span", absent)
    passed = (now - moment).total_seconds()
    words = (
        "now" if abs(passed) < 1 else f"{span(passed)} ago" if passed > 0 else f"in {span(passed)}"
    )
    return tag("time", words, datetime=stamp(moment))


def stamp(moment: datetime) -> str:
    """ISO 8601 in UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
