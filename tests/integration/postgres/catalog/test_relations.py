"""The relations of the catalog, as one moment has them."""

from __future__ import annotations

from typing import Any

import pytest

from bronze.model.locations import Origin
from bronze.postgres.catalog import relations as catalog
from bronze.postgres.connection import connect
from tests.conftest import Source


def test_a_type_that_comes_while_the_catalog_is_read_is_no_error(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All queries of the catalog see one state, also outside of a transaction."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v cidr)")
    rows = catalog._rows

    def meanwhile(*arguments: Any) -> list[Any]:
        found = rows(*arguments)
        if "inet" not in altered:
            altered.append("inet")
            return found
        if len(altered) == 1:
            altered.append("done")
            source.execute("ALTER TABLE t ALTER v TYPE inet")
        return found

    altered = list[str]()
    monkeypatch.setattr(catalog, "_rows", meanwhile)
    with connect.connect(Origin("test", source.dsn)) as connection:
        (before,) = catalog.relations(connection, ["public"])
        (after,) = catalog.relations(connection, ["public"])
    assert altered == ["inet", "done"]
    assert [relation.attributes[1].type.name for relation in (before, after)] == ["cidr", "inet"]
