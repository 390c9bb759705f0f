"""Whether a table is late: computed from times, so that what was late while nobody looked is known.

A table's state is *as of* a moment: that of the snapshot of its last run that landed or found
nothing changed, or, while it is streamed, the moment up to which everything committed has landed.

- A scheduled table that was due at D is late from D + sla until a run lands whose snapshot is not
  before D.
- A streamed table is late while it is as of a moment more than its sla ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

USUAL_RUNS = 20
"""From how many of the last runs the duration of the next one is expected."""
_SHARE = 0.9


@dataclass(frozen=True)
class Landing:
    """A run that landed or found nothing changed: ``as_of`` its snapshot, and when it ``ended``."""

    as_of: datetime
    ended: datetime


@dataclass(frozen=True)
class Late:
    """A time in which a table was late; ``end`` is None while it goes on. ``due`` is the first due
    time that was missed, None for a streamed table.
    """

    begin: datetime
    end: datetime | None
    due: datetime | None = None


def late_times(
    dues: Iterable[datetime], landings: Iterable[Landing], sla: timedelta, now: datetime
) -> tuple[Late, ...]:
    """When a scheduled table was late, in order; times that touch are one.

    Args:
        dues: its due times, in order.
        landings: its runs, in the order in which they ended.
        sla: how long after a due time it may land.
        now: later due times and landings are ignored.
    """
    ended = [landing for landing in landings if landing.ended <= now]
    # A later run may show an earlier state, as runs end in any order.
    lates: list[Late] = []
    position = 0
    for due in dues:
        if due > now:
            break
        while position < len(ended) and ended[position].as_of < due:
            position += 1
        landed = ended[position].ended if position < len(ended) else None
        begin = due + sla
        if begin >= now or (landed is not None and landed <= begin):
            continue
        if lates and (lates[-1].end is None or lates[-1].end >= begin):
            lates[-1] = Late(lates[-1].begin, landed, lates[-1].due)
        else:
            lates.append(Late(begin, landed, due))
    return tuple(lates)


def late_stream(as_of: datetime, sla: timedelta, now: datetime) -> Late | None:
    """Since when a streamed table is late, None if it is not."""
    begin = as_of + sla
    return Late(begin, None) if begin < now else None


def expected_seconds(durations: Sequence[float]) -> float | None:
    """The seconds that the next run takes at most, nine times out of ten, by the last runs (the
    newest last); None if there were none.
    """
    usual = sorted(durations[-USUAL_RUNS:])
    return usual[min(len(usual) - 1, int(_SHARE * len(usual)))] if usual else None


def expected_end(began: datetime | None, seconds: float, now: datetime) -> datetime:
    """When a run ends that began then, or would begin now; never in the past."""
    return max(now, (began or now) + timedelta(seconds=seconds))
