"""Rows of a Bronze table that share a key, or have none: another writer's, or from before the key
was changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl

from bronze.delta import files
from bronze.model.files import StoredFile
from bronze.model.units import DELETED, KnownRows
from bronze.rows.fingerprint import Fingerprints
from bronze.tables.known_rows import Positions, fingerprints, has_key, in_share, is_in

# The fingerprints that are read at once: 80 MB, and as much again while they are sorted.
_SHARE_ROWS = 10**7
# The duplicate keys whose rows are in memory at once.
_KEYS_AT_ONCE = 10**6
# A name that no column of PostgreSQL has.
_ROW = "\0row"


def has_duplicates(known: KnownRows) -> bool:
    """Whether several rows of a table, deleted ones included, have the same key.

    Raises:
        LakeError, LakeUnreachable: the table cannot be read.
    """
    return any(len(_duplicate_keys(share)) for share in _shares(known))


def surplus_rows(known: KnownRows) -> list[tuple[StoredFile, Positions]]:
    """The positions of the surplus rows, by file: all rows but one of each key. The one that is
    left is live if any of them is.

    Raises:
        LakeError, LakeUnreachable: the table cannot be read.
    """
    surplus: list[list[Positions]] = [[] for _ in known.files]
    for share in _shares(known):
        keys = _duplicate_keys(share)
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            rows = _surplus_rows(share, keys[start : start + _KEYS_AT_ONCE])
            for (number,), part in rows.partition_by("file", as_dict=True).items():
                surplus[number].append(part["row"].to_numpy())
    return [
        (file, np.sort(np.concatenate(rows)))
        for file, rows in zip(known.files, surplus, strict=True)
        if rows
    ]


def has_rows_without_key(known: KnownRows) -> bool:
    """Whether a live row of a table has NULL in a column of the key.

    Raises:
        LakeError, LakeUnreachable: the table cannot be read.
    """
    names = (*known.key, "record_status")
    for file in known.files:
        parquet = files.open_parquet(known.place, file)
        for _, table in files.parts(parquet, known.layout, names, None, dict(file.partition)):
            live = pl.col("record_status").ne_missing(DELETED)
            if pl.DataFrame(table).filter(live & ~has_key(known.key)).height:
                return True
    return False


def _shares(known: KnownRows) -> Iterator[KnownRows]:
    shares = 1 + sum(max(file.rows, 0) for file in known.files) // _SHARE_ROWS
    return (replace(known, share=i, shares=shares) for i in range(shares))


def _duplicate_keys(known: KnownRows) -> Fingerprints:
    """The fingerprints of the keys that several rows have, sorted."""
    parts = [np.empty(0, np.uint64)]
    for file in known.files:
        parquet = files.open_parquet(known.place, file)
        constants = dict(file.partition)
        for _, table in files.parts(parquet, known.layout, known.key, None, constants):
            prints = fingerprints(known, pl.DataFrame(table).filter(has_key(known.key)))
            parts.append(prints[in_share(known, prints)])
    prints = np.sort(np.concatenate(parts))
    return np.unique(prints[1:][prints[1:] == prints[:-1]])


def _surplus_rows(known: KnownRows, keys: Fingerprints) -> pl.DataFrame:
    """The ``file`` and ``row`` of all rows but one of each of the ``keys``."""
    parts = []
    for number, file in enumerate(known.files):
        parquet = files.open_parquet(known.place, file)
        names = (*known.key, "record_status")
        constants = dict(file.partition)
        for start, table in files.parts(parquet, known.layout, names, None, constants):
            rows = pl.DataFrame(table).with_row_index(_ROW, start).filter(has_key(known.key))
            prints = fingerprints(known, rows)
            mask = is_in(keys, prints)
            parts.append(
                rows.filter(pl.Series(mask)).select(
                    pl.lit(pl.Series("key", prints[mask])),
                    pl.lit(number, pl.Int64).alias("file"),
                    pl.col(_ROW).cast(pl.Int64).alias("row"),
                    pl.col("record_status").eq_missing(DELETED).alias("deleted"),
                )
            )
    # Of each key the first row is left: a live one if there is one.
    ordered = pl.concat(parts).sort("deleted", maintain_order=True)
    return ordered.filter(pl.int_range(pl.len()).over("key") > 0)
