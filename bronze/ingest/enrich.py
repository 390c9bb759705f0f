"""Enrichment: what happens to rows between reading and writing, in this order."""

from __future__ import annotations

import polars as pl

from bronze.anomaly.profile import profile_of
from bronze.model.anomaly import Profile
from bronze.model.stamp import RowStamp
from bronze.model.units import Enrichment, Findings
from bronze.protection import protect
from bronze.quality import scoring
from bronze.rows.metadata import checksums_of, digests, row_hashes_of, with_metadata


def enrich(
    rows: pl.DataFrame, rejected: pl.Series, stamp: RowStamp, base: int, enrichment: Enrichment
) -> tuple[pl.DataFrame, Findings]:
    """The Bronze rows of source rows, with their profile and quality.

    Args:
        rows: the source's columns, typed, under their target names, in clear.
        rejected: each row's rejected values as text, NULL where it has none.
        stamp: what the run writes beside every row.
        base: how many of the columns the table began with.
        enrichment: what to add to the rows.

    Raises:
        ConfigError: a key cannot be unwrapped.
        TableRefused: a rule cannot be evaluated on these rows.
    """
    scores, quality = scoring.score_rows(rows, rejected, stamp, enrichment.quality)
    profile = profile_of(rows, enrichment.watch) if enrichment.watch else Profile()
    if enrichment.protection:
        hashes = row_hashes_of(rows, rejected, base)
        rows, hashes = protect.protect_with_hashes(rows, hashes, enrichment.protection)
        checksums = checksums_of(rows, base)
    else:
        # Without protection, hash and checksum are of the same values: they are encoded once.
        hashes, checksums = digests(rows, rejected, base)
    quality = scoring.with_fingerprints(quality, hashes, enrichment.quality)
    bronze_rows = with_metadata(
        rows, hashes, checksums, stamp, scores, enrichment.quality.threshold
    )
    return bronze_rows, Findings(profile=profile, quality=quality)
