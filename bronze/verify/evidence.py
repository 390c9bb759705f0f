"""What a worker finds out for a proof: the rows of one side, summed up by buckets or by name.

Nothing here knows of the other side; `bronze.verify.verify` holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import tenacity

from bronze.delta import files
from bronze.errors import FileDamaged, SourceUnreachable
from bronze.model.columns import KEY_TEXT, NO_KEY, Column, DeltaType, RowKey
from bronze.model.files import StoredFile
from bronze.model.locations import Origin, Place
from bronze.model.protection import TableProtection
from bronze.model.units import DELETED, KnownRows
from bronze.postgres.copy import read, reader, server_hashes
from bronze.protection import key_text, keyring, protect
from bronze.rows import fingerprint
from bronze.tables import known_rows
from bronze.verify import buckets, digests
from bronze.verify.buckets import Sums
from bronze.verify.digests import Basis

_TRIES = 4
_MAX_DELAY = 8.0

HASH, FILE, ROW = "row_hash", "\0file", "\0row"
_PARTIAL = "\0partial"

patient = tenacity.retry(
    retry=tenacity.retry_if_exception_type(SourceUnreachable),
    stop=tenacity.stop_after_attempt(_TRIES),
    wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=_MAX_DELAY),
    reraise=True,
)


@dataclass(frozen=True)
class NamedRows:
    """Which rows are to be named: those of some buckets, and of them one share by their keys."""

    chosen: npt.NDArray[np.bool_] = field(repr=False)
    share: int = 0
    shares: int = 1

    def of(self, rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
        """Those of the rows that are meant."""
        found = digests.numbers(rows[HASH])
        mine = self.chosen[buckets.bucket_of(found)]
        if self.shares > 1:
            prints = fingerprint.of_keys(rows.select(key).get_columns()) if key else found[:, 1]
            mine &= prints % np.uint64(self.shares) == np.uint64(self.share)
        return rows.filter(pl.Series(mine))


@dataclass(frozen=True)
class SourceTask:
    """Some slices of a table of the source. ``queries`` are those of
    `bronze.postgres.copy.row_hash`: to name rows, each has its condition, and ``key`` tells them
    apart. With ``protection`` what comes of the source is protected here, as it is in Bronze:
    PostgreSQL never sees a key. With a ``basis`` that is not plain, queries are those for naming.
    """

    origin: Origin
    session: tuple[str, ...]
    table: str
    queries: tuple[str, ...]
    estimate: int = 0
    key: RowKey = NO_KEY
    protection: TableProtection | None = None
    wanted: NamedRows | None = None
    basis: Basis | None = None


@dataclass(frozen=True)
class FileTask:
    """A file of a Bronze table. ``live`` are the numbers of its rows that count in a history. With
    ``basis`` digests are made of what the rows hold, otherwise they are the hashes that they have.
    """

    place: Place
    number: int
    file: StoredFile
    layout: tuple[tuple[str, DeltaType], ...]
    key: tuple[str, ...] = ()
    live: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    wanted: NamedRows | None = None
    basis: Basis | None = None


@dataclass(frozen=True)
class BucketSums:
    """The sums of some rows, of one side. ``fault`` is why a file could not be read."""

    source: bool
    sums: Sums = field(repr=False)
    estimate: int = 0
    fault: str = ""


@patient
def of_source(task: SourceTask) -> BucketSums:
    """The sums of what PostgreSQL hashes.

    Raises:
        SourceError
    """
    sums = buckets.nothing()
    if task.basis and not task.basis.plain:
        for rows in _named(task, "true"):
            buckets.add(sums, digests.numbers(rows[HASH]))
        return BucketSums(True, sums, task.estimate)
    key = _key(task)
    for data in server_hashes.packed_hashes(task.origin, task.session, task.queries, task.table):
        found = buckets.unpacked(data)
        if key and len(found):
            found = buckets.sums_of_hashes(protect.keyed_hashes(buckets.written(found), key))
        buckets.add(sums, found)
    return BucketSums(True, sums, task.estimate)


@patient
def named(task: SourceTask) -> pl.DataFrame:
    """The wanted rows of the source: their keys, and ``row_hash``.

    Raises:
        SourceError
    """
    if task.wanted is None:
        raise ValueError("which rows?")
    # Of digests that are made here PostgreSQL cannot tell the buckets.
    ours = _key(task) or (task.basis and not task.basis.plain)
    condition = "true" if ours else buckets.condition(task.wanted.chosen)
    names = task.key.names
    kinds = {c.target: read.dtype(c.stored) for c in task.key.columns} | {KEY_TEXT: _TEXT}
    found = [pl.DataFrame(schema={**{name: kinds[name] for name in names}, HASH: _TEXT})]
    found += [task.wanted.of(rows, names) for rows in _named(task, condition)]
    return pl.concat(found)


def _named(task: SourceTask, condition: str) -> Iterator[pl.DataFrame]:
    """The keys of rows of the source as they are stored, and their digests."""
    key, basis = _key(task), task.basis
    names = task.key.names
    columns = (*asked_columns(task.key, basis), _HASHES)
    beside = basis is not None and not basis.plain
    columns = (*columns, _PARTIALS) if beside else columns
    for query in task.queries:
        for clear, rejected in reader.read_rows(
            task.origin, task.session, query, (condition,), columns, task.table, bool(key)
        ):
            frame = protect.protect_rows(clear, task.protection) if key else clear
            if task.key.has_text:
                frame = key_text.with_text(frame, clear, rejected, task.key, task.protection)
            if basis and beside:
                made = digests.of_source(frame, basis, HASH, _PARTIAL)
                frame = frame.with_columns(made.alias(HASH))
            elif key:
                frame = frame.with_columns(protect.keyed_hashes(frame[HASH], key))
            yield frame.select(*names, HASH)


def asked_columns(key: RowKey, basis: Basis | None) -> tuple[Column, ...]:
    """The columns of the source whose values are needed to name its rows."""
    more = basis.wanted if basis and not basis.plain else ()
    return (*key.columns, *(column for column in more if column not in key.columns))


def _key(task: SourceTask) -> bytes:
    """The key of the table's row hashes, b"" where they have none."""
    given = task.protection
    if given is None or given.row_hash is None:
        return b""
    return keyring.unwrapped(given.row_hash, given.masters)


_TEXT = pl.String
_HASHES = Column("", HASH, "text", DeltaType("string"), "same", "", "", "", "")
_PARTIALS = replace(_HASHES, target=_PARTIAL)


def of_file(task: FileTask) -> BucketSums:
    """The sums of the digests of a file.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    sums = buckets.nothing()
    try:
        for rows in _live(task, (HASH,)):
            buckets.add(sums, digests.numbers(rows[HASH]))
    except FileDamaged as error:
        return BucketSums(False, buckets.nothing(), fault=error.message)
    return BucketSums(False, sums)


def keyed_hashes_in_file(task: FileTask) -> pl.DataFrame:
    """The wanted rows of a file: their keys, ``row_hash``, and where they are (`FILE`, `ROW`).

    Raises:
        LakeError, LakeUnreachable
    """
    kinds = {name: read.dtype(kind) for name, kind in task.layout if name in task.key}
    schema = {**{n: kinds[n] for n in task.key}, HASH: _TEXT, FILE: pl.Int64, ROW: pl.Int64}
    found = [pl.DataFrame(schema=schema)]
    for rows in _live(task, (*task.key, HASH)):
        kept = rows if task.wanted is None else task.wanted.of(rows, task.key)
        found.append(
            kept.with_columns(pl.lit(task.number, pl.Int64).alias(FILE)).select(list(schema))
        )
    return pl.concat(found)


@dataclass(frozen=True)
class Sharing:
    """A file in which the rows with some keys are looked for."""

    held: FileTask
    keys: pl.DataFrame = field(repr=False)


def sharing(task: Sharing) -> pl.DataFrame:
    """The keys of all rows that count and have one of the keys.

    Raises:
        LakeError, LakeUnreachable
    """
    names = task.keys.columns
    parts = (rows.select(names) for rows in _live(task.held, names))
    found = [rows.join(task.keys, on=names, how="semi", nulls_equal=True) for rows in parts]
    return pl.concat([task.keys.clear(), *found])


def last(known: KnownRows) -> tuple[npt.NDArray[np.int64], ...]:
    """For each file of a history the numbers of its rows that are live last versions.

    Raises:
        LakeError, LakeUnreachable
    """
    found = dict(known_rows.last_positions(known))
    nothing = np.empty(0, np.int64)
    return tuple(found.get(file, nothing) for file in known.files)


def _live(task: FileTask, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Some columns of the rows that count, and their numbers."""
    made = HASH in columns and task.basis is not None
    names = None if made else (*columns, "record_status")
    parquet = files.opened(task.place, task.file)
    constants = dict(task.file.partition)
    for start, table in files.parts(parquet, task.layout, names, None, constants):
        rows = pl.DataFrame(table).with_columns(
            pl.int_range(start, start + table.num_rows, dtype=pl.Int64).alias(ROW)
        )
        if task.live is not None:
            inside = (task.live >= start) & (task.live < start + table.num_rows)
            rows = rows[task.live[inside] - start]
        rows = rows.filter(pl.col("record_status").ne_missing(DELETED))
        if made and task.basis:
            rows = rows.with_columns(digests.of_bronze(rows, task.basis).alias(HASH))
        yield rows.select(*columns, ROW)


def concatenated(parts: Sequence[Any]) -> pl.DataFrame:
    """The rows that several workers have found."""
    return pl.concat([part for part in parts if isinstance(part, pl.DataFrame)])


def no_rows(like: pl.DataFrame) -> pl.DataFrame:
    """No rows of a Bronze table, with the columns of `keyed_hashes_in_file`."""
    kinds = {FILE: pl.Int64, ROW: pl.Int64}
    return like.clear().with_columns(pl.lit(None, kind).alias(name) for name, kind in kinds.items())
