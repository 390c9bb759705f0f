"""Whether a Delta table holds what a PostgreSQL table holds.

Nothing of bronze takes part. Both sides are brought to one canonical text for each value: numbers
by their value (1.50 is 1.5), floats by their exact value (a real rounded to a real), dates as days
and timestamps as microseconds since 1970, texts and JSON to the letter, arrays element by element.
A column's fingerprint is the sum of a hash of each value together with its row's key, so the order
of the rows plays no part, and a value in another row, a lost row or a second one is seen. The types
are looked at as well: a numeric held as a double differs, even if all its values look the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from deltalake import DeltaTable

from benchmarks.contestants import Task
from benchmarks.table import Column, columns, export, key

_SAMPLE = 10_000
_FLOATS = {"float4": pl.Float32, "float8": pl.Float64}

# The SQL of a type's canonical text, where it is not the value's own.
_SQL = {
    "numeric": "trim_scale({})",
    "date": "{} - date '1970-01-01'",
    "timestamp": "(extract(epoch FROM {}) * 1000000)::int8",
    "timestamptz": "(extract(epoch FROM {}) * 1000000)::int8",
    "bool": "{}::text",
    "_text": "cardinality({0}) || ':' || array_to_string({0}, chr(31), chr(30))",
}


@dataclass(frozen=True)
class Source:
    """A table of the source: its columns, its key's name, its row count and its fingerprints.

    ``sample`` are the canonical texts of the rows with the lowest keys, for examples.
    """

    columns: tuple[Column, ...]
    key: str
    rows: int
    fingerprints: dict[str, int]
    sample: pl.DataFrame


def source(task: Task) -> Source:
    """Reads the table in the source."""
    with (
        psycopg.connect(task.dsn, options="-c timezone=UTC") as connection,
        tempfile.TemporaryDirectory() as folder,
    ):
        found = columns(connection, task.schema, task.table)
        name = key(connection, task.schema, task.table)
        file = Path(folder) / "rows.csv"
        export(connection, task.schema, task.table, lambda c: _SQL.get(c.type, "{}"), file)
        rows, fingerprints, sample = _fingerprints(_texts(file, found), name)
    return Source(tuple(found), name, rows, fingerprints, sample)


def differences(path: str, held: Source) -> dict[str, str]:
    """The columns of the Delta table at ``path`` that differ from the source's, each with why.

    A wrong number of rows is entered under ``*``, and the values are not looked at then.
    """
    files = DeltaTable(path).file_uris()
    schema = pa.parquet.read_schema(files[0]) if files else pa.schema([])
    found: dict[str, str] = {}
    comparable = []
    for column in held.columns:
        if column.name not in schema.names:
            found[column.name] = "is missing"
        elif reason := _unfit(column, schema.field(column.name).type):
            found[column.name] = reason
        else:
            comparable.append(column)
    if held.key in found:
        return found
    rows, fingerprints, sample = _fingerprints(_frames(files, comparable), held.key)
    if rows != held.rows:
        return {**found, "*": f"has {rows} rows, not {held.rows}"}
    for column in comparable:
        if fingerprints[column.name] != held.fingerprints[column.name]:
            found[column.name] = _example(held, sample, column.name)
    return found


def _texts(file: Path, found: Sequence[Column]) -> Iterator[pl.DataFrame]:
    """The rows of the exported file: all texts, but floats, whose digits have many forms."""
    reader = pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(block_size=16 * 2**20),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types={column.name: pa.string() for column in found},
            null_values=[""],
            quoted_strings_can_be_null=False,
            strings_can_be_null=True,
        ),
    )
    floats = {c.name: _FLOATS[c.type] for c in found if c.type in _FLOATS}
    for batch in reader:
        frame = pl.DataFrame(batch)
        yield frame.with_columns(pl.col(name).cast(float_) for name, float_ in floats.items())


def _frames(files: Iterable[str], found: Sequence[Column]) -> Iterator[pl.DataFrame]:
    names = [column.name for column in found]
    for file in files:
        with pa.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(200_000, columns=names):
                frame = pl.DataFrame(pa.Table.from_batches([batch]))
                yield frame.select(_canonical(column, frame.schema) for column in found)


def _canonical(column: Column, schema: pl.Schema) -> pl.Expr:
    """The same text of a lake's value as `_SQL` gives of the source's."""
    value = pl.col(column.name)
    if column.type in _FLOATS:
        return value.cast(_FLOATS[column.type])
    if column.type == "date":
        return value.cast(pl.Int32).cast(pl.String)
    if column.type.startswith("timestamp"):
        return value.dt.timestamp("us").cast(pl.String)
    if column.type == "_text":
        joined = value.list.eval(pl.element().fill_null("\x1e")).list.join("\x1f")
        return pl.concat_str(value.list.len(), pl.lit(":"), joined).alias(column.name)
    text = value.cast(pl.String)
    if column.type == "numeric":
        return (
            pl.when(text.str.contains(".", literal=True))
            .then(text.str.strip_chars_end("0").str.strip_chars_end("."))
            .otherwise(text)
            .alias(column.name)
        )
    return text


def _unfit(column: Column, held: pa.DataType) -> str:
    """Why a lake's type cannot hold the source's values as they are; "" if it can."""
    types = pa.types
    text = types.is_string(held) or types.is_large_string(held) or types.is_string_view(held)
    whole = types.is_integer(held)
    fits = {
        "int2": whole,
        "int4": whole,
        "int8": whole,
        "numeric": types.is_decimal(held) or text,
        "float4": types.is_floating(held),
        "float8": types.is_float64(held),
        "bool": types.is_boolean(held),
        "date": types.is_date32(held),
        "timestamp": types.is_timestamp(held) and held.tz is None,
        "timestamptz": types.is_timestamp(held) and held.tz is not None,
        "_text": types.is_list(held) or types.is_large_list(held),
    }.get(column.type, text)
    return "" if fits else f"is held as {held}"


def _fingerprints(
    frames: Iterable[pl.DataFrame], name: str
) -> tuple[int, dict[str, int], pl.DataFrame]:
    """The number of rows, each column's fingerprint, and the rows with the lowest keys."""
    rows = 0
    sums: dict[str, int] = {}
    lowest: list[pl.DataFrame] = []
    for frame in frames:
        rows += len(frame)
        for column in frame.columns:
            hashes = frame.select(pl.struct(pl.col(name).alias(""), column).hash(1)).to_series()
            part = int(np.sum(hashes.to_numpy(), dtype=np.uint64))
            sums[column] = (sums.get(column, 0) + part) % 2**64
        number = pl.col(name).cast(pl.Int64)
        lowest.append(frame.filter(number <= _SAMPLE).sort(number))
    return rows, sums, pl.concat(lowest) if lowest else pl.DataFrame()


def _example(held: Source, sample: pl.DataFrame, name: str) -> str:
    pair = [pl.col(held.key).alias("key"), pl.col(name).cast(pl.String).alias("value")]
    both = held.sample.select(pair).join(sample.select(pair), on="key", suffix="_held")
    unequal = both.filter(pl.col("value").ne_missing(pl.col("value_held")))
    if unequal.is_empty():
        return "has other values"
    _, value, wrong = unequal.sort(pl.col("value").str.len_chars(), nulls_last=True).row(0)
    example = f"{value!r} is held as {wrong!r}"
    rows = unequal.drop("key").iter_rows()
    is_json = any(c.name == name and c.type in ("json", "jsonb") for c in held.columns)
    return f"is written anew: {example}" if is_json and all(map(_same_json, rows)) else example


def _same_json(pair: tuple[str | None, str | None]) -> bool:
    try:
        first, second = (value and json.loads(value, parse_float=Decimal) for value in pair)
    except ValueError:
        return False
    return bool(first == second)
