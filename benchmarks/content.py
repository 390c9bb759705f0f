"""Whether a Delta table or a Parquet file holds what a PostgreSQL table holds.

Nothing of bronze takes part. Both sides are brought to one canonical text for each value: numbers
by their value (1.50 is 1.5), floats by their exact value (a real rounded to a real), dates as days
and timestamps as microseconds since 1970, texts and JSON to the letter, arrays element by element.
A column's fingerprint is the sum of a hash of each value together with its row's key, so the order
of the rows plays no part, and a value in another row, a lost row or a second one is seen. The types
are looked at as well: a numeric held as a double differs, even if all its values look the same.
Columns that differ are then compared row by row.
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
import pyarrow.parquet
from deltalake import DeltaTable
from psycopg import sql

from benchmarks.contestants import Task
from benchmarks.table import Column, batches, columns, export

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
    """A table of the source: its columns, the key first, its row count and its fingerprints."""

    task: Task
    columns: tuple[Column, ...]
    rows: int
    fingerprints: dict[str, int]

    @property
    def key(self) -> Column:
        """The key."""
        return self.columns[0]


def source(task: Task) -> Source:
    """Reads the table in the source."""
    with psycopg.connect(task.dsn) as connection:
        found = columns(connection, task.schema, task.table)
    rows, fingerprints = _fingerprints(_texts(task, found), found[0].name)
    return Source(task, tuple(found), rows, fingerprints)


def files_of(table: Path) -> list[str]:
    """The files which hold the rows of a Delta table, or of a Parquet file."""
    return DeltaTable(table).file_uris() if table.is_dir() else [str(table)]


def differences(files: Sequence[str], source: Source) -> dict[str, str]:
    """The columns of these Parquet files that differ from the source's, each with why.

    A wrong number of rows is entered under ``*``, and the values are not looked at then.
    """
    schema = pa.parquet.read_schema(files[0]) if files else pa.schema([])
    found: dict[str, str] = {}
    comparable = []
    for column in source.columns:
        if column.name not in schema.names:
            found[column.name] = "is missing"
        elif reason := _unfit(column, schema.field(column.name).type):
            found[column.name] = reason
            if column.type == "numeric" and schema.field(column.name).type == pa.float64():
                found[column.name] += _rounding(files, source, column)
        else:
            comparable.append(column)
    if source.key.name in found:
        return found
    rows, fingerprints = _fingerprints(_frames(files, comparable), source.key.name)
    if rows != source.rows:
        return {**found, "*": f"has {rows} rows, not {source.rows}"}
    for column in comparable:
        if fingerprints[column.name] != source.fingerprints[column.name]:
            found[column.name] = _deviation(files, source, column)
    return found


def _texts(task: Task, wanted: Sequence[Column]) -> Iterator[pl.DataFrame]:
    """Columns of the source: all texts, but floats, whose digits have many forms."""
    table = sql.Identifier(task.schema, task.table)
    floats = {c.name: _FLOATS[c.type] for c in wanted if c.type in _FLOATS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        with psycopg.connect(task.dsn, options="-c timezone=UTC") as connection:
            export(connection, table, wanted, lambda c: _SQL.get(c.type, "{}"), file)
        for batch in batches(file, {column.name: pa.string() for column in wanted}):
            frame = pl.DataFrame(batch)
            yield frame.with_columns(pl.col(name).cast(float_) for name, float_ in floats.items())


def _frames(files: Iterable[str], wanted: Sequence[Column]) -> Iterator[pl.DataFrame]:
    """Columns of the files, as `_texts` has those of the source."""
    names = [column.name for column in wanted]
    for file in files:
        with pa.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(200_000, columns=names):
                stored = [_storage(batch[name]) for name in names]
                frame = pl.DataFrame(pa.table(stored, names))
                yield frame.select(_canonical(column, frame.schema) for column in wanted)


def _storage(values: pa.Array) -> pa.Array:
    return values.storage if isinstance(values, pa.ExtensionArray) else values


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
    if column.type == "uuid" and schema[column.name] == pl.Binary:
        digits = value.bin.encode("hex")
        parts = (digits.str.slice(at, n) for at, n in ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12)))
        return pl.concat_str(*parts, separator="-").alias(column.name)
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
        "uuid": text or isinstance(held, pa.UuidType),
        "_text": types.is_list(held) or types.is_large_list(held),
    }.get(column.type, text)
    return "" if fits else f"is held as {held}"


def _fingerprints(frames: Iterable[pl.DataFrame], name: str) -> tuple[int, dict[str, int]]:
    """The number of rows, and each column's fingerprint."""
    rows = 0
    sums: dict[str, int] = {}
    for frame in frames:
        rows += len(frame)
        for column in frame.columns:
            hashes = frame.select(pl.struct(pl.col(name).alias(""), column).hash(1)).to_series()
            part = int(np.sum(hashes.to_numpy(), dtype=np.uint64))
            sums[column] = (sums.get(column, 0) + part) % 2**64
    return rows, sums


def _deviation(files: Sequence[str], source: Source, column: Column) -> str:
    """In how many rows a column differs, with the shortest example."""
    if column is source.key:
        return "has other values"
    unequal = _unequal(files, source, column)
    if unequal.is_empty():
        return "has other values"
    first, second = unequal.sort(pl.col("source").str.len_chars(), nulls_last=True).row(0)
    is_json = column.type in ("json", "jsonb") and all(map(_same_json, unequal.iter_rows()))
    what = "is written anew" if is_json else "differs"
    return f"{what} in {len(unequal):,} rows, such as {first!r} as {second!r}"


def _rounding(files: Sequence[str], source: Source, column: Column) -> str:
    """How many values of a numeric have other digits as a float."""
    pairs = _unequal(files, source, column).drop_nulls().iter_rows()
    rounded = sum(Decimal(first) != Decimal(second) for first, second in pairs)
    return f", which changes {rounded:,} of the values"


def _unequal(files: Sequence[str], source: Source, column: Column) -> pl.DataFrame:
    """The pairs of different canonical texts of a column, ``source`` and ``held``."""
    both = [source.key, column]
    theirs, ours = pl.concat(_texts(source.task, both)), pl.concat(_frames(files, both))
    pairs = theirs.join(ours, on=source.key.name, suffix="_held").select(
        pl.col(column.name).cast(pl.String).alias("source"),
        pl.col(f"{column.name}_held").cast(pl.String).alias("held"),
    )
    return pairs.filter(pl.col("source").ne_missing(pl.col("held")))


def _same_json(pair: tuple[str | None, str | None]) -> bool:
    try:
        first, second = (value and json.loads(value, parse_float=Decimal) for value in pair)
    except ValueError:
        return False
    return bool(first == second)
