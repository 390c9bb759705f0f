"""The demo source: an inventory and order business in ten tables of a PostgreSQL database.

The SQL files of this folder generate the rows in the database: the same seed and scale give the
same data. ``inventory.sql`` and ``sales.sql`` list the errors and outliers that it contains on
purpose.
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

# Rows at scale 1, and the minimum. A product is stored in ten warehouses.
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
_LOAD_SCRIPTS = ("schema.sql", "inventory.sql", "sales.sql", "keys.sql")
_DAY_SCRIPTS = ("day_inventory.sql", "day_sales.sql")
_OPENING = datetime(2025, 7, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ChangeCounts:
    """The number of rows of a table that :func:`change_day` changed, each row counted once."""

    inserted: int
    updated: int
    deleted: int


def sizes(scale: float) -> dict[str, int]:
    """The number of rows of each table at ``scale``; 1.0 gives 3.3 million in total."""
    return {table: max(least, round(full * scale)) for table, (full, least) in SIZES.items()}


def create(server_dsn: str, *, scale: float = 0.01, seed: int = 7) -> str:
    """Creates the database ``DE`` with the schema ``tests``, its ten tables and their rows.

    Args:
        server_dsn: another database of the same server, usually ``postgres``; the user must be
            allowed to create databases.
        scale: the fraction of the 3.3 million rows; every table has at least a few.
        seed: any integer; the same seed and scale give the same data.

    Returns:
        The DSN of the new database, of the same form as ``server_dsn``. Its tables are vacuumed
        and analyzed.

    Raises:
        ConfigError: the scale is not a positive number, or the database exists already.
        SourceUnreachable: the server cannot be reached.
        SourceError: PostgreSQL reported another error.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"The demo's scale must be a positive number, not {scale}.")
    dsn = _in_database(server_dsn, DATABASE)
    name = sql.Identifier(DATABASE)
    with _connect(server_dsn) as server:
        try:
            server.execute(sql.SQL("CREATE DATABASE {}").format(name))
        except psycopg.errors.DuplicateDatabase:
            raise ConfigError(
                f"The database {DATABASE} exists already.",
                hint=f'Drop it: DROP DATABASE "{DATABASE}"',
            ) from None
        try:
            _load(dsn, sizes(scale), seed)
        except BaseException:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            raise
    return dsn


def change_day(dsn: str, *, seed: int = 8) -> dict[str, ChangeCounts]:
    """Changes the data by one day of business, in one transaction: the day after the newest order.

    Customers are added, erased and order; orders proceed and are shipped; goods are returned and
    restocked; prices change. At least a few rows of most tables change, and about one order in a
    thousand is new.

    Args:
        dsn: a database that :func:`create` made.
        seed: any integer; the same data and seed give the same changes.

    Returns:
        The number of changed rows of each table, in the order of names.

    Raises:
        ConfigError: the table of orders is empty.
        SourceUnreachable: the server cannot be reached.
        SourceError: PostgreSQL reported an error.
    """
    keys: dict[tuple[str, str], set[int]] = {}
    with _connect(dsn) as connection, connection.transaction():
        _set_session(connection)
        opening, orders = connection.execute(
            "SELECT date_trunc('day', max(ordered_at)) + interval '1 day', count(*) FROM orders"
        ).fetchone() or (None, 0)
        if opening is None:
            raise ConfigError("The demo's table orders is empty.")
        # The day is part of the seed, so that each day changes other rows.
        _create_draws(
            connection, seed + opening.toordinal(), opening, {"day": max(8, orders // 1000)}
        )
        for table, verb, statement in _statements(*_DAY_SCRIPTS):
            cursor = connection.execute(statement)
            if verb != "prepare":
                keys.setdefault((table, verb), set()).update(row[0] for row in cursor)
    return {table: _net_counts(table, keys) for table in sorted(SIZES)}


def _net_counts(table: str, keys: dict[tuple[str, str], set[int]]) -> ChangeCounts:
    inserted, updated, deleted = (
        keys.get((table, verb), set()) for verb in ("insert", "update", "delete")
    )
    return ChangeCounts(
        inserted=len(inserted - deleted),
        updated=len(updated - inserted - deleted),
        deleted=len(deleted - inserted),
    )


def _load(dsn: str, counts: dict[str, int], seed: int) -> None:
    with _connect(dsn) as connection:
        with connection.transaction():
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
            _set_session(connection)
            _create_draws(connection, seed, _OPENING, counts)
            for name in _LOAD_SCRIPTS:
                connection.execute(sql.SQL(_text(name)))
        # So that autovacuum does not run during measurements.
        tables = sql.SQL(", ").join(sql.Identifier(SCHEMA, table) for table in SIZES)
        connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(tables))


def _set_session(connection: psycopg.Connection[TupleRow]) -> None:
    connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(SCHEMA)))
    connection.execute(
        "SET LOCAL timezone = 'UTC'; SET LOCAL work_mem = '128MB';"
        "SET LOCAL maintenance_work_mem = '256MB'; SET LOCAL jit = off;"
        "SET LOCAL synchronous_commit = off; SET LOCAL extra_float_digits = 1"
    )


def _create_draws(
    connection: psycopg.Connection[TupleRow], seed: int, opening: datetime, counts: dict[str, int]
) -> None:
    """Creates the temporary functions that the scripts draw random values with."""
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
    """Table, verb and SQL of each statement of the scripts, from its line ``-- table: verb``."""
    text = "\n".join(map(_text, names))
    parts = re.split(r"^-- (\w+): (\w+)$", text, flags=re.MULTILINE)[1:]
    for table, verb, statement in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        yield table, verb, sql.SQL(statement)


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@contextmanager
def _connect(dsn: str) -> Iterator[psycopg.Connection[TupleRow]]:
    try:
        connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        raise SourceUnreachable(f"The demo's PostgreSQL cannot be reached: {error}") from error
    try:
        with connection:
            yield connection
    except psycopg.Error as error:
        code = error.sqlstate or ""
        raise SourceError(
            f"PostgreSQL reported an error in the demo's data: {error}", sqlstate=code
        ) from error


def _in_database(dsn: str, database: str) -> str:
    if dsn.startswith(("postgresql://", "postgres://")):
        return urlsplit(dsn)._replace(path=f"/{database}").geturl()
    return make_conninfo(dsn, dbname=database)
