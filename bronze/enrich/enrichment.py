"""What happens to rows between reading and writing, in its order."""

from __future__ import annotations

import polars as pl

from bronze.enrich import quality
from bronze.enrich.stamp import stamped
from bronze.model import Enrichment, Findings, Stamp


def enriched(
    rows: pl.DataFrame, rejected: pl.Series, stamp: Stamp, base: int, wanted: Enrichment
) -> tuple[pl.DataFrame, Findings]:
    """The Bronze rows of source rows, and what was found out about them.

    Args:
        rows: the source's columns, typed, under their target names, in clear.
        rejected: each row's rejected values as text, NULL where it has none.
        stamp: what the run writes beside every row.
        base: how many of the columns the table began with.
        wanted: what the rows are given.

    Raises:
        TableRefused: a rule fails on these rows.
    """
    scores, found = quality.scored(rows, rejected, stamp, wanted.quality)
    made = stamped(rows, rejected, stamp, base, scores, wanted.quality.threshold)
    found = quality.told_apart(found, made["row_hash"], wanted.quality)
    return made, Findings(quality=found)
