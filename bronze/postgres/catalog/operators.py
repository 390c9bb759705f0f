"""The operators that compare values of a type in SQL, qualified by their schema.

PostgreSQL looks ``=`` and ``<`` up in the session's search_path, which has only pg_catalog. The
operators of an extension's type are in the extension's schema: unqualified, they would compare
citext as text, case-sensitively, and fail on ltree. GROUP BY, ORDER BY, DISTINCT and indexes use
the type's operator class, and need no qualified operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bronze.postgres.connection.connect import Connection


@dataclass(frozen=True)
class ComparisonOperators:
    """The comparison operators of a type, in SQL."""

    equal: str = "="
    less: str = "<"
    at_least: str = ">="


DEFAULT_OPERATORS = ComparisonOperators()
"""The operators of PostgreSQL's own types."""

_OPERATORS = """
WITH RECURSIVE used(name, type) AS (
    SELECT a.attname, a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
    SELECT used.name, t.typbasetype FROM used JOIN pg_type t ON t.oid = used.type
    WHERE t.typtype = 'd'
)
SELECT used.name, m.amname, p.amopstrategy, format('OPERATOR(%%I.%%s)', n.nspname, o.oprname)
FROM used
JOIN pg_opclass c ON c.opcintype = used.type AND c.opcdefault
JOIN pg_am m ON m.oid = c.opcmethod
JOIN pg_amop p ON p.amopfamily = c.opcfamily AND p.amoplefttype = used.type
    AND p.amoprighttype = used.type AND p.amoppurpose = 's'
JOIN pg_operator o ON o.oid = p.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
WHERE n.nspname <> 'pg_catalog'
"""
# The field of `ComparisonOperators` by access method and strategy number.
_STRATEGIES = {
    ("hash", 1): "equal",
    ("btree", 3): "equal",
    ("btree", 1): "less",
    ("btree", 4): "at_least",
}


def comparison_operators(
    connection: Connection, schema: str, table: str
) -> Mapping[str, ComparisonOperators]:
    """The operators of the columns whose types are not PostgreSQL's own, by column name.

    Raises:
        psycopg.Error
    """
    operators_of: dict[str, dict[str, str]] = {}
    rows: list[Any] = connection.execute(_OPERATORS, [schema, table]).fetchall()
    for name, method, strategy, operator in rows:
        field = _STRATEGIES.get((method, strategy))
        if field:
            operators_of.setdefault(name, {})[field] = operator
    return {name: ComparisonOperators(**operators) for name, operators in operators_of.items()}
