"""Named rows of both sides, held against each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from bronze.verify.results import Fault, FaultyRow

LISTED = 100
"""Of so many faulty rows a table the keys are told."""

_HASH, _NUMBER = "row_hash", "\0number"


@dataclass(frozen=True)
class RowDifferences:
    """What one side has and the other has not; of rows that differ, those of the source, and
    ``instead`` those of Bronze.
    """

    missing: pl.DataFrame = field(repr=False)
    extra: pl.DataFrame = field(repr=False)
    different: pl.DataFrame = field(repr=False)
    instead: pl.DataFrame = field(repr=False)

    def listed(self, fault: Fault, key: Sequence[str], most: int) -> Iterator[FaultyRow]:
        """The keys of the first rows with a fault."""
        rows: pl.DataFrame = getattr(self, fault)
        shown = rows.select(key or [_HASH])
        for values in (shown.sort(shown.columns) if key else shown).head(max(most, 0)).to_dicts():
            yield FaultyRow(fault, json.dumps(values, default=str, ensure_ascii=False))


def compare_rows(source: pl.DataFrame, lake: pl.DataFrame, key: Sequence[str]) -> RowDifferences:
    """The rows that are not the same on both sides, each being as often there as here.

    Args:
        source: key and ``row_hash`` of the rows of the source.
        lake: those of the Bronze table, and further columns.
        key: the key's columns; without any, no row is another one that differs.
    """
    whole = [*key, _HASH, _NUMBER]
    theirs, ours = (_numbered(rows, [*key, _HASH]) for rows in (source, lake))
    missing = theirs.join(ours, on=whole, how="anti", nulls_equal=True)
    extra = ours.join(theirs, on=whole, how="anti", nulls_equal=True)
    if not key:
        return RowDifferences(missing, extra, missing.clear(), extra.clear())
    # One row of ours is the other one that differs; more of the same key are too many.
    missing, extra = (_numbered(rows, key) for rows in (missing, extra))
    pairs = [*key, _NUMBER]
    return RowDifferences(
        missing=missing.join(extra, on=pairs, how="anti", nulls_equal=True),
        extra=extra.join(missing, on=pairs, how="anti", nulls_equal=True),
        different=missing.join(extra, on=pairs, how="semi", nulls_equal=True),
        instead=extra.join(missing, on=pairs, how="semi", nulls_equal=True),
    )


def doubled(extra: pl.DataFrame, there: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """Those extra rows whose key another row has as well, ``there`` being the keys of all rows."""
    several = there.group_by(key).len().filter(pl.col("len") > 1)
    return extra.join(several, on=list(key), how="semi", nulls_equal=True)


def _numbered(rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    return rows.with_columns(pl.int_range(pl.len()).over(by).alias(_NUMBER))
