"""How values are compared in SQL, by the operators of their type.

``=`` and ``<`` are looked up by name, in the session's search_path. Those of an extension's type
are in the extension's schema: without it, citext would be compared as text, where small letters
differ from capital ones, and ltree not at all. GROUP BY, ORDER BY, DISTINCT and indexes need no
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bronze.postgres.connection.connect import Connection


@dataclass(frozen=True)
class Comparison:
    """Operators in SQL."""

    equal: str = "="
    less: str = "<"
    at_least: str = ">="


PLAIN = Comparison()
"""Those of PostgreSQL's own types."""

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
# (access method, its strategy): the operator
_STRATEGIES = {
    ("hash", 1): "equal",
    ("btree", 3): "equal",
    ("btree", 1): "less",
    ("btree", 4): "at_least",
}


def comparisons(connection: Connection, schema: str, table: str) -> Mapping[str, Comparison]:
    """How to compare values of those columns whose types are not PostgreSQL's own.

    Raises:
        psycopg.Error
    """
    found: dict[str, dict[str, str]] = {}
    rows: list[Any] = connection.execute(_OPERATORS, [schema, table]).fetchall()
    for name, method, strategy, operator in rows:
        known = _STRATEGIES.get((method, strategy))
        if known:
            found.setdefault(name, {})[known] = operator
    return {name: Comparison(**operators) for name, operators in found.items()}
