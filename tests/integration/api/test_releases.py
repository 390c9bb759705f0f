"""Lakes that other releases of bronze have written: what is gone on with, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import bronze
from bronze.operate.service.service import serve
from bronze.operate.validation.validate import validate
from bronze.version import VERSION
from tests.conftest import Source


def test_a_lake_of_a_later_format_is_refused_with_a_sentence(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would write changes nothing, what would read shows nothing; check says why."""
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, word text)")
    source.execute("INSERT INTO orders VALUES (1, 'one')")
    opened = bronze.Bronze(source.settings())
    opened.run()
    (report,) = opened.check().tables
    assert report.written_by == VERSION
    assert not any("was written last" in note for note in report.notes)
    monkeypatch.setattr("bronze.delta.commit.VERSION", "9.1.0")
    source.execute("INSERT INTO orders VALUES (2, 'two')")
    opened.run()
    (report,) = opened.check().tables
    assert f"was written last by bronze 9.1.0; this is {VERSION}, which goes on with it" in (
        report.notes
    )
    monkeypatch.setattr("bronze.delta.commit.FORMAT", 2)
    source.execute("INSERT INTO orders VALUES (3, 'three')")
    monkeypatch.setattr("bronze.delta.log.FORMAT", 2)
    opened.run()
    monkeypatch.undo()

    before = sorted(str(path) for path in source.lake.rglob("*"))
    commands: list[Callable[[], Any]] = [
        opened.run,
        lambda: opened.stream(until_caught_up=True),
        opened.maintain,
        lambda: opened.verify(repair=True),
        lambda: opened.delete_old_versions("orders"),
        lambda: opened.table("orders"),
        lambda: opened.reveal("orders"),
        opened.quality,
        opened.audit,
        lambda: validate(opened.config),
        lambda: serve(opened.config, once=True),
    ]
    for command in commands:
        with pytest.raises(bronze.LakeError, match=r"by bronze 9.1.0 in format 2; this is bronze"):
            command()
    (report,) = opened.check().tables
    assert report.problem is not None
    assert "which knows format 1" in report.problem.message
    assert sorted(str(path) for path in source.lake.rglob("*")) == before
