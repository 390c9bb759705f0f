"""A file of a Bronze table at rest, held against what the log and its own rows say of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from bronze.enrich import fingerprint, hashing
from bronze.enrich.encoding import pieces
from bronze.errors import BronzeError
from bronze.model import DELETED, Kind, Place, Stored
from bronze.plain import plain
from bronze.source.read import dtype
from bronze.table import files

_DIGITS = 16


@dataclass(frozen=True)
class Resting:
    """A file. ``size`` is that of what lies there, None where nothing does; ``values`` are the
    columns of the source, of which the table began with ``base``; ``listed`` rows are named.
    ``earlier`` are kinds that columns had before they were widened, at one time or another.
    """

    place: Place
    file: Stored
    size: int | None
    layout: tuple[tuple[str, Kind], ...]
    values: tuple[str, ...]
    base: int
    key: tuple[str, ...]
    listed: int
    earlier: tuple[tuple[tuple[str, Kind], ...], ...] = ()


@dataclass(frozen=True)
class Inspected:
    """What was found. ``fault`` is what is wrong with the file, "" if nothing is; ``altered`` are
    the numbers of live rows whose checksum is wrong, ``gone`` counts such rows that are marked as
    deleted, ``keys`` are the first keys of both.
    """

    file: Stored
    fault: str = ""
    rows: int = 0
    altered: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    gone: int = 0
    keys: tuple[str, ...] = ()


def inspect(task: Resting) -> Inspected:
    """Reads all of a file.

    Raises:
        LakeUnreachable: the lake cannot be reached.
    """
    file = task.file
    if task.size is None:
        return Inspected(file, "is missing")
    if task.size != file.size:
        return Inspected(file, f"has {task.size:,} bytes, and {file.size:,} by the log")
    try:
        return _read(task)
    except BronzeError as error:
        if error.exit_code == _UNREACHABLE:
            raise
        return Inspected(file, f"cannot be read: {error.message}")
    except (pa.ArrowException, OSError, ValueError, pl.exceptions.PolarsError) as error:
        return Inspected(file, f"cannot be read: {plain(error)}")


_UNREACHABLE = 3


def _read(task: Resting) -> Inspected:
    file = task.file
    parquet = files.opened(task.place, file, proven=True)
    unknown = sorted(set(parquet.schema_arrow.names) - {name for name, _ in task.layout})
    if unknown:
        # What the file calls otherwise would be read as NULL.
        return Inspected(file, f"has columns that the table has not: {', '.join(unknown)[:200]}")
    bounds: dict[str, tuple[Any, Any]] = {}
    rows, gone = 0, 0
    altered = [np.empty(0, np.int64)]
    keys: list[str] = []
    for start, table in files.parts(parquet, task.layout, None, None, dict(file.partition)):
        part = pl.DataFrame(table)
        rows += part.height
        _widen(bounds, part, file)
        wrong = ~_proven(part, task)
        if not wrong.any():
            continue
        live = part["record_status"].ne_missing(DELETED).to_numpy()
        altered.append(start + np.flatnonzero(wrong & live))
        gone += int((wrong & ~live).sum())
        named = part.select(task.key or ["row_hash"]).filter(pl.Series(wrong))
        keys += [_written(values) for values in named.head(task.listed - len(keys)).to_dicts()]
    fault = _fault(file, rows, bounds)
    return Inspected(file, fault, rows, np.concatenate(altered), gone, tuple(keys))


def _proven(rows: pl.DataFrame, task: Resting) -> npt.NDArray[np.bool_]:
    """Which rows have the checksum of their values, as these are or as they were once."""
    proven = _sealed(rows, task)
    for kinds in task.earlier:
        left = np.flatnonzero(~proven)
        were = (pl.col(name).cast(dtype(kind), strict=False) for name, kind in kinds)
        proven[left] = _sealed(rows[left].with_columns(were), task)
    return proven


def _sealed(rows: pl.DataFrame, task: Resting) -> npt.NDArray[np.bool_]:
    if not rows.height:
        return np.ones(0, np.bool_)
    values = rows.select(task.values).get_columns()
    sums = hashing.xxh3(pieces(values, rows.height, task.base), rows.height)
    said = rows["checksum"].fill_null("")
    formed = (said.str.len_bytes() == _DIGITS) & (said.str.len_chars() == _DIGITS)
    plain = pl.select(pl.when(formed).then(said).otherwise(pl.lit("0" * _DIGITS))).to_series()
    proven: npt.NDArray[np.bool_] = fingerprint.of_hashes(plain, 0).byteswap() == sums
    proven &= formed.to_numpy()
    return proven


def _widen(bounds: dict[str, tuple[Any, Any]], rows: pl.DataFrame, file: Stored) -> None:
    for name in {name for name, _ in (*file.low, *file.high)} & set(rows.columns):
        low, high = bounds.get(name, (None, None))
        lows = [v for v in (low, rows[name].min()) if v is not None]
        highs = [v for v in (high, rows[name].max()) if v is not None]
        bounds[name] = min(lows, default=None), max(highs, default=None)


def _fault(file: Stored, rows: int, bounds: Mapping[str, tuple[Any, Any]]) -> str:
    if file.rows not in (-1, rows):
        return f"has {rows:,} rows, and {file.rows:,} by the log"
    low, high = dict(file.low), dict(file.high)
    for name, (least, most) in bounds.items():
        if (least is not None and name in low and least < low[name]) or (
            most is not None and name in high and most > high[name]
        ):
            return f"has values of {name} beyond the bounds in the log"
    return ""


def _written(values: Mapping[str, Any]) -> str:
    return json.dumps(values, default=str, ensure_ascii=False)
