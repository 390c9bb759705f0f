"""What a table holds already: a sorted set of fingerprints that rows of the source are held
against, and which of them were seen there.

It takes 8 bytes a row. A table too large for that is compared in several rounds, each for one
share of all fingerprints.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from bronze.delta import files
from bronze.model.columns import KEY_TEXT
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.model.units import DELETED, KnownRows
from bronze.rows import fingerprint
from bronze.rows.fingerprint import Fingerprints
from bronze.tables import soundness

Positions = npt.NDArray[np.int64]

# So many fingerprints take 80 MB, and as much again while they are sorted.
_AT_ONCE = 10**7
# So many keys of several rows are looked at with all their rows.
_TWINS_AT_ONCE = 10**6
# At most so many sets are kept at once: the tables that are being read overlap where one ends.
_KEPT = 2


def fingerprints(what: KnownRows, rows: pl.DataFrame) -> Fingerprints:
    """Those of rows that have at least the columns that are compared."""
    if what.key:
        return fingerprint.of_keys(rows.select(what.key).get_columns())
    return fingerprint.of_hashes(rows["row_hash"], what.offset)


def shared(what: KnownRows, prints: Fingerprints) -> npt.NDArray[np.bool_]:
    """Which of them belong to the share that is meant."""
    mine: npt.NDArray[np.bool_] = (prints % np.uint64(what.shares)) == np.uint64(what.share)
    return mine


def known_fingerprints(what: KnownRows) -> Fingerprints:
    """The table's fingerprints, sorted. They are read once per process.

    Raises:
        LakeError, LakeUnreachable: the table cannot be read.
    """
    with _lock:
        if what not in _sets:
            while len(_sets) >= _KEPT:
                del _sets[next(iter(_sets))]
            _sets[what] = _read(what)
        return _sets[what]


def total(what: KnownRows) -> tuple[int, int]:
    """How many rows a table has, and what their fingerprints add up to.

    Raises:
        LakeError, LakeUnreachable: the table cannot be read.
    """
    rows, sums = 0, 0
    for file in what.files:
        parquet = files.opened(what.place, file)
        for _, table in files.parts(parquet, what.layout, ("row_hash",), None):
            hashes = pl.DataFrame(table)["row_hash"].drop_nulls()
            hashes = hashes.filter(fingerprint.formed(hashes))
            rows += table.num_rows
            sums = fingerprint.added(sums, fingerprint.total(hashes))
    return rows, sums


def doubled(what: KnownRows) -> bool:
    """Whether several rows of a table, gone ones among them, have the same key.

    Raises:
        LakeError, LakeUnreachable: the table cannot be read.
    """
    return any(len(_doubled(share)) for share in _shares(what))


def _shares(what: KnownRows) -> Iterator[KnownRows]:
    shares = 1 + sum(max(file.rows, 0) for file in what.files) // _AT_ONCE
    return (replace(what, share=i, shares=shares) for i in range(shares))


def _doubled(what: KnownRows) -> Fingerprints:
    """The fingerprints of keys that several rows have, sorted."""
    found = [np.empty(0, np.uint64)]
    for file in what.files:
        parquet = files.opened(what.place, file)
        for _, table in files.parts(parquet, what.layout, what.key, None, dict(file.partition)):
            prints = fingerprints(what, pl.DataFrame(table).filter(keyed(what.key)))
            found.append(prints[shared(what, prints)])
    prints = np.sort(np.concatenate(found))
    return np.unique(prints[1:][prints[1:] == prints[:-1]])


def twins(what: KnownRows) -> list[tuple[StoredFile, Positions]]:
    """For each file the numbers of the rows that are too many, as another one has their key: a row
    that is there is none of them, if all others are gone.

    Raises:
        LakeError, LakeUnreachable: the table cannot be read.
    """
    found: list[list[Positions]] = [[] for _ in what.files]
    for share in _shares(what):
        prints = _doubled(share)
        for start in range(0, len(prints), _TWINS_AT_ONCE):
            rows = _too_many(share, prints[start : start + _TWINS_AT_ONCE])
            for (number,), some in rows.partition_by("file", as_dict=True).items():
                found[number].append(some["row"].to_numpy())
    return [
        (file, np.sort(np.concatenate(rows)))
        for file, rows in zip(what.files, found, strict=True)
        if rows
    ]


def _too_many(what: KnownRows, doubled: Fingerprints) -> pl.DataFrame:
    """All rows but one of each of some keys that several rows have: file and row."""
    found = []
    for number, file in enumerate(what.files):
        parquet = files.opened(what.place, file)
        names = (*what.key, "record_status")
        for start, table in files.parts(parquet, what.layout, names, None, dict(file.partition)):
            rows = pl.DataFrame(table).with_row_index("row", start).filter(keyed(what.key))
            prints = fingerprints(what, rows)
            mine = _among(doubled, prints)
            found.append(
                rows.filter(pl.Series(mine)).select(
                    pl.lit(pl.Series("print", prints[mine])),
                    pl.lit(number, pl.Int64).alias("file"),
                    pl.col("row").cast(pl.Int64),
                    pl.col("record_status").eq_missing(DELETED).alias("gone"),
                )
            )
    ordered = pl.concat(found).sort("gone", maintain_order=True)
    return ordered.filter(pl.int_range(pl.len()).over("print") > 0)


def keyless(what: KnownRows) -> bool:
    """Whether a row of a table that is there has a column of the key NULL.

    Raises:
        LakeError, LakeUnreachable: the table cannot be read.
    """
    names = (*what.key, "record_status")
    for file in what.files:
        parquet = files.opened(what.place, file)
        for _, table in files.parts(parquet, what.layout, names, None, dict(file.partition)):
            live = pl.col("record_status").ne_missing(DELETED)
            if pl.DataFrame(table).filter(live & ~keyed(what.key)).height:
                return True
    return False


def drop_cached(place: Place) -> None:
    """Frees what is kept for a table."""
    with _lock:
        for what in [w for w in _sets if w.place == place]:
            del _sets[what]


_sets: dict[KnownRows, Fingerprints] = {}
_lock = threading.Lock()


def _read(what: KnownRows) -> Fingerprints:
    if what.history:
        last = _versions(what)
        prints = last["print"].filter(last["live"]).to_numpy()
        return np.sort(prints[shared(what, prints)])
    found = np.empty(sum(file.rows for file in what.files if file.rows > 0), np.uint64)
    filled = 0
    for file in what.files:
        for _, _, part in _fingerprints(what, file):
            if filled + len(part) > len(found):
                found = np.concatenate([found[:filled], np.empty(len(part), np.uint64)])
            found[filled : filled + len(part)] = part
            filled += len(part)
    found = found[:filled]
    found.sort()
    return found


def _fingerprints(
    what: KnownRows, file: StoredFile
) -> Iterator[tuple[int, Positions, Fingerprints]]:
    """For each part of a file: the first row's number, the live rows within it, their prints."""
    columns = (*(what.key or ("row_hash",)), "record_status")
    parquet = files.opened(what.place, file)
    # Rows that are doubted are compared whole: see `_prints`.
    wanted = None if what.form else columns
    for start, table in files.parts(parquet, what.layout, wanted, None, dict(file.partition)):
        rows = pl.DataFrame(table)
        live = rows["record_status"].ne_missing(DELETED)
        if what.key:
            live &= rows.select(keyed(what.key)).to_series()
            prints = fingerprints(what, rows.filter(live))
        else:
            prints, formed = _prints(what, file, start, rows)
            live &= formed | (what.form is not None)
            prints = prints[live.to_numpy()]
        mine = shared(what, prints)
        yield start, np.flatnonzero(live.to_numpy())[mine], prints[mine]


def positions(what: KnownRows, file: StoredFile, gone: Fingerprints) -> Positions:
    """The numbers of the rows of a file whose fingerprints are in ``gone``, which is sorted."""
    found = [np.empty(0, np.int64)]
    for start, rows, prints in _fingerprints(what, file):
        found.append(start + rows[_among(gone, prints)])
    return np.concatenate(found)


def last_positions(
    what: KnownRows, gone: Fingerprints | None = None
) -> list[tuple[StoredFile, Positions]]:
    """In a history, the rows that are live last versions with fingerprints in ``gone``, by file;
    all of them where that is None.
    """
    found = _versions(what).filter("live")
    if gone is not None:
        found = found.filter(pl.Series(_among(gone, found["print"].to_numpy())))
    return [
        (what.files[number], rows["row"].sort().to_numpy())
        for (number,), rows in found.partition_by("file", as_dict=True).items()
    ]


def _prints(
    what: KnownRows, file: StoredFile, start: int, rows: pl.DataFrame
) -> tuple[Fingerprints, pl.Series]:
    """The fingerprints of whole rows, and which of them have a hash of its form. Where rows are
    doubted, one which another writer has put there, or has changed, has a fingerprint that is its
    place's alone: the source has no such row.
    """
    hashes, formed = fingerprint.plain(rows["row_hash"])
    prints = fingerprint.of_hashes(hashes, what.offset).copy()
    ours = formed.to_numpy()
    if what.form:
        ours = ours & ~soundness.check_rows(rows, what.form).wrong
    for row in np.flatnonzero(~ours).tolist():
        place = f"{file.path} {start + row} {what.offset}".encode()
        prints[row] = xxhash.xxh3_64_intdigest(place)
    return prints, formed


def _versions(what: KnownRows) -> pl.DataFrame:
    """The last version of each key in a history: file, row, key, order, print and live."""
    names = [*what.versions, "update_timestamp", "row_hash", "record_status"]
    wanted = None if what.form else names
    found = [pl.DataFrame(schema=_VERSION)]
    for number, file in enumerate(what.files):
        parquet = files.opened(what.place, file)
        for start, table in files.parts(parquet, what.layout, wanted, None, dict(file.partition)):
            rows = pl.DataFrame(table)
            own = [] if what.key else [pl.Series(_PRINT, _prints(what, file, start, rows)[0])]
            rows = rows.select(names).with_columns(own)
            rows = rows.with_row_index("row", start)
            rows = rows.filter(keyed(what.versions), pl.col(*names[-3:-1]).is_not_null())
            rows = rows.filter(fingerprint.formed(rows["row_hash"]))
            keys = fingerprint.of_keys(rows.select(what.versions).get_columns())
            prints = keys if what.key else rows[_PRINT].to_numpy()
            found.append(
                pl.DataFrame(
                    {
                        "file": pl.repeat(number, rows.height, eager=True),
                        "row": rows["row"],
                        "key": keys,
                        "order": rows["update_timestamp"],
                        "print": prints,
                        "live": rows["record_status"].ne_missing(DELETED),
                    }
                ).select(pl.col(name).cast(kind) for name, kind in _VERSION.items())
            )
    ordered = pl.concat(found).sort("order", maintain_order=True)
    return ordered.unique("key", keep="last", maintain_order=True)


_PRINT = "\0print"
_VERSION: dict[str, Any] = {
    "file": pl.Int64,
    "row": pl.Int64,
    "key": pl.UInt64,
    "order": pl.Datetime("us", "UTC"),
    "print": pl.UInt64,
    "live": pl.Boolean,
}


def _among(held: Fingerprints, wanted: Fingerprints) -> npt.NDArray[np.bool_]:
    if not len(held):
        return np.zeros(len(wanted), np.bool_)
    at = np.searchsorted(held, wanted)
    at[at == len(held)] = 0
    found: npt.NDArray[np.bool_] = held[at] == wanted
    return found


def distinct(held: Fingerprints) -> int:
    """How many different ones there are."""
    return int(np.count_nonzero(np.diff(held))) + 1 if len(held) else 0


def unmatched_fingerprints(held: Fingerprints, places: npt.NDArray[np.bool_]) -> Fingerprints:
    """Those of ``held`` that were seen at none of their places."""
    left = held[~places]
    return left[~_among(held[places], left)]


def match_fingerprints(
    held: Fingerprints, prints: Fingerprints
) -> tuple[npt.NDArray[np.bool_], Positions]:
    """Which of ``prints`` the table holds, and the places of these in ``held``."""
    if not len(held):
        return np.zeros(len(prints), np.bool_), np.empty(0, np.int64)
    # Sorted ones walk through memory in order, which is several times faster.
    order = np.argsort(prints)
    at = np.searchsorted(held, prints[order])
    at[at == len(held)] = 0
    hits = held[at] == prints[order]
    mask = np.empty(len(prints), np.bool_)
    mask[order] = hits
    return mask, at[hits]


def keyed(names: Sequence[str]) -> pl.Expr:
    """The condition that a stored row has a key of these columns."""
    plain = [pl.col(name).is_not_null() for name in names if name != KEY_TEXT]
    whole = pl.all_horizontal(plain) if plain else pl.lit(False)
    return whole | pl.col(KEY_TEXT).is_not_null() if KEY_TEXT in names else whole
