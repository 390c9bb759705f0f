"""The check of one file of a Bronze table at rest: against the Delta log, and row by row.

It runs in a worker. The file has to be readable and to have the size, the rows and the statistics
of the log; each row has to have its checksum, its hash and valid metadata columns.
"""

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
from bronze.printable import count
from bronze.tables import soundness
from bronze.tables.soundness import RowCheck
from bronze.verify.rows import buckets, digests
from bronze.verify.rows.buckets import Sums
from bronze.verify.rows.digests import Basis
from bronze.verify.rows.row_diff import MAX_LISTED


@dataclass(frozen=True)
class FileCheckTask:
    """A file to check.

    ``size`` is the size in bytes of the object in the store, None where there is no object.
    Faulty rows are listed by ``key``. With a ``basis`` the bucket sums of the live rows' digests
    are computed as well.
    """

    place: Place
    file: StoredFile
    size: int | None
    layout: tuple[tuple[str, DeltaType], ...]
    form: RowFormat
    key: tuple[str, ...]
    basis: Basis | None = None


@dataclass(frozen=True)
class CheckedFile:
    """The result of a file.

    ``fault`` is the fault of the file itself, "" if it has none; ``is_read`` says that it could be
    read to its end. It has ``rows`` rows; ``live`` of them are not marked as deleted.

    ``altered`` are the numbers of altered live rows, ``altered_deleted`` those of altered rows that
    are marked as deleted. ``listed`` has the first of both: key, and what is altered.
    """

    file: StoredFile
    fault: str = ""
    is_read: bool = False
    rows: int = 0
    live: int = 0
    altered: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    altered_deleted: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    listed: tuple[tuple[str, str], ...] = ()
    sums: Sums | None = field(default=None, repr=False)


def check_file(task: FileCheckTask) -> CheckedFile:
    """Reads all of a file, and checks it.

    Raises:
        LakeUnreachable: the lake cannot be reached.
    """
    file = task.file
    if files.is_outside(file.path):
        return CheckedFile(file, "is outside of the table's folder")
    if task.size is None:
        return CheckedFile(file, "is missing")
    if task.size != file.size:
        return CheckedFile(file, f"has {task.size:,} bytes, but {file.size:,} by the log")
    try:
        return _check_rows(task)
    except FileDamaged as error:
        about = f"The file {unquote(file.path)} of the table at {task.place.url} "
        return CheckedFile(file, error.message.removeprefix(about).rstrip("."))


def _check_rows(task: FileCheckTask) -> CheckedFile:
    file = task.file
    parquet = files.open_parquet(task.place, file, proven=True)
    unknown = sorted(set(parquet.schema_arrow.names) - {name for name, _ in task.layout})
    if unknown:
        # A column under another name would be read as NULL.
        names = ", ".join(unknown)[:200]
        return CheckedFile(file, f"has columns that the table does not have: {names}")
    bounds: dict[str, tuple[Any, Any]] = {}
    rows, live_rows = 0, 0
    altered, altered_deleted = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    listed: list[tuple[str, str]] = []
    sums = buckets.empty_sums() if task.basis else None
    for start, table in files.parts(parquet, task.layout, None, None, dict(file.partition)):
        part = pl.DataFrame(table)
        rows += part.height
        _extend_bounds(bounds, part, file)
        judged = soundness.check_rows(part, task.form)
        live = part["record_status"].ne_missing(DELETED)
        live_rows += int(live.sum())
        if sums is not None:
            buckets.add_to_sums(sums, _digests_of_live_rows(part, live, judged, task))
        wrong = judged.wrong
        if not wrong.any():
            continue
        is_live = live.to_numpy()
        altered.append(start + np.flatnonzero(wrong & is_live))
        altered_deleted.append(start + np.flatnonzero(wrong & ~is_live))
        listed += _altered_rows(part, judged, task, MAX_LISTED - len(listed))
    return CheckedFile(
        file,
        _fault_by_statistics(file, rows, bounds),
        True,
        rows,
        live_rows,
        np.concatenate(altered),
        np.concatenate(altered_deleted),
        tuple(listed),
        sums,
    )


def _digests_of_live_rows(
    part: pl.DataFrame, live: pl.Series, judged: RowCheck, task: FileCheckTask
) -> buckets.Digests:
    basis = task.basis
    if basis is None:
        raise ValueError("digests need a basis")
    reuse = task.form.hashed and _hashes_are_digests(task, basis)
    known = judged.hashes.filter(live) if reuse else None
    return buckets.digests_of_hashes(digests.bronze_digests(part.filter(live), basis, known))


def _hashes_are_digests(task: FileCheckTask, basis: Basis) -> bool:
    """Whether the digests can use the hashes of the check, as both are over the
    same columns, with the same types.
    """
    if basis.readable != basis.columns:
        return False
    types = dict(task.layout)
    targets = tuple(column.target for column in basis.columns)
    same_types = all(types.get(c.target) == c.kind for c in basis.columns)
    return targets == task.form.values and same_types and basis.base == task.form.base


def _altered_rows(
    part: pl.DataFrame, judged: RowCheck, task: FileCheckTask, limit: int
) -> Iterator[tuple[str, str]]:
    """The keys of the first altered rows, and what is altered in each."""
    numbers = np.flatnonzero(judged.wrong)[: max(limit, 0)]
    keys = part[numbers].select(task.key or ["row_hash"]).to_dicts()
    for number, values in zip(numbers.tolist(), keys, strict=True):
        columns = [name for name, mask in judged.unfit.items() if mask[number]]
        what = ["values", *columns] if judged.altered[number] else columns
        yield json.dumps(values, default=str, ensure_ascii=False), ", ".join(what)


def _extend_bounds(
    bounds: dict[str, tuple[Any, Any]], rows: pl.DataFrame, file: StoredFile
) -> None:
    """Extends the bounds by the values of more rows, in the columns with statistics."""
    for name in {name for name, _ in (*file.low, *file.high)} & set(rows.columns):
        low, high = bounds.get(name, (None, None))
        lows = [v for v in (low, rows[name].min()) if v is not None]
        highs = [v for v in (high, rows[name].max()) if v is not None]
        bounds[name] = min(lows, default=None), max(highs, default=None)


def _fault_by_statistics(file: StoredFile, rows: int, bounds: Mapping[str, tuple[Any, Any]]) -> str:
    """How the file differs from its statistics in the log, "" if it does not."""
    if file.rows not in (-1, rows):
        return f"has {count(rows, 'row')}, but {file.rows:,} by the log"
    low, high = dict(file.low), dict(file.high)
    for name, (least, most) in bounds.items():
        if (least is not None and name in low and least < low[name]) or (
            most is not None and name in high and most > high[name]
        ):
            return f"has values of {name} outside of the bounds in the log"
    return ""
