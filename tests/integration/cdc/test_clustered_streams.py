"""Streamed tables with ``liquid`` and with ``cluster_by = "auto"``: sync, apply, maintenance."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from bronze.delta.layout import choice
from bronze.maintenance import background
from tests.conftest import Source
from tests.support.streams import caught_up, proven, rows, streaming, table_state, until

pytestmark = pytest.mark.soak

_COLUMNS = "id int PRIMARY KEY, shop int, at timestamp, v text"


def insert(source: Source, first: int, count: int) -> None:
    """Adds rows of 97 shops, in no order of them."""
    source.execute(
        "INSERT INTO t SELECT g, (g * 7919) % 97, '2026-01-01'::timestamp + g * interval '1 hour',"
        f" md5(g::text) FROM generate_series({first}, {first + count - 1}) g"
    )


def test_a_stream_clusters_a_liquid_table(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table sync makes the clustering; each batch keeps it, whatever its changes are; what the
    stream's maintenance clusters says so; and the table and its feed are the source's.
    """
    source.execute(f"CREATE TABLE t ({_COLUMNS})")
    insert(source, 0, 100)
    monkeypatch.setattr(background, "_INTERVAL", 0.1)
    own = {"pattern": "streaming", "cluster_by": ["shop", "at"], "liquid": True}
    given = source.settings(
        tables={"t": own}, stream={"interval": 0}, maintain={"auto": True, "file_size": "1MB"}
    )
    caught_up(given)
    assert table_state(source).clustering == ("shop", "at")
    with streaming(given):
        for first in range(100, 1300, 100):
            insert(source, first, 100)
            source.execute(f"UPDATE t SET shop = shop + 1 WHERE id = {first - 50}")
            source.execute(f"DELETE FROM t WHERE id = {first - 60}")
            height = first + 100 - first // 100
            until(partial(has_height, source, height))
        until(lambda: any(file.provider == "bronze" for file in table_state(source).files))
    assert table_state(source).clustering == ("shop", "at")
    proven(source, given)


def has_height(source: Source, height: int) -> bool:
    """Whether the Bronze table has so many rows."""
    return rows(source).height == height


def test_a_stream_of_a_table_that_chooses_its_columns(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns are chosen once the table is large enough, by what the stream has applied, and kept
    while it goes on.
    """
    source.execute(f"CREATE TABLE t ({_COLUMNS})")
    insert(source, 0, 100)
    queries = tmp_path / "queries.sql"
    queries.write_text("SELECT * FROM bz_t WHERE shop = 3;\n")
    given = source.settings(
        tables={"t": {"pattern": "streaming", "cluster_by": "auto"}},
        stream={"interval": 0},
        maintain={"file_size": "1MB", "queries": str(queries)},
    )
    caught_up(given)
    assert not choice.chosen(table_state(source))
    monkeypatch.setattr(background, "_INTERVAL", 0.1)
    with streaming(given):
        insert(source, 100, 90_000)
        until(lambda: choice.chosen(table_state(source)) == ("shop",))
        source.execute("UPDATE t SET v = 'new' WHERE id % 1000 = 1")
        source.execute("DELETE FROM t WHERE id = 6")
        until(lambda: rows(source).height == 90_099)
    caught_up(given)
    state = table_state(source)
    assert choice.chosen(state) == ("shop",)
    assert all("shop" in dict(file.low) for file in state.files)
    proven(source, given)
