"""The demo source: an inventory and order business in ten tables of a PostgreSQL database.

The rows are generated in the database, by the SQL files beside this one; the same seed and scale
give the same data. ``inventory.sql`` and ``sales.sql`` list the mistakes and outliers that are
planted in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from types import MappingProxyType
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from bronze.errors import ConfigError, SourceError, SourceUnreachable

SCHEMA = "tests"
DATABASE = "DE"

# Rows at scale 1, and at least. A product lies in ten warehouses, so there are never fewer.
SIZES = MappingProxyType(
    {
        "products": (10_000, 20),
        "suppliers": (1_000, 5),
        "warehouses": (50, 10),
        "inventory": (100_000, 200),
        "orders": (500_000, 50),
        "order_details": (2_000_000, 200),
        "shipments": (400_000, 40),
        "returns": (50_000, 5),
        "stock_levels": (100_000, 200),
        "customers": (100_000, 20),
    }
)
_LOAD = ("schema.sql", "inventory.sql", "sales.sql", "keys.sql")
_DAY = ("day_inventory.sql", "day_sales.sql")
_OPENING = datetime(2025, 7, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Changed:
    """How many rows of one table differ after :func:`change`, each row counted once."""

    inserted: int
    updated: int
    deleted: int


def sizes(scale: float) -> dict[str, int]:
    """The number of rows that each table has at ``scale``; 1.0 makes 3.3 million in all."""
    return {table: max(least, round(full * scale)) for table, (full, least) in SIZES.items()}


def create(server_dsn: str, *, scale: float = 0.01, seed: int = 7) -> str:
    """Make the database ``DE`` with the schema ``tests``, its ten tables and their rows.

    Args:
        server_dsn: another database of the same server, mostly ``postgres``; the user must be
            allowed to create databases.
        scale: the share of the 3.3 million rows; small scales keep a few rows in every table.
        seed: any integer; the same seed and scale give the same data.

    Returns:
        The DSN of the new database, of the same form as ``server_dsn``. Its tables are vacuumed
        and analyzed.

    Raises:
        ConfigError: the scale is not a positive number, or the database is there already.
        SourceUnreachable: no connection to the server.
        SourceError: PostgreSQL refused something else.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"the demo's scale must be a positive number, not {scale}")
    dsn = _in_database(server_dsn, DATABASE)
    name = sql.Identifier(DATABASE)
    with _connected(server_dsn) as server:
        try:
            server.execute(sql.SQL("CREATE DATABASE {}").format(name))
        except psycopg.errors.DuplicateDatabase:
            raise ConfigError(
                f"the database {DATABASE} is there already", hint=f'DROP DATABASE "{DATABASE}"'
            ) from None
        try:
            _load(dsn, sizes(scale), seed)
        except BaseException:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            raise
    return dsn


def change(dsn: str, *, seed: int = 8) -> dict[str, Changed]:
    """One day of business, in one transaction: the day after the newest order's.

    Customers come, order and leave, orders move on and are sent, goods come back and in, prices
    change, old papers are thrown away. At least a few rows of most tables change, and about one
    order in a thousand is new.

    Args:
        dsn: a database that :func:`create` made.
        seed: any integer; the same data and seed give the same changes.

    Returns:
        For each of the ten tables, in name order, what differs from before.

    Raises:
        SourceUnreachable: no connection to the server.
        SourceError: PostgreSQL refused something else.
    """
    keys: dict[tuple[str, str], set[int]] = {}
    with _connected(dsn) as connection, connection.transaction():
        _settle(connection)
        opening, orders = connection.execute(
            "SELECT date_trunc('day', max(ordered_at)) + interval '1 day', count(*) FROM orders"
        ).fetchone() or (None, 0)
        if opening is None:
            raise ConfigError("the demo's table orders is empty")
        # The day is part of the seed: the same rows must not be the lucky ones every day.
        _define(connection, seed + opening.toordinal(), opening, {"day": max(8, orders // 1000)})
        for table, verb, statement in _statements(*_DAY):
            cursor = connection.execute(statement)
            if verb != "prepare":
                keys.setdefault((table, verb), set()).update(row[0] for row in cursor)
    return {table: _net(table, keys) for table in sorted(SIZES)}


def _net(table: str, keys: dict[tuple[str, str], set[int]]) -> Changed:
    inserted, updated, deleted = (
        keys.get((table, verb), set()) for verb in ("insert", "update", "delete")
    )
    return Changed(
        inserted=len(inserted - deleted),
        updated=len(updated - inserted - deleted),
        deleted=len(deleted - inserted),
    )


def _load(dsn: str, counts: dict[str, int], seed: int) -> None:
    with _connected(dsn) as connection:
        with connection.transaction():
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
            _settle(connection)
            _define(connection, seed, _OPENING, counts)
            for name in _LOAD:
                connection.execute(sql.SQL(_text(name)))
        # Leaves nothing for autovacuum to do while somebody measures.
        tables = sql.SQL(", ").join(sql.Identifier(SCHEMA, table) for table in SIZES)
        connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(tables))


def _settle(connection: psycopg.Connection[TupleRow]) -> None:
    connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(SCHEMA)))
    connection.execute(
        "SET LOCAL timezone = 'UTC'; SET LOCAL work_mem = '128MB';"
        "SET LOCAL maintenance_work_mem = '256MB'; SET LOCAL jit = off;"
        "SET LOCAL synchronous_commit = off; SET LOCAL extra_float_digits = 1"
    )


def _define(
    connection: psycopg.Connection[TupleRow], seed: int, opening: datetime, counts: dict[str, int]
) -> None:
    """Make the functions that the scripts draw from; they end with the connection."""
    wrapped = (seed + 2**63) % 2**64 - 2**63
    cases = sql.SQL(" ").join(
        sql.SQL("WHEN {} THEN {}").format(name, count) for name, count in counts.items()
    )
    connection.execute(
        sql.SQL(
            "CREATE FUNCTION pg_temp.seed() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE"
            " RETURN {seed}::bigint;"
            "CREATE FUNCTION pg_temp.opening() RETURNS timestamptz LANGUAGE sql IMMUTABLE"
            " PARALLEL SAFE RETURN {opening}::timestamptz;"
            "CREATE FUNCTION pg_temp.size(name text) RETURNS int LANGUAGE sql IMMUTABLE"
            " PARALLEL SAFE RETURN CASE name {cases} END"
        ).format(seed=wrapped, opening=opening.isoformat(), cases=cases)
    )
    connection.execute(sql.SQL(_text("draws.sql")))


def _statements(*names: str) -> Iterator[tuple[str, str, sql.SQL]]:
    """The statements of the scripts, each under a line ``-- table: verb``."""
    text = "\n".join(map(_text, names))
    parts = re.split(r"^-- (\w+): (\w+)$", text, flags=re.MULTILINE)[1:]
    for table, verb, statement in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        yield table, verb, sql.SQL(statement)


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@contextmanager
def _connected(dsn: str) -> Iterator[psycopg.Connection[TupleRow]]:
    try:
        connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        raise SourceUnreachable(f"no connection to the demo's PostgreSQL: {error}") from error
    try:
        with connection:
            yield connection
    except psycopg.Error as error:
        code = error.sqlstate or ""
        raise SourceError(f"PostgreSQL refused the demo's data: {error}", sqlstate=code) from error


def _in_database(dsn: str, database: str) -> str:
    if dsn.startswith(("postgresql://", "postgres://")):
        return urlsplit(dsn)._replace(path=f"/{database}").geturl()
    return make_conninfo(dsn, dbname=database)
