"""The script that one writes by hand: connectorx into polars into ``write_deltalake``."""

from __future__ import annotations

from pathlib import Path

import connectorx
import polars as pl
import psycopg
from deltalake import write_deltalake

from benchmarks.contestants import Task, timed
from benchmarks.table import key


def load(task: Task) -> Path:
    """Reads the table in four partitions of its key, and writes it in one go."""
    with psycopg.connect(task.dsn) as connection:
        partition_on = key(connection, task.schema, task.table)
    frame = connectorx.read_sql(
        task.dsn,
        f'SELECT * FROM "{task.schema}"."{task.table}"',
        return_type="polars",
        partition_on=partition_on,
        partition_num=4,
    )
    assert isinstance(frame, pl.DataFrame)
    path = task.lake / task.table
    write_deltalake(path, frame)
    return path


if __name__ == "__main__":
    timed(load)
