"""The script that one writes by hand: connectorx into polars into ``write_deltalake``."""

from __future__ import annotations

import sys

import connectorx
from deltalake import write_deltalake


def load(dsn: str, schema: str, table: str, folder: str) -> None:
    """Reads the table in four partitions of its first column, and writes it in one go."""
    query = f'SELECT * FROM "{schema}"."{table}"'
    first = connectorx.read_sql(dsn, f"{query} LIMIT 0", return_type="polars").columns[0]
    frame = connectorx.read_sql(
        dsn, query, return_type="polars", partition_on=first, partition_num=4
    )
    write_deltalake(f"{folder}/{table}", frame)


if __name__ == "__main__":
    load(*sys.argv[1:])
