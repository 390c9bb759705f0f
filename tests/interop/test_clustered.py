"""Tables with liquid clustering, as other engines read and write them."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pytest
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError

import bronze
from bronze.delta import log
from bronze.demo.server import running
from bronze.model.locations import Place
from tests.conftest import FAST, Source, database
from tests.interop.test_interop import ClickHouse, DeltaRs, Polars, Sail
from tests.interop.test_writers import append_a_row, by_deltalake, by_duckdb, by_duckdb_read
from tests.interop.test_writers import by_polars as append_by_polars
from tests.support.content import differences

pytestmark = [
    pytest.mark.interop,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]
OWN = {"pattern": "batch", "cluster_by": ["place", "at"], "liquid": True, "on_delete": "remove"}
COLUMNS = "id int PRIMARY KEY, place int, at timestamp, name text"


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A table of nine loads, which bronze has clustered, and another merge since."""
    folder = tmp_path_factory.mktemp("clustered")
    with (
        running(folder / "postgres", settings=FAST) as server,
        database(server, folder / "lake") as source,
    ):
        yield _clustered(source)


def _clustered(source: Source) -> Source:
    source.execute(f"CREATE TABLE t ({COLUMNS})")
    opened = bronze.Bronze(source.settings(tables={"t": OWN}))
    for first in range(0, 900, 100):
        source.execute(
            "INSERT INTO t SELECT g, g % 7, '2026-01-01'::timestamp + g * interval '1 hour',"
            f" 'name ' || g FROM generate_series({first}, {first + 99}) g"
        )
        assert opened.run().exit_code == 0
    state = log.read(Place(str(source.table("t"))))
    assert state is not None
    assert state.clustering == ("place", "at")
    assert {file.provider for file in state.files} == {"", "bronze"}
    DeltaTable(str(source.table("t"))).create_checkpoint()
    source.execute("DELETE FROM t WHERE id % 13 = 0")
    source.execute("UPDATE t SET name = 'new' WHERE id % 11 = 1")
    assert opened.run().exit_code == 0
    assert differences(source.settings(tables={"t": OWN})) == {}
    return source


@pytest.mark.parametrize("engine", ["deltalake", "polars", "duckdb", "sail", "clickhouse", "query"])
def test_readers_have_the_rows(clustered: Source, engine: str) -> None:
    """Each reader has the source's rows, each once, and finds by a clustering column the same."""
    folder = clustered.table("t")
    names = dict(clustered.execute("SELECT id, name FROM t"))
    places = {i for (i,) in clustered.execute("SELECT id FROM t WHERE place = 3")}
    if engine == "duckdb":
        rows = by_duckdb_read(folder)
        found = rows.filter(place=3)["id"].to_list()
        everything = dict(rows.select("id", "name").rows())
    elif engine == "query":
        query = QueryBuilder().register("t", DeltaTable(str(folder)))
        rows = pl.DataFrame(query.execute("SELECT id, name, place FROM t").read_all())
        found = rows.filter(place=3)["id"].to_list()
        everything = dict(rows.select("id", "name").rows())
    else:
        named = {"deltalake": DeltaRs, "polars": Polars, "sail": Sail}
        reader = ClickHouse(folder.parent) if engine == "clickhouse" else named[engine]()
        try:
            everything = {row["id"]: row["name"] for row in reader.rows(folder, {})}
            found = [row["id"] for row in reader.rows(folder, {"place": 3})]
        finally:
            if isinstance(reader, (ClickHouse, Sail)):
                reader.close()
    assert everything == names
    assert sorted(found) == sorted(places)


def test_the_change_data_feed_is_read(clustered: Source) -> None:
    """Deltalake reads the feed, with one insert for each row, whatever was clustered since."""
    feed = pl.DataFrame(DeltaTable(str(clustered.table("t"))).load_cdf(0).read_all())
    counts = dict(feed["_change_type"].value_counts().rows())
    assert counts["insert"] == 900
    assert counts["delete"] == sum(1 for n in range(900) if n % 13 == 0)


def test_writers(source: Source) -> None:
    """Deltalake and polars refuse to write, in an error; DuckDB inserts, and bronze goes on: the
    next run compares, and the next clustering takes the file along.
    """
    source.execute(f"CREATE TABLE t ({COLUMNS})")
    source.execute("INSERT INTO t VALUES (1, 1, now(), 'one')")
    opened = bronze.Bronze(source.settings(tables={"t": OWN}))
    assert opened.run().exit_code == 0
    for refusing in (by_deltalake, append_by_polars):
        with pytest.raises(DeltaError, match=r"[Cc]luster|[Dd]omain"):
            append_a_row(source, "t", refusing)
    version = append_a_row(source, "t", by_duckdb)
    for number in range(2, 11):
        source.execute(f"INSERT INTO t VALUES ({number}, {number}, now(), 'more')")
        result = opened.run()
        assert result.exit_code == 0
        if number == 2:
            notes = [note for table in result.tables for note in table.notes]
            assert any(f"version {version}" in note for note in notes), notes
    state = log.read(Place(str(source.table("t"))))
    assert state is not None
    assert "bronze" in {file.provider for file in state.files}
    assert differences(source.settings(tables={"t": OWN})) == {}
    assert opened.verify().exit_code == opened.verify(at_rest=True).exit_code == 0
