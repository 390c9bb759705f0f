"""``cluster_by = "auto"`` from the config to the files, with what it tells the user."""

from __future__ import annotations

from pathlib import Path

import pytest

import bronze
from bronze.delta import log
from bronze.delta.layout import choice
from bronze.model.locations import Place
from tests.conftest import Source
from tests.support.content import differences

pytestmark = pytest.mark.soak


def test_columns_are_chosen_by_the_query_log(source: Source, tmp_path: Path) -> None:
    """The run that makes the table large enough says what was chosen and why, and clusters it;
    ``check`` says it again; another run keeps it.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, shop int, noise text)")
    queries = tmp_path / "queries.sql"
    queries.write_text("SELECT * FROM bz_t WHERE shop = 3;\nSELECT WHERE ;\n")
    settings = source.settings(
        tables={"t": {"pattern": "batch", "cluster_by": "auto"}},
        maintain={"file_size": "1MB", "queries": str(queries)},
    )
    opened = bronze.Bronze(settings)
    assert opened.run().exit_code == 0
    (report,) = opened.check().tables
    assert any("has chosen no columns yet" in note for note in report.notes)
    source.execute(
        "INSERT INTO t SELECT g, (g * 7919) % 97, md5(g::text) FROM generate_series(1, 90000) g"
    )
    (table,) = opened.run().tables
    (note,) = [note for note in table.notes if "auto" in note]
    assert 'cluster_by = "auto" clusters it by shop: filters skip' in note
    assert "shop is in 1 of 1 filters" in note
    state = log.read(Place(str(source.table("t"))))
    assert state is not None
    assert choice.chosen(state) == ("shop",)
    assert "shop" in dict(state.files[0].low)
    (report,) = opened.check().tables
    assert note in report.notes
    assert "1 statements of the query log cannot be parsed" in report.notes
    source.execute("UPDATE t SET shop = 1 WHERE id = 5")
    (again,) = opened.run().tables
    assert not [note for note in again.notes if "auto" in note]
    assert differences(settings) == {}
    queries.unlink()
    (failed,) = opened.run().tables
    assert any("query log" in note for note in failed.notes)
