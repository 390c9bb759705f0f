"""Equality by content, computed without any of bronze: PostgreSQL's texts against what a reader
of the Delta table finds.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
from deltalake import DeltaTable

from tests.soak.checker.tables import Column

Rows = Counter[tuple[Any, ...]]
_OURS = {
    "load_timestamp",
    "update_timestamp",
    "source_system",
    "record_status",
    "data_quality_score",
    "batch_id",
    "ingestion_method",
    "data_lineage",
    "checksum",
    "row_hash",
    "source_commit_timestamp",
    "change_type",
}
_REAL = 700
_PINNED = "-c timezone=UTC -c datestyle=ISO -c bytea_output=hex -c extra_float_digits=1"


def source_rows(dsn: str, table: str, columns: Sequence[Column]) -> list[tuple[Any, ...]]:
    """The rows of a table as PostgreSQL's texts."""
    names = ", ".join(column.quoted for column in columns)
    pinned = f"{_PINNED} -c intervalstyle=postgres -c lc_monetary=C"
    with psycopg.connect(dsn, options=pinned) as connection:
        result = connection.pgconn.exec_(f'SELECT {names} FROM "{table}"'.encode())
        assert result.status == psycopg.pq.ExecStatus.TUPLES_OK, result.error_message
        return [
            tuple(
                _text(result.get_value(row, column), result.ftype(column))
                for column in range(result.nfields)
            )
            for row in range(result.ntuples)
        ]


def _text(value: bytes | None, kind: int) -> str | None:
    if value is None:
        return None
    # The shortest text of a single is not that of the same number as a double.
    return repr(_single(value.decode())) if kind == _REAL else value.decode()


def bronze_rows(folder: Path) -> pl.DataFrame:
    """The rows that a Bronze table shows as there."""
    frame = pl.read_delta(str(folder))
    if "change_type" in frame.columns:
        key = json.loads(DeltaTable(str(folder)).metadata().configuration["bronze.key"])
        # Versions of before a change of the key have no such key.
        frame = frame.drop_nulls(key).sort("update_timestamp", maintain_order=True)
        frame = frame.unique(key, keep="last", maintain_order=True)
        frame = frame.filter(pl.col("change_type") != "delete")
    return frame.filter(pl.col("record_status") != "DELETED")


def content(folder: Path) -> Counter[Any]:
    """All that a Bronze table shows as there, for a comparison with itself."""
    if not (folder / "_delta_log").exists():
        return Counter()
    frame = bronze_rows(folder)
    return Counter(map(repr, frame.select(sorted(set(frame.columns) - _OURS)).rows()))


def unlike(dsn: str, table: str, columns: Sequence[Column], folder: Path) -> str:
    """What is wrong with a Bronze table; "" if it shows the very rows that PostgreSQL has.

    Args:
        dsn: the source's.
        table: the source's table.
        columns: its columns that are to be in Bronze.
        folder: the Bronze table's.
    """
    if not (folder / "_delta_log").exists():
        return "there is no Bronze table"
    frame = bronze_rows(folder)
    spelled = {name.lower(): name for name in frame.columns if name not in _OURS}
    if len({column.name.lower() for column in columns}) < len(columns):
        return "names of columns differ in their case only"
    lacking = [c.name for c in columns if c.name.lower() not in spelled]
    if lacking:
        return f"Bronze has no column {', '.join(lacking)}"
    named = [spelled.pop(column.name.lower()) for column in columns]
    left = [name for name in spelled.values() if frame[name].null_count() < frame.height]
    if left:
        return f"column {left[0]} is not NULL, and the source has it no more"
    kinds = [frame.schema[name] for name in named]
    readers = [_reader(kind) for kind in kinds]
    stored: Rows = Counter(
        tuple(_stored(value) for value in row) for row in frame.select(named).rows()
    )
    there: Rows = Counter(
        tuple(
            None if text is None else _read(text, read)
            for text, read in zip(row, readers, strict=True)
        )
        for row in source_rows(dsn, table, columns)
    )
    if stored == there:
        return ""
    missing, extra = there - stored, stored - there
    return (
        f"{missing.total()} rows missing, {extra.total()} too many of {there.total()}"
        f" ({', '.join(named)}): missing {_some(missing)}, too many {_some(extra)}"
    )


def _read(text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except (ValueError, ArithmeticError):
        return f"{text!r} is none of the kind that Bronze has"


def _some(rows: Rows) -> str:
    texts = [repr(value)[:40] for row in list(rows)[:1] for value in row]
    return f"({', '.join(texts)})"


def _stored(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=None)
    return tuple(value) if isinstance(value, list) else value


def _reader(kind: pl.DataType) -> Callable[[str], Any]:
    """How a text of PostgreSQL is read for a column of Bronze."""
    if kind.is_integer():
        return int
    if kind.is_float():
        narrow = kind == pl.Float32
        return lambda text: repr(_single(text) if narrow else float(text))
    if kind.is_decimal():
        return Decimal
    if kind == pl.Boolean:
        return lambda text: text == "t"
    if kind == pl.Binary:
        return lambda text: bytes.fromhex(text.removeprefix("\\x"))
    if kind == pl.Date:
        return dt.date.fromisoformat
    if isinstance(kind, pl.Datetime):
        return lambda text: dt.datetime.fromisoformat(text).replace(tzinfo=None)
    if isinstance(kind, pl.List):
        element = _reader(kind.inner)  # type: ignore[arg-type]
        return lambda text: tuple(
            None if part == "NULL" else element(part) for part in text.strip("{}").split(",")
        )
    return str


def _single(text: str) -> float:
    return float(pl.Series([float(text)], dtype=pl.Float32)[0])
