"""The comparison of a copy with its source that benchmarks rely on."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import psycopg
from psycopg import sql

from benchmarks import content
from benchmarks.contestants import Task
from benchmarks.source import SCHEMA
from benchmarks.table import write_arrow
from benchmarks.wide import create
from tests.conftest import Source

_ROWS = 200


def test_every_difference_of_a_copy_is_found(source: Source, tmp_path: Path) -> None:
    """An exact copy is equal; a lost row, values in another row, a changed or missing value, a
    lossy type and a missing column are named, with the number of rows.
    """
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
        create(connection, sql.Identifier(SCHEMA, "wide"), _ROWS)
    write_arrow(source.dsn, SCHEMA, "wide", tmp_path / "wide.arrow")
    copy = pl.read_ipc(tmp_path / "wide.arrow")
    truth = content.source(Task(source.dsn, SCHEMA, "wide", tmp_path))
    assert truth.rows == _ROWS

    def differences(frame: pl.DataFrame) -> dict[str, str]:
        file = tmp_path / "copy.parquet"
        frame.write_parquet(file)
        return content.differences(content.files_of(file), truth)

    assert differences(copy) == {}
    assert differences(copy.sort("token")) == {}
    assert differences(copy[1:]) == {"*": f"has {_ROWS - 1} rows, not {_ROWS}"}
    assert differences(copy.drop("sku")) == {"sku": "is missing"}
    swapped = copy.with_columns(pl.col("sku").reverse())
    assert "differs in 200 rows" in differences(swapped)["sku"]
    changed = copy.with_columns(pl.when(pl.col("id") > 1).then("level").alias("level"))
    assert "differs in 1 rows" in differences(changed)["level"]
    rounded = copy.with_columns(pl.col("price").cast(pl.Float64))
    assert differences(rounded) == {"price": "is held as double, which changes 0 of the values"}
    text = pl.col("attributes").str.replace_all(" ", "")
    assert "is written anew in 200 rows" in differences(copy.with_columns(text))["attributes"]
