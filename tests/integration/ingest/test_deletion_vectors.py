"""Tables with ``deletion_vectors = true``: files with few changes stay, and everything is equal."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

import bronze
from bronze.delta import log
from bronze.delta.write import merge
from bronze.errors import ConfigError
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from tests.conftest import Source
from tests.support import feed, streams
from tests.support.content import differences

ON = {"deletion_vectors": True}


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files get vectors, too."""
    monkeypatch.setattr(merge, "_SMALLEST_FILE", 0)


def vectored(source: Source) -> list[StoredFile]:
    """The files of the table that have a deletion vector."""
    state = log.read(Place(str(source.table("t"))))
    assert state is not None
    return [file for file in state.files if file.vector]


@pytest.mark.parametrize(
    "more",
    [{}, pytest.param({"pattern": "batch", "on_delete": "remove"}, marks=pytest.mark.soak)],
)
def test_runs_delete_by_vectors(source: Source, more: dict[str, Any]) -> None:
    """The second run marks updated and deleted rows in the old file, and adds the new ones; what
    the table says is the source's, its feed and its counts are true, and it can be repaired,
    maintained and erased from.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, name text, at timestamp DEFAULT now())")
    source.execute("INSERT INTO t SELECT g, 'name ' || g FROM generate_series(1, 500) g")
    settings = source.settings(tables={"t": {**ON, **more}}, run={"workers": 1})
    opened = bronze.Bronze(settings)
    assert opened.run().exit_code == 0
    for step in range(3):
        source.execute(
            f"UPDATE t SET name = 'new' WHERE id BETWEEN {step * 10} AND {step * 10 + 4}"
        )
        source.execute(f"DELETE FROM t WHERE id = {step * 10 + 7}")
        source.execute(f"INSERT INTO t VALUES ({step + 1000}, 'more')")
        (result,) = opened.run().tables
        assert result.error is None
        assert (result.inserted, result.updated, result.deleted) == (1, 5 - (step == 0), 1)
        assert differences(settings) == {}
        assert feed.faults(source.table("t")) == []
    (file,) = vectored(source)
    assert file.rows == 500 - 17
    assert opened.verify().exit_code == opened.verify(at_rest=True).exit_code == 0
    assert opened.table("t").collect().height == 500
    assert opened.forget("t", {"id": "7"}).exit_code == 0
    assert vectored(source) == []
    assert opened.maintain().exit_code == 0
    assert opened.verify().exit_code == 0


@pytest.mark.soak
def test_a_table_gets_the_feature_by_its_next_run(source: Source) -> None:
    """A table that was made without the option has the feature after a run with it, and then uses
    it; without the option its files are rewritten again.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
    source.execute("INSERT INTO t SELECT g, 'name ' || g FROM generate_series(1, 100) g")
    for number, own in enumerate(({}, ON, ON, {}), 1):
        opened = bronze.Bronze(source.settings(tables={"t": own}, run={"workers": 1}))
        source.execute(f"UPDATE t SET name = 'new' WHERE id = {number}")
        assert opened.run().exit_code == 0
        assert len(vectored(source)) == (number == 3)
        assert opened.verify().exit_code == 0


@pytest.mark.soak
def test_streams_delete_by_vectors(source: Source) -> None:
    """A batch of a stream marks rows in the files that are there; unchanged TOAST, keys that move
    and a TRUNCATE are applied all the same.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text, w text)")
    source.execute("ALTER TABLE t ALTER w SET STORAGE EXTERNAL")
    source.execute("INSERT INTO t SELECT g, 'v', repeat('w', 3000) FROM generate_series(1, 200) g")
    settings = streams.settings(source, {"t": {"pattern": "streaming", **ON}})
    streams.caught_up(settings)
    for statement in (
        "UPDATE t SET v = 'new' WHERE id IN (3, 150)",
        "UPDATE t SET id = id + 1000 WHERE id IN (5, 6)",
        "DELETE FROM t WHERE id < 3",
    ):
        source.execute(statement)
        streams.caught_up(settings)
        streams.proven(source, settings)
    assert vectored(source)
    source.execute("TRUNCATE t")
    source.execute("INSERT INTO t VALUES (1, 'again', NULL)")
    streams.caught_up(settings)
    assert differences(settings) == {}
    assert pl.read_delta(str(source.table("t"))).filter(record_status="ACTIVE").height == 1


def test_histories_have_no_use_for_vectors(source: Source) -> None:
    """A table whose rows never change cannot have the option."""
    with pytest.raises(ConfigError, match="deletion_vectors cannot be combined with history"):
        source.settings(tables={"t": {**ON, "history": True, "pattern": "batch"}})
