"""Reads splits whose columns PostgreSQL packs: one row comes back, whose values are whole columns.

Measured, with the decoding: 2,000,000 rows of 9 columns take 0.5 s of CPU time here (connectorx:
1.9 s) and 1.7 s of PostgreSQL's (1.6 s); 500,000 rows of 40 columns take 1.3 s here (2.4 s) and
2.8 s of PostgreSQL's (2.6 s). A split is read in up to three ways, each of which returns the same
rows:

1. quickly: values are not tested for those that Delta cannot hold. A NaN makes PostgreSQL raise an
   error, a date out of range is seen here; then
2. with the tests, as connectorx reads them; and where PostgreSQL refuses that,
3. by connectorx, which finds the value that is the cause.

A unit does not go back to an earlier way. PostgreSQL packs the next split while this one is
processed here. That takes no memory here, because rows are received only when they are wanted.
PostgreSQL's process takes up to five times a split's bytes. So a split that is not a range of pages
is left to connectorx if PostgreSQL expects more than `LARGEST` of it; so are very long arrays.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import polars as pl
import psycopg
import pyarrow as pa
from psycopg import errors as pg
from psycopg import generators, pq

from bronze.errors import BronzeError, SourceError, Stopped
from bronze.model.columns import Column
from bronze.model.locations import Origin
from bronze.model.units import PAGES
from bronze.postgres.connection import read_connections
from bronze.postgres.connection.connect import Connection, forget_server
from bronze.postgres.connection.read_connections import BEGIN
from bronze.postgres.connection.translation import CANCELED, explain, is_of_connection
from bronze.postgres.copy import packed_columns, packed_query, rows_reader
from bronze.postgres.copy.splits import CTID_RANGES_VERSION

OLDEST_VERSION = CTID_RANGES_VERSION
"""The oldest server whose rows are packed; older ones cannot read a range of pages by itself."""

# SQLSTATEs, or their classes, of errors that are the same however rows are read: of connections,
# transactions, rollbacks, privileges, missing functions, too many connections, locks, cancellation,
# input and output. None of them quotes a value.
# All others may be due to a value: another way of reading avoids them, or explains them without it.
_SAME_ANY_WAY = ("08", "25", "40", "42501", "42883", "53300", "53400", "55", "57", "58")

_SETTINGS = (packed_query.SESSION,)

LARGEST = 64 * 2**20
"""The most bytes that are packed at once."""


def read_rows(
    origin: Origin,
    session: Sequence[str],
    query: str,
    where: Sequence[str],
    columns: Sequence[Column],
    table: str,
    guarded: bool = False,
) -> Generator[tuple[pl.DataFrame, pl.Series], None, None]:
    """Reads rows as `bronze.postgres.copy.rows_reader.read_rows` does, with the same arguments.

    Raises:
        SourceError: or a subclass; `TableRefused` if only this table cannot be read.
    """
    reader = _PackedReader(origin, session, query, columns, table)
    remaining = list(where)
    try:
        while remaining and (raw := reader.rows(remaining[0])):
            remaining.pop(0)
            if remaining:
                reader.request(remaining[0])
            yield from rows_reader.decoded_parts(raw.pop(), columns, table)
    finally:
        reader.close()
    if remaining:
        yield from rows_reader.read_rows(origin, session, query, remaining, columns, table, guarded)


class _PackedReader:
    """Reads the splits of a unit one after another, over one connection in the run's snapshot."""

    def __init__(
        self,
        origin: Origin,
        session: Sequence[str],
        query: str,
        columns: Sequence[Column],
        table: str,
    ) -> None:
        self._origin, self._table = origin, table
        self._session = tuple(session or (BEGIN,))
        self._ways = [
            packed_query.quick_packing(query, columns),
            packed_query.guarded_packing(query, columns),
        ]
        self._connection: Connection | None = None
        self._requested = ""
        self._ahead, self._asks_ahead = False, True

    def rows(self, condition: str) -> list[pa.Table]:
        """The rows for which a condition is true, in a list of one table; it is empty if they have
        to be read by connectorx.
        """
        while self._ways:
            try:
                if self._open().info.server_version < OLDEST_VERSION:
                    self.close()
                    break
                return [self._read_packed(condition)]
            except packed_columns.UnfitValue:
                self._ways.pop(0)
            except packed_columns.NotPackable:
                self.close()
                break
            except psycopg.Error as error:
                ahead = self._ahead
                self.close()
                state = error.sqlstate or ""
                if ahead and isinstance(error, pg.QueryCanceled) and CANCELED not in str(error):
                    # The time until its rows were wanted counted against the statement timeout.
                    self._asks_ahead = False
                    continue
                if not state or state.startswith(_SAME_ANY_WAY):
                    raise self._error(error) from error
                self._ways.pop(0)
            except SourceError as error:
                error.table = self._table
                raise
        return []

    def request(self, condition: str) -> None:
        """Makes PostgreSQL pack the rows that are wanted next."""
        if not self._asks_ahead:
            return
        try:
            self._send(condition)
            self._ahead = True
        except (psycopg.Error, packed_columns.NotPackable):
            # It is raised again by `rows`.
            self.close()

    def close(self) -> None:
        """Gives the connection back; a query that still runs is canceled."""
        connection, self._connection = self._connection, None
        self._requested, self._ahead = "", False
        if connection is not None:
            read_connections.put_back(self._origin, self._session, connection, _SETTINGS)

    def _read_packed(self, condition: str) -> pa.Table:
        way = self._ways[0]
        if self._requested != condition:
            self._send(condition)
        rows, values = self._fetch()
        self._ahead = False
        return packed_columns.unpack(way, rows, values)

    def _send(self, condition: str) -> None:
        connection, way = self._open(), self._ways[0]
        if not condition.startswith(PAGES) and _estimate(connection, way, condition) > LARGEST:
            raise packed_columns.NotPackable
        query = way.query(condition).encode()
        connection.pgconn.send_query_params(query, None, result_format=pq.Format.BINARY)
        self._requested = condition

    def _fetch(self) -> tuple[int, list[bytes | None]]:
        """The number of rows, and the values that they were packed into."""
        connection = self._open()
        self._requested = ""
        (result, *_) = connection.wait(generators.execute(connection.pgconn))
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
        rows = int.from_bytes(result.get_value(0, 0) or b"", "big")
        values = [result.get_value(0, i) for i in range(1, result.nfields)]
        result.clear()
        return rows, values

    def _open(self) -> Connection:
        if self._connection is None:
            try:
                self._connection = read_connections.take(self._origin, self._session, _SETTINGS)
            except psycopg.Error as error:
                raise self._error(error) from error
        return self._connection

    def _error(self, error: psycopg.Error) -> BronzeError:
        if is_of_connection(error):
            forget_server(self._origin)
        explained = explain(error, self._origin, self._table)
        if not isinstance(explained, (SourceError, Stopped)):
            explained = SourceError(str(explained))
        explained.table = self._table
        return explained


def _estimate(connection: Connection, way: packed_query.Packing, condition: str) -> int:
    """How many bytes PostgreSQL expects of a split."""
    query = f"EXPLAIN (FORMAT JSON) {way.rows} WHERE {condition}"
    row: Any = connection.execute(query.encode()).fetchone()
    plan = row[0][0]["Plan"]
    return int(plan["Plan Rows"] * max(plan["Plan Width"], 1))
