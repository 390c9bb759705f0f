"""Which rows a Bronze table already has, by their fingerprints.

A worker that compares rows of the source with a Bronze table asks for the table's *index*: the
sorted fingerprints of its live rows, or of their keys. `KnownRows` says which ones.

- Built: `_build_index` reads the columns it needs of all files of the table, a part at a time. The
  index takes 8 bytes a row. A table that is too large for the memory is compared in several
  rounds, each with the index of one share of all fingerprints (see `in_share`).
- Shared: the workers of a process that compare with the same table for the same batch share one
  index. Tables do not wait for each other (see `SharedBuilds`).
- Freed: of each batch the indexes used last are kept, at most as many as `bronze.execution.budget`
  has reserved memory for; `drop_index` frees those of a table whose load has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from bronze.delta import files
from bronze.execution import budget
from bronze.execution.shared_builds import SharedBuilds
from bronze.model.columns import KEY_TEXT
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.model.units import DELETED, KnownRows
from bronze.rows import fingerprint
from bronze.rows.fingerprint import Fingerprints
from bronze.tables import soundness

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]

# Names that no column of PostgreSQL has.
_FINGERPRINT = "\0fingerprint"
_ROW = "\0row"


# The index of a table


def index_of(known: KnownRows) -> Fingerprints:
    """The index: the table's fingerprints in ascending order, with repetitions.

    Raises:
        LakeError, LakeUnreachable: the table cannot be read. The next call reads it again.
    """
    return _indexes.get(known)


def drop_index(place: Place) -> None:
    """Frees the indexes of a table."""
    _indexes.drop(lambda known: known.place == place)


def _build_index(known: KnownRows) -> Fingerprints:
    if known.history:
        versions = _last_versions(known)
        live = versions["fingerprint"].filter(versions["live"]).to_numpy()
        return np.sort(live[in_share(known, live)])
    index = np.empty(sum(file.rows for file in known.files if file.rows > 0), np.uint64)
    size = 0
    for file in known.files:
        for _, _, part in _live_rows(known, file):
            if size + len(part) > len(index):
                # Files of other writers need not say how many rows they have.
                index = np.concatenate([index[:size], np.empty(len(part), np.uint64)])
            index[size : size + len(part)] = part
            size += len(part)
    index = index[:size]
    index.sort()
    return index


_indexes = SharedBuilds(_build_index, budget.INDEXES, lambda known: known.batch)


# Comparison of rows with an index


def fingerprints(known: KnownRows, rows: pl.DataFrame) -> Fingerprints:
    """The fingerprints of rows, which have at least the columns that are compared."""
    if known.key:
        return fingerprint.of_keys(rows.select(known.key).get_columns())
    return fingerprint.of_hashes(rows["row_hash"], known.offset)


def in_share(known: KnownRows, prints: Fingerprints) -> Mask:
    """Which fingerprints belong to the share that is compared."""
    mask: Mask = (prints % np.uint64(known.shares)) == np.uint64(known.share)
    return mask


def match_fingerprints(index: Fingerprints, prints: Fingerprints) -> tuple[Mask, Positions]:
    """Which of ``prints`` are in an index, and the places of these in it."""
    if not len(index):
        return np.zeros(len(prints), np.bool_), np.empty(0, np.int64)
    # Sorted ones walk through memory in order, which is several times faster.
    order = np.argsort(prints)
    places = np.searchsorted(index, prints[order])
    places[places == len(index)] = 0
    hits = index[places] == prints[order]
    mask = np.empty(len(prints), np.bool_)
    mask[order] = hits
    return mask, places[hits]


def unmatched_fingerprints(index: Fingerprints, matched: Mask) -> Fingerprints:
    """The fingerprints of an index that were matched at none of their places."""
    unmatched = index[~matched]
    return unmatched[~is_in(index[matched], unmatched)]


def is_in(index: Fingerprints, prints: Fingerprints) -> Mask:
    """Which of ``prints`` are in an index."""
    if not len(index):
        return np.zeros(len(prints), np.bool_)
    places = np.searchsorted(index, prints)
    places[places == len(index)] = 0
    mask: Mask = index[places] == prints
    return mask


def count_distinct(index: Fingerprints) -> int:
    """How many different fingerprints an index has."""
    return int(np.count_nonzero(np.diff(index))) + 1 if len(index) else 0


# Rows of the table by their fingerprints


def positions(known: KnownRows, file: StoredFile, prints: Fingerprints) -> Positions:
    """The positions of the live rows of a file whose fingerprints are in ``prints``, sorted ones;
    not for a table with history.
    """
    matches = [np.empty(0, np.int64)]
    for start, rows, part in _live_rows(known, file):
        matches.append(start + rows[is_in(prints, part)])
    return np.concatenate(matches)


def last_positions(
    known: KnownRows, prints: Fingerprints | None = None
) -> list[tuple[StoredFile, Positions]]:
    """In a table with history, the positions of the live last versions whose fingerprints are in
    ``prints``, sorted ones, by file; all live last versions if that is None.
    """
    versions = _last_versions(known).filter("live")
    if prints is not None:
        versions = versions.filter(pl.Series(is_in(prints, versions["fingerprint"].to_numpy())))
    return [
        (known.files[number], rows["row"].sort().to_numpy())
        for (number,), rows in versions.partition_by("file", as_dict=True).items()
    ]


def row_count_and_sum(known: KnownRows) -> tuple[int, int]:
    """How many rows a table has, and the total of their fingerprints (`fingerprint.total`).

    Raises:
        LakeError, LakeUnreachable: the table cannot be read.
    """
    rows, sums = 0, 0
    for file in known.files:
        parquet = files.open_parquet(known.place, file)
        for _, table in files.parts(parquet, known.layout, ("row_hash",), None):
            hashes = pl.DataFrame(table)["row_hash"].drop_nulls()
            hashes = hashes.filter(fingerprint.is_well_formed(hashes))
            rows += table.num_rows
            sums = fingerprint.sum_of_totals(sums, fingerprint.total(hashes))
    return rows, sums


def has_key(names: Sequence[str]) -> pl.Expr:
    """The condition that a stored row has a key of these columns, without NULLs."""
    plain = [pl.col(name).is_not_null() for name in names if name != KEY_TEXT]
    whole = pl.all_horizontal(plain) if plain else pl.lit(False)
    return whole | pl.col(KEY_TEXT).is_not_null() if KEY_TEXT in names else whole


def _live_rows(known: KnownRows, file: StoredFile) -> Iterator[tuple[int, Positions, Fingerprints]]:
    """For each part of a file: the position of its first row, the live rows of the share, counted
    from there, and their fingerprints. Not for a table with history.
    """
    columns = (*(known.key or ("row_hash",)), "record_status")
    parquet = files.open_parquet(known.place, file)
    # `_row_fingerprints` needs all columns to check that rows are unaltered.
    read = None if known.form else columns
    for start, table in files.parts(parquet, known.layout, read, None, dict(file.partition)):
        rows = pl.DataFrame(table)
        live = rows["record_status"].ne_missing(DELETED)
        if known.key:
            live &= rows.select(has_key(known.key)).to_series()
            prints = fingerprints(known, rows.filter(live))
        else:
            prints, formed = _row_fingerprints(known, file, start, rows)
            live &= formed | (known.form is not None)
            prints = prints[live.to_numpy()]
        mask = in_share(known, prints)
        yield start, np.flatnonzero(live.to_numpy())[mask], prints[mask]


def _row_fingerprints(
    known: KnownRows, file: StoredFile, start: int, rows: pl.DataFrame
) -> tuple[Fingerprints, pl.Series]:
    """The fingerprints of whole rows, and which rows have a well-formed hash. A row that another
    writer added or altered (by its form, see ``form``) gets a fingerprint that is made of its
    position, so that no row of the source matches it.
    """
    hashes, formed = fingerprint.with_zeros(rows["row_hash"])
    prints = fingerprint.of_hashes(hashes, known.offset)
    unaltered = formed.to_numpy()
    if known.form:
        unaltered = unaltered & ~soundness.check_rows(rows, known.form).wrong
    for row in np.flatnonzero(~unaltered).tolist():
        position = f"{file.path} {start + row} {known.offset}".encode()
        prints[row] = xxhash.xxh3_64_intdigest(position)
    return prints, formed


_VERSION: dict[str, Any] = {
    "file": pl.Int64,
    "row": pl.Int64,
    "key": pl.UInt64,
    "order": pl.Datetime("us", "UTC"),
    "fingerprint": pl.UInt64,
    "live": pl.Boolean,
}


def _last_versions(known: KnownRows) -> pl.DataFrame:
    """The last version of each key of a table with history, with the columns of `_VERSION`:
    ``file`` is its number among the files, ``row`` the position in it, ``key`` the fingerprint of
    the key, ``order`` the update_timestamp.
    """
    versions = [pl.DataFrame(schema=_VERSION)]
    for number, file in enumerate(known.files):
        versions += _versions(known, number, file)
    ordered = pl.concat(versions).sort("order", maintain_order=True)
    return ordered.unique("key", keep="last", maintain_order=True)


def _versions(known: KnownRows, number: int, file: StoredFile) -> Iterator[pl.DataFrame]:
    """All versions in a file that have a key, a time and a well-formed hash."""
    names = [*known.versions, "update_timestamp", "row_hash", "record_status"]
    read = None if known.form else names
    parquet = files.open_parquet(known.place, file)
    for start, table in files.parts(parquet, known.layout, read, None, dict(file.partition)):
        rows = pl.DataFrame(table)
        if not known.key:
            prints, _ = _row_fingerprints(known, file, start, rows)
            rows = rows.with_columns(pl.Series(_FINGERPRINT, prints))
        rows = rows.with_row_index(_ROW, start).filter(
            has_key(known.versions),
            pl.col("update_timestamp").is_not_null(),
            fingerprint.is_well_formed(rows["row_hash"]),
        )
        keys = fingerprint.of_keys(rows.select(known.versions).get_columns())
        yield pl.DataFrame(
            {
                "file": pl.repeat(number, rows.height, eager=True),
                "row": rows[_ROW],
                "key": keys,
                "order": rows["update_timestamp"],
                "fingerprint": keys if known.key else rows[_FINGERPRINT],
                "live": rows["record_status"].ne_missing(DELETED),
            }
        ).select(pl.col(name).cast(kind) for name, kind in _VERSION.items())
