"""How many tasks may run at once, by the hours of the config: up at once, down after a while.

*Wanted* is what all tasks would take that run or could begin now. The permits follow it between the
least and the most of the window in force; memory and the connections of sources cap them. With a
Dask engine permits are the tasks that its workers have at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bronze.config.settings import Settings
from bronze.execution import budget
from bronze.model.schedule import Window

DOWN_AFTER = timedelta(minutes=5)
"""For how long fewer have to be wanted before permits are taken away."""


@dataclass(frozen=True)
class Cap:
    """The most tasks that there is room for, and a sentence that names what has no more."""

    most: int
    text: str


@dataclass(frozen=True)
class Limit:
    """The permits in force: how many, in which ``window``, and what caps them ("" if nothing does).

    ``since`` is since when no more than ``peak`` were wanted; ``peak`` is fewer than ``permits``.
    """

    permits: int
    window: str = ""
    cap: str = ""
    since: datetime | None = None
    peak: int = 0


def window_of(settings: Settings, now: datetime) -> Window:
    """The window that a moment is in, [run] workers where the config has none for it."""
    hours = settings.serve.hours()
    rest = [window for window in hours if not window.days]
    default = Window("", 1, settings.run.workers)
    return next((window for window in hours if window.has(now)), rest[0] if rest else default)


def most_workers(settings: Settings) -> int:
    """The most workers that any window has."""
    most = [window.most for window in settings.serve.hours()]
    return max([*most, settings.run.workers])


def caps(settings: Settings) -> tuple[Cap, ...]:
    """What memory and connections have room for."""
    connections = sum(source.pool.readers for source in settings.source.values())
    found = [Cap(max(1, connections), f"[source] pool.max has connections for {connections} tasks")]
    if settings.run.engine == "threads":
        fitting = budget.readers(settings.run.memory, 2**31, 2**31)
        found.append(Cap(fitting, f"[run] memory has room for {fitting} tasks"))
    return tuple(found)


def limit(
    before: Limit | None, wanted: int, window: Window, capped: Sequence[Cap], now: datetime
) -> Limit:
    """The permits from now on.

    Args:
        before: those until now.
        wanted: how many would be used.
        window: the window in force.
        capped: what there is room for.
        now: the time.
    """
    asked = max(window.least, min(wanted, window.most))
    cap = min(capped, key=lambda cap: cap.most, default=None)
    allowed = cap.most if cap and cap.most < asked else asked
    text = cap.text if cap and cap.most < asked else ""
    if before is None or allowed >= before.permits or before.permits > window.most:
        return Limit(allowed, window.name, text)
    peak = max(before.peak, allowed) if before.since else allowed
    since = before.since or now
    if now - since >= DOWN_AFTER:
        return Limit(peak, window.name, text)
    return Limit(before.permits, window.name, text, since, peak)
