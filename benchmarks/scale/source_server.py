"""The source of a cluster: ``python -m benchmarks.scale.source_server FOLDER ADDRESS NAME=ROWS…``.

An embedded PostgreSQL with tables like ``order_details`` (a name with ``narrow`` has two columns of
integers), which says its DSN and its process id, and ends with standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg
from psycopg import sql

from benchmarks import source
from benchmarks.command import server_of
from bronze.demo import server

NETWORK = "10.77.0.0/24"
PORT = 5432
_SETTINGS = {**source.SETTINGS, "listen_addresses": "*", "max_parallel_maintenance_workers": "2"}


def fill(dsn: str, rows: dict[str, int]) -> str:
    """Makes the tables; returns the DSN of their database."""
    wide = {name: count for name, count in rows.items() if "narrow" not in name}
    made = source.fill(dsn, wide)
    with psycopg.connect(made, autocommit=True) as connection:
        for name in rows.keys() - wide.keys():
            table = sql.Identifier(source.SCHEMA, name)
            connection.execute(
                sql.SQL(
                    "CREATE TABLE {} AS SELECT i AS id, i * 7 % 1000003 AS v"
                    " FROM generate_series(1, {}) i"
                ).format(table, sql.Literal(rows[name]))
            )
            connection.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (id)").format(table))
            connection.execute(sql.SQL("VACUUM (ANALYZE, FREEZE) {}").format(table))
        connection.execute("CHECKPOINT")
    return made


def main() -> None:
    """The command line."""
    folder, address = Path(sys.argv[1]), sys.argv[2]
    rows = {name: int(count) for name, count in (pair.split("=") for pair in sys.argv[3:])}
    with server.running(folder, port=PORT, settings=_SETTINGS) as started:
        with (folder / "pg_hba.conf").open("a") as access:
            access.write(f"host all all {NETWORK} trust\n")
        with psycopg.connect(started.dsn(), autocommit=True) as admin:
            admin.execute("SELECT pg_reload_conf()")
        dsn = fill(started.dsn(), rows)
        print(dsn.replace(started.host, address), server_of(dsn).pid, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
