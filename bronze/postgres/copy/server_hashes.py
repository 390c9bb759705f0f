"""Row hashes that PostgreSQL computes, from the snapshot of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bronze.model.locations import Origin
from bronze.postgres.connection.read_connections import read_connection
from bronze.postgres.connection.translation import source_errors


def packed_hashes(
    origin: Origin, session: Sequence[str], queries: Iterable[str], table: str
) -> Iterator[bytes]:
    """The packed hashes that each query returns.

    Args:
        origin: the database.
        session: the statements that join the snapshot.
        queries: those of `bronze.postgres.copy.row_hash.packed_hashes_query`, one for each split.
        table: the table's label, for errors.

    Raises:
        SourceError: or a subclass; `TableRefused` if only this table cannot be read.
    """
    with source_errors(origin, table), read_connection(origin, session) as connection:
        for query in queries:
            row = connection.cursor(binary=True).execute(query).fetchone()
            hashes = row[0] if row else None
            yield hashes if isinstance(hashes, bytes) else b""
