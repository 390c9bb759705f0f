"""The source of the benchmarks: an embedded PostgreSQL with the tables that are loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from benchmarks import wide
from bronze.demo import inventory, server

SCHEMA = "bench"
# Keeps what PostgreSQL does on its own out of the measured time.
SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
}


@contextmanager
def running(rows: Mapping[str, int]) -> Iterator[tuple[str, Path]]:
    """A PostgreSQL with tables of so many ``rows`` each, and an empty folder beside it.

    Args:
        rows: the number of rows by the table's name: ``wide…`` is made as `benchmarks.wide` says,
            any other name is a table like ``order_details``.

    Yields:
        The DSN of the database, whose tables are in the schema `SCHEMA`, and the folder.
    """
    with tempfile.TemporaryDirectory(prefix="bronze-bench-") as name:
        folder = Path(name)
        with server.running(folder / "postgres", settings=SETTINGS) as started:
            yield fill(started.dsn(), rows), folder


def fill(server_dsn: str, rows: Mapping[str, int]) -> str:
    """Makes the tables of `running`; returns the DSN of their database."""
    most = max((count for name, count in rows.items() if not name.startswith("wide")), default=1)
    full, least = inventory.SIZES["order_details"]
    dsn = inventory.create(server_dsn, scale=min(max(most, least), full) / full)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
        for name, count in rows.items():
            table = sql.Identifier(SCHEMA, name)
            if name.startswith("wide"):
                wide.create(connection, table, count)
            else:
                _copy_order_details(connection, table, count)
            connection.execute(sql.SQL("VACUUM (ANALYZE, FREEZE) {}").format(table))
        connection.execute("CHECKPOINT")
    return dsn


def _copy_order_details(connection: psycopg.Connection, table: sql.Identifier, count: int) -> None:
    """The demo's rows as often as it takes, each time with keys above those before."""
    model = sql.Identifier(inventory.SCHEMA, "order_details")
    row = connection.execute(
        sql.SQL("SELECT max(order_detail_id), count(*) FROM {}").format(model)
    ).fetchone()
    assert row is not None
    highest, available = row
    connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS)").format(table, model))
    columns = (
        "order_detail_id + {shift}, order_id, product_id, quantity, unit_price, discount,"
        " line_total, note, updated_at"
    )
    for done in range(0, count, available):
        connection.execute(
            sql.SQL(
                "INSERT INTO {table} SELECT " + columns + " FROM {model}"
                " ORDER BY order_detail_id LIMIT {limit}"
            ).format(
                table=table,
                model=model,
                shift=sql.Literal(done // available * highest),
                limit=sql.Literal(min(available, count - done)),
            )
        )
    connection.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (order_detail_id)").format(table))
