"""The SELECT that reads the rows of a table: one expression per column, cast by its contract.

Result columns are named by position (c0, c1, …), because a driver may mishandle names. The last
one, ``rejected``, is NULL except in rows with values that Delta cannot hold. There it has a line
for each such value: a JSON array of the column's name and PostgreSQL's text of the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from psycopg import sql

from bronze.model.columns import Column

# A PostgreSQL function takes at most 100 arguments.
_MAX_ARGUMENTS = 90


@lru_cache(4096)
def quoted(*names: str) -> str:
    """A qualified name in SQL, for example ``"tests"."orders"``."""
    return sql.Identifier(*names).as_string(None)


def literal(text: str) -> str:
    """A string literal in SQL."""
    return sql.Literal(text).as_string(None)


def select(columns: Sequence[Column], relation: str) -> str:
    """The SELECT without a WHERE clause. ``relation`` is a quoted name."""
    values = [f"{column.select} AS c{i}" for i, column in enumerate(columns)]
    values.append(f"{rejected_values(columns)} AS rejected")
    return f"SELECT {', '.join(values)} FROM {relation}"  # noqa: S608 - quoted names


def rejected_values(columns: Sequence[Column]) -> str:
    """The SQL expression for a row's rejected values as text; NULL if it has none."""
    checked = [column for column in columns if column.reject]
    if not checked:
        return "NULL::text"
    lines = [
        f"CASE WHEN {column.reject} THEN"
        f" json_build_array({literal(column.name)}::text, ({column.text}))::text || chr(10) END"
        for column in checked
    ]
    while len(lines) > 1:
        chunks = range(0, len(lines), _MAX_ARGUMENTS)
        lines = [f"concat({', '.join(lines[i : i + _MAX_ARGUMENTS])})" for i in chunks]
    condition = " OR ".join(f"({column.reject})" for column in checked)
    return f"CASE WHEN {condition} THEN {lines[0]} END"
