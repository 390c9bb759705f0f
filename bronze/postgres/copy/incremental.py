"""What changed since a position: the condition, in SQL, that is true for every row of which a
version may have become visible since then.

With ``xmin``: rows whose inserting transaction had not ended at the earlier snapshot. A row's xmin
has 32 bits, and old rows keep theirs when they are frozen, so the condition may be true for some
rows of an earlier epoch as well; it is never false for a new one, as long as less than half of all
32-bit ids lie between.

With a cursor column: rows whose value is not before the watermark, or is NULL. The watermark is
the beginning of the oldest transaction that was open at the earlier snapshot: what has committed
since then cannot have been given an earlier time by ``now()``, as long as the source's clock is
not set back.

On a standby the xmin is as true as on the primary: what a snapshot there shows are the transactions
whose end has been replayed, and its horizon is the oldest of those that have not, which the log
tells (KnownAssignedXids), prepared ones among them. The beginnings of transactions it does not
tell.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bronze.postgres.copy.snapshot import MARGIN, Since, Snapshot
from bronze.postgres.statement import literal, quoted

XMIN = "xmin"
_HALF = 2**31
# New ids are given out while a run reads.
_MARGIN = 10**7
_FIRST_NORMAL = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

CURSORS = ("timestamptz", "timestamp", "date")
"""The types that a cursor column may have."""
ZONELESS = ("timestamp", "date")
"""Those whose values mean a moment only with a time zone that nobody tells us."""


def by_xmin(horizon: int, now: Snapshot) -> str | None:
    """The condition since the snapshot with that ``horizon``; None where it is too long ago."""
    if now.following - horizon >= _HALF - _MARGIN or horizon > now.following:
        return None
    start = max(horizon % 2**32, _FIRST_NORMAL)
    # Both ages are counted from the same id, so only their difference matters.
    return f"age(xmin) <= age('{start}'::xid)"


def by_cursor(column: str, kind: str, watermark: int, zone: str) -> str:
    """The condition since a watermark (microseconds since 1970), for a column of a `CURSORS` type.

    A value without a time zone is taken to be in UTC or in the server's zone, whichever makes the
    condition true for more rows.
    """
    name = quoted(column)
    moment = f"{literal(str(_EPOCH + timedelta(microseconds=watermark)))}::timestamptz"
    if kind == "timestamptz":
        return f"({name} >= {moment} OR {name} IS NULL)"
    # When clocks go back, an hour comes twice.
    local = (
        f"(least({moment} AT TIME ZONE 'UTC', {moment} AT TIME ZONE {literal(zone)})"
        " - interval '1 hour')"
    )
    if kind == "date":
        local = f"({local})::date"
    return f"({name} >= {local} OR {name} IS NULL)"


def set_back(since: Since, held: int, ahead: int | None) -> bool:
    """Whether the source's clock was set back since a watermark was noted, by more than it allows
    for: rows that were written since then may have earlier times.

    Args:
        since: of this run's snapshot.
        held: the watermark.
        ahead: by how much the source's clock was ahead of ours then, None where that is not known.
    """
    slower = ahead is not None and since.ahead is not None and since.ahead < ahead - MARGIN
    return since.clock < held or slower


def watermark(
    since: Since, overlap: int | None, held: int | None, whole: bool = False
) -> int | None:
    """The watermark for the next run, in microseconds since 1970. It goes back only where the whole
    table is read, so that the source's clock may go back.

    Args:
        since: of this run's snapshot.
        overlap: seconds to go further back.
        held: the watermark of the run before, if there was one.
        whole: whether all rows are read.

    Returns:
        None where there is none yet and none can be told.
    """
    reached = since.began - (overlap or 0) * 10**6
    if held is None:
        return None if since.prepared else reached
    if since.prepared:
        return min(reached, held) if whole else held
    return reached if whole else max(reached, held)
