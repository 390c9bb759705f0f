"""Bronze tables as polars frames."""

from __future__ import annotations

import pytest

import bronze
from tests.conftest import Source


def test_a_table_shows_its_active_rows(source: Source) -> None:
    """Deleted and quarantined rows are left out, and of a history all but last versions."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, NULL)")
    source.execute("CREATE TABLE h AS SELECT * FROM t; ALTER TABLE h ADD PRIMARY KEY (id)")
    rule = {"name": "known", "column": "v", "not_null": True, "severity": "critical"}
    tables = {
        "t": {"rules": [rule], "on_delete": "mark"},
        "h": {"pattern": "batch", "history": True},
    }
    lake = bronze.Bronze(source.settings(tables=tables))
    assert lake.run().exit_code == 0
    source.execute("DELETE FROM t WHERE id = 2; DELETE FROM h WHERE id = 2")
    source.execute("UPDATE h SET v = 'c' WHERE id = 1")
    assert lake.run().exit_code == 0
    assert lake.tables() == ("bz_h", "bz_t")
    assert lake.table("t").select("id", "v").collect().rows() == [(1, "a")]
    assert sorted(lake.table("bz_h").select("id", "v").collect().rows()) == [(1, "c"), (3, None)]
    with pytest.raises(bronze.ConfigError, match="none"):
        lake.table("none")
