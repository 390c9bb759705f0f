"""Unchanged TOAST: large values that an UPDATE left alone, and that PostgreSQL does not send.

PostgreSQL keeps large values beside the row (TOAST). When an UPDATE does not touch one, logical
decoding sends the row without it. The value is the one that the row had before: it stands in an
earlier change of the same row, or in the Bronze table, under the key that the row had then.

An example: table ``t (id, n, big)``, and Bronze has ``(1, 0, 'BIG')``. A batch brings::

    0  UPDATE t SET n = 1  WHERE id = 1     sent: id 1, n 1, big not sent
    1  UPDATE t SET id = 9 WHERE id = 1     sent: old key 1; id 9, n 1, big not sent
    2  INSERT INTO t VALUES (1, 0, 'NEW')   sent: id 1, n 0, big 'NEW'
    3  UPDATE t SET n = 2  WHERE id = 1     sent: id 1, n 2, big not sent

Net changes keep the last change of each key: 1 for key 9, and 3 for key 1. Both lack ``big``.
`locate_missing` follows each row through the batch. Change 1 is of the row that had key 1 before
the batch, so its ``big`` is the table's under key 1; change 3 is of the row that change 2 inserted,
so its ``big`` is change 2's. `fill_from_changes` takes 'NEW' from change 2, `fill_from_table` takes
'BIG' from the table::

    key 9: (9, 1, 'BIG')        key 1: (1, 2, 'NEW')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze import portion
from bronze.cdc.row_changes import LINE, PART, Key, NetTask, Part, stored_keys
from bronze.delta.write import lookup
from bronze.errors import Mismatch
from bronze.protection import protect

Unsent = tuple[tuple[str, npt.NDArray[np.bool_]], ...]
"""The columns that some changes of a part lack, and which changes these are."""


class Spot(NamedTuple):
    """The place of a value: ``column`` (its name in the source) of a ``change`` of a ``part``."""

    part: int
    change: int
    column: str


Origin = Spot | Key
"""Where a missing value is: in another change, or in the table under a key."""


def locate_missing(job: NetTask, parts: Sequence[Part], last: pl.DataFrame) -> dict[Spot, Origin]:
    """Where the values are that the last changes lack.

    Args:
        job: what is netted.
        parts: all changes, in their order.
        last: the last change of each key, as `Part.events` names them.

    Raises:
        Mismatch: all columns identify a row, so that an unsent value cannot be found.
    """
    unsent = {part.number: part.open for part in parts}
    missing = list(_missing_values(unsent, last))
    if not missing:
        return {}
    if job.identity != job.key and set(parts[0].names) <= set(job.identity):
        raise missing_value_error(job, missing[0].column)
    in_key = [job.identity.index(name) for name in job.key]
    columns = {spot.column for spot in missing}
    origins: dict[Spot, Origin] = {}
    # Where the values are of each row that the batch has touched, by the row's identity now.
    rows: dict[Key, dict[str, Origin]] = {}
    for part in parts:
        flags = {name: sent for name, sent in unsent[part.number] if name in columns}
        # The row that an UPDATE of its identity takes away: its second half comes next.
        moved: tuple[int, Key, dict[str, Origin]] | None = None
        for *row, upsert, _, change in part.events(job.identity).iter_rows():
            identity = tuple(row)
            if not upsert:
                moved = (change, identity, rows.pop(identity, {}))
                continue
            is_same_row = moved is not None and moved[0] == change
            before, known = (
                moved[1:] if moved and is_same_row else (identity, rows.get(identity, {}))
            )
            stored_under = tuple(before[i] for i in in_key)
            now: dict[str, Origin] = {}
            for column in columns:
                spot = Spot(part.number, change, column)
                if column in flags and flags[column][change]:
                    origins[spot] = now[column] = known.get(column, stored_under)
                else:
                    now[column] = spot
            rows[identity] = now
    return {spot: origins[spot] for spot in missing}


def _missing_values(unsent: Mapping[int, Unsent], last: pl.DataFrame) -> Iterator[Spot]:
    for number, columns in unsent.items():
        changes = last.filter(pl.col(PART) == number)[LINE].to_numpy()
        for name, flags in columns:
            for change in changes[flags[changes]]:
                yield Spot(number, int(change), name)


def fill_from_changes(
    raw: pl.DataFrame,
    changes: npt.NDArray[np.int64],
    parts: Sequence[Part],
    missing: Mapping[Spot, Origin],
) -> pl.DataFrame:
    """The texts of some ``changes`` of a part, with the missing values that other changes have."""
    rows = {int(change): row for row, change in enumerate(changes)}
    # By part, as a part in a spool is read each time.
    wanted: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for spot, origin in missing.items():
        if isinstance(origin, Spot):
            columns = wanted.setdefault(origin.part, {})
            columns.setdefault(spot.column, []).append((rows[spot.change], origin.change))
    for number, columns in wanted.items():
        new = parts[number].changes.new
        for name, places in columns.items():
            to, of = zip(*places, strict=True)
            raw = raw.with_columns(raw[name].scatter(to, new[name].gather(list(of))))
    return raw


def fill_from_table(
    job: NetTask,
    rows: pl.DataFrame,
    rejected: pl.Series,
    changes: npt.NDArray[np.int64],
    missing: Mapping[Spot, Origin],
) -> Iterator[tuple[pl.DataFrame, pl.Series, npt.NDArray[np.int64]]]:
    """The rows with the missing values from the table, in several frames as values may be large.

    Yields:
        Rows, their rejected values, and the numbers of their changes.

    Raises:
        Mismatch: the table does not have a value, or has it only protected irreversibly.
    """
    row_of = {int(change): row for row, change in enumerate(changes)}
    # All missing values of a row are stored under one key: a row has one key at a time.
    key_of: dict[int, Key] = {}
    lacking: dict[str, set[int]] = {}
    for spot, origin in missing.items():
        if not isinstance(origin, Spot):
            key_of[row_of[spot.change]] = origin
            lacking.setdefault(spot.column, set()).add(row_of[spot.change])
    complete = np.setdiff1d(np.arange(rows.height), list(key_of))
    if len(complete) == rows.height:
        yield rows, rejected, changes
    elif len(complete):
        yield _changes_at(rows, rejected, changes, complete)
    if not key_of:
        return
    targets = {text.name: text.target for text in job.texts}
    raw = pl.DataFrame(
        list(key_of.values()), schema=dict.fromkeys(job.key, pl.String), orient="row"
    )
    keys = stored_keys(job, raw).with_columns(pl.Series(_ROW, list(key_of), pl.Int64))
    key = [name for name in keys.columns if name != _ROW]
    columns = [targets[name] for name in lacking]
    not_stored = set(key_of)
    for stored in lookup.find_rows(
        job.into.place, job.stored, job.into.columns, keys.select(key).unique(), columns
    ):
        # A join would copy the values: it has their row numbers instead.
        numbered = stored.select(key).with_row_index(_STORED)
        pairs = portion.join(keys, numbered, key, "inner")
        at, of = pairs[_ROW].to_numpy(), pairs[_STORED].to_numpy()
        filled, filled_rejected, filled_changes = _changes_at(rows, rejected, changes, at)
        for name, lacking_rows in lacking.items():
            places = np.flatnonzero(np.isin(at, list(lacking_rows)))
            values = stored[targets[name]].gather(of[places])
            # A large value is not NULL: if the table has NULL, the value was rejected.
            if values.null_count():
                raise missing_value_error(job, name)
            _fill_column(job, filled, targets[name], places, values)
        matched = set(at.tolist())
        if len(not_stored - matched) != len(not_stored) - len(at):
            raise missing_value_error(job, next(iter(lacking)))
        not_stored -= matched
        yield filled, filled_rejected, filled_changes
    if not_stored:
        raise missing_value_error(job, next(n for n, some in lacking.items() if some & not_stored))


def _fill_column(
    job: NetTask,
    rows: pl.DataFrame,
    target: str,
    places: npt.NDArray[np.int64],
    stored: pl.Series,
) -> None:
    """Replaces the values of a column at some places by stored ones, in place."""
    values = _in_clear(job, target, stored, rows.schema[target])
    rows.replace_column(rows.get_column_index(target), rows[target].scatter(places, values))


_ROW, _STORED = "\0row", "\0stored"


def _changes_at(
    rows: pl.DataFrame,
    rejected: pl.Series,
    changes: npt.NDArray[np.int64],
    at: npt.NDArray[np.int64],
) -> tuple[pl.DataFrame, pl.Series, npt.NDArray[np.int64]]:
    return rows[at], rejected.gather(at), changes[at]


def missing_value_error(job: NetTask, name: str) -> Mismatch:
    """The error of a value that was not sent, and that the table does not have."""
    return Mismatch(
        f"PostgreSQL did not send unchanged values of column {name} of {job.table}, and Bronze does"
        " not have all of them.",
        hint="The table is resynced from the source.",
        table=job.table,
    )


def _in_clear(job: NetTask, target: str, stored: pl.Series, kind: pl.DataType) -> pl.Series:
    """The values of a column before protection."""
    protection = job.enrichment.protection
    for column in protection.columns if protection else ():
        if column.column == target and protection:
            if column.protect.method not in protect.REVEALED:
                raise Mismatch(
                    f"PostgreSQL did not send unchanged values of column {column.name} of"
                    f" {job.table}, and Bronze has them only after {column.protect.method}.",
                    hint="The table is resynced from the source. Where that happens often:"
                    f" ALTER TABLE {job.table} REPLICA IDENTITY FULL.",
                    table=job.table,
                )
            return protect.reveal_values(stored, column, protection.masters, kind)
    return stored
