"""Tables whose rows bronze has deleted by deletion vectors, as other engines read them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, QueryBuilder

import bronze
from bronze.delta import log
from bronze.delta.write import merge
from bronze.demo.server import running
from bronze.model.locations import Place
from tests.conftest import FAST, Source, database
from tests.interop.test_interop import ClickHouse, Polars, Sail
from tests.interop.test_writers import by_duckdb_read

pytestmark = [
    pytest.mark.interop,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]
ROWS = 3000


@dataclass(frozen=True)
class Marked:
    """A table with vectors: its folder, the names by id that it has, and its first version with a
    vector.
    """

    folder: Path
    names: dict[int, str]
    first: int


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marked]:
    """Three files, two merges by vectors, a checkpoint in between."""
    folder = tmp_path_factory.mktemp("vectors")
    with (
        running(folder / "postgres", settings=FAST) as server,
        database(server, folder / "lake") as source,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(merge, "_SMALLEST_FILE", 0)
        yield _marked(source)


def _marked(source: Source) -> Marked:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
    own = {"deletion_vectors": True, "on_delete": "remove"}
    opened = bronze.Bronze(source.settings(tables={"t": own}, maintain={"auto": False}))
    for first in range(0, ROWS, 1000):
        rows = f"generate_series({first}, {first + 999}) g"
        source.execute(f"INSERT INTO t SELECT g, 'name ' || g FROM {rows}")
        assert opened.run().exit_code == 0
    source.execute("DELETE FROM t WHERE id % 17 = 0")
    source.execute("UPDATE t SET name = 'new' WHERE id % 29 = 1")
    assert opened.run().exit_code == 0
    table = DeltaTable(str(source.table("t")))
    first = table.version()
    table.create_checkpoint()
    source.execute("DELETE FROM t WHERE id % 31 = 0")
    source.execute("INSERT INTO t VALUES (5000, 'added')")
    assert opened.run().exit_code == 0
    state = log.read(Place(str(source.table("t"))))
    assert state is not None
    assert sum(file.vector is not None for file in state.files) >= 3
    names = dict(source.execute("SELECT id, name FROM t"))
    return Marked(source.table("t"), names, first)


@pytest.mark.parametrize("engine", ["polars", "duckdb", "sail", "clickhouse", "query"])
def test_readers_leave_out_deleted_rows(marked: Marked, engine: str) -> None:
    """Each reader has the source's rows, each once, and finds by a key what is there."""
    rows = dict(_read(engine, marked.folder, ""))
    assert rows == marked.names
    assert len(_read(engine, marked.folder, "")) == len(marked.names)
    assert _read(engine, marked.folder, "id = 17") == []
    assert _read(engine, marked.folder, "id = 30") == [(30, "new")]


def _read(engine: str, folder: Path, where: str) -> list[tuple[int, str]]:
    """The ids and names that a reader finds."""
    found: Any
    key: dict[str, Any] = {"id": int(where.rpartition(" ")[2])} if where else {}
    if engine == "query":
        condition = f" WHERE {where}" if where else ""
        query = QueryBuilder().register("t", DeltaTable(str(folder)))
        found = pl.DataFrame(query.execute(f"SELECT id, name FROM t{condition}").read_all())
        return [(int(a), str(b)) for a, b in found.rows()]
    if engine == "duckdb":
        found = by_duckdb_read(folder)
        found = found.filter(pl.col("id") == key["id"]) if key else found
        return [(int(a), str(b)) for a, b in found.select("id", "name").rows()]
    if engine == "polars":
        found = Polars().rows(folder, key)
    else:
        reader = Sail() if engine == "sail" else ClickHouse(folder.parent)
        try:
            found = reader.rows(folder, key)
        finally:
            reader.close()
    return [(int(row["id"]), str(row["name"])) for row in found]


def test_counts_are_of_the_rows_that_are_there(marked: Marked) -> None:
    """DuckDB, Sail and polars count what is there; ClickHouse needs a setting for it."""
    expected = len(marked.names)
    assert pl.scan_delta(str(marked.folder)).select(pl.len()).collect().item() == expected
    assert by_duckdb_read(marked.folder).height == expected
    chdb = pytest.importorskip("chdb")
    connection = chdb.connect(f":memory:?user_files_path={marked.folder.parent}")
    query = f"SELECT count() FROM deltaLakeLocal('{marked.folder}')"
    setting = " SETTINGS optimize_trivial_count_query = 0"
    with closing(connection), contextlib.chdir(marked.folder.parent):
        wrong = int(connection.query(query, "CSV").bytes())
        right = int(connection.query(query + setting, "CSV").bytes())
    assert right == expected
    # Once this fails, `bronze check` need not warn of it any more.
    assert wrong > expected


def test_readers_without_vectors_refuse(marked: Marked) -> None:
    """Pyarrow's reader says that it cannot, rather than showing deleted rows."""
    with pytest.raises(Exception, match="deletionVectors"):
        DeltaTable(str(marked.folder)).to_pyarrow_table()


def test_the_change_data_feed_is_read(marked: Marked) -> None:
    """The feed of versions with vectors is read by deltalake. It has a process of its own, as one
    would end by a commit with a vector and without files of the feed.
    """
    read = (
        "import sys; from deltalake import DeltaTable; import collections;"
        "t = DeltaTable(sys.argv[1]).load_cdf(starting_version=int(sys.argv[2])).read_all();"
        "print(sorted(collections.Counter(map(str, t['_change_type'].to_pylist())).items()))"
    )
    command = [sys.executable, "-c", read, str(marked.folder), str(marked.first)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    deleted = sum(1 for n in range(ROWS) if n % 17 == 0)
    updated = sum(1 for n in range(ROWS) if n % 29 == 1 and n % 17)
    later = sum(1 for n in range(ROWS) if n % 31 == 0 and n % 17)
    expected = [
        ("delete", deleted + later),
        ("insert", 1),
        ("update_postimage", updated),
        ("update_preimage", updated),
    ]
    assert done.stdout.strip() == str(expected)
