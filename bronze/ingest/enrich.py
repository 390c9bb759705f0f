"""Enrichment: what happens to rows between reading and writing, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from bronze.anomaly.profile import profile_of
from bronze.model.anomaly import NO_PROFILE, Profile
from bronze.model.stamp import RowStamp
from bronze.model.units import Enrichment, Findings
from bronze.protection import protect
from bronze.quality import scoring
from bronze.rows.metadata import checksums_of, digests, row_hashes_of, with_metadata

Keep = Callable[[pl.Series], pl.Series]
"""Which rows are kept, by the row hashes of all."""


@dataclass(frozen=True)
class EnrichedRows:
    """The Bronze rows that were kept, with their source rows in ``clear`` and their ``rejected``
    values; ``hashes`` and ``findings`` are of all rows. If none was kept, ``rows`` has no columns.
    """

    rows: pl.DataFrame
    clear: pl.DataFrame
    rejected: pl.Series
    hashes: pl.Series
    findings: Findings


def enrich(
    rows: pl.DataFrame,
    rejected: pl.Series,
    stamp: RowStamp,
    base: int,
    enrichment: Enrichment,
    keep: Keep | None = None,
    known: Profile = NO_PROFILE,
) -> EnrichedRows:
    """The Bronze rows of source rows, with the profile and quality of the latter.

    Args:
        rows: the source's columns, typed, under their target names, in clear.
        rejected: each row's rejected values as text, NULL where it has none.
        stamp: what the run writes beside every row.
        base: how many of the columns the table began with.
        enrichment: what to add to the rows.
        keep: which of the rows become Bronze rows; None means all.
        known: the profile of earlier rows, to which that of these rows will be added.

    Raises:
        ConfigError: a key cannot be unwrapped.
        TableRefused: a rule cannot be evaluated on these rows.
    """
    scores, quality = scoring.score_rows(rows, rejected, stamp, enrichment.quality)
    profile = profile_of(rows, enrichment.watch, known) if enrichment.watch else NO_PROFILE
    protection, checksums = enrichment.protection, None
    if protection or keep:
        hashes = row_hashes_of(rows, rejected, base)
    else:
        # Hash and checksum are of the same values: they are encoded once.
        hashes, checksums = digests(rows, rejected, base)
    if protection:
        hashes = protect.protected_hashes(hashes, protection)
    quality = scoring.with_fingerprints(quality, hashes, enrichment.quality)
    findings = Findings(profile=profile, quality=quality)
    all_hashes = hashes
    if keep:
        # Most rows of a table are there already: what follows is not done for them.
        kept = keep(hashes)
        rows, rejected, hashes = rows.filter(kept), rejected.filter(kept), hashes.filter(kept)
        scores = None if scores is None else scores.filter(kept)
        if not rows.height:
            return EnrichedRows(pl.DataFrame(), rows, rejected, all_hashes, findings)
    stored = protect.protect_rows(rows, protection) if protection else rows
    if checksums is None:
        checksums = checksums_of(stored, base)
    bronze_rows = with_metadata(
        stored, hashes, checksums, stamp, scores, enrichment.quality.threshold
    )
    return EnrichedRows(bronze_rows, rows, rejected, all_hashes, findings)
