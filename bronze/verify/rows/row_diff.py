"""Row differences: matches the rows of source and Bronze by key and digest.

The result is which rows are missing in Bronze, extra in Bronze, or different.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from bronze.verify.results import Fault, FaultyRow

MAX_LISTED = 100
"""How many faulty rows of a table are listed with their keys."""

FAULTS: tuple[Fault, ...] = ("missing", "different", "extra")
"""The faults of rows, in the order in which they are listed."""
Identity = tuple[Fault, str, str]

_HASH, _NUMBER = "row_hash", "\0number"


@dataclass(frozen=True)
class RowDifferences:
    """The rows that are not the same in source and Bronze.

    ``missing`` rows are only in the source, ``extra`` rows only in Bronze. ``different`` are the
    source's rows that have another digest in Bronze, ``different_in_bronze`` the Bronze rows with
    the same keys.
    """

    missing: pl.DataFrame = field(repr=False)
    extra: pl.DataFrame = field(repr=False)
    different: pl.DataFrame = field(repr=False)
    different_in_bronze: pl.DataFrame = field(repr=False)

    def identities(self, key: Sequence[str], limit: int) -> Iterator[Identity]:
        """What tells the first faulty rows apart: the fault, the key, and what Bronze has of it."""
        in_bronze = {"extra": self.extra, "different": self.different_in_bronze}
        for fault in FAULTS:
            rows: pl.DataFrame = in_bronze.get(fault, self.missing)
            names = [*(name for name in key if name != _HASH), _HASH]
            for *values, digest in rows.select(names).head(limit).iter_rows():
                shown = json.dumps(values, default=str, ensure_ascii=False)
                # Of a row that only the source has, Bronze has nothing that could change.
                yield fault, shown, "" if fault == "missing" and key else str(digest)

    def faulty_rows(self, fault: Fault, key: Sequence[str], limit: int) -> Iterator[FaultyRow]:
        """The keys of the first rows with a fault; without a key, their hashes."""
        rows: pl.DataFrame = getattr(self, fault)
        keys = rows.select(key or [_HASH])
        ordered = keys.sort(keys.columns) if key else keys
        for values in ordered.head(max(limit, 0)).to_dicts():
            yield FaultyRow(fault, json.dumps(values, default=str, ensure_ascii=False))


def compare_rows(source: pl.DataFrame, bronze: pl.DataFrame, key: Sequence[str]) -> RowDifferences:
    """The rows that are not the same on both sides. Equal rows have to occur equally often.

    Args:
        source: key and ``row_hash`` of the source's rows.
        bronze: key and ``row_hash`` of the Bronze rows, and any other columns.
        key: the key columns. Without a key no row is ``different``: it is missing and extra.
    """
    by_digest = [*key, _HASH, _NUMBER]
    source, bronze = (_number_equal_rows(rows, [*key, _HASH]) for rows in (source, bronze))
    missing = source.join(bronze, on=by_digest, how="anti", nulls_equal=True)
    extra = bronze.join(source, on=by_digest, how="anti", nulls_equal=True)
    if not key:
        return RowDifferences(missing, extra, missing.clear(), extra.clear())
    # One Bronze row is the different one of a source row; further ones of the key are extra.
    missing, extra = (_number_equal_rows(rows, key) for rows in (missing, extra))
    by_key = [*key, _NUMBER]
    return RowDifferences(
        missing=missing.join(extra, on=by_key, how="anti", nulls_equal=True),
        extra=extra.join(missing, on=by_key, how="anti", nulls_equal=True),
        different=missing.join(extra, on=by_key, how="semi", nulls_equal=True),
        different_in_bronze=extra.join(missing, on=by_key, how="semi", nulls_equal=True),
    )


def duplicates_of(extra: pl.DataFrame, keys: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """The extra rows that share their key with another Bronze row; ``keys`` are those of all
    Bronze rows with these keys.
    """
    shared = keys.group_by(key).len().filter(pl.col("len") > 1)
    return extra.join(shared, on=list(key), how="semi", nulls_equal=True)


def _number_equal_rows(rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """The rows with a number among those that are equal in some columns."""
    return rows.with_columns(pl.int_range(pl.len()).over(by).alias(_NUMBER))
