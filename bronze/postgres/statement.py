"""The SELECT that fetches a table's rows: columns named one by one, cast by the contract.

Result columns are named by position (c0, c1, …), because a driver may mishandle names; the last
one, ``rejected``, is NULL but for rows with values that Delta cannot hold. There it has a line
for each of them: a JSON array of the column's name and PostgreSQL's text of the value.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from bronze.model.columns import Column

# A PostgreSQL function takes at most 100 arguments.
_ARGUMENTS = 90


def quoted(*names: str) -> str:
    """A qualified name in SQL, for example ``"tests"."orders"``."""
    return sql.Identifier(*names).as_string(None)


def literal(text: str) -> str:
    """A string constant in SQL."""
    return sql.Literal(text).as_string(None)


def select(columns: Sequence[Column], relation: str) -> str:
    """The SELECT without its WHERE. ``relation`` is a quoted name."""
    values = [f"{column.select} AS c{i}" for i, column in enumerate(columns)]
    values.append(f"{rejected(columns)} AS rejected")
    return f"SELECT {', '.join(values)} FROM {relation}"  # noqa: S608 - made of quoted names


def rejected(columns: Sequence[Column]) -> str:
    """The SQL of a row's rejected values as text, NULL where it has none."""
    risky = [column for column in columns if column.reject]
    if not risky:
        return "NULL::text"
    lines = [
        f"CASE WHEN {column.reject} THEN"
        f" json_build_array({literal(column.name)}::text, ({column.text}))::text || chr(10) END"
        for column in risky
    ]
    while len(lines) > 1:
        chunks = range(0, len(lines), _ARGUMENTS)
        lines = [f"concat({', '.join(lines[i : i + _ARGUMENTS])})" for i in chunks]
    condition = " OR ".join(f"({column.reject})" for column in risky)
    return f"CASE WHEN {condition} THEN {lines[0]} END"
