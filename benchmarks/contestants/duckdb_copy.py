"""DuckDB with its postgres extension: a table into one Parquet file, without metadata.

``plain`` copies the table as it is, ``hash`` adds SHA-256 of the row's values as text. The
extension comes from PyPI, so DuckDB downloads nothing; all settings are at their defaults.
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import duckdb_extension_postgres_scanner as extension


def copy(dsn: str, schema: str, table: str, folder: str, variant: str) -> None:
    """Copies the table into a file named after it."""
    (library,) = Path(extension.__file__).parent.rglob("*.duckdb_extension")
    with duckdb.connect() as connection:
        connection.load_extension(str(library))
        connection.execute(f"ATTACH '{dsn}' AS source (TYPE postgres, READ_ONLY)")
        query = f'SELECT * FROM source."{schema}"."{table}"'
        if variant == "hash":
            names = [column[0] for column in connection.execute(f"{query} LIMIT 0").description]
            texts = ", ".join(f"coalesce(\"{name}\"::VARCHAR, '')" for name in names)
            query = query.replace("*", f"*, sha256(concat_ws('|', {texts})) AS row_hash")
        connection.execute(f"COPY ({query}) TO '{folder}/{table}.parquet' (FORMAT parquet)")


if __name__ == "__main__":
    copy(*sys.argv[1:])
