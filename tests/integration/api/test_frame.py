"""Bronze tables as polars frames."""

from __future__ import annotations

import pytest
from deltalake import DeltaTable

import bronze
from bronze.delta import properties
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
    assert lake.arrow("t").select(["id", "v"]).to_pylist() == [{"id": 1, "v": "a"}]
    assert sorted(lake.table("bz_h").select("id", "v").collect().rows()) == [(1, "c"), (3, None)]
    with pytest.raises(bronze.ConfigError, match="none"):
        lake.table("none")


def test_a_history_without_a_known_key_is_refused(source: Source) -> None:
    """Without it nobody can tell which versions are the last ones."""
    source.execute("CREATE TABLE h (id int PRIMARY KEY, v text); INSERT INTO h VALUES (1, 'a')")
    lake = bronze.Bronze(source.settings(tables={"h": {"history": True}}))
    assert lake.run().exit_code == 0
    delta = DeltaTable(str(source.table("h")))
    delta.alter.set_table_properties({properties.KEY: "[]"}, raise_if_not_exists=False)
    with pytest.raises(bronze.LakeError, match="which columns identify its rows"):
        lake.table("h")
