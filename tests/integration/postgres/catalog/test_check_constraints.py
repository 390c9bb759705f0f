"""CHECK constraints: a translated condition means the same in polars as in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bronze.model.columns import Column
from bronze.postgres import statement
from bronze.postgres.catalog.check_constraints import check_expression
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.connection import connect
from bronze.postgres.copy import rows_reader
from bronze.tables import selection
from tests.conftest import Source
from tests.support.effort import examples

TABLE = """
CREATE TABLE t (
    id int PRIMARY KEY, a smallint, b int, big bigint, p numeric(8, 2), q numeric(8, 2),
    wide numeric, f float8, f4 float4, s text, v varchar(9), c char(4), folded text,
    ok boolean, no boolean, d date, ts timestamp, tz timestamptz, "Odd""name" int
);
INSERT INTO t (id) VALUES (0);
INSERT INTO t SELECT i, x, x, x, x + 0.25, x - 0.25, x, x / 2.0, x / 2.0, w, w, w, w, i % 2 = 0,
    i % 3 = 0, '2020-01-01'::date + x, '2020-01-01'::timestamp + x * interval '12 hours',
    '2020-01-01 00:00Z'::timestamptz + x * interval '12 hours', x
FROM (SELECT i, i % 7 - 3 AS x, (ARRAY['a', 'A', 'b ', 'ab', 'é', ''])[i % 6 + 1] AS w
      FROM generate_series(1, 42) i) AS made;
INSERT INTO t (id, f, p, d) VALUES (100, 'NaN', 'NaN', 'infinity'), (102, '-0', -1, NULL),
    (101, 'Infinity', 1, '-infinity'), (103, '-Infinity', NULL, '0001-01-01 BC')
"""

_ORDER = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])
_SAME = st.sampled_from(["=", "<>"])
_NUMBER = st.sampled_from(["-3", "-1", "0", "1", "2"])
_EXACT = st.sampled_from(["-1", "0", "0.25", "1.25", "0.5", "2.750", "0.001", "123456789012.5"])
_WORD = st.sampled_from(["'a'", "'A'", "'b '", "'é'", "''", "'nobody'"])


def _joined(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(" ".join)


_LEAVES = st.one_of(
    _joined(st.sampled_from(["a", "b", "big", '"Odd""name"', "a + b", "b - 1"]), _ORDER, _NUMBER),
    _joined(st.sampled_from(["a", "b", "p"]), _ORDER, st.sampled_from(["b", "q", "a"])),
    _joined(st.sampled_from(["p", "q", "wide", "b"]), _ORDER, _EXACT),
    _joined(st.just("f"), _ORDER, st.sampled_from(["0", "0.5", "'Infinity'", "-1"])),
    _joined(st.just("f4"), _ORDER, st.just("0.5")),
    _joined(st.sampled_from(["s", "v", "c", "folded"]), _SAME | _ORDER, _WORD),
    _joined(st.sampled_from(["s", "v", "c"]), st.just("IN ('a', 'b', 'é')")),
    _joined(st.sampled_from(["s", "v"]), st.just("NOT IN ('a', 'b ')")),
    _joined(st.just("b"), st.sampled_from(["BETWEEN -1 AND 2", "IN (1, 2)", "NOT IN (0, 3)"])),
    _joined(st.sampled_from(["length(s)", "char_length(v)", "length(c)"]), _ORDER, _NUMBER),
    _joined(st.just("d"), _ORDER, st.sampled_from(["'2020-01-01'", "'2019-12-30'"])),
    _joined(st.just("ts"), _ORDER, st.just("'2020-01-01 12:00'")),
    _joined(st.just("tz"), _ORDER, st.just("'2020-01-01 12:00+00'")),
    _joined(
        st.sampled_from(["b", "s", "ok", "p", "d", "f", "ts"]),
        st.sampled_from(["IS NULL", "IS NOT NULL"]),
    ),
    st.sampled_from(
        ["ok", "NOT ok", "ok IS TRUE", "ok IS NOT TRUE", "no IS FALSE", "ok = no", "ok = true",
         "(b > 0) IS TRUE", "(p > 0) IS NOT TRUE", "s ~ 'a'", "upper(s) = 'A'", "b % 2 = 0",
         "b * 2 > 1", "coalesce(b, 0) > 0", "s LIKE 'a%'", "b::text = '1'", "f::int > 0"]
    ),
)  # fmt: skip
CLAUSES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        inner.map("NOT ({})".format),
        _joined(inner.map("({})".format), st.sampled_from(["AND", "OR"]), inner.map("({})".format)),
    ),
    max_leaves=4,
)


class CheckedTable:
    """The table in PostgreSQL, and its rows as they are read."""

    def __init__(self, source: Source, connection: psycopg.Connection[Any]) -> None:
        """Creates the table and reads it."""
        source.execute(TABLE)
        self.connection = connection
        given_settings = source.settings()
        origin = given_settings.origin("test")
        with connect.connect(origin) as reader:
            self.relation: Relation = relations(reader, ["public"])[0]
            (target,) = selection.select_targets(given_settings, [("test", self.relation)], ())
            self.columns: tuple[Column, ...] = selection.contract_columns(target)
        query = statement.select(self.columns, '"public"."t"')
        ((self.rows, self.rejected),) = rows_reader.read_rows(
            origin, (), query, ["true"], self.columns, "t"
        )
        self.rows = self.rows.sort("id")

    def catalog_text(self, clause: str) -> str:
        """The clause as PostgreSQL writes it in its catalog."""
        self.connection.execute(f"ALTER TABLE t ADD CONSTRAINT tried CHECK ({clause}) NOT VALID")
        row = self.connection.execute(
            "SELECT pg_get_expr(conbin, conrelid) FROM pg_constraint WHERE conname = 'tried'"
        ).fetchone()
        self.connection.execute("ALTER TABLE t DROP CONSTRAINT tried")
        assert row
        return str(row[0])

    def violations(self, clause: str) -> list[bool]:
        """Which rows violate a clause, by PostgreSQL."""
        rows = self.connection.execute(f"SELECT ({clause}) IS FALSE FROM t ORDER BY id")
        return [bool(row[0]) for row in rows]

    def translated_violations(self, clause: str) -> list[bool] | None:
        """Which rows violate a clause by its translation; None if it is not translated."""
        condition = check_expression(self.catalog_text(clause), self.columns, ["folded"])
        if condition is None:
            return None
        return self.rows.select(condition.not_().fill_null(False)).to_series().to_list()


@pytest.fixture
def checked(source: Source) -> Iterator[CheckedTable]:
    """The table of these tests."""
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        yield CheckedTable(source, connection)


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=examples(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(CLAUSES)
def test_a_translated_condition_has_the_same_violations(checked: CheckedTable, clause: str) -> None:
    """For random conditions: a row that satisfies one in PostgreSQL never violates its translation,
    and without rejected values the violating rows are the same.
    """
    try:
        translation = checked.translated_violations(clause)
    except psycopg.errors.UndefinedFunction:
        assume(False)
    if translation is None:
        return
    in_postgresql = checked.violations(clause)
    ids = checked.rows["id"].to_list()
    for number, violated, expected in zip(ids, translation, in_postgresql, strict=True):
        if number < 100 or number == 102:
            assert violated == expected, (number, clause)
        else:
            assert expected or not violated, (number, clause)


COMMON = [
    "b > 0 AND p < 1000",
    "s IN ('a', 'b')",
    "v IN ('a', 'b')",
    "v NOT IN ('a', 'b')",
    "length(s) <= 3",
    "b BETWEEN 1 AND 9",
    "b IS NOT NULL OR NOT ok",
    "d >= '2020-01-01'",
    "p >= 0.01",
    "a + b < 10",
    "p <= q",
    "f > 0.5",
    "tz > '2020-01-01 00:00Z'",
    "ok IS TRUE",
    "(b > 0) IS NOT FALSE",
]


def test_common_conditions_are_translated(checked: CheckedTable) -> None:
    """The usual conditions are translated, and the same rows violate them."""
    ordinary = checked.rows["id"] < 100
    for clause in COMMON:
        translation = checked.translated_violations(clause)
        assert translation is not None, clause
        pairs = zip(ordinary, translation, checked.violations(clause), strict=True)
        assert all(one == other for usual, one, other in pairs if usual), clause


LEFT_OUT = [
    "s > 'a'",
    "folded = 'a'",
    "c = 'a'",
    "s ~ '^a'",
    "s LIKE 'a%'",
    "lower(s) = 'a'",
    "p IS NOT NULL",
    "d IS NULL",
    "(p > 0) IS NOT TRUE",
    "p > 0.001",
    "p > 123456789012",
    "big + 1 > 0",
    "b * b > 0",
    "b / 2 > 0",
    "f4 > 0.5",
    "wide > 0",
    "coalesce(b, 1) > 0",
    "d > 'infinity'",
    "f < 'NaN'",
    "num_nonnulls(a, b) = 1",
    "extract(year from ts) > 2000",
]


def test_conditions_that_may_differ_in_polars_are_not_translated(checked: CheckedTable) -> None:
    """The order of texts, nondeterministic collations, char(n), functions, rejected values."""
    assert [
        clause for clause in LEFT_OUT if checked.translated_violations(clause) is not None
    ] == []


def test_a_condition_on_unknown_columns_is_not_translated() -> None:
    """For example on columns that the role may not read."""
    assert check_expression("(b > 0)", ()) is None
    assert check_expression("not ( sql", ()) is None


def test_schema_qualified_objects_are_not_translated(checked: CheckedTable) -> None:
    """An operator, function or type outside pg_catalog is not translated, whatever its name."""
    for clause in (
        "(s OPERATOR(ext.=) 'x'::text)",
        "(b OPERATOR(ext.>) 3)",
        "(s OPERATOR(ext.<>) ALL (ARRAY['a'::text]))",
        "(public.length(s) > 3)",
        "(s = 'x'::public.text)",
        "(b > '3'::public.\"integer\")",
        "((b)::public.int4 > 3)",
        "(s = ANY (ARRAY['x'::public.text]))",
    ):
        assert check_expression(clause, checked.columns) is None, clause
    assert check_expression("(length(s) > 3)", checked.columns) is not None


def test_a_translation_uses_the_column_names_of_the_source(checked: CheckedTable) -> None:
    """Also where PostgreSQL quotes a name."""
    condition = check_expression(checked.catalog_text('"Odd""name" > 0'), checked.columns)
    assert condition is not None
    assert condition.meta.root_names() == ['Odd"name']
    assert isinstance(condition, pl.Expr)
