"""The rows of a batch: SQL conditions that are true for every row that may be new or changed since
the watermark.

By ``xmin``: rows whose inserting transaction had not ended at the last snapshot. An xmin has 32
bits, and frozen rows keep theirs, so the condition may also be true for some rows of an earlier
epoch. It is never false for a new row, as long as less than half of all 32-bit transaction ids have
been assigned since the last snapshot.

By a cursor column: rows whose value is not before the watermark, or is NULL. The watermark is the
start of the oldest transaction that was open at the last snapshot: a transaction that committed
later cannot have an earlier ``now()``, as long as the source's clock is not set back.

On a standby xmin is as reliable as on the primary: a snapshot there shows the transactions whose
end has been replayed, and its horizon is the oldest transaction whose end has not, prepared ones
included, as the WAL records them (KnownAssignedXids). The WAL does not record when transactions
started.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bronze.postgres.copy.snapshot import START_MARGIN, OpenTransactions, Snapshot
from bronze.postgres.statement import literal, quoted

XMIN = "xmin"
_HALF = 2**31
# More transaction ids may be assigned while a run reads.
_XID_MARGIN = 10**7
_FIRST_NORMAL_XID = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

CURSOR_TYPES = ("timestamptz", "timestamp", "date")
"""The types of cursor columns."""
ZONELESS_TYPES = ("timestamp", "date")
"""The types of cursor columns without a time zone, which bronze does not know."""


def xmin_condition(horizon: int, now: Snapshot) -> str | None:
    """The condition since the snapshot with this ``horizon``; None if that is too long ago."""
    if now.following - horizon >= _HALF - _XID_MARGIN or horizon > now.following:
        return None
    start = max(horizon % 2**32, _FIRST_NORMAL_XID)
    # Both ages are relative to the same id, so their difference is exact.
    return f"age(xmin) <= age('{start}'::xid)"


def cursor_condition(column: str, kind: str, watermark: int, zone: str) -> str:
    """The condition since a watermark (microseconds since 1970), for a column of a `CURSOR_TYPES`
    type.

    A value without a time zone may be in UTC or in the server's zone; the condition is true if
    either reading makes it true.
    """
    name = quoted(column)
    instant = f"{literal(str(_EPOCH + timedelta(microseconds=watermark)))}::timestamptz"
    if kind == "timestamptz":
        return f"({name} >= {instant} OR {name} IS NULL)"
    # When daylight saving time ends, an hour of local time repeats.
    local = (
        f"(least({instant} AT TIME ZONE 'UTC', {instant} AT TIME ZONE {literal(zone)})"
        " - interval '1 hour')"
    )
    if kind == "date":
        local = f"({local})::date"
    return f"({name} >= {local} OR {name} IS NULL)"


def clock_set_back(since: OpenTransactions, mark: int, ahead: int | None) -> bool:
    """Whether the source's clock was set back since the watermark by more than the margin.

    Then rows that were written since may have earlier times than the watermark.

    Args:
        since: the open transactions at this run's snapshot.
        mark: the watermark.
        ahead: by how much the source's clock was ahead of the local clock at the watermark; None if
            unknown.
    """
    slower = ahead is not None and since.ahead is not None and since.ahead < ahead - START_MARGIN
    return since.clock < mark or slower


def next_watermark(
    since: OpenTransactions, overlap: int | None, mark: int | None, whole: bool = False
) -> int | None:
    """The watermark for the next run, in microseconds since 1970.

    It decreases only if all rows are read; then the source's clock may have been set back.

    Args:
        since: the open transactions at this run's snapshot.
        overlap: seconds to subtract.
        mark: the watermark of the previous run, if there is one.
        whole: whether all rows are read.

    Returns:
        None if there is no previous watermark and prepared transactions make a new one unknown.
    """
    reached = since.began - (overlap or 0) * 10**6
    if mark is None:
        return None if since.prepared else reached
    if since.prepared:
        return min(reached, mark) if whole else mark
    return reached if whole else max(reached, mark)
