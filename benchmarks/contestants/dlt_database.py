"""dlt's ``sql_database`` into Delta tables, telemetry switched off: one table, or a whole schema.

``connectorx`` is the backend that its documentation recommends for speed (the page "Advanced
configuration" of its SQL database source); ``sqlalchemy`` is its default, in which rows are Python
objects. With both ``full_with_precision`` keeps the source's types.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"

import dlt
import sqlalchemy
from dlt.sources.sql_database import sql_database
from dlt.sources.sql_database.helpers import TableBackend, unwrap_json_connector_x

_PRECISION, _SCALE = 38, 15


def load(dsn: str, schema: str, table: str, folder: str, backend: TableBackend) -> None:
    """Runs a dlt pipeline for the one table; for all of the schema if it is ""."""
    source = sql_database(
        dsn,
        schema=schema,
        table_names=[table] if table else None,
        backend=backend,
        reflection_level="full_with_precision",
        table_adapter_callback=_bounded,
    )
    if table and backend == "connectorx":
        for column in _json_columns(dsn, schema, table):
            source.resources[table].add_map(unwrap_json_connector_x(column))
    pipeline = dlt.pipeline(
        pipeline_name="bench",
        pipelines_dir=f"{folder}/dlt",
        destination=dlt.destinations.filesystem(bucket_url=Path(folder, "lake").as_uri()),
        dataset_name="bench",
    )
    pipeline.run(
        source, write_disposition="replace", table_format="delta", loader_file_format="parquet"
    ).raise_on_failed_jobs()


def _bounded(table: sqlalchemy.Table) -> None:
    # dlt takes a numeric without precision for decimal(38, 9), and then fails at the tenth digit.
    for column in table.columns:
        if isinstance(column.type, sqlalchemy.Numeric) and not isinstance(
            column.type, sqlalchemy.Float
        ):
            column.type.precision = column.type.precision or _PRECISION
            column.type.scale = column.type.scale or _SCALE


def _json_columns(dsn: str, schema: str, table: str) -> list[str]:
    engine = sqlalchemy.create_engine(dsn)
    try:
        columns = sqlalchemy.inspect(engine).get_columns(table, schema)
    finally:
        engine.dispose()
    return [c["name"] for c in columns if isinstance(c["type"], sqlalchemy.JSON)]


if __name__ == "__main__":
    load(*sys.argv[1:])
