"""Enrichment of the rows that are kept is that of all rows, less the others."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from bronze.ingest.enrich import enrich
from bronze.model.quality import QualityRules
from bronze.model.stamp import RowStamp
from bronze.model.units import Enrichment

ROWS = pl.DataFrame({"id": [1, 2, 3, 4], "v": ["a", None, "c", "d"]})
REJECTED = pl.Series([None, None, '["v", "x"]\n', None], dtype=pl.String)
STAMP = RowStamp("b", datetime(2026, 1, 1, tzinfo=UTC), "shop", "batch")


@pytest.mark.parametrize("kept", [[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
def test_rows_that_are_kept_are_enriched_alike(kept: list[int]) -> None:
    """Also their hashes and checksums, which are computed in another order."""
    enrichment = Enrichment(quality=QualityRules(key=("id",)))
    mask = pl.Series(kept).cast(pl.Boolean)
    whole = enrich(ROWS, REJECTED, STAMP, 2, enrichment)
    some = enrich(ROWS, REJECTED, STAMP, 2, enrichment, lambda _: mask)
    assert some.rows.equals(whole.rows.filter(mask))
    assert some.clear.equals(ROWS.filter(mask))
    assert some.rejected.equals(REJECTED.filter(mask))
    assert some.hashes.equals(whole.hashes)
    assert some.findings.quality == whole.findings.quality


def test_rows_that_are_not_kept_get_no_frame() -> None:
    """The hashes and findings are of all rows all the same."""
    whole = enrich(ROWS, REJECTED, STAMP, 2, Enrichment())
    none = enrich(
        ROWS, REJECTED, STAMP, 2, Enrichment(), lambda hashes: pl.Series([False] * len(hashes))
    )
    assert (none.rows.width, none.clear.height) == (0, 0)
    assert none.hashes.equals(whole.hashes)
    assert none.findings.quality == whole.findings.quality
