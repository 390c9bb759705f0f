"""What happens to rows between reading and writing, in its order."""

from __future__ import annotations

import polars as pl

from bronze.anomaly.profile import profiled
from bronze.model.anomaly import Profile
from bronze.model.stamp import Stamp
from bronze.model.units import Enrichment, Findings
from bronze.protection import protect
from bronze.quality import scoring
from bronze.rows.metadata import checksum, digests, row_hash, stamped


def enrich(
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
        ConfigError: a key cannot be had.
        TableRefused: a rule fails on these rows.
    """
    scores, found = scoring.scored(rows, rejected, stamp, wanted.quality)
    profile = profiled(rows, wanted.watch) if wanted.watch else Profile()
    if wanted.protection:
        hashes = row_hash(rows, rejected, base)
        rows, hashes = protect.protected(rows, hashes, wanted.protection)
        checksums = checksum(rows, base)
    else:
        # What is stored is what is hashed: one encoding serves both.
        hashes, checksums = digests(rows, rejected, base)
    found = scoring.told_apart(found, hashes, wanted.quality)
    made = stamped(rows, hashes, checksums, stamp, scores, wanted.quality.threshold)
    return made, Findings(profile=profile, quality=found)
