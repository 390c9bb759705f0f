"""The moment up to which all that was committed in the source has landed.

A position that the server sends does not say what was committed after it, so the server is asked
where its log ends: what had been committed by then has landed once the stream is past that end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication.slot import lsn

_QUERY = """
SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text,
       (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_writer_delay')
"""
# PostgreSQL's documentation, "Asynchronous Commit": the flush takes at most three delays.
_FLUSH_DELAYS = 3


@dataclass(frozen=True)
class LogEnd:
    """The flushed end of the server's log: all that was committed by ``at`` is before it."""

    position: int
    at: datetime


def end_of_log(connection: Connection) -> LogEnd:
    """The end that the server's log has now.

    Raises:
        psycopg.Error: also on a standby, which does not write a log.
    """
    at = datetime.now(UTC)
    row: Any = connection.execute(_QUERY).fetchone()
    written, flushed = lsn(row[0]), lsn(row[1])
    # With synchronous_commit off, commits are flushed a moment later.
    delay = _FLUSH_DELAYS * float(row[2]) if written > flushed else 0.0
    return LogEnd(flushed, at - timedelta(seconds=delay))


@dataclass
class LandedMoment:
    """Follows the moment for one stream; ``connection`` is to its server."""

    connection: Connection
    _moment: datetime | None = field(default=None, init=False)
    _ahead: LogEnd | None = field(default=None, init=False)

    def moment(self, position: int) -> datetime | None:
        """The moment, for a stream that has applied all before ``position``; None if not known.

        Raises:
            psycopg.Error: as `end_of_log`.
        """
        if self._ahead and self._ahead.position <= position:
            self._pass(self._ahead)
        if self._ahead is None:
            self._ahead = end_of_log(self.connection)
            if self._ahead.position <= position:
                self._pass(self._ahead)
        return self._moment

    def _pass(self, end: LogEnd) -> None:
        # The moment of a flush that is not complete yet may be earlier than the last one.
        self._moment = max(self._moment or end.at, end.at)
        self._ahead = None
