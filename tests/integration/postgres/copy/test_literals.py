"""Texts that are equal by a type, as PostgreSQL is asked for them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from bronze.postgres.catalog.operators import comparison_operators
from bronze.postgres.catalog.relations import relations
from bronze.postgres.copy import literals
from tests.conftest import Source
from tests.support.features import has


class _Counting(psycopg.Connection[Any]):
    """A connection that counts what it is asked."""

    asked = 0

    def execute(self, *arguments: Any, **named: Any) -> Any:
        self.asked += 1
        return super().execute(*arguments, **named)


@pytest.mark.parametrize("can_tell", [True, False])
def test_texts_that_are_no_values_cost_little(
    source: Source, monkeypatch: pytest.MonkeyPatch, can_tell: bool
) -> None:
    """Where PostgreSQL can tell which texts a type reads, it is asked once; elsewhere no text is
    asked twice that was refused.
    """
    if not can_tell:
        monkeypatch.setattr(literals, "_CAN_TELL", 10**9)
    source.execute('CREATE DOMAIN "100%" AS uuid; CREATE TABLE t (u uuid, d "100%", n numeric)')
    equal = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    texts = [f"not {i}" for i in range(100)] + [equal.upper(), f"{{{equal}}}", "7", "7.0"]
    with _Counting.connect(source.dsn, autocommit=True) as connection:
        (relation,) = relations(connection, ["public"])
        known = dict(comparison_operators(connection, "public", "t"))
        columns = literals.typed(connection, relation.oid, relation.attributes, known)
        for name, one, two in (("u", equal, texts[100:102]), ("d", equal, texts[100:102]),
                               ("n", "7", texts[102:])):  # fmt: skip
            refused: set[str] = set()
            before = connection.asked
            found = literals.equal(connection, columns[name], one, texts, refused)
            assert sorted(found) == sorted(two)
            first = connection.asked - before
            assert literals.equal(connection, columns[name], one, texts, refused) == found
            again = connection.asked - before - first
            assert again == 1
            if can_tell and has("pg_input_is_valid"):
                assert (first, refused) == (1, set())
            else:
                assert first > 100
                assert len(refused) == 102
