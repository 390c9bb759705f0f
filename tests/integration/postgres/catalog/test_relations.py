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


def test_relations_that_are_listed_are_those_of_the_catalog(source: Source) -> None:
    """With the same names, kinds and privileges."""
    source.execute(
        "CREATE TABLE t (id int, v int); CREATE TABLE p (id int) PARTITION BY LIST (id);"
        " CREATE TABLE one PARTITION OF p FOR VALUES IN (1); CREATE VIEW w AS SELECT * FROM t;"
        " CREATE MATERIALIZED VIEW m AS SELECT * FROM t; CREATE TABLE hidden (id int);"
        " CREATE SEQUENCE s"
    )
    role = f"lister_{source.dsn.rpartition('_')[2]}"
    source.execute(
        f"CREATE ROLE {role}; GRANT SELECT ON t, w TO {role}; GRANT SELECT (id) ON p TO {role}"
    )
    try:
        with connect.connect(Origin("test", source.dsn)) as connection:
            connection.execute(f"SET ROLE {role}")
            listed = catalog.list_relations(connection, ["public"])
            whole = catalog.relations(connection, ["public"])
    finally:
        source.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    known = [[(r.oid, r.label, r.kind, r.readable, r.whole) for r in rs] for rs in (listed, whole)]
    assert known[0] == known[1]
    assert [(r.name, r.readable, r.whole) for r in listed] == [
        ("hidden", False, False),
        ("m", False, False),
        ("p", True, False),
        ("t", True, True),
        ("w", True, True),
    ]
