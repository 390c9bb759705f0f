"""A lake on S3."""

from __future__ import annotations

import polars as pl

from bronze.delta import store
from bronze.ingest import pipeline
from bronze.model.locations import Place
from tests.conftest import Source


def test_a_lake_on_s3_equals_the_source(source: Source, bucket: dict[str, str]) -> None:
    """Two runs land on S3 by the same code as on a local disk, and leave nothing else there."""
    source.execute(
        "CREATE TABLE t AS SELECT i AS id, repeat('x', 99) v FROM generate_series(1, 5000) i"
    )
    settings = source.settings(lake={"root": "s3://lake/one", "options": bucket})
    first = pipeline.run(settings)
    source.execute("DELETE FROM t WHERE id > 4000")
    second = pipeline.run(settings)
    assert [first.exit_code, second.exit_code] == [0, 0]
    assert [first.tables[0].version, second.tables[0].version] == [0, 1]
    url = "s3://lake/one/bronze/bz_t"
    assert pl.read_delta(url, storage_options=bucket).height == 4000
    assert pl.read_delta(url, version=0, storage_options=bucket).height == 5000
    kept = store.listing(Place(url, tuple(bucket.items())))
    assert len([path for path in kept if path.endswith(".parquet")]) == 2
