"""The hashes of one side, source or Bronze, as a worker computes them.

First come the bucket sums of all rows. For buckets in which the sides differ, the keys and digests
of the rows follow. Nothing here knows the other side: `bronze.verify.comparison` compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
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
from bronze.model.units import DELETED, KnownRows, SplitGroup
from bronze.postgres.copy import reader, rows_reader, server_hashes
from bronze.protection import key_text, keyring, protect
from bronze.rows import fingerprint
from bronze.tables import known_rows
from bronze.verify.rows import buckets, digests
from bronze.verify.rows.buckets import Sums
from bronze.verify.rows.digests import Basis

_TRIES = 4
_MAX_DELAY = 8.0

HEAP, SPLIT = "\0heap", "\0split"
"""What stands in a query for the table and the condition of a split: no SQL has this character."""

HASH, FILE, ROW = "row_hash", "\0file", "\0row"
"""The columns of keyed hashes: the digest; in Bronze also the number of the file, and of the row
in the file."""

_PARTIAL = "\0partial"
_TEXT = pl.String
_HASHES = Column("", HASH, "text", DeltaType("string"), "same", "", "", "", "")
_PARTIALS = replace(_HASHES, target=_PARTIAL)

retry_unreachable = tenacity.retry(
    retry=tenacity.retry_if_exception_type(SourceUnreachable),
    stop=tenacity.stop_after_attempt(_TRIES),
    wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=_MAX_DELAY),
    reraise=True,
)


@dataclass(frozen=True)
class RowSelection:
    """The rows to fetch with their keys: those in some buckets, and of these one of several
    shares, divided by key so that each share fits into the memory.
    """

    bucket_mask: npt.NDArray[np.bool_] = field(repr=False)
    share: int = 0
    shares: int = 1

    def filter_rows(self, rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
        """The selected ones of the rows."""
        hashes = buckets.digests_of_hashes(rows[HASH])
        selected = self.bucket_mask[buckets.bucket_numbers(hashes)]
        if self.shares > 1:
            prints = fingerprint.of_keys(rows.select(key).get_columns()) if key else hashes[:, 1]
            selected &= prints % np.uint64(self.shares) == np.uint64(self.share)
        return rows.filter(pl.Series(selected))


@dataclass(frozen=True)
class SourceTask:
    """Some splits of a table of the source, whose name in SQL is ``heap``.

    ``query`` is made by `bronze.postgres.copy.row_hash`, of `HEAP` and `SPLIT`:
    `packed_hashes_query` for bucket sums, `keyed_hashes_query` to fetch rows with their ``key``,
    and always the latter with a ``basis`` that PostgreSQL cannot compute. With ``protection`` the
    source's values are protected here, as they are in Bronze: PostgreSQL never gets a key.
    """

    origin: Origin
    session: tuple[str, ...]
    table: str
    heap: str
    query: str
    splits: SplitGroup
    estimate: int = 0
    key: RowKey = NO_KEY
    protection: TableProtection | None = None
    selection: RowSelection | None = None
    basis: Basis | None = None

    def queries(self) -> Iterator[str]:
        """The query of each split."""
        for heap, condition in self.splits:
            yield self.query.replace(HEAP, heap or self.heap).replace(SPLIT, condition)


@dataclass(frozen=True)
class FileTask:
    """A file of a Bronze table.

    In a history ``live`` has the numbers of the live rows. With a ``basis`` digests are computed
    from the stored values, without one the stored ``row_hash`` is taken.
    """

    place: Place
    number: int
    file: StoredFile
    layout: tuple[tuple[str, DeltaType], ...]
    key: tuple[str, ...] = ()
    live: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    selection: RowSelection | None = None
    basis: Basis | None = None


@dataclass(frozen=True)
class BucketSums:
    """The bucket sums of some rows of one side. ``estimate`` is about how many bytes of the source
    they are of, ``fault`` why a file could not be read.
    """

    is_source: bool
    sums: Sums = field(repr=False)
    estimate: int = 0
    fault: str = ""


@retry_unreachable
def source_sums(task: SourceTask) -> BucketSums:
    """The bucket sums of rows of the source.

    Raises:
        SourceError
    """
    sums = buckets.empty_sums()
    if task.basis and not task.basis.in_postgres:
        for rows in _read_keyed_hashes(task, "true"):
            buckets.add_to_sums(sums, buckets.digests_of_hashes(rows[HASH]))
        return BucketSums(True, sums, task.estimate)
    key = _hash_key(task)
    for data in server_hashes.packed_hashes(task.origin, task.session, task.queries(), task.table):
        hashes = buckets.unpack_digests(data)
        if key and len(hashes):
            keyed = protect.keyed_hashes(buckets.hashes_of_digests(hashes), key)
            hashes = buckets.digests_of_hashes(keyed)
        buckets.add_to_sums(sums, hashes)
    return BucketSums(True, sums, task.estimate)


@retry_unreachable
def keyed_hashes_in_source(task: SourceTask) -> pl.DataFrame:
    """The selected rows of the source: their keys and digests.

    Raises:
        SourceError
    """
    if task.selection is None:
        raise ValueError("which rows?")
    # PostgreSQL cannot select buckets of digests that are computed here.
    computed_here = _hash_key(task) or (task.basis and not task.basis.in_postgres)
    condition = "true" if computed_here else buckets.bucket_condition(task.selection.bucket_mask)
    names = task.key.names
    kinds = {c.target: rows_reader.dtype(c.stored_type) for c in task.key.columns} | {
        KEY_TEXT: _TEXT
    }
    parts = [pl.DataFrame(schema={**{name: kinds[name] for name in names}, HASH: _TEXT})]
    parts += [
        task.selection.filter_rows(rows, names) for rows in _read_keyed_hashes(task, condition)
    ]
    return pl.concat(parts)


def _read_keyed_hashes(task: SourceTask, condition: str) -> Iterator[pl.DataFrame]:
    """The keys of rows of the source, in their stored form, and the digests."""
    key, basis = _hash_key(task), task.basis
    names = task.key.names
    columns = (*columns_to_read(task.key, basis), _HASHES)
    has_stored = basis is not None and not basis.in_postgres
    columns = (*columns, _PARTIALS) if has_stored else columns
    read_rows = reader.reader_of(task.origin)
    for query in task.queries():
        with closing(
            read_rows(
                task.origin, task.session, query, (condition,), columns, task.table, bool(key)
            )
        ) as parts:
            for clear, rejected in parts:
                frame = protect.protect_rows(clear, task.protection) if key else clear
                if task.key.has_text:
                    frame = key_text.add_key_text(frame, clear, rejected, task.key, task.protection)
                if basis and has_stored:
                    hashes = digests.source_digests(frame, basis, HASH, _PARTIAL)
                    frame = frame.with_columns(hashes.alias(HASH))
                elif key:
                    frame = frame.with_columns(protect.keyed_hashes(frame[HASH], key))
                yield frame.select(*names, HASH)


def columns_to_read(key: RowKey, basis: Basis | None) -> tuple[Column, ...]:
    """The source's columns to read with the digests: the key, and those that PostgreSQL cannot
    include in a digest.
    """
    stored = basis.stored_columns if basis and not basis.in_postgres else ()
    return (*key.columns, *(column for column in stored if column not in key.columns))


def _hash_key(task: SourceTask) -> bytes:
    """The key of the table's row hashes, b"" where they have none."""
    protection = task.protection
    if protection is None or protection.row_hash is None:
        return b""
    return keyring.unwrap(protection.row_hash, protection.masters)


def file_sums(task: FileTask) -> BucketSums:
    """The bucket sums of a file's live rows.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    sums = buckets.empty_sums()
    try:
        for rows in _live_rows(task, (HASH,)):
            buckets.add_to_sums(sums, buckets.digests_of_hashes(rows[HASH]))
    except FileDamaged as error:
        return BucketSums(False, buckets.empty_sums(), fault=error.message)
    return BucketSums(False, sums)


def keyed_hashes_in_file(task: FileTask) -> pl.DataFrame:
    """The selected live rows of a file: their keys and digests, and where they are (`FILE`, `ROW`).

    Raises:
        LakeError, LakeUnreachable
    """
    kinds = {name: rows_reader.dtype(kind) for name, kind in task.layout if name in task.key}
    schema = {**{n: kinds[n] for n in task.key}, HASH: _TEXT, FILE: pl.Int64, ROW: pl.Int64}
    parts = [pl.DataFrame(schema=schema)]
    for rows in _live_rows(task, (*task.key, HASH)):
        selected = rows if task.selection is None else task.selection.filter_rows(rows, task.key)
        parts.append(
            selected.with_columns(pl.lit(task.number, pl.Int64).alias(FILE)).select(list(schema))
        )
    return pl.concat(parts)


@dataclass(frozen=True)
class KeyLookup:
    """A file in which to look for the rows with some keys."""

    file: FileTask
    keys: pl.DataFrame = field(repr=False)


def keys_in_file(lookup: KeyLookup) -> pl.DataFrame:
    """The keys of all live rows that have one of the keys; a key occurs once for each row.

    Raises:
        LakeError, LakeUnreachable
    """
    names = lookup.keys.columns
    parts = (rows.select(names) for rows in _live_rows(lookup.file, names))
    matches = [rows.join(lookup.keys, on=names, how="semi", nulls_equal=True) for rows in parts]
    return pl.concat([lookup.keys.clear(), *matches])


def last_version_rows(known: KnownRows) -> tuple[npt.NDArray[np.int64], ...]:
    """For each file of a history, the numbers of the rows that are last versions and live.

    Raises:
        LakeError, LakeUnreachable
    """
    positions = dict(known_rows.last_positions(known))
    no_rows = np.empty(0, np.int64)
    return tuple(positions.get(file, no_rows) for file in known.files)


def _live_rows(task: FileTask, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Some columns of a file's live rows, and the numbers of the rows (`ROW`)."""
    compute = HASH in columns and task.basis is not None
    names = None if compute else (*columns, "record_status")
    parquet = files.open_parquet(task.place, task.file)
    constants = dict(task.file.partition)
    for start, table in files.parts(parquet, task.layout, names, None, constants):
        rows = pl.DataFrame(table).with_columns(
            pl.int_range(start, start + table.num_rows, dtype=pl.Int64).alias(ROW)
        )
        if task.live is not None:
            inside = (task.live >= start) & (task.live < start + table.num_rows)
            rows = rows[task.live[inside] - start]
        rows = rows.filter(pl.col("record_status").ne_missing(DELETED))
        if compute and task.basis:
            rows = rows.with_columns(digests.bronze_digests(rows, task.basis).alias(HASH))
        yield rows.select(*columns, ROW)


def concat_frames(parts: Sequence[Any]) -> pl.DataFrame:
    """The rows that several workers returned, as one frame."""
    return pl.concat([part for part in parts if isinstance(part, pl.DataFrame)])


def no_bronze_rows(source: pl.DataFrame) -> pl.DataFrame:
    """A frame without rows, with the columns of `keyed_hashes_in_file`; ``source`` is a frame of
    `keyed_hashes_in_source`.
    """
    kinds = {FILE: pl.Int64, ROW: pl.Int64}
    empty = source.clear()
    return empty.with_columns(pl.lit(None, kind).alias(name) for name, kind in kinds.items())
