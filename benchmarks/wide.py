"""The table ``wide``: 40 columns of mixed types, some of them mostly NULL.

It holds only values that every contestant can read: no infinite dates, NaN, numerics of more than
28 digits or arrays with NULL in them, at all of which connectorx fails.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg
from psycopg import sql

# name, type, SQL of the value by the row's number i and a random number r (0 to 2**62)
COLUMNS: tuple[tuple[LiteralString, LiteralString, LiteralString], ...] = (
    ("id", "bigint primary key", "i"),
    ("level", "smallint not null", "r % 30000 - 15000"),
    ("quantity", "int not null", "r % 1000"),
    ("stock", "int", "CASE WHEN r % 10 > 0 THEN r % 2000000000 END"),
    ("returned", "int", "CASE WHEN r % 11 = 0 THEN r % 500 END"),
    ("account", "bigint not null", "r"),
    ("counter", "bigint", "CASE WHEN r % 7 > 0 THEN i * 1000 END"),
    ("legacy_id", "bigint", "CASE WHEN r % 13 = 0 THEN -r END"),
    ("price", "numeric(12,2) not null", "r % 10000000 / 100.0"),
    ("cost", "numeric(12,2)", "CASE WHEN r % 20 > 0 THEN r % 999999999 / 100.0 END"),
    ("refund", "numeric(12,2)", "CASE WHEN r % 15 = 0 THEN -(r % 99999 / 100.0) END"),
    ("discount", "numeric(5,4) not null", "r % 10000 / 10000.0"),
    ("balance", "numeric(30,6) not null", "r % 1000000000000000000 / 1000000.0"),
    ("volume", "numeric(30,6)", "CASE WHEN r % 3 > 0 THEN -r / 1000000.0 END"),
    ("rate", "numeric not null", "(r % 1000000007)::numeric / 1000000000000"),
    ("adjustment", "numeric", "CASE WHEN r % 12 = 0 THEN trim_scale(r % 99999 / 1000.0) END"),
    ("latitude", "float8 not null", "r % 180000000 / 1e6::float8 - 90"),
    ("longitude", "float8", "CASE WHEN r % 9 > 0 THEN sqrt(r::float8) END"),
    ("deviation", "float8", "CASE WHEN r % 14 = 0 THEN ln(1 + r::float8) END"),
    ("weight", "real", "r % 100000 / 997.0"),
    ("is_active", "boolean not null", "r % 2 = 0"),
    ("is_checked", "boolean", "CASE WHEN r % 5 > 0 THEN r % 3 = 0 END"),
    ("is_returned", "boolean", "CASE WHEN r % 16 = 0 THEN r % 32 = 0 END"),
    ("country", "text not null", "(array['DE','FR','JP','US','IN','BR','EG','PL'])[1 + r % 8]"),
    ("city", "text", "(array['München','東京','São Paulo','Łódź','القاهرة','Oslo'])[1 + r % 6]"),
    ("remark", "text", "CASE r % 20 WHEN 0 THEN '' WHEN 1 THEN E'call \"first\",\\nthen ship' END"),
    ("description", "text not null", "repeat('Part ' || md5(r::text) || ' · ', 2 + (r % 9)::int)"),
    ("status", "varchar(20) not null", "(array['new','paid','sent','closed'])[1 + r % 4]"),
    ("sku", "varchar(32) not null", "'SKU-' || lpad((r % 9999999)::text, 8, '0')"),
    ("contact", "varchar(200)", "CASE WHEN r % 10 = 0 THEN 'user' || i || '@mail.example' END"),
    ("ordered_on", "date not null", "date '2015-01-01' + (r % 4000)::int"),
    ("due_on", "date", "CASE WHEN r % 8 > 0 THEN date '2016-01-01' + (r % 5000)::int END"),
    ("closed_on", "date", "CASE WHEN r % 17 = 0 THEN date '1999-01-01' + (r % 900)::int END"),
    ("local_at", "timestamp not null", "timestamp '2020-01-01' + make_interval(secs => s)"),
    ("checked_at", "timestamp", "CASE WHEN r % 18 = 0 THEN timestamp '2021-06-01 12:00' END"),
    ("created_at", "timestamptz not null", "timestamptz '2020-01-01Z' + make_interval(secs => s)"),
    ("updated_at", "timestamptz", "timestamptz '2023-01-01Z' + make_interval(secs => s / 3)"),
    ("token", "uuid not null", "md5(i::text)::uuid"),
    (
        "attributes",
        "jsonb",
        "jsonb_build_object('size', r % 100, 'color', 'blue', 'weight_kg', r % 99999 / 1000.0,"
        " 'tags', jsonb_build_array('é', r % 7, null))",
    ),
    ("labels", "text[]", "(array['new','eco','größe xl','お得'])[1 + r % 2 : 2 + r % 4]"),
)


def create(connection: psycopg.Connection, table: sql.Identifier, rows: int) -> None:
    """Makes the table with its rows; the same number of rows is the same data."""
    definitions = sql.SQL(", ").join(
        sql.SQL("{} " + declared).format(sql.Identifier(name)) for name, declared, _ in COLUMNS
    )
    values = sql.SQL(", ".join(value for _, _, value in COLUMNS))
    connection.execute("SET timezone = 'UTC'")
    connection.execute(sql.SQL("CREATE TABLE {} ({})").format(table, definitions))
    connection.execute(
        sql.SQL(
            "INSERT INTO {} SELECT {} FROM ("
            " SELECT i, hashint8extended(i, 7) & 4611686018427387903 AS r,"
            " (hashint8extended(i, 8) & 1099511627775) / 1e4 AS s"
            " FROM generate_series(1::bigint, {}) i OFFSET 0) AS drawn"
        ).format(table, values, sql.Literal(rows))
    )
