"""What the catalog says of a table, and its rows as text and as Arrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.csv
from psycopg import sql

_TYPES = {
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us"),
}
_UTC = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Column:
    """A column; ``type`` is pg_type's name, such as int4 or numeric.

    ``precision`` and ``scale`` are a numeric's, 0 if it was declared without.
    """

    name: str
    type: str
    precision: int
    scale: int


def columns(connection: psycopg.Connection, schema: str, table: str) -> list[Column]:
    """The columns in their order; the first one is the key."""
    rows = connection.execute(
        "SELECT column_name, udt_name, coalesce(numeric_precision, 0), coalesce(numeric_scale, 0)"
        " FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
        " ORDER BY ordinal_position",
        (schema, table),
    )
    return [
        Column(name, kind, *((precision, scale) if kind == "numeric" else (0, 0)))
        for name, kind, precision, scale in rows
    ]


def export(
    connection: psycopg.Connection,
    table: sql.Identifier,
    exported: Sequence[Column],
    expressions: Callable[[Column], str],
    file: Path,
) -> None:
    """Writes columns of all rows to a CSV file: NULL is empty, the empty text is quoted."""
    values = ", ".join(
        f"{expressions(column).format(_quoted(column.name))} AS {_quoted(column.name)}"
        for column in exported
    )
    query = f"COPY (SELECT {values} FROM {table.as_string(None)}) TO STDOUT (FORMAT csv, HEADER)"
    with connection.cursor() as cursor, cursor.copy(query.encode()) as rows, file.open("wb") as to:
        for block in rows:
            to.write(block)


def batches(file: Path, types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """The rows of an exported file as Arrow, a block at a time."""
    reader = pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(block_size=16 * 2**20),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=types,
            null_values=[""],
            quoted_strings_can_be_null=False,
            strings_can_be_null=True,
            true_values=["t"],
            false_values=["f"],
        ),
    )
    yield from reader


def write_arrow(dsn: str, schema: str, table: str, file: Path) -> None:
    """Writes the rows of a table to an Arrow file, in Arrow's types."""
    text = file.with_suffix(".csv")
    with psycopg.connect(dsn, options="-c timezone=UTC") as connection:
        found = columns(connection, schema, table)
        export(connection, sql.Identifier(schema, table), found, _text, text)
    layout = pa.schema([(column.name, _type(column)) for column in found])
    rows = batches(text, {column.name: _csv_type(column) for column in found})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, layout) as writer:
        for batch in rows:
            values = [_typed(batch[field.name], field.type) for field in layout]
            writer.write(pa.record_batch(values, layout))
    text.unlink()


def _text(column: Column) -> str:
    if column.type.startswith("_"):
        return "to_json({})"
    return "{} AT TIME ZONE 'UTC'" if column.type == "timestamptz" else "{}"


def _csv_type(column: Column) -> pa.DataType:
    if column.precision:
        return pa.decimal128(column.precision, column.scale)
    return _TYPES.get(column.type, pa.string())


def _type(column: Column) -> pa.DataType:
    if column.type.startswith("_"):
        return pa.list_(pa.string())
    return _UTC if column.type == "timestamptz" else _csv_type(column)


def _typed(values: pa.Array, type_: pa.DataType) -> pa.Array:
    if pa.types.is_list(type_):
        lists = pl.Series(values).str.json_decode(pl.List(pl.String)).to_arrow()
        return lists.cast(type_)
    return values.cast(type_)


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)
