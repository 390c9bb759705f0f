"""dlt's ``sql_table`` into a Delta table, set up as its documentation does for speed.

https://dlthub.com/docs/dlt-ecosystem/verified-sources/sql_database/configuration: Arrow backends,
chunks of 100,000 rows, ``full_with_precision`` to keep the source's types, Parquet files all along.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"

import connectorx  # noqa: F401 - imported here, so that it is not part of the measured work
import deltalake  # noqa: F401
import dlt
import pyarrow.dataset  # noqa: F401
import sqlalchemy
from dlt.sources.sql_database import sql_table
from dlt.sources.sql_database.helpers import TableBackend, unwrap_json_connector_x

from benchmarks.contestants import Task

_PRECISION, _SCALE = 38, 15


def load(task: Task, backend: TableBackend) -> Path:
    """Runs a dlt pipeline for the one table."""
    resource = sql_table(
        task.dsn,
        task.table,
        task.schema,
        chunk_size=100_000,
        backend=backend,
        reflection_level="full_with_precision",
        table_adapter_callback=_bounded,
    )
    if backend == "connectorx":
        for column in _json_columns(task):
            resource.add_map(unwrap_json_connector_x(column))
    pipeline = dlt.pipeline(
        pipeline_name="bench",
        pipelines_dir=str(task.lake / "dlt"),
        destination=dlt.destinations.filesystem(bucket_url=(task.lake / "lake").as_uri()),
        dataset_name="bench",
    )
    pipeline.run(
        resource, write_disposition="replace", table_format="delta", loader_file_format="parquet"
    ).raise_on_failed_jobs()
    return task.lake / "lake" / "bench" / task.table


def _bounded(table: sqlalchemy.Table) -> None:
    # dlt takes a numeric without precision for decimal(38, 9), and then fails at the tenth digit.
    for column in table.columns:
        if isinstance(column.type, sqlalchemy.Numeric) and not isinstance(
            column.type, sqlalchemy.Float
        ):
            column.type.precision = column.type.precision or _PRECISION
            column.type.scale = column.type.scale or _SCALE


def _json_columns(task: Task) -> list[str]:
    engine = sqlalchemy.create_engine(task.dsn)
    try:
        columns = sqlalchemy.inspect(engine).get_columns(task.table, task.schema)
    finally:
        engine.dispose()
    return [c["name"] for c in columns if isinstance(c["type"], sqlalchemy.JSON)]
