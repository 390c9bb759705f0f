"""A file of a Bronze table at rest, held against what the log and its own rows say of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.delta import files
from bronze.errors import FileDamaged
from bronze.model.columns import DeltaType
from bronze.model.files import RowFormat, StoredFile
from bronze.model.locations import Place
from bronze.model.units import DELETED
from bronze.tables import soundness
from bronze.tables.soundness import Judged
from bronze.verify import buckets, digests
from bronze.verify.buckets import Sums
from bronze.verify.digests import Basis
from bronze.verify.row_diff import LISTED


@dataclass(frozen=True)
class Resting:
    """A file. ``size`` is that of what lies there, None where nothing does; faulty rows are named
    by their ``key``. With ``basis``, the digests of the rows that count are summed up.
    """

    place: Place
    file: StoredFile
    size: int | None
    layout: tuple[tuple[str, DeltaType], ...]
    form: RowFormat
    key: tuple[str, ...]
    basis: Basis | None = None


@dataclass(frozen=True)
class Inspected:
    """What was found. ``fault`` is what is wrong with the file, "" if nothing is; ``altered`` are
    the numbers of live rows that are not as they were written, ``gone`` those of such rows that are
    marked as deleted, ``named`` are the first keys of both, and what is wrong with them. Of the
    ``rows`` of a file that could be ``read`` to its end ``live`` ones are not marked as deleted.
    """

    file: StoredFile
    fault: str = ""
    read: bool = False
    rows: int = 0
    live: int = 0
    altered: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    gone: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    named: tuple[tuple[str, str], ...] = ()
    sums: Sums | None = field(default=None, repr=False)


def inspect(task: Resting) -> Inspected:
    """Reads all of a file.

    Raises:
        LakeUnreachable: the lake cannot be reached.
    """
    file = task.file
    if files.is_outside(file.path):
        return Inspected(file, "is outside of the table's folder")
    if task.size is None:
        return Inspected(file, "is missing")
    if task.size != file.size:
        return Inspected(file, f"has {task.size:,} bytes, and {file.size:,} by the log")
    try:
        return _read(task)
    except FileDamaged as error:
        about = f"The file {unquote(file.path)} of the table at {task.place.url} "
        return Inspected(file, error.message.removeprefix(about).rstrip("."))


def _read(task: Resting) -> Inspected:
    file = task.file
    parquet = files.opened(task.place, file, proven=True)
    unknown = sorted(set(parquet.schema_arrow.names) - {name for name, _ in task.layout})
    if unknown:
        # What the file calls otherwise would be read as NULL.
        return Inspected(file, f"has columns that the table has not: {', '.join(unknown)[:200]}")
    bounds: dict[str, tuple[Any, Any]] = {}
    rows, count = 0, 0
    altered, gone = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    named: list[tuple[str, str]] = []
    sums = buckets.nothing() if task.basis else None
    for start, table in files.parts(parquet, task.layout, None, None, dict(file.partition)):
        part = pl.DataFrame(table)
        rows += part.height
        _widen(bounds, part, file)
        found = soundness.check_rows(part, task.form)
        live = part["record_status"].ne_missing(DELETED)
        count += int(live.sum())
        if task.basis and sums is not None:
            same = task.form.hashed and _is_whole(task)
            known = found.hashes.filter(live) if same else None
            made = digests.of_bronze(part.filter(live), task.basis, known)
            buckets.add(sums, digests.numbers(made))
        wrong = found.wrong
        if not wrong.any():
            continue
        there = live.to_numpy()
        altered.append(start + np.flatnonzero(wrong & there))
        gone.append(start + np.flatnonzero(wrong & ~there))
        named += _named(part, found, task, LISTED - len(named))
    fault = _fault(file, rows, bounds)
    return Inspected(
        file,
        fault,
        True,
        rows,
        count,
        np.concatenate(altered),
        np.concatenate(gone),
        tuple(named),
        sums,
    )


def _is_whole(task: Resting) -> bool:
    """Whether the hashes of what is stored are those of the digests."""
    if task.basis is None or task.basis.rest != task.basis.columns:
        return False
    held = dict(task.layout)
    targets = tuple(column.target for column in task.basis.columns)
    kinds = all(held.get(c.target) == c.kind for c in task.basis.columns)
    return targets == task.form.values and kinds and task.basis.base == task.form.base


def _named(
    part: pl.DataFrame, found: Judged, task: Resting, most: int
) -> Iterator[tuple[str, str]]:
    """The keys of the first rows that are not as they were written, and what is wrong with each."""
    numbers = np.flatnonzero(found.wrong)[: max(most, 0)]
    keys = part[numbers].select(task.key or ["row_hash"]).to_dicts()
    for number, values in zip(numbers.tolist(), keys, strict=True):
        why = [name for name, mask in found.unfit.items() if mask[number]]
        why = ["values", *why] if found.altered[number] else why
        yield _written(values), ", ".join(why)


def _widen(bounds: dict[str, tuple[Any, Any]], rows: pl.DataFrame, file: StoredFile) -> None:
    for name in {name for name, _ in (*file.low, *file.high)} & set(rows.columns):
        low, high = bounds.get(name, (None, None))
        lows = [v for v in (low, rows[name].min()) if v is not None]
        highs = [v for v in (high, rows[name].max()) if v is not None]
        bounds[name] = min(lows, default=None), max(highs, default=None)


def _fault(file: StoredFile, rows: int, bounds: Mapping[str, tuple[Any, Any]]) -> str:
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
