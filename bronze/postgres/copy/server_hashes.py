"""PostgreSQL's own hashes of its rows, in the run's snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg

from bronze.model.locations import Origin
from bronze.postgres.connection.connect import connect, explain


def digests(
    origin: Origin, session: Sequence[str], queries: Sequence[str], table: str
) -> Iterator[bytes]:
    """The packed hashes of each of the queries, which are `bronze.postgres.copy.row_hash.packed`.

    Args:
        origin: the database.
        session: the statements that join the snapshot.
        queries: one for each slice.
        table: the table's label, for errors.

    Raises:
        SourceError: and its kinds; a `TableRefused` where only this table is at fault.
    """
    with connect(origin) as connection, _explained(origin, table):
        for statement in session:
            connection.execute(statement)
        for query in queries:
            row = connection.cursor(binary=True).execute(query).fetchone()
            found = row[0] if row else None
            yield found if isinstance(found, bytes) else b""


@contextmanager
def _explained(origin: Origin, table: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise explain(error, origin, table) from error
