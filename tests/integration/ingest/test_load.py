"""Loads of one table: which files they write."""

from __future__ import annotations

from typing import Any

import pytest
from deltalake import DeltaTable

from bronze.ingest import pipeline
from tests.conftest import Source
from tests.support.content import differences


@pytest.mark.parametrize(
    ("own", "file_size", "operations"), [({}, "4MB", 1), ({"cluster_by": ["id"]}, "1MB", 2)]
)
def test_a_load_writes_its_bytes_once(
    source: Source, own: dict[str, Any], file_size: str, operations: int
) -> None:
    """One file for each reader; only files that are to be clustered are optimized."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute(
        "INSERT INTO t SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 90000) g"
    )
    source.execute("VACUUM ANALYZE t")
    settings = source.settings(
        tables={"t": own},
        run={"workers": 4, "memory": "1GB"},
        maintain={"file_size": file_size},
    )
    assert pipeline.run(settings).exit_code == 0
    table = DeltaTable(str(source.table("t")))
    assert len(table.history()) == operations
    if not own:
        assert len(table.file_uris()) == 4
    assert differences(settings) == {}
